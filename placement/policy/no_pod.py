"""The answer when no pod may load a model: what kind of thing is in the way, and which pods came closest.

Whoever registered a model that fits nowhere needs two things: the constraint to change, and how far off it is. So
every pod's every obstacle is listed, and the pods are put in the order of what would have to change: a pod that
lacks 200 MiB is closer than one that lacks a label and is draining as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from placement.policy.obstacles import LASTING, Obstacle, Situation, Why, obstacles, readable
from placement.policy.snapshot import ModelFacts, ModelName, PoolView

CLOSEST_SHOWN = 3


class Cause(Enum):
    """Why there is no pod, by what the caller does next."""

    QUARANTINED = "quarantined"
    """It kills pods. Only a new spec or an operator helps."""
    FAILED_FOR_GOOD = "failed for good"
    """Pods agree that it cannot be loaded. Only a new spec helps."""
    UNSATISFIABLE = "unsatisfiable"
    """Labels, format or size rule out every pod: another spec is needed, or other pods."""
    FOR_NOW = "for now"
    """It passes."""


@dataclass(frozen=True, slots=True)
class NoPod:
    """No pod may load it."""

    name: ModelName
    generation: int
    cause: Cause
    message: str
    """For a person: what is in the way, on how many pods, and which came closest."""
    reasons: tuple[tuple[Obstacle, ...], ...] = ()
    """All obstacles of each pod, in the order of pods."""
    closest: tuple[str, ...] = ()
    """The pods with the least in the way, closest first."""
    retry_after_s: float | None = None
    """How long the soonest of the pods that failed pauses before it tries again; None: no pod will."""

    def explain(self) -> tuple[str, ...]:
        """The message, and a line for each pod."""
        return (self.message, *(f"out {_line(of)}" for of in self.reasons))


def no_pod_left(view: PoolView, model: ModelFacts, at: Situation) -> NoPod:
    """Explain that every pod has an obstacle. Asks for all obstacles of all pods: this is the rare, slow path."""
    what = f"no pod can load {model.name}, generation {model.generation} ({readable(model.size_bytes)})"
    if not view.pods:
        return NoPod(model.name, model.generation, Cause.FOR_NOW, f"{what}: the pool has no pods")
    reasons = tuple(tuple(obstacles(view.pods[pod_id], model, at)) for pod_id in sorted(view.pods))
    closest = sorted(reasons, key=_distance)[:CLOSEST_SHOWN]
    counts: dict[Why, int] = {}
    for of in reasons:
        told = _told(of)
        counts[told] = counts.get(told, 0) + 1
    most_first = sorted(counts.items(), key=lambda item: (-item[1], item[0].value))
    summary = ", ".join(f"{why.value}: {count} pod{'s' if count > 1 else ''}" for why, count in most_first)
    return NoPod(
        model.name,
        model.generation,
        Cause.UNSATISFIABLE if all(_told(of) in LASTING for of in reasons) else Cause.FOR_NOW,
        f"{what}: {summary}; closest: {' | '.join(_line(of) for of in closest)}",
        reasons,
        tuple(of[0].pod for of in closest),
        min((failure.retry_after_s for failure in at.failures.values() if not failure.permanent), default=None),
    )


def _distance(of: Sequence[Obstacle]) -> tuple[int, int, int, str]:
    # 1. the fewest obstacles that last; 2. the fewest at all; 3. the least room lacking; 4. the id of the pod.
    lasting = sum(obstacle.why in LASTING for obstacle in of)
    return (lasting, len(of), sum(obstacle.lacking_bytes for obstacle in of), of[0].pod)


def _told(of: Sequence[Obstacle]) -> Why:
    """The reason to tell of a pod: what lasts, if anything does. One that drains and is too small is too small."""
    return next((obstacle.why for obstacle in of if obstacle.why in LASTING), of[0].why)


def _line(of: Sequence[Obstacle]) -> str:
    return f"{of[0].pod}: {'; '.join(obstacle.detail for obstacle in of)}"
