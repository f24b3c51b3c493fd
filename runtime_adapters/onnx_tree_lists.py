"""The lists of a tree ensemble's node in an ONNX file, as NumPy arrays: attributes, and tensors within them.

onnxruntime must read the same as is checked here, so whatever could be read in two ways is refused: an attribute of
another type than its operator asks for, one that refers to an attribute of a function, a tensor that is there twice,
says another size or lies in another file.

Numbers are decoded when they are asked for; most lists are asked for their length only.

Deliberately absent: what the lists must hold (`onnx_tree_bounds`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from runtime_adapters.base import Array
from runtime_adapters.onnx_fields import (
    BYTES,
    FIXED32,
    FLOATS_TAG,
    INTS_TAG,
    STRINGS_TAG,
    VARINT,
    Buffer,
    skip,
    varint,
    varints,
)

_LEAF = b"LEAF"
_NAME_CHARS_MAX = 80

# AttributeProto: field numbers, and what its type is called
_A_NAME, _A_INT, _A_TENSOR, _A_FLOATS, _A_INTS, _A_STRINGS, _A_TYPE, _A_REFERENCE = 1, 3, 5, 7, 8, 9, 20, 21
_FLOATS_TYPE, _INTS_TYPE, _STRINGS_TYPE, _INT_TYPE, _TENSOR_TYPE = 6, 7, 8, 2, 4
# TensorProto: element type -> (NumPy's, the field of a typed list)
_ELEMENTS = {1: ("<f4", 4), 2: ("u1", 5), 11: ("<f8", 10)}
_T_DIMS, _T_TYPE, _T_RAW, _T_EXTERNAL, _T_LOCATION = 1, 2, 9, 13, 14


class UnsafeTrees(ValueError):
    """onnxruntime must not read this operator. The message names it and what is wrong."""


@dataclass(slots=True)
class Attribute:
    """One attribute's value: parts in the order of the file, still encoded. Integers: and whether each has a tag."""

    kind: int = 0
    number: int = 0
    ints: list[tuple[bytes, bool]] = field(default_factory=list)
    floats: int = 0
    strings: list[bytes] = field(default_factory=list)
    tensors: list[tuple[int, int]] = field(default_factory=list)


