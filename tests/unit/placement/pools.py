"""A pool of several pods in one process, on one store in memory, with a clock that the test moves.

Turns are called by the test; between them the loop runs until nothing moves any more, so nothing here waits for time.
Leases last as long as the test: a pod dies when the test says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from placement import keys
from placement.constraints import NO_CONSTRAINTS, Constraints
from placement.errors import StoreReplaced
from placement.fake_peers import FakePeers
from placement.membership import Membership
from placement.policy.snapshot import BusyModel, Copy, ModelName, Pod, PoolView
from placement.records import ModelSpec
from placement.registry import Registry
from placement.service import PlacementService
from placement.service_limits import ServiceLimits
from placement.store.base import WatchBatch
from placement.store.memory import MemoryStore
from placement.term import TurnReport

T = "default"
MODEL_BYTES = 100
STEPS_MAX = 5000


def name(model_id: str) -> ModelName:
    return ModelName(T, model_id)


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class WipeableStore(MemoryStore):
    """A store that can lose everything, and says so to those who watch it."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock=clock)
        self._wiped = asyncio.Event()

    async def wipe(self) -> None:
        """Everything is gone, leases included; watches end with StoreReplaced."""
        fresh = MemoryStore(clock=self._clock)
        self._space, self._history, self._revision = fresh._space, fresh._history, fresh._revision
        self._next_lease += 1000
        wiped, self._wiped = self._wiped, asyncio.Event()
        wiped.set()

    async def watch(self, prefixes: Sequence[str], from_revision: int) -> AsyncGenerator[WatchBatch, None]:
        wiped, stream = self._wiped, super().watch(prefixes, from_revision)
        if from_revision > self.revision + 1:
            raise StoreReplaced(from_revision, self.revision, "wiped")
        while True:
            following = asyncio.ensure_future(anext(stream))
            losing = asyncio.ensure_future(wiped.wait())
            try:
                await asyncio.wait((following, losing), return_when=asyncio.FIRST_COMPLETED)
                if wiped.is_set():
                    raise StoreReplaced(from_revision, self.revision, "wiped")
                yield following.result()
            finally:
                following.cancel()
                losing.cancel()
                await asyncio.gather(following, losing, return_exceptions=True)


@dataclass
class Member:
    """One pod."""

    pod: Pod
    membership: Membership
    registry: Registry
    service: PlacementService

    def say(self, **changes: Any) -> None:
        """The pod's record changes."""
        self.pod = replace(self.pod, **changes)
        self.membership.set_pod(self.pod, urgent=True)


