"""Protocol messages as plain JSON values: numbers stay numbers, enumerations lose their prefix."""

from __future__ import annotations

import re
from typing import Any

from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.message import Message


def plain(message: Message) -> dict[str, Any]:
    """Every field of a message. One that is absent is None; a member of a oneof that is not set is left
    out."""
    values: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        present = not field.has_presence or message.HasField(field.name)
        if field.containing_oneof is not None and not present and len(field.containing_oneof.fields) > 1:
            continue
        value = getattr(message, field.name)
        if field.is_repeated:
            values[field.name] = [_plain(field, item) for item in value]
        else:
            values[field.name] = _plain(field, value) if present else None
    return values


def _plain(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        return plain(value)
    if field.enum_type is not None:
        return enum_name(field.enum_type, value)
    return value


def enum_name(descriptor: EnumDescriptor, value: int) -> str:
    """`TRAINING` for RUN_STATE_TRAINING; the number for a value of a newer version."""
    known = descriptor.values_by_number.get(value)
    prefix = re.sub("(?<!^)(?=[A-Z])", "_", descriptor.name).upper() + "_"
    return known.name.removeprefix(prefix) if known else str(value)
