"""What must be servable elsewhere before a pod lets go of its copies, and whether it may stop.

A pod that stops goes on serving until the copies that matter serve on other pods: make, then break. (ModelMesh let go
of a copy and then asked for another one; requests stalled for as long as the load took.) A copy matters when it was
used lately, when its model is pinned, or when it shall have a minimum of copies. The rest is loaded again by whoever
asks for it.

One other servable copy is enough: whether demand needs more is for `scaling`, which does not count copies on draining
pods. The drain never asks the rest of the pool for more than it has: what fits nowhere, or only at the price of what
is used more, is given up with the reason. How long all this may take is the caller's limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from placement.policy.places import (
    Later,
    Place,
    Placing,
    Terms,
    Unplaced,
    whatever_it_costs,
    worth_its_evictions,
)
from placement.policy.snapshot import ModelFacts, ModelName, Pod, PoolView

SEARCHES_WHEN_FULL_MAX = 32
"""Models that a place is sought for although every pod has enough to load: a search takes a third of a millisecond, and
the pod that plans answers requests meanwhile. Those who cannot be placed at all show up among them, sooner or later."""


@dataclass(frozen=True, slots=True)
class DrainPlan:
    """Where a pod stands with handing over. Names are in the order in which they matter."""

    places: tuple[Place, ...]
    """To order now."""
    waiting: tuple[ModelName, ...]
    """Being loaded elsewhere, or ordered."""
    later: tuple[ModelName, ...]
    """Every pod that could load them has enough to load."""
    blocked: tuple[Unplaced, ...]
    """No pod can load them for now; that may pass."""
    given_up: tuple[Unplaced, ...]
    """No pod can load them, or none for a price that is worth it."""
    handed_over: tuple[ModelName, ...]
    unneeded: int
    """Copies that do not matter."""

    @property
    def done(self) -> bool:
        """Whether nothing is left to wait for."""
        return not (self.places or self.waiting or self.later or self.blocked)


def plan_drain(
    view: PoolView,
    pod: str,
    models: Mapping[ModelName, ModelFacts],
    rates: Mapping[ModelName, float],
    terms: Terms,
) -> DrainPlan:
    """Plan the next step of a drain.

    `models` are the registered models among the pod's copies, `rates` the requests per second of those that were used
    lately.
    """
    others = {
        other.id for other in view.pods.values() if other.id != pod and other.id in terms.healthy and _takes_over(other)
    }
    placing = Placing(view, replace(terms, healthy=others))
    places: list[Place] = []
    waiting: list[ModelName] = []
    later: list[ModelName] = []
    blocked: list[Unplaced] = []
    given_up: list[Unplaced] = []
    handed_over: list[ModelName] = []
    unneeded, searches_when_full = 0, 0
    for model in sorted(models.values(), key=lambda model: _handing_over_order(model, rates)):
        copies = view.copies.get(model.name, ())
        serves_here = max((copy.servable for copy in copies if copy.pod == pod), default=0)
        if not serves_here:
            continue
        rate_per_s = rates.get(model.name, 0.0)
        must = model.pinned or model.copies_min > 0
        if rate_per_s <= 0 and not must:
            unneeded += 1
            continue
        # A copy here may be newer than the generation that this pod knows to be registered.
        takes_over = min(serves_here, model.generation)
        elsewhere = [copy for copy in copies if copy.pod in others]
        if any(copy.servable >= takes_over for copy in elsewhere):
            handed_over.append(model.name)
            continue
        told = terms.ordered.get(model.name, ())
        if any(copy.loading >= takes_over for copy in elsewhere) or others.intersection(told):
            waiting.append(model.name)
            continue
        if placing.exhausted:
            if searches_when_full >= SEARCHES_WHEN_FULL_MAX:
                later.append(model.name)
                continue
            searches_when_full += 1
        answer = placing.place(model, f"{pod} drains", whatever_it_costs if must else worth_its_evictions(rate_per_s))
        match answer:
            case Place():
                places.append(answer)
            case Later():
                later.append(model.name)
            case Unplaced(lasting=True):
                given_up.append(answer)
            case Unplaced():
                blocked.append(answer)
    return DrainPlan(
        tuple(places), tuple(waiting), tuple(later), tuple(blocked), tuple(given_up), tuple(handed_over), unneeded
    )


def _takes_over(pod: Pod) -> bool:
    return pod.ready and not pod.draining


def _handing_over_order(model: ModelFacts, rates: Mapping[ModelName, float]) -> tuple[float, bool, int, ModelName]:
    # 1. the hottest; 2. pinned models before others; 3. the higher priority; 4. the name.
    return (-rates.get(model.name, 0.0), not model.pinned, -model.priority, model.name)
