"""This pod's part in the pool: it says what it holds, and knows what all others hold.

Every pod has one. Reading (`view`, `intents`, `leader`, `hot`, `known_size`) never leaves the process. Saying
(`set_pod`, `set_copy`, `set_parked`, `set_failure`, `set_intent`) never waits: it is what the pod wants the store to
hold, and is written as soon as the store takes it (`placement.publishing`). The only calls that wait for the store are
those whose answer decides something: a first copy is claimed, leadership is won, a suspicion is changed if nobody else
did.

**A first copy is claimed** in one transaction: nobody else has a copy of the model, so here is mine, and my intent to
load it. When the store does not answer within `claim_timeout_s` the pod loads all the same: a copy too many is a
smaller harm than a request refused, and the leader retires it later.

**An intent** is written before a load and taken away after it, and is on no lease: what is left of it when its pod is
gone says what that pod was doing when it died. It bears the incarnation, so nobody else ever writes the same key.

Deliberately absent: what follows from all that. The mesh routes and loads, `placement.service` plans.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from placement import keys
from placement.errors import InvalidName, PodIdTaken, StoreClosed, StoreError, StoreUnavailable, UnsupportedRecord
from placement.leadership import Leadership
from placement.pod_lease import bounded
from placement.policy.snapshot import Copy, Intent, LoadFailure, ModelName, Parked, Pod, PoolView, Suspicion
from placement.pool_following import PoolFollower
from placement.pool_reading import PoolReader
from placement.pool_records import (
    HotModel,
    LeaderRecord,
    copy_from_json,
    copy_to_json,
    failure_to_json,
    hot_to_json,
    intent_to_json,
    parked_to_json,
    suspicion_to_json,
)
from placement.pool_view import PoolChanges
from placement.publishing import Publisher, Wanted
from placement.store.base import Delete, KeyValue, KeyValueStore, Put, unchanged
from placement.store_reach import StoreReach

log = logging.getLogger(__name__)

T = TypeVar("T")

LEASE_TTL_S = 10.0
"""How long a dead pod is believed in by those who do not ask it; probes find out sooner."""
CLAIM_TIMEOUT_S = 0.5
"""What a cold request may lose to a store that does not answer."""
LIMIT_PIECES = 10
"""In which the time of a claim is counted."""
INTENT_TIMEOUT_S = 0.5
"""What a load may lose to it."""
PREDECESSOR_GRACE_S = 2.0
"""Beyond its ttl: how long a restarted pod waits for the lease of the process before it to end."""
PREDECESSOR_POLL_S = 0.25
RESTART_AFTER_S = 1.0
"""When one of the tasks fails in a way that nobody foresaw."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """The first copy is this pod's to load."""


@dataclass(frozen=True, slots=True)
class HeldBy:
    """Others load or serve the model already."""

    copies: tuple[Copy, ...]


@dataclass(frozen=True, slots=True)
class StoreAway:
    """The store did not answer in time: load, others may do so as well. What is loaded is published later."""

    reason: str


Claim = Claimed | HeldBy | StoreAway


