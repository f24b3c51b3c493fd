"""This pod's lease, and its record under `pods/`, which says whose the pod's id is.

The record is only ever put with a compare: on nothing, or on a record of this incarnation. So two processes that were
given one id never overwrite each other; the one that came later is told who is there. A record without a lease that
nobody can read was damaged by hand; it holds nothing up and is written over.

Whether the lease still stands is judged from before the call that renewed it was sent, by this pod's own monotonic
clock: the store cannot have ended it earlier, whatever the clocks of others say.

Deliberately absent: the times at which this is called (`placement.publishing`).
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from typing import TypeVar

from placement import keys
from placement.errors import StoreUnavailable, UnsupportedRecord
from placement.policy.snapshot import Pod
from placement.pool_records import pod_from_json
from placement.store.base import NO_LEASE, Get, KeyValue, KeyValueStore, Put, unchanged

log = logging.getLogger(__name__)

T = TypeVar("T")

TRIES_MAX = 8
"""Of a compare-and-set on the pod's own key, which nobody else should write."""


class PodLease:
    """Belongs to the event loop. The one who calls `take`, `write` and `keep_alive` does so one at a time."""

    def __init__(self, store: KeyValueStore, pod_id: str, ttl_s: float, clock: Callable[[], float]) -> None:
        self._store = store
        self._pod_id = pod_id
        self._key = keys.pod_key(pod_id)
        self._ttl_s = ttl_s
        self._clock = clock
        self.record_revision = 0
        """At which this pod last wrote its record; 0: not known to be there."""
        self.id = NO_LEASE
        """NO_LEASE: there is none, or it has run out."""
        self.valid_until_s = -math.inf
        """By the clock: before that the store has not ended it."""

    async def take(self, incarnation: str, record: bytes) -> Pod | None:
        """Get a lease and put the pod's record on it. Another process has the id: its record, and nothing is done.

        Raises StoreUnavailable.
        """
        sent_s = self._clock()
        lease = await bounded(self._store.grant_lease(self._ttl_s), self._ttl_s)
        try:
            other = await self._put(incarnation, record, lease)
        except BaseException:
            # If it was written after all, it goes with this lease, and the next try finds it to be its own.
            self.record_revision = 0
            raise
        if other is None:
            self.id = lease
            self.valid_until_s = sent_s + self._ttl_s
        else:
            await bounded(self._store.revoke_lease(lease), self._ttl_s)
        return other

    async def write(self, incarnation: str, record: bytes) -> Pod | None:
        """Put the record again. Another process has the id by now: its record, and this pod has no lease any more.

        Raises LeaseNotFound, StoreUnavailable.
        """
        lease = self.id
        other = await self._put(incarnation, record, lease)
        if other is not None:
            self.lost(lease)
            await bounded(self._store.revoke_lease(lease), self._ttl_s)
        return other

    async def keep_alive(self) -> None:
        """Begin its time anew; a call that gets no answer leaves time for another.

        Raises LeaseNotFound, StoreUnavailable.
        """
        lease = self.id
        sent_s = self._clock()
        await bounded(self._store.keep_lease_alive(lease), self._ttl_s / 4)
        if self.id == lease:
            self.valid_until_s = sent_s + self._ttl_s

    def lost(self, lease: int) -> bool:
        """It has run out. Whether this is news: it may be heard of a lease that has been replaced already."""
        if lease != self.id or lease == NO_LEASE:
            return False
        self.id = NO_LEASE
        self.valid_until_s = -math.inf
        return True

    async def revoke(self) -> None:
        """End it and all keys on it. Raises StoreUnavailable."""
        lease = self.id
        if self.lost(lease):
            await bounded(self._store.revoke_lease(lease), self._ttl_s)

    async def _put(self, incarnation: str, record: bytes, lease: int) -> Pod | None:
        for _ in range(TRIES_MAX):
            result = await bounded(
                self._store.txn(
                    [unchanged(self._key, self.record_revision)], [Put(self._key, record, lease)], [Get(self._key)]
                ),
                self._ttl_s / 2,
            )
            if result.succeeded:
                self.record_revision = result.revision
                return None
            found = result.reads[0]
            other = None if found is None else self._other(found, incarnation)
            if other is not None:
                return other
            self.record_revision = 0 if found is None else found.mod_revision
        raise StoreUnavailable(f"key {self._key!r} changed {TRIES_MAX} times while this pod wrote it")

    def _other(self, found: KeyValue, incarnation: str) -> Pod | None:
        try:
            pod, _ = pod_from_json(self._pod_id, found.value)
        except UnsupportedRecord as error:
            if found.lease == NO_LEASE:
                log.warning("key %r is written over: %s", self._key, error)
                return None
            return Pod(self._pod_id, incarnation="unknown", address=f"unknown (key {self._key!r}: {error})")
        return None if pod.incarnation == incarnation else pod


async def bounded(call: Awaitable[T], limit_s: float) -> T:
    """The call's result. Raises StoreUnavailable when there is no answer in `limit_s`; it may have written."""
    try:
        async with asyncio.timeout(limit_s):
            return await call
    except TimeoutError as error:
        raise StoreUnavailable(f"no answer within {limit_s:.1f} s") from error