class Pods:
    """The pool."""

    def __init__(
        self, *, at_once: bool = True, virtual: bool = False, constraints: Constraints = NO_CONSTRAINTS, **limits: Any
    ) -> None:
        """`at_once`: orders are carried out as soon as they are given; else by `peers.carry_out`.

        `virtual`: time passes on the loop too, which is one of virtual time; so pauses between retries end.
        """
        self.clock = Clock()
        self.store = WipeableStore(self.clock)
        self.peers = FakePeers(at_once=at_once, size_bytes=MODEL_BYTES)
        self.members: dict[str, Member] = {}
        self.down: set[str] = set()
        self._virtual = virtual
        self._limits = ServiceLimits(**limits)
        self._constraints = constraints
        self._starts = 0

    async def start(self, *pod_ids: str, **fields: Any) -> None:
        """Pods join, with room for 1,000 bytes unless `fields` say otherwise."""
        for pod_id in pod_ids:
            self._starts += 1
            defaults: dict[str, Any] = {"capacity_bytes": 1000, "free_bytes": 1000, "ready": True}
            pod = Pod(pod_id, f"{pod_id}-{self._starts}", f"{pod_id}:8033", **(defaults | fields))
            membership = Membership(
                self.store, pod_id, lease_ttl_s=1e6, clock=self.clock, wall_clock=self.clock, fading_s=1e6
            )
            registry = Registry(self.store, clock=self.clock)
            await membership.start(pod)
            await registry.start()
            service = PlacementService(
                membership,
                registry,
                self.peers,
                settings=self._limits,
                clock=self.clock,
                wall_clock=self.clock,
                constraints=self._constraints,
                healthy=lambda own=membership: frozenset(own.view.pods) - self.down,
            )
            service.follow()
            self.members[pod_id] = Member(pod, membership, registry, service)
            self.peers.join(membership, lambda own=registry: own.view)
        await self.quiet()

    async def close(self) -> None:
        for member in self.members.values():
            await member.service.close()
            await member.registry.close()
            await member.membership.close()
        await self.store.close()

    async def kill(self, pod_id: str) -> None:
        """The process dies: its lease ends, probes find it gone."""
        member = self.members.pop(pod_id)
        await self.stop_tasks(member)
        self.peers.leave(pod_id)
        kv = await self.store.get(keys.pod_key(pod_id))
        if kv is not None:
            await self.store.revoke_lease(kv.lease)
        await self.quiet()
        for other in self.members.values():
            other.membership.forget(pod_id)
        await self.quiet()

    async def stop_tasks(self, member: Member) -> None:
        """As a process ends: nothing is said to anybody."""
        for stop in member.service._stops:
            stop()
        await member.registry.close()
        await member.membership.close()

    # Time -----------------------------------------------------------------------------------------------------------

    async def turn(self, times: int = 1, *, every_s: float = 1.0) -> TurnReport | None:
        """All pods take their turns, a second apart; the last report of the leader."""
        report: TurnReport | None = None
        for _ in range(times):
            self.clock.now_s += every_s
            if self._virtual:
                await asyncio.sleep(every_s)
            for member in tuple(self.members.values()):
                report = await member.service.turn() or report
                await member.service.settled()
                await self.quiet()
        return report

    async def turn_until(self, holds: Callable[[], bool], times_max: int = 300) -> int:
        """Turns until something holds; how many."""
        for count in range(times_max):
            if holds():
                return count
            await self.turn()
        raise AssertionError(f"not after {times_max} turns")

    async def quiet(self) -> None:
        """Until everything that was said has arrived everywhere."""
        still = 0
        before: object = None
        for _ in range(STEPS_MAX):
            await asyncio.sleep(0)
            now = (
                self.store.revision,
                *((m.membership.view.revision, m.registry.view.revision) for m in self.members.values()),
                *(len(m.membership._publisher._dirty) for m in self.members.values()),
            )
            still = still + 1 if now == before else 0
            before = now
            if still == 30:
                return
        raise AssertionError("the pool does not come to rest")

    # What is there --------------------------------------------------------------------------------------------------

    @property
    def leader(self) -> Member:
        (leader,) = (member for member in self.members.values() if member.service.is_leader)
        return leader

    @property
    def registry(self) -> Registry:
        """Any pod's."""
        return next(iter(self.members.values())).registry

    @property
    def view(self) -> PoolView:
        """Any pod's."""
        return next(iter(self.members.values())).membership.view

    def serving(self, model_id: str) -> list[str]:
        """Pods that serve the model."""
        return [copy.pod for copy in self.view.copies.get(name(model_id), ()) if copy.servable]

    def copy(self, model_id: str, pod_id: str) -> Copy | None:
        return next((copy for copy in self.view.copies.get(name(model_id), ()) if copy.pod == pod_id), None)

    async def register(self, *model_ids: str, **spec: Any) -> None:
        for model_id in model_ids:
            await self.registry.register(T, model_id, ModelSpec(f"file:///{model_id}", **spec))
        await self.quiet()

    async def hold(self, pod_id: str, *model_ids: str, generation: int = 1) -> None:
        """The pod serves these, as after requests of its own."""
        for model_id in model_ids:
            self.peers.hold(pod_id, name(model_id), generation)
        await self.quiet()

    async def busy(self, pod_id: str, **rates: float) -> None:
        """The pod runs these models so many times a second, each run taking 10 ms."""
        models = tuple(
            BusyModel(name(model_id), rate, rate * 0.01, 0.0, 0.01, concurrency=4) for model_id, rate in rates.items()
        )
        self.members[pod_id].say(busy=models)
        await self.quiet()

    async def overload(self, pod_id: str, model_id: str, queue_delay_s: float = 1.0) -> None:
        """Requests for a model wait on this pod."""
        self.members[pod_id].say(busy=(BusyModel(name(model_id), 50.0, 8.0, queue_delay_s, 0.02, concurrency=1),))
        await self.quiet()
