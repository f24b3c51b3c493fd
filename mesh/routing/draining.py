"""Leaving without anybody noticing: what matters is servable elsewhere before this pod lets go.

The pod says that it drains, goes on serving, and has the models that were used lately loaded by others, hottest first
(`placement.policy.drain`). When the last of them serves there, or the grace time has passed, it waits until no call
has come for a while: clients that watch its health, or its answers, move on. Then it may stop.

Deliberately absent: the stop itself (`mesh.node`), which refuses new calls and finishes those that run.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Container
from dataclasses import dataclass

from cache.machine import CacheMachine
from mesh.loading.loading import Loading
from placement.expected import ExpectedPool
from placement.membership import Membership
from placement.orders import OrdersInFlight
from placement.peers import LoadOrder, PeerError, Peers
from placement.policy.drain import DrainPlan, plan_drain
from placement.policy.places import Terms
from placement.policy.snapshot import ModelFacts, ModelName
from placement.records import ModelRecord
from placement.registry import Registry

log = logging.getLogger("hexcomb.drain")

LOOK_AGAIN_S = 0.25
ORDERS_AT_ONCE_MAX = 32
"""A pod that does not answer holds its orders for seconds; those of the others do not wait behind them."""


@dataclass(frozen=True, slots=True)
class DrainLimits:
    """How long what may take."""

    grace_s: float
    quiet_s: float
    recent_s: float


class Draining:
    """One drain of this pod. Belongs to the event loop."""

    def __init__(
        self,
        own_pod: str,
        membership: Membership,
        registry: Registry,
        loading: Loading,
        cache: CacheMachine,
        peers: Peers,
        facts_of: Callable[[ModelRecord], ModelFacts],
        healthy: Callable[[], Container[str]],
        limits: DrainLimits,
        clock: Callable[[], float],
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._own_pod = own_pod
        self._membership = membership
        self._registry = registry
        self._loading = loading
        self._cache = cache
        self._peers = peers
        self._facts_of = facts_of
        self._healthy = healthy
        self._limits = limits
        self._clock = clock
        self._pause = pause
        self._orders = OrdersInFlight()

    async def run(self, calls: Callable[[], int]) -> None:
        """Hand over, then wait until clients have left. `calls`: how many have come since the start."""
        ends_s = self._clock() + self._limits.grace_s
        plan = await self._hand_over(ends_s)
        if not self._others():
            log.info("there is no other pod to hand over to")
        elif plan.done:
            log.info("handed over %d models; %d were not used lately", len(plan.handed_over), plan.unneeded)
        else:
            log.warning(
                "the grace of %g s is over: %d models are handed over, %d are not",
                self._limits.grace_s,
                len(plan.handed_over),
                len(plan.waiting) + len(plan.places) + len(plan.later) + len(plan.blocked),
            )
        for unplaced in plan.given_up:
            log.warning("not handed over: %s", unplaced)
        await self._wait_quiet(calls, ends_s)

    async def _hand_over(self, ends_s: float) -> DrainPlan:
        while True:
            plan = await self.turn()
            if plan.done or self._clock() >= ends_s or not self._others():
                return plan
            await self._pause(LOOK_AGAIN_S)

    def _others(self) -> bool:
        """Whether there is anybody to hand over to. The last pod of a pool has nothing to wait for."""
        healthy = self._healthy()
        pods = self._membership.view.pods.values()
        return any(p.id != self._own_pod and p.ready and not p.draining and p.id in healthy for p in pods)

    async def turn(self) -> DrainPlan:
        """One look: order what is to be loaded elsewhere now."""
        now_s = self._clock()
        view = self._membership.view
        self._orders.settle(view, now_s)
        expected = ExpectedPool(view)
        self._orders.lay_over(expected)
        models, rates = self._models_here(now_s)
        plan = plan_drain(
            expected.view,
            self._own_pod,
            models,
            rates,
            Terms(
                self._healthy(),
                expected.promised,
                ordered={name: [found.pod for found in self._orders.of(name)] for name in models},
                held_off=lambda name: self._orders.taken(name, now_s),
            ),
        )
        room = asyncio.Semaphore(ORDERS_AT_ONCE_MAX)
        sending = []
        for place in plan.places:
            facts = models[place.name]
            order = LoadOrder(place.name, facts.generation, f"pod {self._own_pod} drains")
            self._orders.give(place.pod, order, view, now_s, size_bytes=facts.size_bytes, load_s=facts.load_s)
            sending.append(self._send(place.pod, order, room, now_s))
        await asyncio.gather(*sending)
        return plan

    async def _send(self, pod: str, order: LoadOrder, room: asyncio.Semaphore, now_s: float) -> None:
        try:
            async with room:
                await self._peers.order(pod, [order])
        except PeerError as error:
            log.info("not taken: %s", error)
            self._orders.refused(pod, order, now_s)

    def _models_here(self, now_s: float) -> tuple[dict[ModelName, ModelFacts], dict[ModelName, float]]:
        """Registered models with a copy here, and how much those that were used lately are used."""
        models: dict[ModelName, ModelFacts] = {}
        rates: dict[ModelName, float] = {}
        for resident in self._loading.every_resident():
            copy = resident.copy
            record = self._registry.model(copy.key.tenant, copy.key.model_id)
            if record is None or self._cache.servable(copy.key) is not copy:
                continue
            name = ModelName(record.tenant, record.id)
            models[name] = self._facts_of(record)
            age_s = now_s - copy.last_used_s
            if resident.runs and age_s <= self._limits.recent_s:
                # What was used a moment ago comes first; of how often, the age is estimate enough.
                rates[name] = 1.0 / (age_s + 0.001)
        return models, rates

    async def _wait_quiet(self, calls: Callable[[], int], ends_s: float) -> None:
        seen, since_s = calls(), self._clock()
        while (now_s := self._clock()) < ends_s and now_s - since_s < self._limits.quiet_s:
            await self._pause(LOOK_AGAIN_S)
            if (count := calls()) != seen:
                seen, since_s = count, self._clock()
