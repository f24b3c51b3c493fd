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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from runtime_adapters.base import SHARED_FORM
from runtime_adapters.onnx_fields import BYTES, Buffer, Malformed, skip, varint
from runtime_adapters.onnx_graph import CHILDREN, TENSOR_EXTERNAL

SHARED_TENSOR_MIN_BYTES = 64 << 10
"""Tensors of this size or more are files of their own."""
_ALIGNMENT_BYTES = 64
_WRITERS = 2
"""Threads that hash and write: a request may wait for this, and a disk takes no more."""
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
    places = [place for place in _places(content) if place.location == weights.name]
    with weights.open("rb") as source, mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        if any(place.offset + place.length > len(mapped) for place in places):
            raise Malformed("a tensor lies beyond the end of its file")
        moved = _write_shared(mapped, places, graph.parent / SHARED_FORM)
        moved |= _write_private(mapped, [place for place in places if place not in moved], weights)
    if all(place.location != weights.name for place in moved.values()):
        weights.unlink()
    graph.write_bytes(_rewritten("model", content, 0, len(content), lambda place: moved.get(place, place)))


def _places(content: bytes) -> list[Place]:
    """Where the graph's external tensors lie, each place once, in their order."""
    found: dict[Place, None] = {}

    def note(place: Place) -> Place:
        found[place] = None
        return place

    _rewritten("model", content, 0, len(content), note)
    return list(found)


def _write_shared(mapped: mmap.mmap, places: list[Place], directory: Path) -> dict[Place, Place]:
    """A file for each large tensor; hashing and writing let other threads run."""
    large = [place for place in places if place.length >= SHARED_TENSOR_MIN_BYTES]
    if not large:
        return {}
    directory.mkdir(exist_ok=True)
    with memoryview(mapped) as content, ThreadPoolExecutor(_WRITERS) as writers:

        def write(place: Place) -> Place:
            with content[place.offset : place.offset + place.length] as tensor:
                name = hashlib.sha256(tensor).hexdigest()
                # Equal tensors of one model: whoever comes second writes the same bytes.
                (directory / name).write_bytes(tensor)
            return Place(f"{SHARED_FORM}/{name}", 0, place.length)

        return dict(zip(large, writers.map(write, large), strict=True))


def _write_private(mapped: mmap.mmap, places: list[Place], weights: Path) -> dict[Place, Place]:
    """The rest, one after the other, in place of the file that held all."""
    moved = {}
    new = weights.with_name(weights.name + ".new")
    with memoryview(mapped) as content, new.open("wb") as file:
        for place in places:
            file.write(b"\0" * (-file.tell() % _ALIGNMENT_BYTES))
            moved[place] = Place(weights.name, file.tell(), place.length)
            with content[place.offset : place.offset + place.length] as tensor:
                file.write(tensor)
    new.replace(weights)
    return moved


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
