"""Several copies placed in one plan: each decision sees what the ones before it took.

Restoring, draining and changing over all ask for many places from one picture of the pool. Asked one by one, every
model would find the same room free. So a `Placing` keeps what this plan has promised and to whom, lets a pod have only
so many loads of this kind at a time, and refuses places that cost the pool more than they give: making room for a
model that is used every hour by throwing out copies that were used a minute ago is a loss.

Deliberately absent: carrying anything out. A plan that is not carried out leaves no trace.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Mapping
from dataclasses import dataclass, field

from placement.policy.load_choice import NOBODY, Candidate, LoadChoice, choose_load_pod
from placement.policy.no_pod import Cause, NoPod
from placement.policy.obstacles import NOTHING, Promised, readable
from placement.policy.snapshot import ModelFacts, ModelName, PoolView

LOADS_PER_POD_MAX = 4
"""Loads queued on a pod beyond which a plan gives it no more: a request's own cold load would wait behind them."""


@dataclass(frozen=True, slots=True)
class Place:
    """Load this generation there."""

    name: ModelName
    generation: int
    pod: str
    reason: str
    choice: LoadChoice = field(repr=False)
    """What was considered."""


@dataclass(frozen=True, slots=True)
class Later:
    """There will be a place, but every pod that could load it has enough to load for now."""

    name: ModelName


@dataclass(frozen=True, slots=True)
class Unplaced:
    """There is no place for it, or none that is worth its price."""

    name: ModelName
    reason: str
    lasting: bool
    """Waiting does not help."""
    no_pod: NoPod | None = field(default=None, repr=False)


Objection = Callable[[Candidate], str | None]
"""Why a model should rather not be loaded at its best place; None: no objection."""


def whatever_it_costs(_: Candidate) -> None:
    """Somebody wants it there, whoever has to leave."""


def worth_its_evictions(rate_per_s: float) -> Objection:
    """Evict nothing that is likely to be used before this model is.

    Its next use is expected after 1 / rate, that of the pod's longest unused copy after as long as it has been unused.
    """

    def objection(best: Candidate) -> str | None:
        if not best.evicts_bytes or rate_per_s * best.eviction_age_s > 1:
            return None
        return (
            f"not worth its price: on {best.pod}, the best place, {readable(best.evicts_bytes)} would have to leave "
            f"that were used {best.eviction_age_s:.0f} s ago, and it is asked for {rate_per_s:.3g} times a second"
        )

    return objection


def nobody(_: ModelName) -> Container[str]:
    """No pod is held off from any model."""
    return NOBODY


@dataclass(frozen=True, slots=True)
class Terms:
    """On which terms a plan seeks its places: what it must heed beside the view."""

    healthy: Container[str]
    promised: Mapping[str, Promised] = field(default_factory=dict)
    """By pod: what was decided before this plan and does not show in the view yet."""
    ordered: Mapping[ModelName, Collection[str]] = field(default_factory=dict)
    """The same by model: the pods that were told to load it."""
    held_off: Callable[[ModelName], Container[str]] = nobody
    """Pods that are not to be asked for a model now."""
    loads_per_pod_max: int = LOADS_PER_POD_MAX


class Placing:
    """The places of one plan, in the order in which they are asked for."""

    def __init__(self, view: PoolView, terms: Terms) -> None:
        self._view = view
        self._terms = terms
        self._promised = dict(terms.promised)
        self._ordered = {name: set(pods) for name, pods in terms.ordered.items() if pods}
        self._enough: set[str] = {
            pod.id
            for pod in view.pods.values()
            if self._loads(pod.id) >= terms.loads_per_pod_max
            or pod.id not in terms.healthy
            or pod.draining
            or not pod.ready
        }

    @property
    def exhausted(self) -> bool:
        """No pod takes a further load of this plan."""
        return len(self._enough) == len(self._view.pods)

    def place(self, model: ModelFacts, reason: str, objection: Objection) -> Place | Later | Unplaced:
        """Find a place for one more copy and take it, unless there is an objection to the best one."""
        answer = self._choose(model, self._held(model, self._enough))
        if isinstance(answer, NoPod):
            if self._enough:
                answer = self._choose(model, self._held(model, NOBODY))
            if isinstance(answer, LoadChoice):
                return Later(model.name)
            return Unplaced(model.name, answer.message, answer.cause is not Cause.FOR_NOW, answer)
        chosen = answer.considered[0]
        why_not = objection(chosen)
        if why_not is not None:
            return Unplaced(model.name, why_not, lasting=True)
        self._take(answer.pod, model, chosen.load_s)
        return Place(model.name, model.generation, answer.pod, reason, answer)

    def is_ordered(self, name: ModelName) -> bool:
        """Whether some pod was told to load it."""
        return bool(self._ordered.get(name))

    def _held(self, model: ModelFacts, enough: Container[str]) -> Container[str]:
        held_off = self._terms.held_off(model.name)
        return {pod_id for pod_id in self._view.pods if pod_id in enough or pod_id in held_off}

    def _choose(self, model: ModelFacts, excluded: Container[str]) -> LoadChoice | NoPod:
        return choose_load_pod(
            self._view,
            model,
            healthy=self._terms.healthy,
            excluded=excluded,
            ordered=self._ordered.get(model.name, ()),
            promised=self._promised,
        )

    def _take(self, pod_id: str, model: ModelFacts, load_s: float) -> None:
        before = self._promised.get(pod_id, NOTHING)
        self._promised[pod_id] = Promised(before.bytes + model.size_bytes, before.loads + 1, before.load_s + load_s)
        self._ordered.setdefault(model.name, set()).add(pod_id)
        if self._loads(pod_id) >= self._terms.loads_per_pod_max:
            self._enough.add(pod_id)

    def _loads(self, pod_id: str) -> int:
        return self._view.pods[pod_id].loads_queued + self._promised.get(pod_id, NOTHING).loads
