"""Protobuf of ONNX files, field by field: enough to skip, to step into and to read lists, without parsing it all.

Everything is checked against the end of the message that it lies in. Lists of numbers in attributes are mostly
unpacked, a tag before each element, and millions of elements long: they are found by a regular expression and decoded
by NumPy, some fifty times faster than field by field.
"""

from __future__ import annotations

import mmap
import re

import numpy as np

from runtime_adapters.base import Array

Buffer = bytes | mmap.mmap

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

NAME_TAG, FLOATS_TAG, STRINGS_TAG, INTS_TAG = 0x0A, 0x3D, 0x4A, 0x40
"""As they begin an AttributeProto's fields. The third is also the letter J, which no mode of a tree node holds."""

_SHORT_STRINGS = b"|".join(b"\\x%02x.{%d}" % (length, length) for length in range(24))
ATTRIBUTE_RUN = re.compile(
    rb"(?:\x3d.{4})++|(?:\x40[\x80-\xff]*+[\x00-\x7f])++|(?:\x4a(?:" + _SHORT_STRINGS + rb"))++", re.DOTALL
)
"""Elements of one list that follow one another. They hold no message."""

_VARINT_BYTES_MAX = 10


class Malformed(ValueError):
    """The bytes are no protobuf, or not this one."""


def varint(content: Buffer, position: int, end: int) -> tuple[int, int]:
    """(value, where the next thing begins)."""
    if position < end and content[position] < 0x80:  # nearly always one byte
        return content[position], position + 1
    value = shift = 0
    while position < end:
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise Malformed("a number of more than ten bytes")
    raise Malformed("it ends within a number")


def varints(encoded: bytes, *, tagged: bool = False) -> Array:
    """All numbers of a list, as INT64. `tagged`: before each lies a tag of one byte, as in a run."""
    octets = np.frombuffer(encoded, np.uint8)
    last = np.flatnonzero(octets < 0x80)
    if not len(octets):
        return np.empty(0, np.int64)
    if not len(last) or last[-1] != len(octets) - 1:
        raise Malformed("it ends within a number")
    first = np.empty_like(last)
    first[0], first[1:] = 0, last[:-1] + 1
    if tagged:
        # A tag is a number of one byte: tags and elements in turn.
        first, last = first[1::2], last[1::2]
    lengths = last - first + 1
    longest = int(lengths.max())
    if longest > _VARINT_BYTES_MAX:
        raise Malformed("a number of more than ten bytes")
    values = (octets[first] & 0x7F).astype(np.uint64)
    for place in range(1, longest):
        longer = np.flatnonzero(lengths > place)
        septets = (octets[first[longer] + place] & 0x7F).astype(np.uint64)
        values[longer] |= septets << np.uint64(7 * place)
    numbers: Array = values.view(np.int64)
    return numbers


def skip(content: Buffer, position: int, end: int, wire: int) -> int:
    """Where the value that begins at `position` ends."""
    if wire == BYTES:
        length, position = varint(content, position, end)
        position += length
    elif wire == VARINT:
        _, position = varint(content, position, end)
    elif wire == FIXED32:
        position += 4
    elif wire == FIXED64:
        position += 8
    else:
        raise Malformed(f"wire type {wire}")
    if position > end:
        raise Malformed("a field is longer than what holds it")
    return position
