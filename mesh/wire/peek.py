"""The envelope of a V2 message, read from its bytes without parsing it.

A pod must know the model's name before it knows whether it will run the request at all, and a forwarded request
needs no more than that. Parsing 10 MB of tensors for 20 bytes of name is waste, so this walks over the top-level
fields and jumps over what they hold. The same walk notes where the raw tensors lie, so that `mesh.wire.tensors` can
view them in place and give the parser only the small rest.

Why there is no early stop. Serialisers write field 1 first, and stopping there would be right for all of them; but
protobuf says that the last occurrence of a field wins, and a name that routing reads differently from the runtime
is a hole in tenant separation. A request has about as many top-level fields as tensors, and each costs one step
whatever its size, so the whole walk is cheap. What an attacker can make dear, millions of empty fields, has a limit.

The same field numbers (1 name, 2 version) hold for ModelReadyRequest and ModelMetadataRequest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mesh.wire.errors import InvalidMessage

RAW_INPUTS: Final = 7
"""ModelInferRequest.raw_input_contents."""
RAW_OUTPUTS: Final = 6
"""ModelInferResponse.raw_output_contents."""

FIELDS_MAX: Final = 16_384
"""Fields of one message, at the top level and in groups: above any real number of tensors, below 10 ms of walking."""
GROUP_DEPTH_MAX: Final = 100
"""Nesting of unknown groups, as protobuf's own parsers limit it."""

Span = tuple[int, int]
"""Begin and end, in bytes from the start of the message."""

_VARINT, _FIXED64, _BYTES, _GROUP_BEGIN, _GROUP_END, _FIXED32 = range(6)


@dataclass(frozen=True, slots=True)
class Envelope:
    """What the walk found. `raw` are the contents of the raw-tensor field in order; `rest` is all other fields."""

    model_name: str
    model_version: str
    request_id: str
    raw: tuple[Span, ...]
    rest: tuple[Span, ...]


def peek(body: bytes | memoryview, raw_field: int = RAW_INPUTS) -> Envelope:
    """Walk one message. Raises InvalidMessage, and nothing else, whatever the bytes."""
    try:
        return _walk(body, raw_field)
    except IndexError:
        raise InvalidMessage(f"the message is cut off: it ends inside a field after {len(body)} bytes") from None
    except UnicodeDecodeError:
        raise InvalidMessage("the model name, version or id is not valid UTF-8") from None


def _walk(body: bytes | memoryview, raw_field: int) -> Envelope:
    size = len(body)
    texts: list[Span] = [(0, 0), (0, 0), (0, 0), (0, 0)]
    raw: list[Span] = []
    rest: list[Span] = []
    rest_begin = at = 0
    fields_left = FIELDS_MAX
    while at < size:
        begin = at
        tag = body[at]
        at += 1
        if tag >= 0x80:
            tag, at = read_varint(body, begin)
        wire_type = tag & 7
        field = tag >> 3
        if field == 0 or tag >= 1 << 32:
            raise InvalidMessage(f"the message is not protobuf: impossible field number at byte {begin}")
        if wire_type == _BYTES:
            length = body[at]
            at += 1
            if length >= 0x80:
                length, at = read_varint(body, at - 1)
            end = at + length
            if field <= 3:
                if end > size:
                    raise IndexError
                texts[field] = (at, end)
                # Checked at each occurrence, as a parser does, not only at the one that wins.
                str(body[at:end], "utf-8")
            elif field == raw_field:
                raw.append((at, end))
                if rest_begin < begin:
                    rest.append((rest_begin, begin))
                rest_begin = end
            at = end
        else:
            at, fields_left = skip_field(body, at, field, wire_type, GROUP_DEPTH_MAX, fields_left)
        fields_left -= 1
        if fields_left < 0:
            raise InvalidMessage(f"the message has more than {FIELDS_MAX} top-level fields; send fewer tensors")
    if at > size:
        raise IndexError
    if rest_begin < size:
        rest.append((rest_begin, size))
    name, version, request_id = (str(body[begin:end], "utf-8") for begin, end in texts[1:])
    return Envelope(name, version, request_id, tuple(raw), tuple(rest))


def read_varint(body: bytes | memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = body[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise InvalidMessage(f"the message is not protobuf: a number of more than 10 bytes ends at byte {at}")


def skip_field(
    body: bytes | memoryview, at: int, field: int, wire_type: int, depth_left: int, fields_left: int
) -> tuple[int, int]:
    """The end of a field whose tag ends at `at` (it may lie beyond the end of the message), and the fields left."""
    if wire_type == _VARINT:
        return read_varint(body, at)[1], fields_left
    if wire_type == _FIXED64:
        return at + 8, fields_left
    if wire_type == _FIXED32:
        return at + 4, fields_left
    if wire_type == _BYTES:
        length, at = read_varint(body, at)
        return at + length, fields_left
    if wire_type == _GROUP_BEGIN and depth_left:
        return _skip_group(body, at, field, depth_left - 1, fields_left)
    raise InvalidMessage(f"the message is not protobuf: wire type {wire_type} before byte {at}")


def _skip_group(
    body: bytes | memoryview, at: int, group_field: int, depth_left: int, fields_left: int
) -> tuple[int, int]:
    """The end of a group. What stands in it counts like top-level fields: it costs as much to walk over."""
    while True:
        tag, at = read_varint(body, at)
        field, wire_type = tag >> 3, tag & 7
        if wire_type == _GROUP_END and field == group_field:
            return at, fields_left
        if field == 0 or fields_left <= 0:
            raise InvalidMessage(f"the message is not protobuf: a bad group before byte {at}")
        at, fields_left = skip_field(body, at, field, wire_type, depth_left, fields_left - 1)
