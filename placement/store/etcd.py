"""The store for many pods: a pool's keys under one prefix of an etcd, from 3.4 to 3.6.

etcd has what the seam asks for, so each method here is one request and its answer. What makes it a store to rely on
lies below, each in its place: reaching a member and trying again (`etcd_connection`), telling whether a write may have
happened (`etcd_errors`), following through disconnections, compactions and wipes (`etcd_watch`).

Reads are linearised: they see every write that was acknowledged anywhere. A transaction is sent once; if its answer is
lost, StoreUnavailable says that it may have written, and the caller compares and sets again.

**Nobody compacts a bare etcd**, so somebody must (`placement.compaction` says up to where).

Deliberately absent: users and roles (etcdctl), defragmentation, and etcd's locks and elections: a lease and a
transaction do.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Sequence

from placement.errors import LeaseNotFound, StoreClosed, StoreRefused
from placement.store.base import (
    Condition,
    KeyValue,
    Operation,
    Page,
    StoreLimits,
    TxnResult,
    WatchBatch,
    check_key,
    check_txn,
)
from placement.store.etcd_api.generated import etcd_pb2
from placement.store.etcd_api.methods import (
    COMPACT,
    LEASE_GRANT,
    LEASE_KEEP_ALIVE,
    LEASE_REVOKE,
    LEASE_TIME_TO_LIVE,
    RANGE,
    TXN,
    Method,
    Request,
    Response,
)
from placement.store.etcd_connection import Connection
from placement.store.etcd_errors import CallFailure, too_large, unexpected
from placement.store.etcd_options import EtcdOptions
from placement.store.etcd_requests import Keyspace, is_read_only, leases_of
from placement.store.etcd_watch import LineageSeen, WatchFeed, lineage_of, mark_request
from placement.store.leases import check_ttl


class EtcdStore:
    """A KeyValueStore on etcd. Open it with `open`; it belongs to the loop that opened it."""

    def __init__(self, connection: Connection, seen: LineageSeen, limits: StoreLimits) -> None:
        self.limits = limits
        self._connection = connection
        self._keys = Keyspace(connection.options.prefix)
        self._seen = seen
        self._feeds: dict[WatchFeed, asyncio.Task[None]] = {}

    @classmethod
    async def open(cls, options: EtcdOptions, *, limits: StoreLimits | None = None) -> EtcdStore:
        """Connect, and see that the pool can be read. Raises StoreUnavailable, StoreRefused."""
        connection = Connection(options)
        try:
            answer = await _ask(connection, RANGE, mark_request(Keyspace(options.prefix)))
        except BaseException:
            await connection.close()
            raise
        return cls(connection, LineageSeen(lineage_of(answer)), limits or StoreLimits())

    # Reading --------------------------------------------------------------------------------------------------------

    async def get(self, key: str) -> KeyValue | None:
        """See KeyValueStore."""
        self._connection.check_open()
        check_key(key, self.limits)
        answer = await _ask(self._connection, RANGE, etcd_pb2.RangeRequest(key=self._keys.key(key)))
        return self._keys.kv(answer.kvs[0]) if answer.kvs else None

    async def range(self, prefix: str, *, limit: int = 1000, from_key: str = "") -> Page:
        """See KeyValueStore."""
        _, end = self._keys.range_of(prefix)
        request = etcd_pb2.RangeRequest(key=self._keys.key(max(prefix, from_key)), range_end=end, limit=limit + 1)
        answer = await _ask(self._connection, RANGE, request)
        kvs = [self._keys.kv(kv) for kv in answer.kvs]
        return Page(tuple(kvs[:limit]), answer.header.revision, kvs[limit].key if len(kvs) > limit else None)

    def watch(self, prefixes: Sequence[str], from_revision: int) -> AsyncGenerator[WatchBatch, None]:
        """See KeyValueStore. Goes on over disconnections; raises StoreReplaced, which is a Compacted, after a wipe."""
        self._connection.check_open()
        return self._deliver(WatchFeed(self._connection, self._keys, prefixes, from_revision, self._seen))

    # Writing --------------------------------------------------------------------------------------------------------

    async def txn(
        self, compares: Sequence[Condition], success: Sequence[Operation], failure: Sequence[Operation] = ()
    ) -> TxnResult:
        """See KeyValueStore."""
        self._connection.check_open()
        check_txn(compares, success, failure, self.limits)
        operations = (*success, *failure)
        request = self._keys.txn(compares, success, failure)
        try:
            answer = await self._connection.call(TXN, request, repeatable=is_read_only(operations))
        except CallFailure as refused:
            if refused.code == "NOT_FOUND":
                raise LeaseNotFound(await self._find_missing(leases_of(operations))) from refused
            raise too_large(refused) from refused
        return self._keys.txn_result(answer)

    async def compact(self, revision: int) -> None:
        """See KeyValueStore. It is the whole etcd's history, that of other pools and programs in it too.

        Raises StoreRefused where etcd has users, and this one has no right to do that: late 3.5 and 3.6 ask for root.
        """
        try:
            await self._connection.call(COMPACT, etcd_pb2.CompactionRequest(revision=revision), repeatable=True)
        except StoreRefused as error:
            raise StoreRefused(
                f"{self._connection.options.shown} may not compact its history: give the user the role root, or let "
                f"etcd do it, with --auto-compaction-retention=10m ({error})"
            ) from error
        except CallFailure as failure:
            if failure.code != "OUT_OF_RANGE":
                raise unexpected(failure) from failure
            if "future revision" in failure.details:  # else: compacted further already
                present = (await _ask(self._connection, RANGE, mark_request(self._keys))).header.revision
                await self.compact(min(present, revision - 1))

    # Leases ---------------------------------------------------------------------------------------------------------

    async def grant_lease(self, ttl_s: float) -> int:
        """See KeyValueStore. etcd counts whole seconds, and has a minimum (2 s by default)."""
        self._connection.check_open()
        check_ttl(ttl_s)
        # Asked twice it grants two; the one that nobody knows of runs out.
        answer = await _ask(self._connection, LEASE_GRANT, etcd_pb2.LeaseGrantRequest(TTL=math.ceil(ttl_s)))
        return answer.ID

    async def keep_lease_alive(self, lease: int) -> None:
        """See KeyValueStore."""
        answer = await _ask(self._connection, LEASE_KEEP_ALIVE, etcd_pb2.LeaseKeepAliveRequest(ID=lease))
        if answer.TTL <= 0:
            raise LeaseNotFound(lease)

    async def revoke_lease(self, lease: int) -> None:
        """See KeyValueStore."""
        try:
            await self._connection.call(LEASE_REVOKE, etcd_pb2.LeaseRevokeRequest(ID=lease), repeatable=True)
        except CallFailure as failure:
            if failure.code != "NOT_FOUND":
                raise unexpected(failure) from failure

    # The end --------------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """See KeyValueStore. Waits at most for the time limit of the calls that run."""
        for feed, task in tuple(self._feeds.items()):
            feed.end(StoreClosed("the store is closed: this process is stopping"))
            task.cancel()
        if self._feeds:
            await asyncio.wait(self._feeds.values())
        await self._connection.close()

    async def _deliver(self, feed: WatchFeed) -> AsyncGenerator[WatchBatch, None]:
        self._connection.check_open()
        task = self._feeds[feed] = asyncio.create_task(feed.run())
        try:
            while True:
                yield await feed.next_batch()
        finally:
            task.cancel()
            await asyncio.wait({task})
            del self._feeds[feed]

    async def _find_missing(self, leases: Sequence[int]) -> int:
        """Which of the leases of a refused transaction is gone: etcd says only that one is."""
        for lease in leases[:-1]:
            request = etcd_pb2.LeaseTimeToLiveRequest(ID=lease)
            if (await _ask(self._connection, LEASE_TIME_TO_LIVE, request)).TTL < 0:
                return lease
        return leases[-1]


async def _ask(connection: Connection, method: Method[Request, Response], request: Request) -> Response:
    """A call that may be repeated, and that etcd has no reason to refuse."""
    try:
        return await connection.call(method, request, repeatable=True)
    except CallFailure as failure:
        raise unexpected(failure) from failure
