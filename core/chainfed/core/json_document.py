"""JSON from outside, read strictly: what two readers could understand differently is refused."""

from __future__ import annotations

import json
import math
from typing import Any


def parse_document(data: bytes) -> Any:
    """The value of UTF-8 JSON.

    Raises ValueError, with the reason, when the bytes are no JSON, name a key twice, hold NaN, a number beyond
    float64 or half a surrogate pair, or are nested deeper than Python can follow.
    """
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_object, parse_constant=_refuse_constant, parse_float=_finite
        )
        if b"\\ud" in data.lower():
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("it holds half a surrogate pair, which is no text") from None
    return value


def shown(text: str, limit: int = 80) -> str:
    """Text from outside as it may stand in a sentence: quoted, without control characters, not too long."""
    quoted = repr(text[: limit + 1])
    return quoted if len(quoted) <= limit else quoted[: limit - 3] + "..."


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"it names {shown(key)} twice")
        found[key] = value
    return found


def _refuse_constant(name: str) -> float:
    raise ValueError(f"it holds {name}, which is no JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"it holds the number {shown(text)}, which is too large")
    return value
