"""Memory that clients on this machine share with this pod: tensors are read from it and written to it by reference.

A region is a part of a POSIX shared memory object (a file in /dev/shm), under a name that its client chose. It belongs
to the tenant that registered it and to this pod; another pod of the pool knows nothing of it.

Contents are copied with `pread` and `pwrite`, and the object is never mapped: its client may make it shorter at any
moment, and then a mapping would end this process with SIGBUS, where a read ends early. The copy also keeps what a model
works on from being changed under its hands.

Deliberately absent: who may register (`mesh.endpoint.shared_memory`), and memory of GPUs.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

REGIONS_MAX = 256
"""Of a pod; each keeps a file open."""
OBJECTS = Path("/dev/shm")
_KEY = re.compile(r"/?(?!\.{1,2}$)[^/\0]{1,250}")


class RegionError(ValueError):
    """A region that cannot be what the client says; the message says why."""


class RegionExists(RegionError):
    """The name is taken."""


class NoRegion(RegionError):
    """No region has this name."""


@dataclass(frozen=True, slots=True)
class Region:
    """Bytes `offset` to `offset + size_bytes` of an object. Its file is open as long as anybody holds the region."""

    name: str
    key: str
    offset: int
    size_bytes: int
    file: BinaryIO = field(repr=False)

    def read(self, offset: int, size_bytes: int) -> bytes:
        """Bytes from an offset in the region. Raises RegionError. May block for a moment per 100 MB."""
        self._check_within(offset, size_bytes)
        parts, at = [], self.offset + offset
        left = size_bytes
        while left:
            part = os.pread(self.file.fileno(), left, at)
            if not part:
                raise RegionError(f"shared memory region {self.name!r} was made shorter than it was registered with")
            parts.append(part)
            at += len(part)
            left -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, offset: int, contents: bytes | memoryview) -> None:
        """Put contents there. Raises RegionError. May block for a moment per 100 MB."""
        left = memoryview(contents).cast("B")
        self._check_within(offset, len(left))
        at = self.offset + offset
        if os.fstat(self.file.fileno()).st_size < at + len(left):
            raise RegionError(f"shared memory region {self.name!r} was made shorter than it was registered with")
        while left:
            written = os.pwrite(self.file.fileno(), left, at)
            at += written
            left = left[written:]

    def _check_within(self, offset: int, size_bytes: int) -> None:
        if offset < 0 or size_bytes < 0 or offset + size_bytes > self.size_bytes:
            raise RegionError(
                f"shared memory region {self.name!r} has {self.size_bytes} bytes; bytes {offset} to "
                f"{offset + size_bytes} are not within it"
            )


class Regions:
    """Of one pod. Belongs to the event loop; a region that was taken from here may be read on any thread."""

    def __init__(self, objects: Path = OBJECTS) -> None:
        self._objects = objects
        self._regions: dict[tuple[str, str], Region] = {}

    def __bool__(self) -> bool:
        return bool(self._regions)

    def register(self, tenant: str, name: str, key: str, offset: int, size_bytes: int) -> None:
        """Open an object. Raises RegionError."""
        if not name or len(name) > 250:
            raise RegionError("a shared memory region needs a name, of at most 250 characters")
        if (tenant, name) in self._regions:
            raise RegionExists(f"shared memory region {name!r} is registered already; unregister it first")
        if len(self._regions) >= REGIONS_MAX:
            raise RegionError(f"{REGIONS_MAX} shared memory regions are registered on this pod, its limit")
        if not _KEY.fullmatch(key):
            raise RegionError(f"{key[:80]!r} is no name of a POSIX shared memory object; it is like '/name'")
        file = self._opened(key)
        try:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise RegionError(f"{key!r} is no shared memory object")
            if size_bytes <= 0 or offset < 0 or offset + size_bytes > found.st_size:
                raise RegionError(
                    f"{key!r} has {found.st_size} bytes; {size_bytes} bytes from {offset} on are not within it"
                )
        except RegionError:
            file.close()
            raise
        self._regions[tenant, name] = Region(name, key, offset, size_bytes, file)

    def _opened(self, key: str) -> BinaryIO:
        path = self._objects / key.removeprefix("/")
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            raise RegionError(
                f"shared memory object {key!r} cannot be opened on this pod's machine: {error.strerror}"
            ) from error
        return os.fdopen(descriptor, "r+b", buffering=0)

    def unregister(self, tenant: str, name: str) -> None:
        """Forget a region of a tenant, or all of them; what is not there is no error."""
        for known in [known for known in self._regions if known[0] == tenant and name in ("", known[1])]:
            del self._regions[known]  # its file closes when the last request that reads it is done

    def status(self, tenant: str, name: str = "") -> list[Region]:
        """A region of a tenant, or all of them. Raises NoRegion."""
        if name:
            return [self.find(tenant, name)]
        return [
            region for (owner, _), region in sorted(self._regions.items(), key=lambda each: each[0]) if owner == tenant
        ]

    def find(self, tenant: str, name: str) -> Region:
        """Raises NoRegion."""
        region = self._regions.get((tenant, name))
        if region is None:
            raise NoRegion(
                f"shared memory region {name[:200]!r} is not registered with this pod (tenant {tenant!r}); register it "
                "with the pod that is called: in a pool each pod has its own"
            )
        return region