class Membership:
    """Belongs to the event loop that starts it; `view` may be read by any thread."""

    def __init__(
        self,
        store: KeyValueStore,
        pod_id: str,
        *,
        lease_ttl_s: float = LEASE_TTL_S,
        fading_s: float | None = None,
        claim_timeout_s: float = CLAIM_TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        shared_name: Callable[[ModelName], ModelName] = lambda name: name,
        sole_process: bool = False,
    ) -> None:
        """`fading_s`: how long a pod is kept whose lease ran out; None: two lease ttls.

        `shared_name` gives an equal name that is in memory anyway (`Registry.shared_name`). `sole_process`: no other
        process reaches this store, so whoever left something of this pod in it is dead.
        Raises InvalidName.
        """
        keys.check_pod(pod_id)
        self.pod_id = pod_id
        self.lease_ttl_s = lease_ttl_s
        self._store = store
        self._clock = clock
        self._wall_clock = wall_clock
        self._sole_process = sole_process
        self._claim_timeout_s = claim_timeout_s
        self._reach = StoreReach(clock)
        self._publisher = Publisher(store, pod_id, lease_ttl_s, clock, self._reach)
        self._follower = PoolFollower(
            store,
            PoolReader(shared_name),
            reach=self._reach,
            clock=clock,
            fading_s=2 * lease_ttl_s if fading_s is None else fading_s,
            own_keys=self._publisher,
        )
        self._leadership = Leadership(store, pod_id, self._publisher, self._follower, self._reach, clock, wall_clock)
        self._tasks: list[asyncio.Task[None]] = []

    # Life -----------------------------------------------------------------------------------------------------------

    async def start(self, pod: Pod) -> None:
        """Take the pod's id, list what the pool has, and follow it.

        Raises PodIdTaken when another process has the id and keeps it, StoreError when the store cannot be read now.
        """
        try:
            await self._take_id(pod)
            self._spawn("keeping this pod's lease", self._publisher.keep)
            await self._follower.read_all()
        except BaseException:
            await self._end_tasks()
            with contextlib.suppress(StoreError):
                await self._publisher.lease.revoke()
            raise
        self._spawn("publishing what this pod holds", self._publisher.run)
        self._spawn("following the pool", self._follower.follow)

    async def leave(self) -> None:
        """Say goodbye, so that nobody waits for this pod, and stop. What cannot be taken away runs out by itself."""
        await self._end_tasks()
        try:
            await self._publisher.leave()
        except StoreError as error:
            log.warning("this pod leaves without a word, its lease runs out by itself: %s", error)
        self._follower.close()

    async def close(self) -> None:
        """Stop without a word, as if the process had died. The store stays open: it belongs to the caller."""
        await self._end_tasks()
        self._follower.close()

    async def _take_id(self, pod: Pod) -> None:
        deadline_s = self._clock() + self.lease_ttl_s + PREDECESSOR_GRACE_S
        if self._sole_process:
            await self._end_predecessor()
        other = await self._publisher.join(pod)
        if other is not None:
            log.warning("pod id %r is still held by a process at %s; waiting", self.pod_id, other.address)
        while other is not None:
            if self._clock() >= deadline_s:
                raise PodIdTaken(self.pod_id, pod.address, other.address)
            await asyncio.sleep(PREDECESSOR_POLL_S)
            if await self._store.get(keys.pod_key(self.pod_id)) is None:
                other = await self._publisher.join(pod)

    async def _end_predecessor(self) -> None:
        """The process before this one was killed, and nobody else can be it: why wait for its lease?"""
        left = await self._store.get(keys.pod_key(self.pod_id))
        if left is not None:
            await self._store.revoke_lease(left.lease)

    def _spawn(self, what: str, body: Callable[[], Awaitable[None]]) -> None:
        self._tasks.append(asyncio.create_task(_persistent(what, body)))

    async def _end_tasks(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    # Reading --------------------------------------------------------------------------------------------------------

    @property
    def view(self) -> PoolView:
        """Every pod and copy as of now: immutable, so it can be kept and handed to other threads."""
        return self._follower.view

    def on_change(self, listener: Callable[[PoolChanges], None]) -> Callable[[], None]:
        """Call `listener` on the loop after each change of the view; returns its end."""
        return self._follower.on_change(listener)

    @property
    def intents(self) -> tuple[tuple[ModelName, Intent], ...]:
        """All that are written, of living pods and dead ones."""
        return tuple(self._follower.intents.values())

    @property
    def hot(self) -> tuple[HotModel, ...]:
        """What the last leader found to be the hottest models, hottest first."""
        return self._follower.hot

    def known_size(self, name: ModelName) -> int | None:
        """Bytes of its largest copy, or of the last one that was; None: not known."""
        return self._follower.known_size_bytes(name)

    def suspicion_revision(self, name: ModelName) -> int:
        """At which the store has the suspicion of this model; 0: it has none."""
        return self._follower.suspicion_revisions.get(name, 0)

    def forget(self, pod: str) -> None:
        """Probes say that the pod does not answer: if it is fading, drop it and its copies now.

        A pod whose lease stands is left as it is; call again when it begins to fade (`PoolChanges.began_fading`).
        """
        self._follower.forget(pod)

    @property
    def store_away_since_s(self) -> float | None:
        """By the monotonic clock; None while the store answers."""
        return self._reach.away_since_s

    @property
    def displaced_by(self) -> Pod | None:
        """Another process that has this pod's id; while there is one, this pod publishes nothing."""
        return self._publisher.displaced_by

    @property
    def store(self) -> KeyValueStore:
        """The pool's store."""
        return self._store

    # Saying ---------------------------------------------------------------------------------------------------------

    def set_pod(self, pod: Pod, *, urgent: bool = False) -> None:
        """What the pod says of itself; written at most once a second, unless it is urgent."""
        self._publisher.set_pod(pod, urgent=urgent)

    def set_copy(self, name: ModelName, copy: Copy | None) -> None:
        """What this pod has of a model; None: nothing any more."""
        wanted = None if copy is None else Wanted(copy_to_json(copy))
        self._publisher.set(self._copy_key(name), wanted)

    def set_parked(self, name: ModelName, parked: Parked | None) -> None:
        """What this pod keeps of a model that it has no copy of; None: nothing. Written after all else."""
        wanted = None if parked is None else Wanted(parked_to_json(parked))
        self._publisher.set(keys.parked_key(name.tenant, name.id, self.pod_id), wanted)

    def set_failure(self, name: ModelName, failure: LoadFailure | None) -> None:
        """That a load failed here; None: that does not hold any more."""
        wanted = None if failure is None else Wanted(failure_to_json(failure))
        self._publisher.set(keys.failure_key(name.tenant, name.id, self.pod_id), wanted)

    def set_intent(self, name: ModelName, generation: int, doing: str) -> None:
        """What this pod is about to do: `loading` or `running`."""
        self._publisher.set(self._intent_key(name), self._intent(generation, doing))

    def clear_intent(self, name: ModelName) -> None:
        """It is done, well or badly."""
        self._publisher.set(self._intent_key(name), None)

    async def record_intent(self, name: ModelName, generation: int, doing: str) -> bool:
        """As `set_intent`, and whether it was written within INTENT_TIMEOUT_S: no load waits longer for the store."""
        self.set_intent(name, generation, doing)
        try:
            async with asyncio.timeout(INTENT_TIMEOUT_S):
                await self._publisher.wait_written(self._intent_key(name))
        except TimeoutError:
            return False
        return True

    async def flush(self) -> None:
        """All that was said is in the store when this returns. Raises StoreUnavailable."""
        await self._publisher.flush()

    async def claim(
        self, name: ModelName, generation: int, size_bytes: int, *, ignoring: Collection[str] = ()
    ) -> Claim:
        """Make the first copy of a model this pod's, as loading, with the intent to load it.

        `ignoring`: pods that do not answer; their copies do not stand in the way. With StoreAway the copy is
        published once the store is back. Whoever does not load after all calls `set_copy` and `clear_intent`.
        """
        copy = Copy(self.pod_id, 0, generation, size_bytes, self._wall_clock())
        key = self._copy_key(name)
        wanted = {key: Wanted(copy_to_json(copy)), self._intent_key(name): self._intent(generation, "loading")}
        if self._publisher.wanted(key) is not None:
            self.set_intent(name, generation, "loading")
            return Claimed()

        def counts(kv: KeyValue) -> bool:
            held = _read_copy(kv)
            return held is not None and held.pod not in ignoring

        try:
            claiming = self._publisher.claim(key, keys.copies_prefix(*name), wanted, counts)
            others = await _within(claiming, self._claim_timeout_s)
        except (TimeoutError, StoreUnavailable, StoreClosed) as error:
            for written, how in wanted.items():
                self._publisher.set(written, how)
            return StoreAway(str(error) or f"no answer within {self._claim_timeout_s} s")
        if not others:
            return Claimed()
        return HeldBy(tuple(held for kv in others if (held := _read_copy(kv)) is not None))

    # Leading --------------------------------------------------------------------------------------------------------

    @property
    def leader(self) -> LeaderRecord | None:
        """Who runs the placement service, as far as this pod has heard."""
        return self._follower.leader

    @property
    def is_leader(self) -> bool:
        """Whether this pod leads; never true once its lease may have ended."""
        return self._leadership.is_leader

    async def try_lead(self, *, restoring: bool = False) -> bool:
        """Become the leader if there is none. False also when the store does not answer.

        `restoring`: the store has lost registrations, and this pod will write them back; its record says so.
        """
        return await self._leadership.try_lead(restoring=restoring)

    async def set_restoring(self, restoring: bool) -> bool:
        """The leader says that it is writing back what the store lost, or that it has. Whether it still leads.

        Raises StoreError.
        """
        return await self._leadership.set_restoring(restoring)

    async def resign(self) -> None:
        """Lead no more; another pod can at once. Raises StoreError."""
        await self._leadership.resign()

    # What the leader writes -----------------------------------------------------------------------------------------

    async def write_suspicion(
        self, name: ModelName, suspicion: Suspicion | None, expected_revision: int | None = None
    ) -> bool:
        """Change it unless somebody else has since `expected_revision` (None: since this pod's view). Whether it did.

        Raises StoreError.
        """
        revision = self.suspicion_revision(name) if expected_revision is None else expected_revision
        key = keys.suspicion_key(*name)
        write = Delete(key) if suspicion is None else Put(key, suspicion_to_json(suspicion))
        return await self._txn_if_unchanged(key, revision, write)

    async def restore_suspicions(self) -> int:
        """Write back those that a replaced store has lost; how many. Raises StoreError."""
        lost = [name for name in self.view.suspicions if not self.suspicion_revision(name)]
        return sum([await self.write_suspicion(name, self.view.suspicions[name], 0) for name in lost])

    async def remove_intent(self, name: ModelName, intent: Intent) -> None:
        """The intent of a dead pod has been dealt with. Raises StoreError."""
        key = keys.intent_key(name.tenant, name.id, intent.pod, intent.incarnation)
        await bounded(self._store.txn((), [Delete(key)]), self.lease_ttl_s / 2)

    async def write_hot(self, models: Iterable[HotModel]) -> None:
        """The hottest models, hottest first; for the next leader. Raises StoreError."""
        await bounded(self._store.txn((), [Put(keys.HOT, hot_to_json(tuple(models)))]), self.lease_ttl_s / 2)

    async def _txn_if_unchanged(self, key: str, revision: int, write: Put | Delete) -> bool:
        txn = self._store.txn([unchanged(key, revision)], [write])
        return (await bounded(txn, self.lease_ttl_s / 2)).succeeded

    # Keys and values of this pod ------------------------------------------------------------------------------------

    def _copy_key(self, name: ModelName) -> str:
        return keys.copy_key(name.tenant, name.id, self.pod_id)

    def _intent_key(self, name: ModelName) -> str:
        return keys.intent_key(name.tenant, name.id, self.pod_id, self._publisher.incarnation)

    def _intent(self, generation: int, doing: str) -> Wanted:
        intent = Intent(self.pod_id, self._publisher.incarnation, generation, doing, self._wall_clock())
        return Wanted(intent_to_json(intent), leased=False)


async def _within(call: Coroutine[Any, Any, T], limit_s: float) -> T:
    """The call's result. Raises TimeoutError after `limit_s` in which this loop ran.

    A loop that was stalled, by a thousand requests at once or by a busy machine, has not waited for the store: its
    answer may lie there unread. So the limit is waited for in pieces, and a stall counts as one.
    """
    task = asyncio.ensure_future(call)
    try:
        for _ in range(LIMIT_PIECES):
            if (await asyncio.wait({task}, timeout=limit_s / LIMIT_PIECES))[0]:
                return task.result()
    except asyncio.CancelledError:
        task.cancel()
        raise
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled() and task.exception() is None:
        return task.result()
    raise TimeoutError


def _read_copy(kv: KeyValue) -> Copy | None:
    """A copy that stands in the way of a claim; None for a key that says nothing."""
    try:
        return copy_from_json(keys.split_key(kv.key, 3)[2], kv.value)
    except (InvalidName, UnsupportedRecord):
        return None


async def _persistent(what: str, body: Callable[[], Awaitable[None]]) -> None:
    """Run a task's body until it returns. One that fails as nobody foresaw would leave a pod that seems to be well."""
    while True:
        try:
            await body()
        except Exception:
            log.exception("%s failed and begins again", what)
            await asyncio.sleep(RESTART_AFTER_S)
        else:
            return
