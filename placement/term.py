"""One term of the leader: what it remembers, and its turn.

A turn takes one picture of the pool and of the names, lets each duty (`placement.duties`) add to one plan, and sends
out what was planned. It looks at what changed, at what is busy and at what is short of something (`attention`), so a
turn in which nothing happened costs nearly nothing in a pool of 100,000 models; every so often it looks at all of them,
so that nothing depends on an event that was missed. Long work gives way to the loop between its pieces, which also
answers requests: between picture and order the world may move, and whoever gets an order knows best.

Nothing here outlives the term, and nothing needs to: what was ordered shows in the view, what was hot is in the store
(`hot`), what was beginning to be scaled begins again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from placement.attention import Attention, is_gone, is_kept
from placement.constraints import Constraints
from placement.decisions import Decision, DecisionLog
from placement.duties.aliases import Aliases, Told
from placement.duties.housekeeping import Housekeeping
from placement.duties.moving import Moving
from placement.duties.restoring import Restoring
from placement.duties.scaling import NO_MEASURES, Scaling
from placement.duties.surplus import Surplus
from placement.duties.suspects import Ruling, Suspects
from placement.errands import Errands
from placement.expected import ExpectedPool
from placement.heat import Heat
from placement.measures import Measures, measures_of, rates_of
from placement.membership import Membership
from placement.model_facts import FactsGatherer
from placement.orders import OrdersInFlight, Outcome, Settled
from placement.peers import LoadOrder, Order, PeerError, Peers
from placement.planning import Planned, Planning, Unplaced
from placement.policy.snapshot import ModelFacts, ModelName, PoolView
from placement.pool_view import PoolChanges
from placement.registry import Registry
from placement.service_limits import ServiceLimits
from placement.view import Changes, RegistryView

log = logging.getLogger(__name__)

CHUNK_LOOKS = 100
"""Models decided on before the loop may answer requests: each takes some ten microseconds without a placement."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TurnReport:
    """What one turn came to."""

    planned: tuple[Planned, ...]
    unplaced: tuple[Unplaced, ...]
    rulings: tuple[Ruling, ...]
    told: tuple[Told, ...]
    looked_at: int
    """Models whose copies were decided on."""


