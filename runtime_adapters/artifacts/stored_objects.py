"""Reading objects by conditional GETs, in parts where an object is large. Blocking, on worker threads.

**Large objects are read in parts**, several at a time: one stream of an object store carries a tenth of what a network
card does. They are handed on in their order, so whoever reads writes and hashes a file that only grows at its end, and
a broken download goes on where it stopped. Each part is asked for on condition that the object is still the same one;
so only objects with a strong ETag are read like this, and a server that does not know ranges is read in one stream.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain, islice, repeat

from runtime_adapters.artifacts.errors import ArtifactChanged, FetchFailed
from runtime_adapters.artifacts.foreign import RangeIgnored, map_foreign
from runtime_adapters.artifacts.listing import RemoteObject
from runtime_adapters.artifacts.locations import Location

PART_BYTES = 8 * 1024 * 1024
"""Of a large object: at 90 MB/s a tenth of a second, twice what a store takes to begin its answer."""
PARTS_AT_ONCE = 4
"""For one object; each takes its bytes in memory until its turn comes. With the ones that are being written, eight
downloads at a time hold 320 MiB."""
PARALLEL_MIN_BYTES = 2 * PART_BYTES
"""Less than this is not worth further requests."""
_LOOK_UP_S = 0.2
"""How often a reader that waits for a part lets its caller see whether it is still wanted."""
_HTTP_GRAIN_S = 60.0
"""Last-Modified counts seconds, on a clock that is not ours."""


class NotModified(ArtifactChanged):
    """The object is still the one that was known."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The answer to a GET, whose body has begun. `begin`: where in the object."""

    size_bytes: int
    etag: str | None
    modified: datetime
    begin: int
    body: Iterator[bytes]
    """As it comes; one that is left closes its connection."""


class StoredObjects(ABC):
    """What all of them share: conditional GETs, and one opened body kept from look to read."""

    def __init__(self, location: Location) -> None:
        self._location = location
        self._opened: tuple[RemoteObject, Opened] | None = None
        self._knows_ranges = True

    @abstractmethod
    def _get(
        self,
        key: str,
        *,
        if_match: str | None = None,
        if_none_match: str | None = None,
        offset: int = 0,
        end: int | None = None,
    ) -> Opened:
        """Ask for an object or a part of it. Raises NotModified, RangeIgnored, and others that `map_foreign` knows."""

    def read(self, item: RemoteObject, offset: int = 0) -> Iterator[bytes]:
        if item.etag and self._knows_ranges and item.size_bytes - offset >= PARALLEL_MIN_BYTES:
            yield from self._read_in_parts(item, offset)
            return
        try:
            result = self._take_opened(item, offset)
            if result is None:
                result = self._get(item.key, if_match=item.etag, offset=offset)
                if not self._is_still(item, result) or (offset and result.begin != offset):
                    raise ArtifactChanged(
                        f"uri {self._location.shown!r}: the object changed while it was read; it is read again"
                    )
            yield from result.body
        except Exception as error:
            raise map_foreign(error, self._location) from None

    def _take_opened(self, item: RemoteObject, offset: int) -> Opened | None:
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
        self, item: RemoteObject, begin: int, end: int, left: threading.Event, whole: Opened | None = None
    ) -> bytes:
        """One part, whole. Ends early, with less, when nobody waits for it any more. `whole`: an answer that has begun
        already, and is left after this part."""
        part = bytearray()
        try:
            result = whole or self._get(item.key, if_match=item.etag, offset=begin, end=end)
            if not self._is_still(item, result) or result.begin != begin:
                raise ArtifactChanged(
                    f"uri {self._location.shown!r}: the object changed while it was read; it is read again"
                )
            for chunk in result.body:
                part += chunk
                if left.is_set() or len(part) >= end - begin:
                    break
        except Exception as error:
            raise map_foreign(error, self._location) from None
        if len(part) < end - begin and not left.is_set():
            raise FetchFailed(f"uri {self._location.shown!r}: a part came with {len(part)} of {end - begin} bytes")
        return bytes(memoryview(part)[: end - begin])

    def look_at_object(self, key: str, known: RemoteObject | None) -> RemoteObject:
        # A GET that stops at the headers, not a HEAD: signed URLs allow the one method that they were signed for.
        try:
            result = self._get(key, if_none_match=known.etag if known else None)
        except NotModified:
            if known is None:
                raise
            return replace(known, key=key)
        found = self._object("", key, result)
        self._opened = (found, result)
        return found

    def _is_still(self, item: RemoteObject, opened: Opened) -> bool:
        return self._object(item.name, item.key, opened).version == item.version

    def _object(self, name: str, key: str, opened: Opened) -> RemoteObject:
        return remote_object(name, key, opened.size_bytes, opened.etag, opened.modified)


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


def remote_object(name: str, key: str, size_bytes: int, etag: str | None, modified: datetime) -> RemoteObject:
    """From what a server says of it."""
    strong = etag if etag and not etag.startswith("W/") else None
    if strong:
        return RemoteObject(name, key, size_bytes, f"etag:{strong}:{size_bytes}", settled=True, etag=strong)
    modified_s = modified.timestamp()
    settled = modified_s > 0 and (datetime.now(UTC) - modified).total_seconds() > _HTTP_GRAIN_S
    return RemoteObject(name, key, size_bytes, f"modified:{modified_s}:{etag}:{size_bytes}", settled)
