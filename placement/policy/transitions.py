"""When an alias may point at its target: once the target serves on as many pods as the active model does.

ModelMesh switches when the target has one copy, so a model on ten pods hands its traffic to one. Here the target gets
the active model's number of copies first, as many of them as its own maximum and the pool's room allow, and the active
model serves until then. An active model that serves nowhere protects nobody, so the switch is immediate, unless the
target has failed to load somewhere or is under suspicion: then it must serve first. A cold model that loads is worth
more than one that does not.

The change fails when the target cannot be loaded: for good, on every pod that could, or because no pod satisfies its
spec. The active model goes on serving. What only passes is waited for.

An alias that splits its traffic needs each model with a share servable; `plan_split` sees to that.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable
from dataclasses import dataclass

from placement.policy.no_pod import NoPod
from placement.policy.obstacles import LASTING, Why, failures_of
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


@dataclass(frozen=True, slots=True)
class Finish:
    """Switch now."""

    reason: str


@dataclass(frozen=True, slots=True)
class Fail:
    """The target does not come; the active model stays."""

    reason: str


@dataclass(frozen=True, slots=True)
class Prepare:
    """Copies of the target to load now; then ask again."""

    places: tuple[Place, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do but to ask again."""

    reason: str


Step = Finish | Fail | Prepare | Wait


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """What an alias with weights needs."""

    places: tuple[Place, ...]
    waiting: tuple[ModelName, ...]
    unplaced: tuple[Unplaced, ...]

    @property
    def servable(self) -> bool:
        """Whether every model with a share serves."""
        return not (self.places or self.waiting or self.unplaced)


def plan_transition(
    view: PoolView,
    active: ModelFacts | None,
    target: ModelFacts,
    rate_per_s: float,
    terms: Terms,
) -> Step:
    """The next step from `active` (None: no longer registered) to `target`. `rate_per_s` is the active model's."""
    standing = 0
    if active is not None:
        # Copies on draining pods serve on until they are replaced; so does one that only this pod cannot reach.
        copies = view.copies.get(active.name, ())
        standing = sum(copy.servable > 0 and is_there(view, copy.pod, terms.healthy) for copy in copies)
    if not standing:
        suspicion = view.suspicions.get(target.name)
        suspect = suspicion is not None and suspicion.generation == target.generation
        doubtful = suspect or bool(failures_of(view, target))
        if active is None or not doubtful:
            return Finish("the active model serves nowhere")
        standing = 1
    wanted = min(standing, target.copies_max) if target.copies_max is not None else standing
    have = _serving(view, target.name, target.generation, terms.healthy)
    if have >= wanted:
        return Finish(f"{have} of {wanted} copies serve")
    on_their_way = _on_their_way(view, target, terms.healthy, terms.ordered.get(target.name, ()))
    placing = Placing(view, terms)
    places: list[Place] = []
    answer: Place | Later | Unplaced | None = None
    for number in range(have + on_their_way + 1, wanted + 1):
        # The first copy is what was asked for; further ones are worth what the active model's traffic is worth.
        answer = placing.place(
            target,
            f"copy {number} of {wanted} before an alias is switched",
            whatever_it_costs if number == 1 else worth_its_evictions(rate_per_s / wanted),
        )
        if not isinstance(answer, Place):
            break
        places.append(answer)
    if places:
        return Prepare(tuple(places), f"{have} of {wanted} copies serve, {on_their_way} on their way")
    if on_their_way or isinstance(answer, Later):
        return Wait(f"{have} of {wanted} copies serve, {on_their_way} on their way")
    assert isinstance(answer, Unplaced)
    if have:
        return Finish(f"{have} of {wanted} copies serve; for more: {answer.reason}")
    if answer.lasting or (answer.no_pod is not None and _failed_everywhere(answer.no_pod)):
        return Fail(answer.reason)
    return Wait(answer.reason)


def plan_split(
    view: PoolView,
    models: Iterable[tuple[ModelFacts, int]],
    terms: Terms,
) -> SplitPlan:
    """Have every model with a share above 0 served somewhere; the larger share first."""
    placing = Placing(view, terms)
    places: list[Place] = []
    waiting: list[ModelName] = []
    unplaced: list[Unplaced] = []
    # 1. The larger share; 2. the name, so that equal weights give equal plans.
    for model, share in sorted(models, key=lambda item: (-item[1], item[0].name)):
        if share <= 0 or _serving(view, model.name, 1, terms.healthy):
            continue
        if _on_their_way(view, model, terms.healthy, terms.ordered.get(model.name, ())):
            waiting.append(model.name)
            continue
        answer = placing.place(model, f"an alias gives it a share of {share}", whatever_it_costs)
        match answer:
            case Place():
                places.append(answer)
            case Later():
                waiting.append(model.name)
            case Unplaced():
                unplaced.append(answer)
    return SplitPlan(tuple(places), tuple(waiting), tuple(unplaced))


def _serving(view: PoolView, name: ModelName, generation: int, healthy: Container[str]) -> int:
    """Copies of at least this generation that stay."""
    return sum(copy.servable >= generation and _stays(view, copy.pod, healthy) for copy in view.copies.get(name, ()))


def _on_their_way(view: PoolView, model: ModelFacts, healthy: Container[str], ordered: Collection[str]) -> int:
    loading = {
        copy.pod
        for copy in view.copies.get(model.name, ())
        if copy.loading == model.generation and _stays(view, copy.pod, healthy)
    }
    return len(loading.union(pod for pod in ordered if _stays(view, pod, healthy)))


def _stays(view: PoolView, pod: str, healthy: Container[str]) -> bool:
    return pod in view.pods and pod in healthy and not view.pods[pod].draining


def _failed_everywhere(answer: NoPod) -> bool:
    """Every pod that could load it by its labels, format and size has tried."""
    able = [of for of in answer.reasons if not any(obstacle.why in LASTING for obstacle in of)]
    return bool(able) and all(any(obstacle.why is Why.FAILED_HERE for obstacle in of) for of in able)
