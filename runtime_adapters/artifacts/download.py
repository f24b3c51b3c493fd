"""One listing, downloaded into one directory, hashed on the way; resumed where an earlier try stopped.

Blocking, and run on a worker thread: read, hash and write alternate on one thread with one chunk in memory, which is
simpler than a pipeline and saturates a disk.

A download's directory holds `plan.json` (what is being downloaded, in which version) and one numbered file per object:
names from outside never become paths here. What an earlier try left is used when the plan is the same, every object in
it has a strong ETag, and the machine has not been rebooted since: bytes that were not synced may be gone after a
power loss while the file's length is right. The kept bytes are read once more, because a hash cannot be resumed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from runtime_adapters.artifacts.errors import ArtifactChanged, DiskFull, FetchFailed, FetchTimedOut
from runtime_adapters.artifacts.foreign import RangeIgnored
from runtime_adapters.artifacts.listing import Listing, RemoteObject, Source
from runtime_adapters.artifacts.names import shown
from runtime_adapters.artifacts.unpack import FileRecord, OpenNew, open_new, write_all
from runtime_adapters.errors import LoadFailed

_CHUNK_BYTES = 1024 * 1024
_PLAN = "plan.json"
_FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

Digest = Any
"""A hashlib object."""


class FetchStopped(LoadFailed):
    """Nobody waits for this fetch any more."""


@dataclass(slots=True)
class Stop:
    """How a worker thread hears that it should end. `deadline_s` is on the monotonic clock."""

    deadline_s: float
    wanted: threading.Event = field(default_factory=threading.Event)
    clock: Callable[[], float] = time.monotonic

    @property
    def remaining_s(self) -> float:
        """Seconds until the deadline."""
        return self.deadline_s - self.clock()

    def check(self) -> None:
        """Raise if there is no point in going on."""
        if self.wanted.is_set():
            raise FetchStopped("fetch stopped: nobody waits for it any more")
        if self.remaining_s <= 0:
            raise FetchTimedOut("fetch did not end before its deadline; it goes on where it stopped at the next try")


@dataclass(frozen=True, slots=True)
class Downloaded:
    """What lies in the download's directory: one record per object, in the listing's order, and bytes transferred."""

    records: tuple[FileRecord, ...]
    transferred_bytes: int


Hear = Callable[[int, bytes], None]
"""Of a file that comes: where a piece of it begins, and the piece, which is on the disk by then. In order, on the
thread that writes; what an earlier try left is not told again."""


def download(
    source: Source,
    listing: Listing,
    directory: Path,
    stop: Stop,
    create: OpenNew = open_new,
    hear: Hear | None = None,
) -> Downloaded:
    """Bring every object of the listing into `directory`. Raises what sources raise, DiskFull, FetchStopped. `hear`:
    only where there is one object."""
    with disk_errors():
        if not _may_resume(listing, directory):
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(parents=True)
            (directory / _PLAN).write_text(_plan_of(listing))
        records: list[FileRecord] = []
        transferred_bytes = 0
        for number, item in enumerate(listing.objects):
            sha256, transferred = _download_object(source, item, directory / str(number), stop, create, hear)
            transferred_bytes += transferred
            records.append(FileRecord(item.name, item.size_bytes, sha256))
    return Downloaded(tuple(records), transferred_bytes)


def tree_hash(records: tuple[FileRecord, ...]) -> str:
    """The hash of a directory: SHA-256 of what `sha256sum` prints for its files, in the order of their names' bytes.

    `find . -type f -printf '%P\\n' | LC_ALL=C sort | tr '\\n' '\\0' | xargs -0 sha256sum | sha256sum` prints the same.
    """
    digest = hashlib.sha256()
    for record in sorted(records, key=lambda record: record.name.encode()):
        digest.update(f"{record.sha256}  {record.name}\n".encode())
    return digest.hexdigest()


def hash_file(path: Path, stop: Stop) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    _hash_into(digest, path, stop)
    return digest.hexdigest()


@contextmanager
def disk_errors() -> Iterator[None]:
    """Turns "no space left" and its like into DiskFull, other errors of this pod's disk into FetchFailed."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL_ERRNOS:
            raise DiskFull(
                f"the disk tier has no room ({error.strerror}); free space on the pod's disk or lower --disk-capacity"
            ) from error
        raise FetchFailed(f"the disk tier failed: {error.strerror or error}; check the pod's data directory") from error


def plan_exists(directory: Path) -> bool:
    """Whether a directory holds an interrupted download."""
    return (directory / _PLAN).is_file()


@cache
def boot_id() -> str:
    """Changes with every start of the machine; empty where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _download_object(
    source: Source, item: RemoteObject, path: Path, stop: Stop, create: OpenNew, hear: Hear | None
) -> tuple[str, int]:
    digest = hashlib.sha256()
    offset = path.stat().st_size if path.exists() else 0
    if offset > item.size_bytes:
        path.unlink()
        offset = 0
    if offset:
        _hash_into(digest, path, stop)
        if offset == item.size_bytes:
            return _checked(digest, item, path), 0
    try:
        written = _transfer(source, item, path, offset, digest, stop, create, hear)
    except RangeIgnored:
        path.unlink()
        digest, offset = hashlib.sha256(), 0
        written = _transfer(source, item, path, 0, digest, stop, create, hear)
    if offset + written != item.size_bytes:
        path.unlink()
        what = f"object {shown(item.name)}" if item.name else "the object"
        raise ArtifactChanged(f"{what} has {offset + written} bytes, and {item.size_bytes} were announced")
    return _checked(digest, item, path), written


def _checked(digest: Digest, item: RemoteObject, path: Path) -> str:
    found: str = digest.hexdigest()
    if item.sha256 and found != item.sha256:
        path.unlink()
        raise FetchFailed(
            f"object {shown(item.name)} came with sha256:{found}, and its store names it by sha256:{item.sha256}; "
            "it is read again"
        )
    return found


def _transfer(
    source: Source,
    item: RemoteObject,
    path: Path,
    offset: int,
    digest: Digest,
    stop: Stop,
    create: OpenNew,
    hear: Hear | None,
) -> int:
    written = 0
    with _open_at(path, offset, create) as sink:
        stop.check()
        for chunk in source.read(item, offset):
            stop.check()
            written += len(chunk)
            if offset + written > item.size_bytes:
                break
            digest.update(chunk)
            write_all(sink, chunk)
            if hear is not None:
                hear(offset + written - len(chunk), bytes(chunk))
    return written


def _open_at(path: Path, offset: int, create: OpenNew) -> BinaryIO:
    if offset:
        return path.open("ab", buffering=0)
    path.unlink(missing_ok=True)
    return create(path)


def _hash_into(digest: Digest, path: Path, stop: Stop) -> None:
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            stop.check()
            digest.update(chunk)


def _may_resume(listing: Listing, directory: Path) -> bool:
    if not boot_id() or any(item.etag is None for item in listing.objects):
        return False
    try:
        return (directory / _PLAN).read_text() == _plan_of(listing)
    except (OSError, ValueError):
        return False


def _plan_of(listing: Listing) -> str:
    objects = [[item.name, item.key, item.size_bytes, item.version] for item in listing.objects]
    return json.dumps({"boot": boot_id(), "objects": objects})