class Term:
    """What the leader does, for as long as it leads. Belongs to the event loop."""

    def __init__(
        self,
        membership: Membership,
        registry: Registry,
        peers: Peers,
        *,
        limits: ServiceLimits,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        constraints: Constraints,
        healthy: Callable[[], Container[str]],
        decisions: DecisionLog,
    ) -> None:
        self._membership = membership
        self._registry = registry
        self._peers = peers
        self._limits = limits
        self._clock = clock
        self._wall_clock = wall_clock
        self._constraints = constraints
        self._healthy = healthy
        self._decisions = decisions
        self.errands = Errands()
        self.attention = Attention()
        self.orders = OrdersInFlight(limits.orders)
        self.heat = Heat(half_life_s=limits.heat_half_life_s, models_max=limits.heat_models_max)
        self._scaling = Scaling()
        self._restoring = Restoring(limits, self.attention)
        self._aliases = Aliases(registry, self.errands, limits, wall_clock)
        self._surplus = Surplus(after_s=limits.surplus_after_s, inherited_after_s=limits.surplus_inherited_after_s)
        self._moving = Moving(begun_every_s=limits.rebalance_every_s, within_s=limits.move_within_s)
        self._suspects = Suspects(death_grace_s=limits.death_grace_s, proves_alive_s=limits.proves_alive_s)
        self._housekeeping = Housekeeping(membership, self.errands, self.heat, limits)
        self._recheck_at_s = 0.0

    # What happens between turns -------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Take in everything there is. The first turn looks at all models."""
        now_s, view, names = self._clock(), self._membership.view, self._registry.view
        self._housekeeping.begin(now_s)
        self.attention.begin(names)
        self._aliases.begin(names)
        self._surplus.begin(view, now_s)
        self._moving.begin(now_s)
        self._restoring.begin(self._plan(now_s, view, names))

    def names_changed(self, changes: Changes) -> None:
        """The registry's view has moved on."""
        self.attention.names_changed(changes, self._membership.view)
        self._aliases.names_changed(changes)

    def pool_changed(self, changes: PoolChanges, before: PoolView, after: PoolView) -> None:
        """The pool's view has moved on."""
        now_s = self._clock()
        gone = [change.before for change in changes.pods if change.before is not None and is_gone(change)]
        if gone:
            self.heat.observe(rates_of(measures_of(gone)), now_s)
        self.attention.pool_changed(changes, before, after, now_s)
        for name in changes.copies:
            self._surplus.copies_changed(name, before, after, self.orders.loads_of(name), now_s)

    async def close(self, within_s: float) -> None:
        """The term is over; what is under way has so long to end."""
        await self.errands.close(within_s)

    # The turn -------------------------------------------------------------------------------------------------------

    async def turn(self) -> TurnReport:
        """Look, plan, send. Nothing is waited for but the loop.

        What forgets something when the picture says so comes before the first pause: what happens in a pause is not in
        this turn's picture.
        """
        now_s, view, names = self._clock(), self._membership.view, self._registry.view
        for settled in self.orders.settle(view, now_s):
            self._settled(settled)
        due = self.attention.take_due()
        # A pod whose lease ran out measured long ago.
        measures = measures_of(pod for pod in view.pods.values() if pod.id not in view.fading)
        rates = rates_of(measures)
        self.heat.observe(rates, now_s)
        plan = self._plan(now_s, view, names)
        rulings = self._suspects.turn(view, self._membership.intents, _generations(names), now_s)
        told = self._aliases.turn(plan)
        await _breathe()

        if now_s >= self._recheck_at_s:
            self._recheck_at_s = now_s + self._limits.recheck_every_s
            await self._recheck(view, names, due)
        await self._restoring.turn(plan, _breathe)
        looked_at = await self._look_at_models(plan, due, measures)
        self._surplus.turn(plan, self._aliases.wanted_copies, self._moving.__contains__, measures)
        self._moving.turn(plan, rates)

        for ruling in rulings:
            self._carry_out_ruling(ruling)
        self._give(plan, view)
        self._tell(plan, told)
        await _breathe()
        self._housekeeping.turn(view.revision, now_s)
        return TurnReport(tuple(plan.planned), tuple(plan.unplaced), rulings, told, looked_at)

    def _plan(self, now_s: float, view: PoolView, names: RegistryView) -> Planning:
        pool = ExpectedPool(view)
        self.orders.lay_over(pool)
        gatherer = FactsGatherer(view, self._membership.known_size, self._constraints)
        known: dict[ModelName, ModelFacts | None] = {}

        def facts_of(name: ModelName) -> ModelFacts | None:
            if name not in known:
                record = names.tenant(name.tenant).models.get(name.id)
                known[name] = gatherer.facts(record) if record is not None and record.spec.has_copies else None
            return known[name]

        return Planning(
            now_s,
            names,
            pool,
            self._healthy(),
            self.heat,
            self.orders,
            facts_of,
            self._limits.orders_per_turn_max,
        )

    async def _recheck(self, view: PoolView, names: RegistryView, due: dict[ModelName, None]) -> None:
        """Find among all names those that are to be looked at, whatever events have told. Gives way to the loop."""
        for name in tuple(islice(self.attention.unplaced, self._limits.unplaced_retried_max)):
            del self.attention.unplaced[name]
            due[name] = None
        self._aliases.recheck(names)
        for some in _chunks(names.every_model(), self._limits.chunk_models):
            for record in some:
                if is_kept(record.spec):
                    name = ModelName(record.tenant, record.id)
                    self.attention.kept[name] = None
                    least = max(1, record.spec.copies_min)
                    if sum(copy.pod in view.pods for copy in view.copies.get(name, ())) < least:
                        due[name] = None
            await _breathe()
        for some_copies in _chunks(view.copies.items(), self._limits.chunk_models):
            for name, copies in some_copies:
                if len(copies) > 1 and _may_be_too_many(names, name, len(copies)):
                    due[name] = None
            await _breathe()

    async def _look_at_models(self, plan: Planning, due: dict[ModelName, None], measures: Measures) -> int:
        """Decide on the copies of what is due, the hottest first. How many models that were."""
        due.update(dict.fromkeys(self._scaling.names))
        for some in _chunks(measures.items(), self._limits.chunk_models):
            for name, by_pod in some:
                if not self._scaling.is_quiet(by_pod.values()):
                    due[name] = None
            await _breathe()
        ordered = sorted(due, key=lambda name: (-self.heat.rate_per_s(name, plan.now_s), name))
        breathed_at = 0
        for index, name in enumerate(ordered):
            if plan.exhausted:
                self.attention.due |= dict.fromkeys(ordered[index:])
                return index
            self._look_at(plan, name, measures)
            if plan.sought - breathed_at >= self._limits.orders_per_chunk or index % CHUNK_LOOKS == 0:
                breathed_at = plan.sought
                await _breathe()
        return len(ordered)

    def _look_at(self, plan: Planning, name: ModelName, measures: Measures) -> None:
        model = plan.facts_of(name)
        if model is None:
            self.attention.kept.pop(name, None)
            self.heat.forget(name)
            self._scaling.forget(name)
        elif self._aliases.wanted_copies(name):
            return  # a transition brings its copies, and traffic will say how many remain
        elif name in plan.view.copies:
            self._scaling.look_at(plan, model, measures.get(name, NO_MEASURES))
        elif name in self.attention.kept and name not in self.attention.lost:
            self._scaling.look_at(plan, model)
        else:
            self._scaling.forget(name)

    # Carrying out ---------------------------------------------------------------------------------------------------

    def _give(self, plan: Planning, view: PoolView) -> None:
        for planned in plan.planned:
            pod, order = planned.pod, planned.order
            self.orders.give(pod, order, view, plan.now_s, size_bytes=planned.size_bytes, load_s=planned.load_s)
            self.errands.send((_action(order), order.name, pod), self._send(pod, order))

    async def _send(self, pod: str, order: Order) -> None:
        """One order a call, so that what a pod refuses is told from what it takes."""
        try:
            await self._peers.order(pod, [order])
        except PeerError as error:
            log.info("an order was not taken: %s", error)
            self.orders.refused(pod, order, self._clock())
            self.attention.due[order.name] = None
            self._note(order.name, f"{_action(order)} not taken", error.message, pod)

    def _settled(self, settled: Settled) -> None:
        found = settled.in_flight
        self.attention.due[found.order.name] = None
        self._moving.order_settled(settled)
        if settled.outcome is not Outcome.DONE:
            self._note(found.order.name, f"{_action(found.order)} came to nothing", settled.outcome.value, found.pod)

    def _carry_out_ruling(self, ruling: Ruling) -> None:
        async def carry_out() -> None:
            if ruling.changes:
                if self._membership.view.suspicions.get(ruling.name) != ruling.before:
                    return  # somebody else has written it meanwhile: judged again in the next turn
                log.warning("model %s: %s; %s", ruling.name, ruling.reason, _verdict(ruling))
                if not await self._membership.write_suspicion(ruling.name, ruling.after):
                    return
            for intent in ruling.settled:
                await self._membership.remove_intent(ruling.name, intent)

        if self.errands.send(("ruling", ruling.name), carry_out()) and ruling.changes:
            self._note(ruling.name, _verdict(ruling), ruling.reason)

    def _tell(self, plan: Planning, told: Iterable[Told]) -> None:
        for planned in plan.planned:
            order = planned.order
            self._note(order.name, _action(order), order.reason, planned.pod, planned.details)
        for unplaced in plan.unplaced:
            self.attention.unplaced[unplaced.name] = None
            details = unplaced.no_pod.explain()[1:] if unplaced.no_pod is not None else ()
            self._note(unplaced.name, "no place", f"{unplaced.why} (wanted: {unplaced.wanted_for})", "", details)
        for each in told:
            self._note(each.alias, each.action, each.reason)

    def _note(self, name: ModelName, action: str, reason: str, pod: str = "", details: Iterable[str] = ()) -> None:
        decision = Decision(name, self._wall_clock(), action, reason, pod, tuple(details))
        if self._decisions.note(decision):
            log.info("%s", decision)


async def _breathe() -> None:
    """Let the loop do what else is due."""
    await asyncio.sleep(0)


def _chunks(items: Iterable[T], size: int) -> Iterable[list[T]]:
    """Pieces of something that does not change meanwhile."""
    iterator = iter(items)
    while some := list(islice(iterator, size)):
        yield some


def _may_be_too_many(names: RegistryView, name: ModelName, copies: int) -> bool:
    """Whether a model has more copies than it must have."""
    record = names.tenant(name.tenant).models.get(name.id)
    return record is not None and copies > max(1, record.spec.copies_min)


def _generations(names: RegistryView) -> Callable[[ModelName], int | None]:
    def generation_of(name: ModelName) -> int | None:
        record = names.tenant(name.tenant).models.get(name.id)
        return record.generation if record is not None else None

    return generation_of


def _action(order: Order) -> str:
    return "load" if isinstance(order, LoadOrder) else "unload"


def _verdict(ruling: Ruling) -> str:
    return ruling.after.verdict.value if ruling.after is not None else "released"
