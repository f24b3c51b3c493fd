"""The leader's turn over models that were lost with their pods: hottest first, a few per pod at a time.

`policy/restore.py` finds the places. What it has none for now stays lost and is tried again after a pause; what has
none at all, or has cooled, is left to be loaded by a request.

A pool that starts cold has its first pod some seconds before the others. Everything would be restored onto that one,
so a new leader of a pool without copies waits until no further pod has joined for a moment.
"""

from __future__ import annotations

import heapq
from collections.abc import Awaitable, Callable
from math import inf

from placement.attention import Attention
from placement.planning import Planning, Unplaced
from placement.policy.restore import has_copy, plan_restore
from placement.policy.snapshot import ModelFacts, ModelName
from placement.service_limits import ServiceLimits

VAIN_SLICES_MAX = 4
"""Slices without a place after which the turn ends: the pods have enough to load."""


class Restoring:
    """Belongs to one leader."""

    def __init__(self, limits: ServiceLimits, attention: Attention) -> None:
        self._limits = limits
        self._attention = attention
        self._paused: dict[ModelName, float] = {}
        """Models without a place, and when they are tried again."""
        self._waits_for_pods_until_s = -inf

    def begin(self, plan: Planning) -> None:
        """A new leader takes what was hot and has no copy as lost: nobody tells it how that came."""
        limits = self._limits
        for name, rate_per_s in plan.heat.hottest(limits.hot_models_max, plan.now_s):
            if rate_per_s >= limits.heat_min_per_s and not has_copy(plan.view, name, plan.healthy):
                self._attention.lost[name] = plan.now_s
        if not plan.view.copies:
            self._attention.pod_joined_at_s = plan.now_s
            self._waits_for_pods_until_s = plan.now_s + limits.pods_join_within_s

    async def turn(self, plan: Planning, breathe: Callable[[], Awaitable[None]]) -> None:
        """Plan what can be restored now. `breathe` is awaited between slices of the work."""
        lost, limits = self._attention.lost, self._limits
        if not lost or self._pool_gathers(plan.now_s):
            return
        wanted = self._wanted(plan)
        size, vain = limits.orders_per_chunk, 0
        for start in range(0, len(wanted), size):
            if plan.exhausted or vain == VAIN_SLICES_MAX:
                break
            some = wanted[start : start + size]
            found = plan_restore(plan.view, some, plan.terms(limits.restoring_per_pod_max))
            models = {model.name: model for model, _ in some}
            for place in found.places:
                plan.accept(models[place.name], place)
            for unplaced in found.unplaced:
                plan.unplaced.append(Unplaced(unplaced.name, "lost with its pod", unplaced.reason, unplaced.no_pod))
                if unplaced.lasting:
                    lost.pop(unplaced.name, None)
                else:
                    self._paused[unplaced.name] = plan.now_s + limits.unplaced_pause_s
            vain = 0 if found.places else vain + 1
            await breathe()

    def _pool_gathers(self, now_s: float) -> bool:
        quiet_s = now_s - self._attention.pod_joined_at_s
        return now_s < self._waits_for_pods_until_s and quiet_s < self._limits.pods_join_quiet_s

    def _wanted(self, plan: Planning) -> list[tuple[ModelFacts, float]]:
        """The hottest that are lost, hottest first; what is not lost any more is forgotten."""
        lost, limits = self._attention.lost, self._limits
        for name in [name for name, until_s in self._paused.items() if until_s <= plan.now_s]:
            del self._paused[name]
        for name, since_s in list(lost.items()):
            if has_copy(plan.view, name, plan.healthy) or plan.now_s - since_s > limits.lost_for_s:
                del lost[name]
        count = 4 * limits.orders_per_turn_max
        hottest = heapq.nsmallest(
            count,
            ((-plan.heat.rate_per_s(name, plan.now_s), name) for name in lost if name not in self._paused),
        )
        wanted: list[tuple[ModelFacts, float]] = []
        for cold, name in hottest:
            model = plan.facts_of(name)
            kept = model is not None and (model.pinned or model.copies_min > 0)
            if model is None or (-cold < limits.heat_min_per_s and not kept):
                del lost[name]
            else:
                wanted.append((model, -cold))
        return wanted
