"""Reading what lies at a location: a list of objects, and their bytes from any offset.

Two implementations of one small protocol: files of this machine, and objects behind obstore (http, s3). Both are
blocking and run on worker threads; obstore's asyncio functions are not used, because after a failed body they abort
the interpreter at its exit (seen with 0.12 on Python 3.11).

**What counts as unchanged.** Every object carries a `version`; while one is read, its version must not change. If it is
also `settled`, an equal version at a later time means equal bytes, and nothing is downloaded again:
* s3: the ETag and the size; http: a strong ETag and the size, else Last-Modified and the size;
* file: device, inode, size, mtime and ctime;
* times count only once they are older than the clock's grain, since a second write in the same tick changes no time.
Where a server says nothing (no ETag, no Last-Modified), the object is fetched each time.

**Large objects are read in parts**, several at a time: one stream of an object store carries a tenth of what a network
card does. They are handed on in their order, so whoever reads writes and hashes a file that only grows at its end, and
a broken download goes on where it stopped. Each part is asked for on condition that the object is still the same one;
so only objects with a strong ETag are read like this, and a server that does not know ranges is read in one stream.
"""

from __future__ import annotations

import os
import re
import stat
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain, islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Protocol

from runtime_adapters.artifacts.clients import Timeouts, http_client, new_http_client, s3_client
from runtime_adapters.artifacts.credentials import HttpKey, S3Key, StorageKey, UnsupportedKey, origin_of
from runtime_adapters.artifacts.errors import (
    ArtifactChanged,
    ArtifactDenied,
    ArtifactNotFound,
    ArtifactTooLarge,
    BadLocation,
    FetchFailed,
)
from runtime_adapters.artifacts.foreign import RangeIgnored, map_foreign, raise_for_file
from runtime_adapters.artifacts.locations import Location, SourcePolicy
from runtime_adapters.artifacts.names import check_distinct, safe_parts, shown
from runtime_adapters.errors import BadArtifact

if TYPE_CHECKING:
    from obstore import GetOptions, GetResult
    from obstore.store import HTTPStore, S3Store

_CHUNK_BYTES = 1024 * 1024
PART_BYTES = 8 * 1024 * 1024
"""Of a large object: at 90 MB/s a tenth of a second, twice what a store takes to begin its answer."""
PARTS_AT_ONCE = 4
"""For one object; each takes its bytes in memory until its turn comes. With the ones that are being written, eight
downloads at a time hold 320 MiB."""
PARALLEL_MIN_BYTES = 2 * PART_BYTES
"""Less than this is not worth further requests."""
_FILE_GRAIN_S = 2.0
"""Coarsest timestamps of common file systems."""
_PLAIN_URI = re.compile(r"(https?://[^/?#]+)/([A-Za-z0-9_-][A-Za-z0-9._-]*(?:/[A-Za-z0-9_-][A-Za-z0-9._-]*)*)")
"""A server, and a path that every writer of URIs writes alike."""
_LOOK_UP_S = 0.2
"""How often a reader that waits for a part lets its caller see whether it is still wanted."""
_HTTP_GRAIN_S = 60.0
"""Last-Modified counts seconds, on a clock that is not ours."""


@dataclass(frozen=True, slots=True)
class RemoteObject:
    """One object: `name` is its place in a directory artifact (empty if it is the artifact), `key` its path there."""

    name: str
    key: str
    size_bytes: int
    version: str
    settled: bool
    etag: str | None = None
    """The strong ETag, if there is one: with it, an interrupted download goes on where it stopped."""


@dataclass(frozen=True, slots=True)
class Listing:
    """What lies at a location. `trusted` is about links only: no file of it lies elsewhere than its name says."""

    objects: tuple[RemoteObject, ...]
    is_directory: bool
    trusted: bool = True

    @property
    def total_bytes(self) -> int:
        """Bytes of all objects."""
        return sum(item.size_bytes for item in self.objects)

    @property
    def settled(self) -> bool:
        """Whether an equal listing at a later time means equal bytes."""
        return all(item.settled for item in self.objects)


class Source(Protocol):
    """Something that can be looked at and read, from one worker thread at a time."""

    def look(self, known: RemoteObject | None = None) -> Listing:
        """What is there now. `known` is what was there before, if it was a single object: it may save a transfer."""

    def read(self, item: RemoteObject, offset: int = 0) -> Iterator[bytes]:
        """Its bytes from `offset`. Raises ArtifactChanged when it is no longer the version that was listed."""


