"""Messages as Triton's REST interface writes them: the fields' own names, enums by name, and numbers as numbers.

protobuf's own JSON writes 64-bit numbers as text, which Triton's clients do not read as counts. All fields are written,
whether set or not, but for messages and alternatives (`oneof`) that are not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def message_as_json(message: Any) -> dict[str, Any]:
    """A JSON object of a protobuf message."""
    written: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        if field.has_presence and not message.HasField(field.name):
            continue
        value = getattr(message, field.name)
        if isinstance(value, Mapping):
            value_field = field.message_type.fields_by_name["value"]
            written[field.name] = {str(key): _written(value_field, value[key]) for key in sorted(value)}
        elif field.is_repeated:
            written[field.name] = [_written(field, each) for each in value]
        else:
            written[field.name] = _written(field, value)
    return written


def _written(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        return message_as_json(value)
    return field.enum_type.values_by_number[value].name if field.enum_type is not None else value
