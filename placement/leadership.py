"""Who runs the placement service: a key on the lease of the pod that does.

`is_leader` is true only while that lease cannot have ended, judged by this pod's own clock from before it was last
renewed; so a pod that was frozen knows on waking that it does not lead, and no clocks are compared. A lost lease ends
it as well: the key is not written again by itself, there may be another leader.

A record without a lease was written by hand and would never end; it is written over.
"""

from __future__ import annotations

from collections.abc import Callable

from placement import keys
from placement.errors import LeaseNotFound, StoreError, UnsupportedRecord
from placement.pod_lease import bounded
from placement.pool_following import PoolFollower
from placement.pool_records import LeaderRecord, leader_from_json, leader_to_json
from placement.pool_view import PoolChanges
from placement.publishing import Publisher
from placement.store.base import NO_LEASE, Delete, Get, KeyValue, KeyValueStore, Put, unchanged
from placement.store_reach import StoreReach

ANSWER_LIMIT_S = 5.0
"""For one transaction; whoever waits longer does not lead."""


class Leadership:
    """Belongs to the event loop."""

    def __init__(
        self,
        store: KeyValueStore,
        pod_id: str,
        publisher: Publisher,
        follower: PoolFollower,
        reach: StoreReach,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        """`publisher` has the lease, `follower` tells who leads."""
        self._store = store
        self._pod_id = pod_id
        self._publisher = publisher
        self._follower = follower
        self._reach = reach
        self._clock = clock
        self._wall_clock = wall_clock
        self._lease = NO_LEASE
        """That the key is on, while this pod leads."""
        self._revision = 0
        self._since_at_s = 0.0
        follower.on_change(self._on_change)

    @property
    def is_leader(self) -> bool:
        """Whether this pod leads."""
        lease = self._publisher.lease
        return self._lease != NO_LEASE and self._lease == lease.id and self._clock() < lease.valid_until_s

    async def try_lead(self, *, restoring: bool = False) -> bool:
        """Become the leader if there is none. False also when the store does not answer."""
        if self.is_leader:
            return True
        self._since_at_s = self._wall_clock()
        lease, sent_s = self._publisher.lease.id, self._clock()
        try:
            return lease != NO_LEASE and await self._write(lease, 0, restoring=restoring)
        except LeaseNotFound:
            self._publisher.lease_lost(lease, "the store does not know it")
        except StoreError as error:
            self._reach.failed(error, sent_s)
        return False

    async def set_restoring(self, restoring: bool) -> bool:
        """Say in the record whether lost registrations are being written back. Whether this pod still leads."""
        return self.is_leader and await self._write(self._lease, self._revision, restoring=restoring)

    async def resign(self) -> None:
        """Lead no more. Raises StoreError."""
        if self.is_leader:
            self._lease = NO_LEASE
            delete = self._store.txn([unchanged(keys.LEADER, self._revision)], [Delete(keys.LEADER)])
            await bounded(delete, ANSWER_LIMIT_S)

    async def _write(self, lease: int, revision: int, *, restoring: bool) -> bool:
        record = LeaderRecord(self._pod_id, self._publisher.incarnation, self._since_at_s, restoring)
        put = Put(keys.LEADER, leader_to_json(record), lease)
        for _ in range(2):
            txn = self._store.txn([unchanged(keys.LEADER, revision)], [put], [Get(keys.LEADER)])
            result = await bounded(txn, ANSWER_LIMIT_S)
            if result.succeeded:
                self._lease, self._revision = lease, result.revision
                return True
            found = result.reads[0]
            if found is None or not self._may_replace(found):
                return False
            revision = found.mod_revision
        return False

    def _may_replace(self, found: KeyValue) -> bool:
        """A record of our own, whose answer was lost, or one that no pod wrote."""
        try:
            leader = leader_from_json(found.value)
        except UnsupportedRecord:
            return found.lease == NO_LEASE
        return found.lease == NO_LEASE or leader.incarnation == self._publisher.incarnation

    def _on_change(self, changes: PoolChanges) -> None:
        # News from before our own record was written say nothing of it.
        if changes.leader and changes.revision >= self._revision:
            leader = self._follower.leader
            if leader is None or leader.incarnation != self._publisher.incarnation:
                self._lease = NO_LEASE
