"""The leader's turn over moves: copies that change pods because memory is short on one and not on another.

`policy/rebalance.py` says what to begin and what to end. A move that has not arrived in time, because its target
failed or refused, is over: the copy stays where it was. A leader that is lost in the middle leaves a copy too many,
which the next one finds (`surplus.py`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from placement.orders import Outcome, Settled
from placement.peers import LoadOrder
from placement.planning import Planning
from placement.policy.rebalance import LIMITS, Move, RebalanceLimits, plan_rebalance
from placement.policy.snapshot import ModelName

CANDIDATES_MAX = 1000
"""Models in use that are asked about: a plan moves four."""


class Moving:
    """Belongs to one leader."""

    def __init__(self, *, begun_every_s: float, within_s: float, limits: RebalanceLimits = LIMITS) -> None:
        self._begun_every_s = begun_every_s
        self._within_s = within_s
        self._limits = limits
        self._under_way: dict[ModelName, tuple[Move, float]] = {}
        self._started_at_s: deque[float] = deque(maxlen=64)
        self._next_s = 0.0

    def __contains__(self, name: ModelName) -> bool:
        return name in self._under_way

    def begin(self, now_s: float) -> None:
        """A new leader lets the pool settle first."""
        self._next_s = now_s + self._begun_every_s

    def order_settled(self, settled: Settled) -> None:
        """A load that a move waits for may have come to nothing."""
        order, pod = settled.in_flight.order, settled.in_flight.pod
        move, _ = self._under_way.get(order.name, (None, 0.0))
        failed = isinstance(order, LoadOrder) and settled.outcome is not Outcome.DONE
        if move is not None and failed and pod == move.target:
            del self._under_way[order.name]

    def turn(self, plan: Planning, rates: Mapping[ModelName, float]) -> None:
        """Plan what to begin and what to end. `rates`: requests per second of models in use."""
        for name, (_, since_s) in list(self._under_way.items()):
            if plan.now_s - since_s > self._within_s:
                del self._under_way[name]
        may_begin = plan.now_s >= self._next_s and not plan.exhausted
        if not may_begin and not self._under_way:
            return
        hottest = sorted(rates, key=lambda name: (-rates[name], name))[:CANDIDATES_MAX] if may_begin else []
        models = [(model, rates[name]) for name in hottest if (model := plan.facts_of(name)) is not None]
        found = plan_rebalance(
            plan.view,
            models,
            [move for move, _ in self._under_way.values()],
            self._started_at_s,
            now_s=plan.now_s,
            terms=plan.terms(),
            limits=self._limits,
        )
        for move in found.over:
            self._under_way.pop(move.name, None)
        for move in found.finish:
            plan.unload(move.name, move.generation, move.source, f"it serves on {move.target} now")
        if not may_begin:
            return
        self._next_s = plan.now_s + self._begun_every_s
        facts = {model.name: model for model, _ in models}
        for move in found.start:
            plan.accept(facts[move.name], move.place)
            self._under_way[move.name] = (move, plan.now_s)
            self._started_at_s.append(plan.now_s)
