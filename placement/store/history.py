"""The recent changes of a store in this process, and those who wait for more.

A watcher has no queue of its own: it has a position, and reads on from there whenever it likes. So a slow watcher
costs nothing, a hundred watchers share one copy, and the one bound on memory is the history's own. Who falls behind
that bound is told so (Compacted) and lists again.

Deliberately absent: the disk. After a restart history begins at the present revision.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import AsyncGenerator, Sequence

from placement.errors import Compacted, StoreClosed
from placement.store.base import Event, StoreLimits, WatchBatch

BATCH_EVENTS_MAX = 500
"""Events in one batch, unless one revision has more: what a watcher digests in about 10 ms of the loop."""
_EVENT_BYTES = 330
"""What Python's objects of one event take beside the text of its key and its value (measured, 3.11)."""


class History:
    """Changes after `compacted_revision`, up to `last_revision`. Belongs to the event loop."""

    def __init__(self, limits: StoreLimits, revision: int) -> None:
        self.compacted_revision = revision
        self.last_revision = revision
        self._limits = limits
        self._revisions: list[int] = []
        self._events: list[tuple[Event, ...]] = []
        self._event_count = 0
        self._bytes = 0
        self._waiters: list[asyncio.Future[None]] = []
        self._closed: StoreClosed | None = None

    def append(self, revision: int, events: tuple[Event, ...]) -> None:
        """Add what one transaction changed, and wake the watchers."""
        self._revisions.append(revision)
        self._events.append(events)
        self._event_count += len(events)
        self._bytes += _size_bytes(events)
        self.last_revision = revision
        if self._event_count > self._limits.history_events_max or self._bytes > self._limits.history_bytes_max:
            self._shrink()
        self._wake()

    def compact(self, revision: int) -> None:
        """Forget up to and including `revision`."""
        revision = min(revision, self.last_revision)
        if revision > self.compacted_revision:
            self._forget(bisect_left(self._revisions, revision + 1))
            self.compacted_revision = revision

    def close(self) -> None:
        """Tell every watcher that nothing more comes."""
        self._closed = StoreClosed("the store is closed: this process is stopping")
        self._wake()

    def batch_from(self, prefixes: tuple[str, ...], from_revision: int) -> WatchBatch:
        """The next changes at `from_revision` or later; its `revision` says how far it went. Raises Compacted."""
        if from_revision <= self.compacted_revision:
            raise Compacted(from_revision, self.compacted_revision)
        index = bisect_left(self._revisions, from_revision)
        picked: list[Event] = []
        reached = max(self.last_revision, from_revision - 1)
        while index < len(self._revisions):
            if len(picked) >= BATCH_EVENTS_MAX:
                reached = self._revisions[index] - 1
                break
            picked.extend(event for event in self._events[index] if event.kv.key.startswith(prefixes))
            index += 1
        return WatchBatch(reached, tuple(picked))

    async def watch(self, prefixes: Sequence[str], from_revision: int) -> AsyncGenerator[WatchBatch, None]:
        """Batches from `from_revision` on, for as long as the store is open."""
        wanted = tuple(prefixes)
        while True:
            batch = self.batch_from(wanted, from_revision)
            if batch.events:
                yield batch
            from_revision = batch.revision + 1
            while self.last_revision < from_revision:
                if self._closed is not None:
                    raise self._closed
                waiter = asyncio.get_running_loop().create_future()
                self._waiters.append(waiter)
                await waiter

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _shrink(self) -> None:
        # Down to 7/8 of the bound, so that not every append moves the lists; the newest revision always stays.
        events_max = self._limits.history_events_max * 7 // 8
        bytes_max = self._limits.history_bytes_max * 7 // 8
        index, events, size = 0, self._event_count, self._bytes
        while index < len(self._events) - 1 and (events > events_max or size > bytes_max):
            events -= len(self._events[index])
            size -= _size_bytes(self._events[index])
            index += 1
        if index:
            self.compacted_revision = self._revisions[index - 1]
            self._forget(index)

    def _forget(self, count: int) -> None:
        for events in self._events[:count]:
            self._event_count -= len(events)
            self._bytes -= _size_bytes(events)
        del self._revisions[:count]
        del self._events[:count]


def _size_bytes(events: tuple[Event, ...]) -> int:
    return sum(_EVENT_BYTES + len(event.kv.key) + len(event.kv.value) for event in events)