class TreeLists:
    """The operator's attributes by name; empty where there is none."""

    def __init__(self, content: Buffer, attributes: dict[bytes, Attribute]) -> None:
        self._content, self._attributes = content, attributes

    def number(self, name: str) -> int:
        attribute = self._of_kind(name, _INT_TYPE)
        return attribute.number if attribute else 0

    def ints(self, name: str) -> Array:
        attribute = self._of_kind(name, _INTS_TYPE)
        parts = attribute.ints if attribute else []
        return np.concatenate([np.empty(0, np.int64), *(varints(part, tagged=tagged) for part, tagged in parts)])

    def branch_modes(self, name: str) -> Array:
        """Which nodes are branches: all but those whose mode is LEAF."""
        attribute = self._of_kind(name, _STRINGS_TYPE)
        parts = attribute.strings if attribute else []
        return np.concatenate([np.empty(0, bool), *map(_not_leaf, parts)])

    def tensor(self, name: str) -> Array:
        attribute = self._of_kind(name, _TENSOR_TYPE)
        return _tensor(self._content, attribute.tensors, name) if attribute else np.empty(0)

    def length(self, name: str, *, tensors: bool = True) -> int:
        """Of a list or a tensor, by this name or that of its sibling; there may be one of the two."""
        attribute = self._attributes.get(name.encode())
        sibling = f"{name}_as_tensor"
        found = 0
        if attribute and attribute.kind == _TENSOR_TYPE:
            found = len(self.tensor(name))
        elif attribute and attribute.kind == _FLOATS_TYPE:
            found = attribute.floats
        elif attribute and attribute.kind == _INTS_TYPE:
            # What ends a number is a byte below 0x80, and so is a tag.
            ends = ((np.count_nonzero(np.frombuffer(part, np.uint8) < 0x80), tagged) for part, tagged in attribute.ints)
            found = sum(int(count) // (2 if tagged else 1) for count, tagged in ends)
        elif attribute and attribute.kind == _STRINGS_TYPE:
            found = len(self.branch_modes(name))
        elif attribute:
            raise UnsafeTrees(f"attribute {name!r} is of another type")
        other = len(self.tensor(sibling)) if tensors and sibling.encode() in self._attributes else 0
        if found and other:
            raise UnsafeTrees(f"there are both {name} and {sibling}")
        return found or other

    def _of_kind(self, name: str, kind: int) -> Attribute | None:
        attribute = self._attributes.get(name.encode())
        if attribute and attribute.kind != kind:
            raise UnsafeTrees(f"attribute {name!r} is of another type")
        return attribute


def read_attribute(content: Buffer, position: int, end: int, runs: Mapping[int, int]) -> tuple[bytes, Attribute]:
    name, attribute = b"", Attribute()
    while position < end:
        if run_end := runs.get(position):
            first = content[position]
            if first == INTS_TAG:
                attribute.ints.append((content[position:run_end], True))
            elif first == FLOATS_TAG:
                attribute.floats += (run_end - position) // 5
            elif first == STRINGS_TAG:
                attribute.strings.append(content[position:run_end])
            position = run_end
            continue
        begin_of_field = position
        tag, position = varint(content, position, end)
        number, wire = tag >> 3, tag & 7
        after = skip(content, position, end, wire)
        value, begin = varint(content, position, end) if wire in (VARINT, BYTES) else (0, position)
        if wire == VARINT:
            if number == _A_TYPE:
                attribute.kind = value
            elif number == _A_INT:
                attribute.number = value if value < 2**63 else value - 2**64
            elif number == _A_INTS:
                attribute.ints.append((content[position:after], False))
        elif wire == BYTES:
            if number == _A_NAME:
                name = content[begin:after]
            elif number == _A_REFERENCE and after > begin:
                raise UnsafeTrees(f"attribute {clipped_text(name)!r} refers to one of a function; write its value")
            elif number == _A_INTS:
                attribute.ints.append((content[begin:after], False))
            elif number == _A_FLOATS:
                attribute.floats += (after - begin) // 4
            elif number == _A_STRINGS:
                attribute.strings.append(content[begin_of_field:after])
            elif number == _A_TENSOR:
                attribute.tensors.append((begin, after))
        elif wire == FIXED32 and number == _A_FLOATS:
            attribute.floats += 1
        position = after
    return name, attribute


def _not_leaf(run: bytes) -> Array:
    """Of a run of strings, each after its tag and its length: which are not LEAF."""
    octets = np.frombuffer(run, np.uint8)
    begins = np.flatnonzero(octets == STRINGS_TAG)
    lengths = np.diff(begins, append=len(octets)) - 2
    if not (lengths >= 0).all() or not (octets[np.minimum(begins + 1, len(octets) - 1)] == lengths).all():
        begins = np.array(list(_string_begins(run)))  # a string with a J in it, or a long one
        lengths = np.diff(begins, append=len(octets)) - 2
    not_leaf: Array = lengths != len(_LEAF)
    short = begins[~not_leaf]
    not_leaf[~not_leaf] = (octets[short[:, None] + 2 + np.arange(len(_LEAF))] != np.frombuffer(_LEAF, np.uint8)).any(1)
    return not_leaf


def _string_begins(run: bytes) -> Iterator[int]:
    position = 0
    while position < len(run):
        yield position
        _, begin = varint(run, position, len(run))
        position = skip(run, begin, len(run), BYTES)


def _tensor(content: Buffer, places: list[tuple[int, int]], name: str) -> Array:
    """The elements of a tensor that lies within the attribute."""
    if len(places) != 1:
        raise UnsafeTrees(f"attribute {name!r} has {len(places)} tensors in place of one")
    position, end = places[0]
    elements, kind, encoded = 1, 0, dict[int, list[bytes]]()
    while position < end:
        tag, position = varint(content, position, end)
        number, wire = tag >> 3, tag & 7
        after = skip(content, position, end, wire)
        begin = varint(content, position, end)[1] if wire == BYTES else position
        if number == _T_DIMS and wire in (VARINT, BYTES):
            for size in varints(content[begin:after]):
                elements *= int(size)
        elif number == _T_TYPE and wire == VARINT:
            kind = varint(content, position, end)[0]
        elif number == _T_EXTERNAL or (number == _T_LOCATION and varint(content, position, end)[0]):
            raise UnsafeTrees(f"attribute {name!r} lies in another file; save it in this one")
        else:
            encoded.setdefault(number, []).append(content[begin:after])
        position = after
    if kind not in _ELEMENTS:
        raise UnsafeTrees(f"attribute {name!r} holds elements of type {kind}; FLOAT, DOUBLE and UINT8 are known")
    dtype, typed = _ELEMENTS[kind]
    raw, listed = encoded.get(_T_RAW, []), encoded.get(typed, [])
    if len(raw) > 1 or (raw and listed):
        raise UnsafeTrees(f"attribute {name!r} has its elements twice")
    octets = b"".join(raw or listed)
    if not raw and dtype == "u1":
        numbers = varints(octets)
        require_in_range(name, numbers, 255)
        octets = numbers.astype(np.uint8).tobytes()
    size = np.dtype(dtype).itemsize
    if len(octets) != elements * size:
        raise UnsafeTrees(
            f"attribute {name!r} says that it has {elements:,} elements, but holds {len(octets) // size:,}"
        )
    return np.frombuffer(octets, dtype)


def clipped_text(name: bytes) -> str:
    return name[:_NAME_CHARS_MAX].decode(errors="replace")


def require_in_range(name: str, values: Array, last: int) -> None:
    if len(values) and (int(values.min()) < 0 or int(values.max()) > last):
        wrong = int(values.min()) if int(values.min()) < 0 else int(values.max())
        raise UnsafeTrees(f"{name} holds {wrong}, which is not in 0 to {last}")
