"""What a language model learns from: JSON lines, optionally gzipped, each of one of these forms.

- `{"text": "..."}`: every token is learnt;
- `{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}`: the answers are learnt;
- `{"instruction": "...", "input": "...", "output": "..."}` (input may be empty or absent) and
  `{"prompt": "...", "response": "..."}`: a conversation of one question and its answer;
- `{"input_ids": [1, 403, ...]}`: token ids as they are, all of them learnt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from chainfed.core.chat import ROLES, Message
from chainfed.core.errors import BadInputError
from chainfed.core.json_lines import read_objects

_Item = TypeVar("_Item")

_QUESTIONS = (("instruction", "output"), ("prompt", "response"))
FORMS = "`text`, `messages`, `instruction` with `output`, `prompt` with `response`, or `input_ids`"


@dataclass(frozen=True)
class Passage:
    """A text, a conversation or token ids: exactly one of them. `where` names file and line."""

    where: str
    text: str | None = None
    messages: tuple[Message, ...] = ()
    ids: tuple[int, ...] = ()


def read_passages(path: Path) -> list[Passage]:
    """The passages of a file.

    Raises BadInputError, naming file and line, when the file is absent, empty or not JSON lines, or a row has none of
    the forms above.
    """
    return [read_passage(row, where) for row, where in read_objects(path, FORMS)]


def read_passage(row: Mapping[str, Any], where: str) -> Passage:
    """A row of a passages file. Raises BadInputError, naming `where`, when it has none of the forms."""
    if "messages" in row:
        return Passage(where, messages=_messages(row["messages"], where))
    if "input_ids" in row:
        return Passage(where, ids=_ids(row["input_ids"], where))
    for question, answer in _QUESTIONS:
        if question in row and answer in row:
            parts = [_string(row, question, where), _string(row, "input", where) if "input" in row else ""]
            asked = "\n\n".join(part for part in parts if part)
            return Passage(where, messages=(Message("user", asked), Message("assistant", _string(row, answer, where))))
    if "text" in row:
        return Passage(where, text=_string(row, "text", where))
    raise BadInputError(f"{where} holds none of the forms of a passage; give {FORMS}.")


def _string(row: Mapping[str, Any], field: str, where: str) -> str:
    value = row[field]
    if not isinstance(value, str):
        raise BadInputError(f"{where}: `{field}` is {type(value).__name__}, but must be a string.")
    return value


def _messages(value: Any, where: str) -> tuple[Message, ...]:
    def message(turn: Any) -> Message:
        if not isinstance(turn, dict) or turn.get("role") not in ROLES or not isinstance(turn.get("content"), str):
            raise BadInputError(
                f"{where}: a turn of `messages` is not like {{'role': 'user', 'content': '...'}}; roles are "
                f"{', '.join(ROLES)}."
            )
        return Message(turn["role"], turn["content"])

    turns = _list(value, "messages", where, message)
    if not any(turn.role == "assistant" for turn in turns):
        raise BadInputError(
            f"{where}: `messages` holds no turn of the assistant, so there is nothing to learn from it."
        )
    return turns


def _ids(value: Any, where: str) -> tuple[int, ...]:
    def token(given: Any) -> int:
        if not isinstance(given, int) or isinstance(given, bool) or given < 0:
            raise BadInputError(f"{where}: `input_ids` holds {given!r}, which is no token id; give whole numbers.")
        return given

    return _list(value, "input_ids", where, token)


def _list(value: Any, field: str, where: str, item: Callable[[Any], _Item]) -> tuple[_Item, ...]:
    if not isinstance(value, list) or not value:
        raise BadInputError(f"{where}: `{field}` must be a list that is not empty.")
    return tuple(item(each) for each in value)
