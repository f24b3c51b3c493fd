"""The leader's turn over copies that nobody ordered: first copies that were loaded twice, across a partition.

Which of them go is for `policy/duplicates.py`; here is which models to ask about. A copy that shows up beside another
one without an order of this leader is such a case. A new leader does not know what the one before it ordered, so it
asks about every model with several copies, after a while in which demand has had time to show.

What pods measure of demand is a glimpse: two requests that meet at its moment look like work for two copies. So a
model whose work seems to need its copies is asked about a few times; after that it is `policy/scaling.py`'s business,
which looks for a minute.

Left alone are models that somebody is busy with: an order under way, a move, a transition (whose copies count as
wanted), a pod that drains and hands over.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from typing import NamedTuple

from placement.planning import Planning
from placement.policy.duplicates import plan_surplus
from placement.policy.snapshot import BusyModel, ModelName, PoolView

ASKED_MAX = 4
"""So often a model with too many copies is asked about: four glimpses of demand that all deceive are rare."""


class _Question(NamedTuple):
    """To be asked of one model."""

    due_at_s: float
    asked: int = 0
    """How often the answer was that the work needs what there is."""


class Surplus:
    """Belongs to one leader."""

    def __init__(self, *, after_s: float, inherited_after_s: float) -> None:
        """`after_s`: how long copies stand side by side before one goes; `inherited_after_s`: for a new leader."""
        self._after_s = after_s
        self._inherited_after_s = inherited_after_s
        self._questions: dict[ModelName, _Question] = {}
        """Of each model with copies that nobody ordered."""

    def begin(self, view: PoolView, now_s: float) -> None:
        """A new leader looks at what it finds."""
        for name, copies in view.copies.items():
            if len(copies) > 1:
                self._questions[name] = _Question(now_s + self._inherited_after_s)

    def copies_changed(
        self, name: ModelName, before: PoolView, after: PoolView, ordered: Container[str], now_s: float
    ) -> None:
        """A model's copies changed; `ordered`: pods that this leader has ordered to load it."""
        there = after.copies.get(name, ())
        if len(there) < 2:
            self._questions.pop(name, None)
            return
        known = {copy.pod for copy in before.copies.get(name, ())}
        if any(copy.pod not in known and copy.pod not in ordered for copy in there):
            self._questions.setdefault(name, _Question(now_s + self._after_s))

    def turn(
        self,
        plan: Planning,
        wanted_copies: Callable[[ModelName], int],
        is_moving: Callable[[ModelName], bool],
        measures: Mapping[ModelName, Mapping[str, BusyModel]],
    ) -> None:
        """Plan which copies go."""
        for name in [name for name, question in self._questions.items() if question.due_at_s <= plan.now_s]:
            if plan.exhausted:
                return
            model = plan.facts_of(name)
            copies = plan.view.copies.get(name, ())
            if model is None or len(copies) < 2:
                del self._questions[name]
                continue
            draining = any(plan.view.pods[copy.pod].draining for copy in copies if copy.pod in plan.view.pods)
            if draining or is_moving(name) or any(True for _ in plan.orders.of(name)):
                continue
            if any(copy.loading for copy in copies):
                continue
            again_at_s = plan.now_s + self._after_s
            if any(copy.pod not in plan.healthy for copy in copies):
                # Across a partition that lasts, each copy may be the only one that somebody reaches.
                self._questions[name] = self._questions[name]._replace(due_at_s=again_at_s)
                continue
            wanted = wanted_copies(name)
            found = plan_surplus(plan.view, model, wanted, measures.get(name, {}), healthy=plan.healthy)
            asked = self._questions[name].asked + (found is None)
            if len(copies) <= max(1, wanted, model.copies_min) or asked == ASKED_MAX:
                del self._questions[name]
            else:
                # An order may be refused, by a pod that does not reach the other copies yet.
                self._questions[name] = _Question(again_at_s, asked)
            if found is not None:
                for pod in found.retired:
                    plan.unload(name, model.generation, pod, f"nobody ordered it: {found.reason}")
