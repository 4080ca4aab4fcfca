"""Log lines."""

import json
import logging

from chainfed.coordinator.logs import JsonFormatter, TextFormatter


def record() -> logging.LogRecord:
    made = logging.makeLogRecord(
        {"name": "chainfed", "levelname": "INFO", "msg": "round %s opened", "args": (3,), "created": 0.5}
    )
    made.run = "abc"
    return made


def test_text_names_time_level_and_fields() -> None:
    assert TextFormatter().format(record()) == "1970-01-01T00:00:00.500+00:00 INFO round 3 opened run=abc"


def test_json_is_one_object() -> None:
    assert json.loads(JsonFormatter().format(record())) == {
        "time": "1970-01-01T00:00:00.500+00:00",
        "level": "INFO",
        "message": "round 3 opened",
        "run": "abc",
    }
