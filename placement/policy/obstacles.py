"""What rules a pod out as a place for a model: every reason, with its numbers.

The reasons stand in the order from "not now" to "never": what passes by itself comes first, what only another spec or
another pool can change comes last. The first one is enough to rule a pod out; all of them are asked for when no pod is
left, because then the pods that came closest, and what they lacked, are the answer.

A failure to load rules out its pod for as long as that pod publishes it: the pod withdraws it when it may be tried
again, so that no clock is compared with another. A permanent failure on one pod is a matter of that pod until another
agrees: a bad release must not condemn good models. Two that agree condemn the generation.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from placement.policy.snapshot import Copy, LoadFailure, ModelFacts, Pod, PoolView

AGREEING_FAILURES = 2
"""Pods that must have failed for good before no further pod is asked."""


class Why(Enum):
    """What kind of thing is in the way."""

    DRAINING = "draining"
    UNREADY = "not ready"
    UNREACHABLE = "not reachable"
    HELD_OFF = "held off"
    HOLDS_IT = "has it already"
    FAILED_HERE = "failed to load it"
    PROMISED = "room promised to other loads"
    LABELS = "required label missing"
    FORMAT = "format not supported"
    TOO_SMALL = "too small"


LASTING = frozenset({Why.LABELS, Why.FORMAT, Why.TOO_SMALL})
"""Waiting does not remove these."""


class Obstacle(NamedTuple):
    """One reason why one pod is out."""

    pod: str
    why: Why
    detail: str
    lacking_bytes: int = 0
    """How much more room it would have to have."""

    def __str__(self) -> str:
        return f"{self.pod}: {self.detail}"


class Promised(NamedTuple):
    """What a pod was already promised that its own record does not show yet."""

    bytes: int = 0
    loads: int = 0
    load_s: float = 0.0
    """Seconds that these loads take, one after the other."""


NOTHING = Promised()


@dataclass(frozen=True, slots=True)
class Situation:
    """What is known of one model in the pool, looked up once for all pods."""

    healthy: Container[str]
    held_off: Container[str]
    """Not to be asked now, for the caller's reasons."""
    copies: Mapping[str, Copy]
    """Its copies by pod."""
    ordered: frozenset[str]
    """Pods that were told to load it."""
    failures: Mapping[str, LoadFailure]
    """Of this generation, by pod."""
    promised: Mapping[str, Promised]
    fading: Container[str]

    @classmethod
    def of(
        cls,
        view: PoolView,
        model: ModelFacts,
        *,
        healthy: Container[str],
        held_off: Container[str],
        ordered: Iterable[str],
        promised: Mapping[str, Promised],
    ) -> Situation:
        """Gather what the filters ask for."""
        return cls(
            healthy,
            held_off,
            {copy.pod: copy for copy in view.copies.get(model.name, ())},
            frozenset(ordered),
            failures_of(view, model),
            promised,
            view.fading,
        )


def failures_of(view: PoolView, model: ModelFacts) -> dict[str, LoadFailure]:
    """Failures of this very generation, by pod."""
    return {
        failure.pod: failure
        for failure in view.failures.get(model.name, ())
        if failure.generation == model.generation and failure.pod in view.pods
    }


def failed_for_good(failures: Iterable[LoadFailure]) -> LoadFailure | None:
    """One of the permanent failures, if enough pods agree that no further one needs to be asked."""
    permanent = sorted((failure for failure in failures if failure.permanent), key=lambda failure: failure.pod)
    return permanent[0] if len(permanent) >= AGREEING_FAILURES else None


def obstacles(pod: Pod, model: ModelFacts, at: Situation) -> Iterator[Obstacle]:
    """Everything that is in the way, what passes first first; nothing when the pod may load the model."""
    name = pod.id
    # 1. What passes: the pod's own state, and who can reach it.
    if pod.draining:
        yield Obstacle(name, Why.DRAINING, "draining")
    elif not pod.ready:
        yield Obstacle(name, Why.UNREADY, f"not ready: {pod.why_unready}" if pod.why_unready else "not ready")
    if name not in at.healthy:
        yield Obstacle(name, Why.UNREACHABLE, "does not answer this pod's probes")
    # 2. What this request, or this model, has been through here.
    if name in at.held_off:
        yield Obstacle(name, Why.HELD_OFF, "held off: tried already, or has enough to load")
    copy = at.copies.get(name)
    if copy is not None and model.generation in (copy.servable, copy.loading):
        serves = copy.servable == model.generation
        yield Obstacle(name, Why.HOLDS_IT, "serves it already" if serves else "is loading it already")
    elif name in at.ordered:
        yield Obstacle(name, Why.HOLDS_IT, "was told to load it")
    failure = at.failures.get(name)
    if failure is not None:
        when = "for good" if failure.permanent else f"and waits {failure.retry_after_s:.1f} s before it tries again"
        yield Obstacle(name, Why.FAILED_HERE, f"failed to load it {when}: {failure.message}")
    # 3. What was promised to others: passes when they are loaded, if eviction then makes room.
    room_bytes = pod.capacity_bytes - pod.pinned_bytes
    promised = at.promised.get(name, NOTHING)
    lacking_bytes = model.size_bytes + promised.bytes - room_bytes
    too_small = pod.capacity_bytes <= 0 or model.size_bytes > room_bytes
    if lacking_bytes > 0 and not too_small:
        yield Obstacle(
            name,
            Why.PROMISED,
            f"{readable(promised.bytes)} of its {readable(room_bytes)} are promised to other loads",
            lacking_bytes,
        )
    # 4. What only another spec or another pool changes.
    if not model.labels_required <= pod.labels:
        missing = ", ".join(sorted(model.labels_required - pod.labels))
        yield Obstacle(name, Why.LABELS, f"lacks the label {missing}")
    if model.format and pod.formats and model.format not in pod.formats:
        yield Obstacle(name, Why.FORMAT, f"loads {', '.join(sorted(pod.formats))}, not {model.format}")
    if too_small:
        yield Obstacle(
            name,
            Why.TOO_SMALL,
            f"has {readable(room_bytes)} beside what is pinned (capacity {readable(pod.capacity_bytes)}), "
            f"and {readable(model.size_bytes)} are needed",
            max(1, model.size_bytes - room_bytes),
        )


def readable(size_bytes: int) -> str:
    """A size for people: three digits and a binary unit."""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" or abs(size) >= 100 else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
