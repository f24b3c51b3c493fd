"""The leader's turn over the number of copies of one model: what `policy/scaling.py` decides is planned and remembered.

The policy wants a history per model; kept here are only those that say something, so that a pool of 100,000 models of
which a hundred are busy has a hundred.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from placement.planning import Planning
from placement.policy.scaling import (
    LIMITS,
    NO_HISTORY,
    AddCopies,
    DropCopies,
    ScalingHistory,
    ScalingLimits,
    plan_copies,
)
from placement.policy.snapshot import BusyModel, ModelFacts, ModelName

NO_MEASURES: Mapping[str, BusyModel] = {}


class Scaling:
    """Histories of models. Belongs to one leader."""

    def __init__(self, limits: ScalingLimits = LIMITS) -> None:
        self._limits = limits
        self._history: dict[ModelName, ScalingHistory] = {}

    @property
    def names(self) -> Iterable[ModelName]:
        """Models with a history: they are looked at in every turn, or it would not be one."""
        return self._history.keys()

    def is_quiet(self, measures: Iterable[BusyModel]) -> bool:
        """Whether these measures ask for no decision now: half of what would make a model too busy.

        Called for every busy model in every turn. That copies are too many can wait for the periodic check.
        """
        waits_max_s, busy_max = self._limits.queue_delay_max_s / 2, self._limits.busy_max / 2
        for busy in measures:
            runs = max(busy.in_flight, busy.rate_per_s * busy.run_s)
            if busy.queue_delay_s > waits_max_s or runs > busy_max * busy.concurrency:
                return False
        return True

    def look_at(self, plan: Planning, model: ModelFacts, measures: Mapping[str, BusyModel] = NO_MEASURES) -> None:
        """Plan copies more or fewer. `measures`: of each pod that reports the model as busy."""
        before = self._history.get(model.name, NO_HISTORY)
        decision, after = plan_copies(
            plan.view, model, measures, before, healthy=plan.healthy, now_s=plan.now_s, limits=self._limits
        )
        match decision:
            case AddCopies(count, reason):
                if plan.exhausted:
                    return  # decided again in the next turn
                for _ in range(count):
                    if plan.exhausted or plan.place(model, reason) is None:
                        break
            case DropCopies(pods, reason):
                serving = {copy.pod: copy.servable for copy in plan.view.copies.get(model.name, ())}
                for pod in pods:
                    plan.unload(model.name, serving[pod], pod, reason)
        self._remember(model.name, after, plan.now_s)

    def forget(self, name: ModelName) -> None:
        """The model is no longer registered, or has no copies."""
        self._history.pop(name, None)

    def _remember(self, name: ModelName, history: ScalingHistory, now_s: float) -> None:
        rests = now_s - history.added_at_s < self._limits.rest_after_up_s
        if history.over_since_s is None and history.under_since_s is None and not rests:
            self._history.pop(name, None)
        else:
            self._history[name] = history
