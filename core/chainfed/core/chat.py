"""Conversations as text: a bundle's `Chat` says what stands between the turns, and only answers are learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from chainfed.core.errors import BadInputError
from chainfed.core.manifest import Chat

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Message:
    """One turn. `role`: one of `ROLES`."""

    role: str
    content: str


@dataclass(frozen=True)
class Piece:
    """A part of a text, and whether its tokens are to be predicted."""

    text: str
    target: bool


def conversation(chat: Chat, messages: Sequence[Message]) -> tuple[Piece, ...]:
    """The pieces of a whole conversation; answers, and what ends them, are targets.

    Raises BadInputError when a turn follows another that it cannot follow.
    """
    pieces: list[Piece] = []
    before = "start"
    for message in messages:
        pieces += _between(chat, before, message.role)
        content = message.content.strip() if chat.strip else message.content
        pieces.append(Piece(content, message.role == "assistant"))
        before = message.role
    return tuple(pieces + _between(chat, before, "end"))


def question(chat: Chat, messages: Sequence[Message]) -> str:
    """A conversation up to where the model's answer begins.

    Raises BadInputError when a turn follows another that it cannot follow.
    """
    asked = conversation(chat.model_copy(update={"between": chat.between | {"user>end": ""}}), messages)
    return "".join(piece.text for piece in asked) + chat.between["user>"]


def _between(chat: Chat, before: str, after: str) -> list[Piece]:
    text = chat.between.get(f"{before}>{after}")
    if text is None:
        raise BadInputError(
            f"The conversation has {_turn(before)} before {_turn(after)}; let turns of user and assistant take turns, "
            "after at most one of system, and end with the assistant's."
        )
    if before != "assistant":
        return [Piece(text, False)]
    return [Piece(chat.end_of_turn, True), Piece(text.removeprefix(chat.end_of_turn), False)]


def _turn(role: str) -> str:
    return f"the {role}" if role in ("start", "end") else f"a turn of {role}"
