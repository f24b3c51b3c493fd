"""Tensors in memory that a pod and one isolated copy share: written by one side, read by the other.

Each direction has one segment, an anonymous file in memory (memfd) whose descriptor the child inherits. It has no
name, so nothing can be left behind in /dev/shm, whoever dies; and a container's small /dev/shm does not limit it. What
does limit it is the container's memory, whose pages these are: a segment that grows by much looks whether they are
there, since writing pages that are not ends in a kill and not in an error. A segment grows to the largest message so
far. Seals forbid both sides to shrink it: otherwise a hostile child could
take away a page that the pod is about to read, and the pod would die of SIGBUS.

A message is a list of slots (name, datatype, shape, offset, length). Fixed-size elements lie as they are in a NumPy
array. BYTES is a uint32 length per element and then all elements end to end, so that one C call finds the bounds.

The pod reads with `copy=True`: it must not look twice at memory that the child may change between two looks. A slot
that does not fit the segment, its own shape or its datatype raises `BadSlot`.

Deliberately absent: locks. The control channel says whose turn it is.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import mmap
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from runtime_adapters.base import Array, Tensors
from runtime_adapters.datatypes import DTYPE_OF, datatype_of
from runtime_adapters.memory_reading import read_memory

_ALIGNMENT_BYTES = 64
_GROWTH_STEP_BYTES = 1 << 20
_GROWTH_CHECKED_BYTES = 16 << 20
"""Growth by less is within what any box must have left."""
_RANK_MAX = 32
_LENGTHS = np.dtype("<u4")
_SLOTS_MAX = 100_000

Slot = dict[str, Any]


class TensorsTooLarge(ValueError):
    """More bytes than the segment may hold."""


class UnsendableTensor(ValueError):
    """An array that is no V2 tensor."""


class BadSlot(ValueError):
    """The other side described tensors that cannot be."""


class TensorSegment:
    """One direction's shared memory. `bytes_max` limits it."""

    def __init__(self, fd: int, bytes_max: int) -> None:
        self.fd = fd
        self._bytes_max = bytes_max
        self._map: mmap.mmap | None = None

    @classmethod
    def create(cls, name: str, bytes_max: int) -> TensorSegment:
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
        return cls(fd, bytes_max)

    def write(self, tensors: Tensors) -> list[Slot]:
        """Lay the tensors down from the segment's start. Raises TensorsTooLarge, UnsendableTensor."""
        slots: list[Slot] = []
        contents: list[Array | bytes] = []
        offset = 0
        for name, array in tensors.items():
            datatype = datatype_of(array.dtype)
            if datatype is None:
                raise UnsendableTensor(f"tensor {name!r}: NumPy type {array.dtype} has no V2 datatype")
            content: Array | bytes = _pack_bytes(name, array) if datatype == "BYTES" else _native(array)
            length = len(content) if isinstance(content, bytes) else content.nbytes
            shape = list(array.shape)
            slots.append({"name": name, "datatype": datatype, "shape": shape, "offset": offset, "bytes": length})
            contents.append(content)
            offset += -(-length // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        if offset:
            memory = self._writable(offset)
            for slot, content in zip(slots, contents, strict=True):
                start, length = slot["offset"], slot["bytes"]
                if isinstance(content, bytes):
                    memory[start : start + length] = content
                elif length:
                    np.ndarray(content.shape, content.dtype, buffer=memory, offset=start)[...] = content
        return slots

    def read(self, slots: object, *, copy: bool) -> dict[str, Array]:
        """The tensors that the other side described. Without `copy` they are views until its next write."""
        if not isinstance(slots, list) or len(slots) > _SLOTS_MAX:
            raise BadSlot("the description of the tensors is no list of slots")
        tensors: dict[str, Array] = {}
        for slot in slots:
            name, datatype, shape, offset, length = _checked_slot(slot)
            if name in tensors:
                raise BadSlot(f"tensor {name!r} is described twice")
            memory: mmap.mmap | bytes = self._readable(offset + length) if length else b""
            start = offset if length else 0
            if datatype == "BYTES":
                tensors[name] = _unpack_bytes(name, shape, bytes(memory[start : start + length]))
                continue
            array: Array = np.ndarray(shape, DTYPE_OF[datatype], buffer=memory, offset=start)
            tensors[name] = array.copy() if copy else array
        return tensors

    def resident_bytes(self) -> int:
        """Bytes of RAM behind the segment now."""
        return os.fstat(self.fd).st_blocks * 512

    def release_above(self, kept_bytes: int) -> None:
        """Give back the pages beyond `kept_bytes`: one huge request must not cost its bytes for ever."""
        if self._map is not None and len(self._map) > kept_bytes and self.resident_bytes() > kept_bytes:
            start = -(-kept_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
            with contextlib.suppress(OSError):  # a kernel without it keeps the pages
                self._map.madvise(mmap.MADV_REMOVE, start, len(self._map) - start)

    def close(self) -> None:
        """Let go of the memory. Idempotent."""
        self._map = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _writable(self, needed_bytes: int) -> mmap.mmap:
        if needed_bytes > self._bytes_max:
            raise TensorsTooLarge(
                f"the tensors take {needed_bytes:,} bytes; an isolated model may be sent {self._bytes_max:,}"
            )
        grown_bytes = needed_bytes - self.resident_bytes()
        if grown_bytes >= _GROWTH_CHECKED_BYTES:
            _check_room(needed_bytes, grown_bytes)
        if os.fstat(self.fd).st_size < needed_bytes:
            stepped = -(-needed_bytes // _GROWTH_STEP_BYTES) * _GROWTH_STEP_BYTES
            try:
                os.ftruncate(self.fd, min(stepped, max(self._bytes_max, needed_bytes)))
            except OSError as error:
                raise TensorsTooLarge(f"the tensors take {needed_bytes:,} bytes: {error.strerror}") from error
        return self._readable(needed_bytes)

    def _readable(self, needed_bytes: int) -> mmap.mmap:
        if self._map is None or len(self._map) < needed_bytes:
            size_bytes = os.fstat(self.fd).st_size
            if size_bytes < needed_bytes:
                raise BadSlot(f"a tensor is said to end at byte {needed_bytes:,} of {size_bytes:,}")
            # The old mapping goes when the last array on it goes.
            self._map = mmap.mmap(self.fd, min(size_bytes, max(self._bytes_max, needed_bytes)))
        return self._map


def _check_room(needed_bytes: int, grown_bytes: int) -> None:
    reading = read_memory()
    if reading.limit_bytes and grown_bytes > reading.headroom_bytes:  # a jailed process sees no limit
        raise TensorsTooLarge(
            f"the tensors take {needed_bytes:,} bytes of shared memory, and {reading.headroom_bytes:,} of "
            f"{reading.limit_bytes:,} are left here ({reading.source}); send fewer rows"
        )


def _native(array: Array) -> Array:
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _pack_bytes(name: str, array: Array) -> bytes:
    items = [_element(name, item) for item in array.ravel().tolist()]
    return np.array([len(item) for item in items], dtype=_LENGTHS).tobytes() + b"".join(items)


def _element(name: str, item: object) -> bytes:
    if isinstance(item, bytes):
        return item
    if isinstance(item, str):
        return item.encode()
    raise UnsendableTensor(f"tensor {name!r}: an element is a {type(item).__name__}; BYTES holds bytes or str")


def _unpack_bytes(name: str, shape: tuple[int, ...], content: bytes) -> Array:
    count = math.prod(shape)
    head = count * _LENGTHS.itemsize
    if head > len(content):
        raise BadSlot(f"tensor {name!r}: {count} elements do not fit in {len(content)} bytes")
    ends = np.cumsum(np.frombuffer(content, _LENGTHS, count), dtype=np.int64) + head
    if (int(ends[-1]) if count else head) != len(content):
        raise BadSlot(f"tensor {name!r}: its elements do not add up to {len(content)} bytes")
    array = np.empty(count, dtype=np.object_)
    start = head
    for index, end in enumerate(ends.tolist()):
        array[index] = content[start:end]
        start = end
    return array.reshape(shape)


def _checked_slot(slot: object) -> tuple[str, str, tuple[int, ...], int, int]:
    """Nothing that the other side says is believed."""
    if not isinstance(slot, Mapping):
        raise BadSlot("a slot is no object")
    name, datatype, shape = slot.get("name"), slot.get("datatype"), slot.get("shape")
    offset, length = slot.get("offset"), slot.get("bytes")
    if not isinstance(name, str) or not isinstance(datatype, str) or datatype not in DTYPE_OF:
        raise BadSlot(f"a slot names no tensor of a V2 datatype: {str(name)[:80]!r}, {str(datatype)[:80]!r}")
    if not _all_natural(shape) or not isinstance(shape, list) or len(shape) > _RANK_MAX:
        raise BadSlot(f"tensor {name!r}: {str(shape)[:80]} is no shape")
    if not isinstance(offset, int) or not isinstance(length, int) or not _all_natural([offset, length]):
        raise BadSlot(f"tensor {name!r}: bad offset or length")
    if offset % _ALIGNMENT_BYTES:
        raise BadSlot(f"tensor {name!r}: bad offset or length")
    if datatype != "BYTES" and math.prod(shape) * DTYPE_OF[datatype].itemsize != length:
        raise BadSlot(f"tensor {name!r}: {length} bytes do not make shape {shape} of {datatype}")
    return name, datatype, tuple(shape), offset, length


def _all_natural(numbers: object) -> bool:
    return isinstance(numbers, Sequence) and all(type(n) is int and 0 <= n < 1 << 62 for n in numbers)