def open_source(
    location: Location, key: StorageKey | None, policy: SourcePolicy, timeouts: Timeouts, files_max: int
) -> Source:
    """The source for a location, after the operator's rules. Raises BadLocation, ArtifactDenied."""
    policy.check(location)
    if isinstance(key, UnsupportedKey):
        raise ArtifactDenied(f"storage key is of type {key.type[:20]!r}, which this pod cannot read; use s3 or http")
    if location.scheme == "file":
        return FileSource(location, policy, files_max)
    if location.scheme == "s3":
        return S3Source(location, key if isinstance(key, S3Key) else S3Key(), timeouts, files_max)
    return HttpSource(location, key if isinstance(key, HttpKey) else None, timeouts)


# Files ------------------------------------------------------------------------------------------------------------


class FileSource:
    """A file or a directory of this machine. Links to files are followed as far as the operator's prefixes allow."""

    def __init__(self, location: Location, policy: SourcePolicy, files_max: int) -> None:
        self._location = location
        self._policy = policy
        self._files_max = files_max

    def look(self, known: RemoteObject | None = None) -> Listing:
        try:
            base = self._location.file_path.resolve(strict=True)
            if not base.is_dir():
                return Listing((self._object("", base),), is_directory=False, trusted=self._policy.trusts_file(base))
            objects = tuple(self._object(name, base / name) for name in self._names_below(base))
            trusted = all(self._policy.trusts_file((base / item.name).resolve()) for item in objects)
        except OSError as error:
            raise_for_file(error, self._location)
        if not objects:
            raise ArtifactNotFound(f"uri {self._location.shown!r}: the directory holds no file")
        return Listing(objects, is_directory=True, trusted=trusted)

    def read(self, item: RemoteObject, offset: int = 0) -> Iterator[bytes]:
        try:
            descriptor = os.open(item.key, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            with os.fdopen(descriptor, "rb", buffering=0) as file:
                self._policy.check_file(_path_of(descriptor, item.key), self._location.shown)
                self._check_version(item, os.fstat(descriptor))
                file.seek(offset)
                while chunk := file.read(_CHUNK_BYTES):
                    yield chunk
                self._check_version(item, os.fstat(descriptor))
        except OSError as error:
            raise_for_file(error, self._location)

    def _names_below(self, base: Path) -> list[str]:
        names: list[str] = []
        for directory, below, files in os.walk(base, onerror=_raise, followlinks=False):
            inside = Path(directory)
            for child in below:
                if (inside / child).is_symlink():
                    raise BadArtifact(
                        f"uri {self._location.shown!r}: {shown(child)} is a link to a directory; put the files there"
                    )
            names += [(inside / file).relative_to(base).as_posix() for file in files]
            _check_count(len(names), self._files_max, self._location)
        check_distinct([safe_parts(name) for name in names])
        return sorted(names)

    def _object(self, name: str, path: Path) -> RemoteObject:
        self._policy.check_file(path, self._location.shown)
        found = path.stat()
        self._check_regular(found, name)
        written_s = max(found.st_mtime, found.st_ctime)
        return RemoteObject(
            name=name,
            key=str(path),
            size_bytes=found.st_size,
            version=_file_version(found),
            settled=time.time() - written_s > _FILE_GRAIN_S,
        )

    def _check_version(self, item: RemoteObject, found: os.stat_result) -> None:
        self._check_regular(found, item.name)
        if _file_version(found) != item.version:
            raise ArtifactChanged(f"uri {self._location.shown!r}: the file changed while it was read; it is read again")

    def _check_regular(self, found: os.stat_result, name: str) -> None:
        if not stat.S_ISREG(found.st_mode):
            where = f", {shown(name)}," if name else ""
            raise BadArtifact(f"uri {self._location.shown!r}{where} is neither a file nor a directory")


def _file_version(found: os.stat_result) -> str:
    return f"file:{found.st_dev}:{found.st_ino}:{found.st_size}:{found.st_mtime_ns}:{found.st_ctime_ns}"


def _path_of(descriptor: int, fallback: str) -> Path:
    # What was really opened, whatever links were swapped since the path was checked.
    try:
        return Path(os.readlink(f"/proc/self/fd/{descriptor}"))
    except OSError:
        return Path(fallback)


def _raise(error: OSError) -> NoReturn:
    raise error


# Objects ----------------------------------------------------------------------------------------------------------


class _StoredObjects:
    """What http and s3 share: conditional GETs through obstore, and one opened body kept from look to read."""

    def __init__(self, location: Location, store: HTTPStore | S3Store) -> None:
        self._location = location
        self._store = store
        self._opened: tuple[RemoteObject, GetResult] | None = None
        self._knows_ranges = True

    def read(self, item: RemoteObject, offset: int = 0) -> Iterator[bytes]:
        if item.etag and self._knows_ranges and item.size_bytes - offset >= PARALLEL_MIN_BYTES:
            yield from self._read_in_parts(item, offset)
            return
        try:
            result = self._take_opened(item, offset)
            if result is None:
                result = self._get(item.key, if_match=item.etag, offset=offset)
                found = self._object(item.name, item.key, result)
                if found.version != item.version or (offset and result.range[0] != offset):
                    raise ArtifactChanged(
                        f"uri {self._location.shown!r}: the object changed while it was read; it is read again"
                    )
            yield from result.stream(min_chunk_size=1)
        except Exception as error:
            raise map_foreign(error, self._location) from None

    def _take_opened(self, item: RemoteObject, offset: int) -> GetResult | None:
        """The answer to the look, if it is what is to be read. It is kept nowhere then: once it is left, its connection
        closes, and no more of it comes over the link than was read."""
        opened, self._opened = self._opened, None
        return opened[1] if opened is not None and offset == 0 and opened[0] == item else None

    def _read_in_parts(self, item: RemoteObject, offset: int) -> Iterator[bytes]:
        """The parts in their order, while others are on their way. An empty one says that the next takes its time."""
        left = threading.Event()
        parts = _parts(offset, item.size_bytes)
        readers = ThreadPoolExecutor(PARTS_AT_ONCE, "artifact-part")
        try:
            coming = deque(
                readers.submit(self._part, item, begin, end, left, self._take_opened(item, begin))
                for begin, end in islice(parts, PARTS_AT_ONCE)
            )
            while coming:
                while not wait([coming[0]], timeout=_LOOK_UP_S).done:
                    yield b""
                part = coming.popleft().result()
                coming.extend(readers.submit(self._part, item, begin, end, left) for begin, end in islice(parts, 1))
                yield part
        except RangeIgnored:
            self._knows_ranges = False
            raise
        finally:
            left.set()
            readers.shutdown(wait=True, cancel_futures=True)

    def _part(
        self, item: RemoteObject, begin: int, end: int, left: threading.Event, whole: GetResult | None = None
    ) -> bytes:
        """One part, whole. Ends early, with less, when nobody waits for it any more. `whole`: an answer that has begun
        already, and is left after this part."""
        part = bytearray()
        try:
            result = whole or self._get(item.key, if_match=item.etag, offset=begin, end=end)
            found = self._object(item.name, item.key, result)
            if found.version != item.version or result.range[0] != begin:
                raise ArtifactChanged(
                    f"uri {self._location.shown!r}: the object changed while it was read; it is read again"
                )
            for chunk in result.stream(min_chunk_size=1):
                part += chunk
                if left.is_set() or len(part) >= end - begin:
                    break
        except Exception as error:
            raise map_foreign(error, self._location) from None
        if len(part) < end - begin and not left.is_set():
            raise FetchFailed(f"uri {self._location.shown!r}: a part came with {len(part)} of {end - begin} bytes")
        return bytes(memoryview(part)[: end - begin])

    def _look_at_object(self, key: str, known: RemoteObject | None) -> RemoteObject:
        # A GET that stops at the headers, not a HEAD: signed URLs allow the one method that they were signed for.
        from obstore.exceptions import NotModifiedError

        try:
            result = self._get(key, if_none_match=known.etag if known else None)
        except NotModifiedError:
            if known is None:
                raise
            return replace(known, key=key)
        found = self._object("", key, result)
        self._opened = (found, result)
        return found

    def _get(
        self,
        key: str,
        *,
        if_match: str | None = None,
        if_none_match: str | None = None,
        offset: int = 0,
        end: int | None = None,
    ) -> GetResult:
        import obstore

        options: GetOptions = {}
        if if_match:
            options["if_match"] = if_match
        if if_none_match:
            options["if_none_match"] = if_none_match
        if end is not None:
            options["range"] = (offset, end)
        elif offset:
            options["range"] = {"offset": offset}
        return obstore.get(self._store, key, options=options or None)

    def _object(self, name: str, key: str, result: GetResult) -> RemoteObject:
        meta = result.meta
        return _remote_object(name, key, meta["size"], meta["e_tag"], meta["last_modified"])


class HttpSource(_StoredObjects):
    """One object on a web server."""

    def __init__(self, location: Location, key: HttpKey | None, timeouts: Timeouts) -> None:
        headers: tuple[tuple[str, str], ...] = ()
        if key is not None and key.headers:
            if origin_of(location.uri) != key.origin:
                raise ArtifactDenied(f"uri {location.shown!r}: the storage key's headers are for {key.origin} only")
            headers = tuple(sorted(dict(key.headers).items()))
        certificate = key.certificate if key else ""
        if found := _PLAIN_URI.fullmatch(location.uri):
            server, self._key = found[1], found[2]
            store = http_client(server, headers, certificate, timeouts)
        else:  # it may only be asked for as it is written, and a signed one comes once
            self._key = ""
            store = new_http_client(location.uri, headers, certificate, timeouts)
        super().__init__(location, store)

    def look(self, known: RemoteObject | None = None) -> Listing:
        try:
            return Listing((self._look_at_object(self._key, known),), is_directory=False)
        except Exception as error:
            raise map_foreign(error, self._location) from None


class S3Source(_StoredObjects):
    """An object of a bucket, or all objects below a prefix. An object of that very name goes first."""

    def __init__(self, location: Location, key: S3Key, timeouts: Timeouts, files_max: int) -> None:
        if not location.authority:
            raise BadLocation(f"uri {location.shown!r} names no bucket, and neither does its storage key")
        self._files_max = files_max
        super().__init__(location, s3_client(location.authority, key, timeouts))

    def look(self, known: RemoteObject | None = None) -> Listing:
        key = self._location.path.removesuffix("/")
        try:
            if key and not self._location.path.endswith("/"):
                try:
                    return Listing((self._look_at_object(key, known),), is_directory=False)
                except FileNotFoundError as error:
                    if "NoSuchBucket" in str(error):
                        raise
            return self._look_below(key)
        except Exception as error:
            raise map_foreign(error, self._location) from None

    def _look_below(self, prefix: str) -> Listing:
        import obstore

        found: list[RemoteObject] = []
        for page in obstore.list(self._store, prefix or None, chunk_size=1000):
            for meta in page:
                name = meta["path"][len(prefix) :].lstrip("/")
                # Consoles mark a directory by an empty object named like it.
                if name:
                    found.append(_remote_object(name, meta["path"], meta["size"], meta["e_tag"], meta["last_modified"]))
            _check_count(len(found), self._files_max, self._location)
        parents = {item.name[:end] for item in found for end in _slashes(item.name)}
        objects = [item for item in found if item.size_bytes or item.name not in parents]
        if not objects:
            raise ArtifactNotFound(f"uri {self._location.shown!r}: no object of that name, and none below it")
        check_distinct([safe_parts(item.name) for item in objects])
        return Listing(tuple(sorted(objects, key=lambda item: item.name)), is_directory=True)


def _parts(offset: int, size_bytes: int) -> Iterator[tuple[int, int]]:
    """Where the parts of an object begin and end.

    The first one is on its way already, alone, until the others have been asked for. Those are smaller, each by another
    amount: parts of one size that begin together end together, and then nothing is on its way until the next begin.
    """
    begins_together = (PART_BYTES * count // PARTS_AT_ONCE for count in range(1, PARTS_AT_ONCE))
    for part_bytes in chain((PART_BYTES,), begins_together, repeat(PART_BYTES)):
        if offset >= size_bytes:
            return
        end = min(size_bytes, offset + part_bytes)
        yield offset, end
        offset = end


def _slashes(name: str) -> Iterator[int]:
    return (position for position, character in enumerate(name) if character == "/")


def _remote_object(name: str, key: str, size_bytes: int, etag: str | None, modified: datetime) -> RemoteObject:
    strong = etag if etag and not etag.startswith("W/") else None
    if strong:
        return RemoteObject(name, key, size_bytes, f"etag:{strong}:{size_bytes}", settled=True, etag=strong)
    modified_s = modified.timestamp()
    settled = modified_s > 0 and (datetime.now(UTC) - modified).total_seconds() > _HTTP_GRAIN_S
    return RemoteObject(name, key, size_bytes, f"modified:{modified_s}:{etag}:{size_bytes}", settled)


def _check_count(count: int, files_max: int, location: Location) -> None:
    if count > files_max:
        raise ArtifactTooLarge(f"uri {location.shown!r}: more than {files_max} files lie there; pack them, or name one")
