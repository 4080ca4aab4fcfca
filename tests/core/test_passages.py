"""Rows of a language model's data, and conversations as pieces of text."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from chainfed.core.chat import Message, Piece, conversation, question
from chainfed.core.data_files import count_rows
from chainfed.core.errors import BadInputError
from chainfed.core.manifest import Chat
from chainfed.core.passages import Passage, read_passages

CHAT = Chat(
    between={
        "start>user": "<u>",
        "user>assistant": "</u><a>",
        "user>": "</u><a>",
        "assistant>user": "</a><u>",
        "assistant>end": "</a>",
    },
    end_of_turn="</a>",
    strip=True,
    special_tokens=False,
)


def test_every_form_of_a_passage(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl.gz"
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    rows: list[dict[str, Any]] = [
        {"text": "plain"},
        {"messages": turns},
        {"instruction": "do", "input": "this", "output": "done"},
        {"instruction": "do", "input": "", "output": "done"},
        {"prompt": "do", "response": "done"},
        {"input_ids": [1, 2, 3]},
    ]
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))

    def asked(where: int, user: str, assistant: str) -> Passage:
        return Passage(f"{path}, line {where}", messages=(Message("user", user), Message("assistant", assistant)))

    assert read_passages(path) == [
        Passage(f"{path}, line 1", text="plain"),
        asked(2, "q", "a"),
        asked(3, "do\n\nthis", "done"),
        asked(4, "do", "done"),
        asked(5, "do", "done"),
        Passage(f"{path}, line 6", ids=(1, 2, 3)),
    ]
    assert count_rows(path) == 6


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"label": 3}, "holds none of the forms"),
        ({"text": 3}, "`text` is int, but must be a string"),
        ({"messages": []}, "`messages` must be a list that is not empty"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "a turn of `messages` is not like"),
        ({"messages": [{"role": "user", "content": "x"}]}, "no turn of the assistant"),
        ({"input_ids": [1, -2]}, "`input_ids` holds -2, which is no token id"),
        ({"input_ids": [1, True]}, "`input_ids` holds True"),
        ({"instruction": "x", "output": None}, "`output` is NoneType"),
    ],
)
def test_a_row_that_is_no_passage(row: dict[str, Any], reason: str, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"text": "fine"}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(BadInputError, match=f"line 2.*{reason}"):
        read_passages(path)


def test_answers_and_what_ends_them_are_targets() -> None:
    messages = [Message("user", " q "), Message("assistant", "a"), Message("user", "r"), Message("assistant", "b")]
    assert [piece for piece in conversation(CHAT, messages) if piece.text] == [
        *(Piece("<u>", False), Piece("q", False), Piece("</u><a>", False), Piece("a", True), Piece("</a>", True)),
        *(Piece("<u>", False), Piece("r", False), Piece("</u><a>", False), Piece("b", True), Piece("</a>", True)),
    ]
    assert question(CHAT, messages[:-1]) == "<u>q</u><a>a</a><u>r</u><a>"


def test_turns_in_a_wrong_order_are_named() -> None:
    with pytest.raises(BadInputError, match="the start before a turn of assistant"):
        conversation(CHAT, [Message("assistant", "a")])
    with pytest.raises(BadInputError, match="a turn of user before the end"):
        conversation(CHAT, [Message("user", "q")])
