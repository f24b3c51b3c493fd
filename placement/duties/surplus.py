"""The leader's turn over copies that nobody ordered: first copies that were loaded twice, across a partition.

Which of them go is for `policy/duplicates.py`; here is which models to ask about. A copy that shows up beside another
one without an order of this leader is such a case. A new leader does not know what the one before it ordered, so it
asks about every model with several copies once, after a while in which demand has had time to show.

Left alone are models that somebody is busy with: an order under way, a move, a transition (whose copies count as
wanted), a pod that drains and hands over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from placement.planning import Planning
from placement.policy.duplicates import plan_surplus
from placement.policy.snapshot import BusyModel, ModelName, PoolView


class Surplus:
    """Belongs to one leader."""

    def __init__(self, *, after_s: float, inherited_after_s: float) -> None:
        """`after_s`: how long copies stand side by side before one goes; `inherited_after_s`: for a new leader."""
        self._after_s = after_s
        self._inherited_after_s = inherited_after_s
        self._since: dict[ModelName, float] = {}
        """Until when each model with copies that nobody ordered is left alone."""

    def begin(self, view: PoolView, now_s: float) -> None:
        """A new leader looks at what it finds."""
        for name, copies in view.copies.items():
            if len(copies) > 1:
                self._since[name] = now_s + self._inherited_after_s

    def copies_changed(self, name: ModelName, before: PoolView, after: PoolView, ordered: bool, now_s: float) -> None:
        """A model's copies changed; `ordered`: this leader has an order for it under way."""
        there = after.copies.get(name, ())
        if len(there) < 2:
            self._since.pop(name, None)
        elif not ordered and len(there) > len(before.copies.get(name, ())):
            self._since.setdefault(name, now_s + self._after_s)

    def turn(
        self,
        plan: Planning,
        wanted_copies: Callable[[ModelName], int],
        is_moving: Callable[[ModelName], bool],
        measures: Mapping[ModelName, Mapping[str, BusyModel]],
    ) -> None:
        """Plan which copies go."""
        for name in [name for name, until_s in self._since.items() if until_s <= plan.now_s]:
            if plan.exhausted:
                return
            model = plan.facts_of(name)
            copies = plan.view.copies.get(name, ())
            if model is None or len(copies) < 2:
                del self._since[name]
                continue
            draining = any(plan.view.pods[copy.pod].draining for copy in copies if copy.pod in plan.view.pods)
            if draining or is_moving(name) or any(True for _ in plan.orders.of(name)):
                continue
            if any(copy.loading for copy in copies):
                continue
            if any(copy.pod not in plan.healthy for copy in copies):
                # Across a partition that lasts, each copy may be the only one that somebody reaches.
                self._since[name] = plan.now_s + self._after_s
                continue
            del self._since[name]
            found = plan_surplus(plan.view, model, wanted_copies(name), measures.get(name, {}), healthy=plan.healthy)
            for pod in found.retired if found is not None else ():
                assert found is not None
                plan.unload(name, model.generation, pod, f"nobody ordered it: {found.reason}")
