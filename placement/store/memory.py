"""The store for tests and the simulator: a dictionary with the embedded store's semantics, and no disk.

It is deterministic: no thread, no timer, no clock of its own. Every call gives way to the loop once before it acts, as
a real store would, so that callers who race here race as they do elsewhere. Leases run out when `expire_leases` is
called, against the clock that was passed in. `outage` makes every call fail as a store does that cannot be reached,
for tests of what lives on without one.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, insort
from collections.abc import AsyncGenerator, Callable, Sequence

from placement.errors import StoreClosed, StoreUnavailable
from placement.store.base import (
    Condition,
    Event,
    KeyValue,
    Operation,
    Page,
    StoreLimits,
    TxnResult,
    WatchBatch,
    check_key,
    check_txn,
    prefix_end,
)
from placement.store.history import History
from placement.store.leases import LeaseTable, check_ttl
from placement.store.transaction import run_revoke, run_txn


class MemoryStore:
    """A KeyValueStore that forgets everything when the process ends."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = lambda: 0.0,
        limits: StoreLimits | None = None,
        first_lease: int = 1,
    ) -> None:
        """`first_lease`: so that stores which replace one another do not give out the same leases."""
        self.limits = limits or StoreLimits()
        self.outage: str | None = None
        """While set, every call raises StoreUnavailable with this text."""
        self._clock = clock
        self._space = _MemorySpace()
        self._revision = 1
        self._history = History(self.limits, self._revision)
        self._next_lease = first_lease
        self._closed = False

    @property
    def revision(self) -> int:
        """Of the last write."""
        return self._revision

    async def get(self, key: str) -> KeyValue | None:
        """See KeyValueStore."""
        await self._enter()
        check_key(key, self.limits)
        return self._space.get(key)

    async def range(self, prefix: str, *, limit: int = 1000, from_key: str = "") -> Page:
        """See KeyValueStore."""
        await self._enter()
        keys = self._space.ordered_keys(max(prefix, from_key), prefix_end(prefix), limit + 1)
        items = tuple(self._space.kvs[key] for key in keys[:limit])
        return Page(items, self._revision, keys[limit] if len(keys) > limit else None)

    async def txn(
        self, compares: Sequence[Condition], success: Sequence[Operation], failure: Sequence[Operation] = ()
    ) -> TxnResult:
        """See KeyValueStore."""
        await self._enter()
        check_txn(compares, success, failure, self.limits)
        result, events = run_txn(self._space, self._revision, compares, success, failure)
        self._publish(events)
        return result

    def watch(self, prefixes: Sequence[str], from_revision: int) -> AsyncGenerator[WatchBatch, None]:
        """See KeyValueStore."""
        self._check_open()
        return self._history.watch(prefixes, from_revision)

    def batch_from(self, prefixes: tuple[str, ...], from_revision: int) -> WatchBatch:
        """What a watch would deliver next, without waiting: for who carries batches himself. Raises Compacted."""
        return self._history.batch_from(prefixes, from_revision)

    async def grant_lease(self, ttl_s: float) -> int:
        """See KeyValueStore."""
        await self._enter()
        check_ttl(ttl_s)
        lease = self._next_lease
        self._next_lease += 1
        self._space.leases.add(lease, ttl_s, self._clock())
        return lease

    async def keep_lease_alive(self, lease: int) -> None:
        """See KeyValueStore."""
        await self._enter()
        self._space.leases.renew(lease, self._clock())

    async def revoke_lease(self, lease: int) -> None:
        """See KeyValueStore."""
        await self._enter()
        self._space.leases.remove(lease)
        self._publish(run_revoke(self._space, self._revision, lease))

    async def expire_leases(self) -> None:
        """Let go of every lease whose time is up by the clock."""
        for lease in self._space.leases.expired(self._clock()):
            await self.revoke_lease(lease)

    async def compact(self, revision: int) -> None:
        """See KeyValueStore."""
        await self._enter()
        self._history.compact(revision)

    async def close(self) -> None:
        """See KeyValueStore."""
        self._closed = True
        self._history.close()

    def _publish(self, events: tuple[Event, ...]) -> None:
        if events:
            self._revision += 1
            self._history.append(self._revision, events)

    async def _enter(self) -> None:
        self._check_open()
        await asyncio.sleep(0)
        self._check_outage()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosed("the store is closed: this process is stopping")
        self._check_outage()

    def _check_outage(self) -> None:
        if self.outage is not None:
            raise StoreUnavailable(self.outage)


class _MemorySpace:
    """Keys in a dictionary, their order in a list beside it."""

    def __init__(self) -> None:
        self.kvs: dict[str, KeyValue] = {}
        self.leases = LeaseTable()
        self._order: list[str] = []

    def ordered_keys(self, start: str, end: str, limit: int | None = None) -> list[str]:
        first = bisect_left(self._order, start)
        last = bisect_left(self._order, end)
        return self._order[first : last if limit is None else min(last, first + limit)]

    def get(self, key: str) -> KeyValue | None:
        return self.kvs.get(key)

    def put(self, kv: KeyValue) -> None:
        if kv.key not in self.kvs:
            insort(self._order, kv.key)
        self.kvs[kv.key] = kv

    def delete(self, key: str) -> None:
        del self.kvs[key]
        del self._order[bisect_left(self._order, key)]

    def keys_under(self, prefix: str) -> list[str]:
        return self.ordered_keys(prefix, prefix_end(prefix))

    def has_newer(self, prefix: str, newer_than: int) -> bool:
        return any(self.kvs[key].mod_revision > newer_than for key in self.keys_under(prefix))

    def has_lease(self, lease: int) -> bool:
        return lease in self.leases

    def keys_of_lease(self, lease: int) -> list[str]:
        return [key for key in self._order if self.kvs[key].lease == lease]
