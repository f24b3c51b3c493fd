"""The weights of a prepared ONNX model as content: one file for each large tensor, named by the hash of its bytes.

Fine-tunes of one backbone, and versions of one model, consist mostly of equal tensors in files that differ. onnxruntime
writes all weights of an optimised graph into one file; here that file is taken apart, so that equal tensors of
different models become equal files, which the disk tier then stores once and the kernel maps once
(`runtime_adapters.base.SHARED_FORM`).

Three sizes of tensor:

* from 64 KiB on, a file of its own under `shared/`: it wastes at most a block of 4 KiB on disk, 6 % of the smallest;
* from 16 KiB on, a place in the model's private weights file, mapped as well;
* below, inline in the graph: each mapped tensor is a mapping, and the kernel allows a process 65,530 of them.

onnxruntime maps a tensor at any offset. Files of their own begin at a page, and what lies in the private file begins
at a multiple of 64 bytes, as the kernels' vector loads like it.

onnxruntime follows a tensor's `location` only within the model's directory: hence hard links into it, not a path to
a directory that all models share.

The graph names each tensor's place in protobuf messages within messages, whose lengths change with the names. Only
the messages on the way to such a place are written anew; all else is copied as it is.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from runtime_adapters.base import SHARED_FORM
from runtime_adapters.onnx_fields import BYTES, Buffer, Malformed, skip, varint
from runtime_adapters.onnx_graph import CHILDREN, TENSOR_EXTERNAL

SHARED_TENSOR_MIN_BYTES = 64 << 10
"""Tensors of this size or more are files of their own."""
_ALIGNMENT_BYTES = 64
_ENTRY_KEY, _ENTRY_VALUE = 1, 2  # StringStringEntryProto
_SIGN = b"location"
"""Every place of external data is named by an entry with this key: messages without it are copied as they are."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the bytes of one tensor lie."""

    location: str
    offset: int
    length: int


def take_apart(graph: Path, weights: Path) -> None:
    """Move the large tensors of `weights` into files of their own and let `graph` name those. Both are replaced.

    Raises Malformed where the graph is not what onnxruntime writes.
    """
    if not weights.exists():
        return
    content = graph.read_bytes()
    new_weights = weights.with_name(weights.name + ".new")
    shared = graph.parent / SHARED_FORM
    places: dict[Place, Place] = {}
    with weights.open("rb") as source, new_weights.open("wb") as private:
        with mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as bytes_of_all:

            def moved(place: Place) -> Place:
                if place.location != weights.name:
                    return place
                if place not in places:
                    with bytes_of_all[place.offset : place.offset + place.length] as tensor:
                        if len(tensor) != place.length:
                            raise Malformed("a tensor lies beyond the end of its file")
                        if place.length >= SHARED_TENSOR_MIN_BYTES:
                            name = hashlib.sha256(tensor).hexdigest()
                            shared.mkdir(exist_ok=True)
                            if not (shared / name).exists():
                                (shared / name).write_bytes(tensor)
                            places[place] = Place(f"{SHARED_FORM}/{name}", 0, place.length)
                        else:
                            private.write(b"\0" * (-private.tell() % _ALIGNMENT_BYTES))
                            places[place] = Place(weights.name, private.tell(), place.length)
                            private.write(tensor)
                return places[place]

            changed = _rewritten("model", content, 0, len(content), moved)
        private_bytes = private.tell()
    if private_bytes:
        new_weights.replace(weights)
    else:
        new_weights.unlink()
        weights.unlink()
    graph.write_bytes(changed)


def shared_files(prepared: Path) -> tuple[tuple[str, int], ...]:
    """The content that a prepared model maps and others may map as well: its name and its bytes."""
    directory = prepared / SHARED_FORM
    if not directory.is_dir():
        return ()
    return tuple(sorted((f"sha256-{file.name}", file.stat().st_size) for file in directory.iterdir()))


def _rewritten(message: str, content: Buffer, begin: int, end: int, moved: Callable[[Place], Place]) -> bytes:
    """The message with all external data that lies in it at any depth moved."""
    parts: list[bytes] = []
    children = CHILDREN.get(message, {})
    place_wanted = message == "tensor"
    entries: dict[str, str] = {}
    for field, wire, start, after in _fields(content, begin, end):
        child = children.get(field) if wire == BYTES else None
        if place_wanted and field == TENSOR_EXTERNAL and wire == BYTES:
            _, inside = varint(content, _after_tag(content, start, after), after)
            entries |= _entry(content, inside, after)
        elif child is not None and content.find(_SIGN, start, after) >= 0:
            _, inside = varint(content, _after_tag(content, start, after), after)
            parts.append(_field(field, _rewritten(child, content, inside, after, moved)))
        else:
            parts.append(content[start:after])
    if entries:
        old = Place(entries["location"], int(entries.get("offset", "0")), int(entries["length"]))
        parts.append(_external(moved(old)))
    return b"".join(parts)


def _fields(content: Buffer, begin: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Number, wire type, and where it begins (with its tag) and ends, of each field of a message."""
    position = begin
    while position < end:
        start = position
        tag, position = varint(content, position, end)
        position = skip(content, position, end, tag & 7)
        yield tag >> 3, tag & 7, start, position


def _after_tag(content: Buffer, start: int, end: int) -> int:
    return varint(content, start, end)[1]


def _entry(content: Buffer, begin: int, end: int) -> dict[str, str]:
    key = value = ""
    for field, _, start, after in _fields(content, begin, end):
        inside = varint(content, _after_tag(content, start, after), after)[1]
        if field == _ENTRY_KEY:
            key = content[inside:after].decode()
        elif field == _ENTRY_VALUE:
            value = content[inside:after].decode()
    return {key: value}


def _external(place: Place) -> bytes:
    """The entries that name a place."""
    entries = (("location", place.location), ("offset", str(place.offset)), ("length", str(place.length)))
    return b"".join(
        _field(TENSOR_EXTERNAL, _field(_ENTRY_KEY, key.encode()) + _field(_ENTRY_VALUE, value.encode()))
        for key, value in entries
    )


def _field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | BYTES) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
