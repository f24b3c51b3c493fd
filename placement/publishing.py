"""This pod's keys as it wants them, and the task that makes the store agree.

Whoever has something to say only says how it is to be (`set`); nobody waits for the store, and nothing is lost while
it is away: memory is bounded by the number of keys, not of changes. The writer takes what differs, oldest first (what
lies on the disk after all else), in transactions of bounded size. Nobody else writes these keys, so they need no
compare, and writing one twice does no harm; only a first copy is claimed, and the pod's own record is guarded
(`placement.pod_lease`).

**A lost lease** (the store says so, to the writer or to the keeper): get another, put the pod's record on it, marked
as not settled, and write everything again; then the record once more, settled. See fading in `placement.pool_view`.

**What the store was not told, it may hear late.** A write whose answer was lost can take effect after a later one.
And people edit stores. So the follower shows each event of our own keys to `observe`: what is newer than our last
acknowledged write of the key, and is not what we want, is written again.

**Claims** pass by the writer, since somebody waits for them: while one is under way the writer leaves its key alone.
Copies of pods that do not answer (`ignoring`) do not stand in the way: the claim then asks that nothing under the
prefix was written since it looked, so that of two claimants one still loses.

The pod's record changes all the time; it goes out at most once a second, unless it is urgent.

Deliberately absent: JSON of copies, failures and intents, and what they mean (`placement.membership`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from placement import keys
from placement.errors import LeaseNotFound, StoreClosed, StoreError, StoreUnavailable
from placement.pod_lease import PodLease, bounded
from placement.policy.snapshot import Pod
from placement.pool_records import pod_to_json
from placement.store.base import NO_LEASE, Delete, KeyValue, KeyValueStore, NoneUnder, Operation, Put
from placement.store_reach import StoreReach

log = logging.getLogger(__name__)

POD_INTERVAL_S = 1.0
"""Between two writes of the pod's record: every pod reads every pod's."""
RETRY_FIRST_S = 0.1
RETRY_MAX_S = 1.0
"""Between tries while the store is away: 100 pods then ask it 100 times a second."""
LEASE_TRIES_MAX = 4
CLAIM_TRIES_MAX = 8


@dataclass(frozen=True, slots=True)
class Wanted:
    """A key as it is to be."""

    value: bytes
    leased: bool = True


class Publisher:
    """Belongs to the event loop. `run` and `keep` are tasks of the membership."""

    def __init__(
        self, store: KeyValueStore, pod_id: str, lease_ttl_s: float, clock: Callable[[], float], reach: StoreReach
    ) -> None:
        self._store = store
        self._pod_key = keys.pod_key(pod_id)
        self._pod_part = "/" + keys.encode_part(pod_id)
        self._ttl_s = lease_ttl_s
        self._clock = clock
        self._reach = reach
        self.lease = PodLease(store, pod_id, lease_ttl_s, clock)
        self.displaced_by: Pod | None = None
        """Another process has this pod's id; nothing is published until it is gone."""

        self._pod: Pod | None = None
        self._pod_dirty = False
        self._pod_urgent = False
        self._pod_next_s = 0.0
        self._pod_written = b""

        self._wanted: dict[str, Wanted] = {}
        self._dirty: dict[str, None] = {}
        """Keys that may differ in the store, longest first."""
        self._dirty_later: dict[str, None] = {}
        """The same, of keys that nobody waits for: what lies on the disk. A pod may have thousands at its start."""
        self._acknowledged: dict[str, int] = {}
        """Key -> revision of our last write that was answered."""
        self._returning: set[str] = set()
        """Keys to be written again before the pod is settled."""
        self._in_flight: frozenset[str] = frozenset()
        self._claiming: set[str] = set()

        self._turning = asyncio.Lock()
        self._wake = asyncio.Event()
        self._progress = asyncio.Event()
        """Replaced by a fresh one each time that it is set."""

    # What is wanted -------------------------------------------------------------------------------------------------

    def set(self, key: str, wanted: Wanted | None) -> None:
        """How a key of this pod is to be; None: not there."""
        if self._wanted.get(key) == wanted and key not in self._dirty_with(key):
            return
        if wanted is None:
            self._wanted.pop(key, None)
        else:
            self._wanted[key] = wanted
        self._mark(key)

    def set_pod(self, pod: Pod, *, urgent: bool = False) -> None:
        """What the pod says of itself."""
        if pod == self._pod and not urgent:
            return
        self._pod = pod
        self._pod_dirty = True
        self._pod_urgent |= urgent
        self._wake.set()

    @property
    def incarnation(self) -> str:
        """Of the pod's record."""
        return self._pod.incarnation if self._pod is not None else ""

    def wanted(self, key: str) -> Wanted | None:
        """How a key is to be."""
        return self._wanted.get(key)

    # What the store says --------------------------------------------------------------------------------------------

    def observe(self, key: str, value: bytes | None, revision: int) -> None:
        """An event of any key; of one that is ours to write `value` is None when it was deleted."""
        if not self._is_own(key):
            return
        if key == self._pod_key:
            if value != self._pod_written and revision > self._acknowledged.get(key, 0):
                self._pod_dirty = self._pod_urgent = True
                self._wake.set()
            return
        if revision < self._acknowledged.get(key, 0) or key in self._in_flight or key in self._claiming:
            return
        wanted = self._wanted.get(key)
        if value != (wanted.value if wanted is not None else None):
            self._mark(key)
        elif wanted is None:
            self._acknowledged.pop(key, None)

    def listed(self, keys_there: Collection[str], revision: int) -> None:
        """The store had these keys at a revision, anybody's; what was to be there and is not, is written again."""
        for key in self._wanted:
            if key not in keys_there:
                self.observe(key, None, revision)
        if self._pod_key not in keys_there:
            self.observe(self._pod_key, None, revision)

    def store_replaced(self) -> None:
        """The store forgot everything: revisions mean nothing any more, and no lease is left."""
        self._acknowledged.clear()
        self.lease_lost(self.lease.id, "the store was replaced")

    def lease_lost(self, lease: int, reason: str) -> None:
        """Write everything again on another one."""
        if self.lease.lost(lease):
            log.warning("the lease of this pod has ended (%s); publishing %d keys again", reason, len(self._wanted))
            self._wake.set()

    def _is_own(self, key: str) -> bool:
        if key.startswith((keys.COPIES, keys.PARKED, keys.FAILURES)):
            return key.endswith(self._pod_part)
        if key.startswith(keys.INTENTS):
            return key.endswith(f"{self._pod_part}/{keys.encode_part(self.incarnation)}")
        return key == self._pod_key

    # Tasks ----------------------------------------------------------------------------------------------------------

    async def join(self, pod: Pod) -> Pod | None:
        """Take the pod's id. None: it is ours; else who has it. Raises StoreError."""
        self.set_pod(pod)
        async with self._turning:
            return await self._try_lease()

    async def leave(self) -> None:
        """Say goodbye and take everything away, in two transactions and the end of the lease. Raises StoreError."""
        async with self._turning:
            if self._pod is None or self.lease.id == NO_LEASE:
                return
            record = pod_to_json(replace(self._pod, draining=True, ready=False))
            if await self.lease.write(self._pod.incarnation, record) is None:
                self._dirty = {key: None for key, wanted in self._wanted.items() if not wanted.leased}
                self._dirty_later.clear()
                self._wanted.clear()
                while self._dirty:
                    await self._write_some()
                await self.lease.revoke()

    async def run(self) -> None:
        """Write what differs, for as long as the store is open."""
        retry_s = RETRY_FIRST_S
        while True:
            await self._wait_work()
            sent_s = self._clock()
            try:
                async with self._turning:
                    await self._turn()
                self._reach.answered()
                retry_s = RETRY_FIRST_S
                if self.displaced_by is None:
                    continue
                retry_s = self._ttl_s / 3
            except LeaseNotFound as error:
                self.lease_lost(error.lease, "the store does not know it")
                continue
            except StoreClosed:
                return
            except StoreError as error:
                self._reach.failed(error, sent_s)
            await asyncio.sleep(retry_s)
            retry_s = min(2 * retry_s, RETRY_MAX_S)

    async def keep(self) -> None:
        """Keep the lease alive, for as long as the store is open."""
        wait_s = self._ttl_s / 3
        while True:
            await asyncio.sleep(wait_s)
            wait_s = self._ttl_s / 3
            lease = self.lease.id
            if lease == NO_LEASE:
                continue
            sent_s = self._clock()
            try:
                await self.lease.keep_alive()
                self._reach.answered()
            except LeaseNotFound:
                self.lease_lost(lease, "it was not kept alive in time")
            except StoreClosed:
                return
            except StoreError as error:
                self._reach.failed(error, sent_s)
                wait_s = self._ttl_s / 10

    async def flush(self) -> None:
        """Everything said so far is written when this returns. Raises StoreUnavailable."""
        self._pod_urgent |= self._pod_dirty
        left = {*self._dirty, *self._dirty_later}
        lease_tries = 0
        async with self._turning:
            while self.lease.id == NO_LEASE or self._pod_due() or not left.isdisjoint(self._writable()):
                try:
                    left -= set(await self._turn())
                except LeaseNotFound as error:
                    self.lease_lost(error.lease, "the store does not know it")
                    lease_tries += 1
                    if lease_tries == LEASE_TRIES_MAX:
                        raise StoreUnavailable(f"{lease_tries} leases were lost one after the other") from error
                if self.displaced_by is not None:
                    raise StoreUnavailable(f"another process, at {self.displaced_by.address}, has this pod's id")

    async def wait_written(self, key: str) -> None:
        """Until the key is in the store as it was wanted last."""
        while key in self._dirty_with(key) or key in self._in_flight:
            await self._progress.wait()

    async def _wait_work(self) -> None:
        while True:
            self._wake.clear()
            if self.lease.id == NO_LEASE or self._pod_due() or self._writable():
                return
            until_pod_s = max(0.0, self._pod_next_s - self._clock()) if self._pod_dirty else None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(until_pod_s):
                    await self._wake.wait()

    # One turn -------------------------------------------------------------------------------------------------------

    async def _turn(self) -> Sequence[str]:
        """One transaction at most of each kind: the keys that it wrote. Raises StoreError."""
        if self.lease.id == NO_LEASE:
            await self._take_lease()
            if self.displaced_by is not None:
                return ()
        if self._pod_due():
            await self._write_pod()
            if self.displaced_by is not None:
                return ()
        return await self._write_some()

    async def _take_lease(self) -> None:
        self._say_displaced(await self._try_lease())

    async def _try_lease(self) -> Pod | None:
        assert self._pod is not None
        returning = set(self._wanted)
        pod = self._pod
        record = pod_to_json(pod, settled=not returning)
        if other := await self.lease.take(pod.incarnation, record):
            return other
        self._acknowledged = {key: at for key, at in self._acknowledged.items() if key in self._wanted}
        self._returning = returning
        self._pod_wrote(pod, record)
        for key in returning:
            self._mark(key)
        return None

    async def _write_pod(self) -> None:
        assert self._pod is not None
        pod = self._pod
        record = pod_to_json(pod, settled=not self._returning)
        self._say_displaced(other := await self.lease.write(pod.incarnation, record))
        if other is None:
            self._pod_wrote(pod, record)

    def _pod_wrote(self, pod: Pod, record: bytes) -> None:
        self._pod_written = record
        self._acknowledged[self._pod_key] = self.lease.record_revision
        self._pod_next_s = self._clock() + POD_INTERVAL_S
        if pod is self._pod:
            self._pod_dirty = self._pod_urgent = False

    def _pod_due(self) -> bool:
        return self._pod_dirty and (self._pod_urgent or self._clock() >= self._pod_next_s)

    def _say_displaced(self, other: Pod | None) -> None:
        if other is not None and self.displaced_by is None:
            log.error(
                "another process, at %s, has this pod's id (%s): this one publishes nothing until that is gone; "
                "give each pod an id of its own",
                other.address,
                self._pod_key,
            )
        elif other is None and self.displaced_by is not None:
            log.warning("this pod has its id again")
        self.displaced_by = other

    def _writable(self) -> list[str]:
        """Keys of the next transaction."""
        limits = self._store.limits
        picked: list[str] = []
        size_bytes = 0
        for key in chain(self._dirty, self._dirty_later):
            if key in self._claiming:
                continue
            wanted = self._wanted.get(key)
            size_bytes += len(key) + (len(wanted.value) if wanted is not None else 0)
            if picked and (len(picked) == limits.ops_per_txn_max or size_bytes > limits.txn_bytes_max):
                break
            picked.append(key)
        return picked

    async def _write_some(self) -> Sequence[str]:
        picked = self._writable()
        if not picked:
            return picked
        sent = {key: self._wanted.get(key) for key in picked}
        operations = [self._operation(key, wanted) for key, wanted in sent.items()]
        self._in_flight = frozenset(picked)
        try:
            result = await bounded(self._store.txn((), operations), self._ttl_s / 2)
        finally:
            self._in_flight = frozenset()
            self._tell_progress()
        for key, wanted in sent.items():
            self._wrote(key, wanted, result.revision)
        return picked

    def _operation(self, key: str, wanted: Wanted | None) -> Operation:
        if wanted is None:
            return Delete(key)
        return Put(key, wanted.value, self.lease.id if wanted.leased else NO_LEASE)

    def _wrote(self, key: str, wanted: Wanted | None, revision: int) -> None:
        self._acknowledged[key] = revision
        if self._wanted.get(key) == wanted:
            self._dirty_with(key).pop(key, None)
        if self._returning:
            self._returning.discard(key)
            if not self._returning:
                self._pod_dirty = self._pod_urgent = True
                self._wake.set()

    def _mark(self, key: str) -> None:
        self._dirty_with(key)[key] = None
        self._wake.set()

    def _dirty_with(self, key: str) -> dict[str, None]:
        return self._dirty_later if key.startswith(keys.PARKED) else self._dirty

    def _tell_progress(self) -> None:
        self._progress.set()
        self._progress = asyncio.Event()

    # Claims ---------------------------------------------------------------------------------------------------------

    async def claim(
        self, key: str, prefix: str, wanted: Mapping[str, Wanted], counts: Callable[[KeyValue], bool]
    ) -> tuple[KeyValue, ...]:
        """Put `wanted`, `key` among them, if there is no other key under `prefix` that `counts`; else those keys.

        Raises StoreUnavailable; then it may have been put.
        """
        self._claiming.update(wanted)
        try:
            for written in wanted:
                await self._wait_not_in_flight(written)
            return await self._claim(key, prefix, wanted, counts)
        finally:
            self._claiming.difference_update(wanted)
            self._wake.set()

    async def _claim(
        self, key: str, prefix: str, wanted: Mapping[str, Wanted], counts: Callable[[KeyValue], bool]
    ) -> tuple[KeyValue, ...]:
        newer_than = 0
        for _ in range(CLAIM_TRIES_MAX):
            lease = self.lease.id
            if lease == NO_LEASE:
                raise StoreUnavailable("this pod has no lease in the store at present")
            operations = [self._operation(written, how) for written, how in wanted.items()]
            try:
                result = await self._store.txn([NoneUnder(prefix, newer_than)], operations)
            except LeaseNotFound:
                self.lease_lost(lease, "the store does not know it")
                raise StoreUnavailable("this pod's lease has just ended") from None
            if result.succeeded:
                for written, how in wanted.items():
                    self._wanted[written] = how
                    self._wrote(written, how, result.revision)
                return ()
            page = await self._store.range(prefix)
            if others := tuple(kv for kv in page.items if kv.key != key and counts(kv)):
                return others
            newer_than = page.revision
        raise StoreUnavailable(f"others changed {prefix!r} {CLAIM_TRIES_MAX} times while this pod claimed it")

    async def _wait_not_in_flight(self, key: str) -> None:
        while key in self._in_flight:
            await self._progress.wait()
