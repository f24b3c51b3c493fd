"""A text field of a message whose type is not known here: found, and replaced, by field numbers alone.

ModelMesh's data-plane configuration names the field that holds a model's id by a path of field numbers: all but the
last are embedded messages, the last one is a string. What the rest of the message means is nobody's business here, so
it is neither parsed nor written anew: the bytes before and after the field stay as they are, and only the lengths of
the messages around it change.

A field that stands there twice is refused: parsers keep the last one, or merge both, so that the model whose name was
read and replaced here would not be the one that is asked.
"""

from __future__ import annotations

from collections.abc import Sequence

from mesh.wire.errors import InvalidMessage
from mesh.wire.peek import FIELDS_MAX, GROUP_DEPTH_MAX, read_varint, skip_field

Span = tuple[int, int]

_BYTES = 2
_FIELD_MAX = 2**29 - 1
"""Protobuf's own. Some parsers cut larger numbers off, and read another field."""


def text_at(message: bytes, path: Sequence[int]) -> str | None:
    """The text at the end of the path; None where there is none. Raises InvalidMessage."""
    spans = _spans(message, path)
    if len(spans) < len(path):
        return None
    begin, end = spans[-1]
    try:
        return message[begin:end].decode()
    except UnicodeDecodeError:
        raise InvalidMessage(f"field {'.'.join(map(str, path))} of the message is not valid UTF-8") from None


def with_text_at(message: bytes, path: Sequence[int], text: str) -> bytes:
    """The message with this text at the end of the path, which is made where it is not there. Raises InvalidMessage."""
    spans = _spans(message, path)
    new = text.encode()
    for number in reversed(path[len(spans) :]):  # what is not there is appended to the innermost that is
        new = _field(number, new)
    if len(spans) < len(path):
        begin, end = spans[-1] if spans else (0, len(message))
        new = message[begin:end] + new
        if not spans:
            return new
    for depth in range(len(spans) - 1, -1, -1):
        begin, end = spans[depth]
        outer_begin, outer_end = spans[depth - 1] if depth else (0, len(message))
        tag_begin = _tag_begin(message, (outer_begin, outer_end), begin, path[depth])
        new = message[outer_begin:tag_begin] + _field(path[depth], new) + message[end:outer_end]
    return new


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _tag_begin(message: bytes, outer: Span, begin: int, number: int) -> int:
    """Where the field whose content begins at `begin` has its tag."""
    found = _find(message, *outer, number)
    assert found is not None
    assert found[1] == begin
    return found[0]


def _spans(message: bytes, path: Sequence[int]) -> list[Span]:
    """Begin and end of the contents along the path, as far as they are there."""
    spans: list[Span] = []
    begin, end = 0, len(message)
    for number in path:
        try:
            found = _find(message, begin, end, number)
        except IndexError:
            raise InvalidMessage("the message is cut off: it ends inside a field") from None
        if found is None:
            break
        _, begin, end = found
        spans.append((begin, end))
    return spans


def _find(message: bytes, at: int, end: int, number: int) -> tuple[int, int, int] | None:
    """Where the field of this number has its tag, and its content's begin and end. Raises InvalidMessage."""
    found: tuple[int, int, int] | None = None
    fields_left = FIELDS_MAX
    while at < end:
        tag_begin = at
        tag, at = read_varint(message, at)
        field, wire_type = tag >> 3, tag & 7
        if not 0 < field <= _FIELD_MAX:
            raise InvalidMessage(f"the message is not protobuf: impossible field number at byte {tag_begin}")
        if field == number and wire_type == _BYTES:
            if found is not None:
                raise InvalidMessage(f"the message has field {number} twice, where it names one model")
            length, at = read_varint(message, at)
            if at + length > end:
                raise InvalidMessage("the message is cut off: it ends inside a field")
            found = tag_begin, at, at + length
            at += length
            continue
        at, fields_left = skip_field(message, at, field, wire_type, GROUP_DEPTH_MAX, fields_left - 1)
        if fields_left < 0:
            raise InvalidMessage(f"the message has more than {FIELDS_MAX} fields")
    return found
