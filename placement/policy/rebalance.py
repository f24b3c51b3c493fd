"""Which copies move to another pod, although nobody asked for it.

Rendezvous hashing and the estimate at each load keep the pool even; what remains is a pod where copies are thrown out
after seconds while others keep theirs for hours. Moving costs a load, so it has to pay.

What it pays: a pod whose longest unused copies are A seconds old turns its memory over every A seconds or so. Moving a
model that is in use away gives its bytes to the others, and saves in `horizon_s` as many reloads of those bytes as they
would have been turned over: horizon / A, less horizon / A' where they will be taken. In seconds of loading:

    benefit - cost = load_s × (horizon / A - horizon / A' - 1)

A pod with free room has no A. Only models in use are moved: one that is not will be evicted anyway, for nothing. Only
those with one copy: of several, `scaling` decides which remain.

Make before break: a move is ordered at its target, and its source is asked to let go in the plan that sees the target
serve. At most one move per source at a time and `moves_per_minute_max` in all: the ages that these decisions rest on
need time to follow.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf

from placement.policy.load_choice import Candidate
from placement.policy.places import Objection, Place, Placing, Terms
from placement.policy.snapshot import Copy, ModelFacts, ModelName, Pod, PoolView


@dataclass(frozen=True, slots=True)
class RebalanceLimits:
    """How much may move, and for what."""

    horizon_s: float = 600.0
    """How long what is true now is taken to stay true."""
    worth_factor: float = 2.0
    """The benefit must be so many times the cost: both are estimates."""
    moves_per_minute_max: int = 4
    free_share: float = 0.1
    """A pod with more of its capacity free has room."""


LIMITS = RebalanceLimits()


@dataclass(frozen=True, slots=True)
class Move:
    """A model changes pods."""

    name: ModelName
    generation: int
    source: str
    target: str
    benefit_s: float
    """Seconds of loading that others are spared within the horizon."""
    cost_s: float
    place: Place


@dataclass(frozen=True, slots=True)
class RebalancePlan:
    """What to begin, what to end, and what is over."""

    start: tuple[Move, ...]
    """To order at the target."""
    finish: tuple[Move, ...]
    """The target serves: the source may let go."""
    over: tuple[Move, ...]
    """Of those under way: the source has let go, or source or target is no longer there."""


def plan_rebalance(
    view: PoolView,
    models: Iterable[tuple[ModelFacts, float]],
    under_way: Sequence[Move],
    started_at_s: Iterable[float],
    *,
    now_s: float,
    terms: Terms,
    limits: RebalanceLimits = LIMITS,
) -> RebalancePlan:
    """Plan moves among `models`, which are in use, with their requests per second. `started_at_s`: earlier moves."""
    finish = tuple(move for move in under_way if _arrived(view, move))
    over = tuple(move for move in under_way if _is_over(view, move))
    ages = {pod.id: _age_s(pod, limits) for pod in view.pods.values()}
    moving = {move.source for move in under_way if move not in over}
    budget = limits.moves_per_minute_max - sum(now_s - 60.0 < at_s <= now_s for at_s in started_at_s)
    # Half the horizon is the most that an age can be for a move to pay at all, wherever it goes.
    pressed = {pod_id for pod_id, age_s in ages.items() if age_s * limits.worth_factor <= limits.horizon_s}
    relieved = {pod_id for pod_id in pressed if pod_id not in moving and not view.pods[pod_id].draining}
    if budget <= 0 or not relieved:
        return RebalancePlan((), finish, over)

    candidates: list[tuple[float, float, ModelFacts, str]] = []
    for model, rate_per_s in models:
        copies = view.copies.get(model.name, ())
        if len(copies) == 1 and _may_move(copies[0], model) and copies[0].pod in relieved and rate_per_s > 0:
            candidates.append((ages[copies[0].pod], model.load_s, model, copies[0].pod))
    # 1. From the pod that needs it most; 2. what takes longest to load, which is the largest: fewer moves; 3. the name.
    candidates.sort(key=lambda candidate: (candidate[0], -candidate[1], candidate[2].name))

    def held_off(name: ModelName) -> Container[str]:
        taken = terms.held_off(name)
        return {*pressed, *(pod_id for pod_id in view.pods if pod_id in taken)}

    placing = Placing(view, replace(terms, held_off=held_off))
    start: list[Move] = []
    for age_s, _, model, source in candidates:
        if len(start) >= budget or placing.exhausted:
            break
        if source in moving:
            continue
        reason = f"{source} throws out what was used {age_s:.0f} s ago"
        place = placing.place(model, reason, _worth_moving(model, age_s, ages, limits))
        if not isinstance(place, Place):
            continue
        best = place.choice.considered[0]
        benefit_s = _benefit_s(model, age_s, best, ages, limits)
        moving.add(source)
        start.append(Move(model.name, model.generation, source, place.pod, benefit_s, best.load_s, place))
    return RebalancePlan(tuple(start), finish, over)


def _age_s(pod: Pod, limits: RebalanceLimits) -> float:
    """How long an unused copy lasts on this pod; without end where there is room."""
    if pod.eviction_age_s <= 0 or pod.free_bytes > limits.free_share * pod.capacity_bytes:
        return inf
    return pod.eviction_age_s


def _benefit_s(
    model: ModelFacts, age_s: float, there: Candidate, ages: Mapping[str, float], limits: RebalanceLimits
) -> float:
    there_s = ages[there.pod] if there.evicts_bytes else inf
    return model.load_s * (limits.horizon_s / age_s - limits.horizon_s / there_s)


def _worth_moving(model: ModelFacts, age_s: float, ages: Mapping[str, float], limits: RebalanceLimits) -> Objection:
    def objection(best: Candidate) -> str | None:
        benefit_s = _benefit_s(model, age_s, best, ages, limits)
        if benefit_s >= limits.worth_factor * best.load_s:
            return None
        return f"moving it to {best.pod} would spare others {benefit_s:.1f} s of loading and cost {best.load_s:.1f} s"

    return objection


def _may_move(copy: Copy, model: ModelFacts) -> bool:
    return copy.servable == model.generation and not copy.loading and not model.pinned


def _held_by(view: PoolView, name: ModelName, pod: str) -> Copy | None:
    return next((copy for copy in view.copies.get(name, ()) if copy.pod == pod), None)


def _arrived(view: PoolView, move: Move) -> bool:
    there, here = _held_by(view, move.name, move.target), _held_by(view, move.name, move.source)
    return there is not None and there.servable >= move.generation and here is not None and here.servable > 0


def _is_over(view: PoolView, move: Move) -> bool:
    here = _held_by(view, move.name, move.source)
    return here is None or here.servable == 0 or move.source not in view.pods or move.target not in view.pods
