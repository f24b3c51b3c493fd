"""Which models that lost their last copy are loaded again, before somebody asks for them.

When a pod dies, its copies are gone in one moment. Whoever asks for one of them waits for a load; the hot ones are
asked for at once, by many. So they are brought back hottest first, a few loads per pod at a time: all at once would
queue every request's own cold load behind models that nobody is asking for now.

Only models without any copy, servable or on its way, are brought back. Further copies are a matter of demand
(`scaling`), and whatever is cold comes back when it is asked for.

A pod's loss moves nothing else: what has a copy is not looked at.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass

from placement.policy.places import (
    Later,
    Place,
    Placing,
    Terms,
    Unplaced,
    whatever_it_costs,
    worth_its_evictions,
)
from placement.policy.snapshot import ModelFacts, ModelName, PoolView, is_there

PLACES_MAX = 256
"""In one plan; the next one sees what came of it."""


@dataclass(frozen=True, slots=True)
class RestorePlan:
    """What to load now, hottest first, and what not."""

    places: tuple[Place, ...]
    later: tuple[ModelName, ...]
    """Next in line; every pod that could load them has enough to load."""
    unplaced: tuple[Unplaced, ...]


def plan_restore(
    view: PoolView,
    wanted: Iterable[tuple[ModelFacts, float]],
    terms: Terms,
    *,
    places_max: int = PLACES_MAX,
) -> RestorePlan:
    """Place what has no copy left. `wanted` are models with their rate of requests per second, in any order."""
    placing = Placing(view, terms)
    places: list[Place] = []
    later: list[ModelName] = []
    unplaced: list[Unplaced] = []
    for model, rate_per_s in sorted(wanted, key=_restoring_order):
        must = _must_stand(model)
        if (not must and rate_per_s <= 0) or placing.is_ordered(model.name):
            continue
        if has_copy(view, model.name, terms.healthy):
            continue
        if placing.exhausted or len(places) >= places_max:
            later.append(model.name)
            continue
        reason = "always wanted and lost" if must else f"lost while asked for {rate_per_s:.3g} times a second"
        answer = placing.place(model, reason, whatever_it_costs if must else worth_its_evictions(rate_per_s))
        match answer:
            case Place():
                places.append(answer)
            case Later():
                later.append(model.name)
            case Unplaced():
                unplaced.append(answer)
    return RestorePlan(tuple(places), tuple(later), tuple(unplaced))


def has_copy(view: PoolView, name: ModelName, healthy: Container[str]) -> bool:
    """Whether a pod serves or loads any generation. One that drains counts: it hands over itself."""
    return any(is_there(view, copy.pod, healthy) for copy in view.copies.get(name, ()))


def _must_stand(model: ModelFacts) -> bool:
    return model.pinned or model.copies_min > 0


def _restoring_order(item: tuple[ModelFacts, float]) -> tuple[bool, float, int, ModelName]:
    # 1. pinned models and those with a minimum of copies; 2. the hottest; 3. the higher priority; 4. the name, so that
    # equal facts give equal plans.
    model, rate_per_s = item
    return (not _must_stand(model), -rate_per_s, -model.priority, model.name)
