"""Where a model is loaded.

Every pod that may load it at all (`obstacles`) is a candidate; rendezvous hashing says which few of them are the
model's own, and pods whose disk has its artifact are its own as well. Among those the one where it will serve soonest
is chosen, and of equally good ones one that need not fetch. The hash makes ingress pods that decide at the same time
agree; the estimate keeps a model away from pods that are busy or would have to throw out what is used.

The estimate counts seconds: until a load would begin, the load itself (from the pod's disk, where that has the
artifact), and the seconds that users of other models will wait again because this one pushes those out. The last is a
guess with the right signs: nothing when it fits into free room; as much as the load itself when the pod's longest
unused copies are as old as elsewhere in the pool; more where they are younger, less where they are older.

When none of the model's own few meets a wish that another pod meets (to be in a zone without a copy, to have the
preferred labels, to start soon), the choice is widened to all pods that meet it. A wish is never a filter.

Decisions of one plan know of one another through `promised` and `ordered`: what was promised counts as taken.

Deliberately absent: chance (two pods would disagree), the pod that asks (all ask for the same), and utilisation in
requests: only a pod whose requests wait is busy.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from placement.policy.no_pod import Cause, NoPod, no_pod_left
from placement.policy.obstacles import NOTHING, Obstacle, Promised, Situation, failed_for_good, obstacles, readable
from placement.policy.quarantine import Refused, may_load
from placement.policy.rendezvous import affinity
from placement.policy.snapshot import ModelFacts, ModelName, Pod, PoolView

SHORTLIST_MIN = 3
"""Candidates of a first copy; a further copy has two for each copy that there will be."""
AS_GOOD_FACTOR, AS_GOOD_S = 1.25, 0.1
"""Estimates within this of the best are equal: the pods' records are up to a second old, and what is known is rough."""
SOON_FACTOR, SOON_S = 1.5, 0.25
"""A pod where the model serves within this of the pool's soonest is soon enough to be preferred by hash: below the
damage of one ordinary eviction, so that free room elsewhere is found."""
DAMAGE_MAX = 10.0
"""Most that an eviction counts, in loads: pods where everything was used a moment ago are equally bad."""
QUEUE_STEP_S = 0.05
"""Requests wait: pods are compared in steps of this."""

NOBODY: frozenset[str] = frozenset()
NO_PROMISES: Mapping[str, Promised] = {}


class Candidate(NamedTuple):
    """A pod that may load the model, and every number that its place in the order comes from."""

    pod: str
    fading: bool
    """Its lease ran out: it may be gone."""
    zone: str
    zone_copies: int
    """Other copies of the model in its zone."""
    labels_missing: int
    """Preferred labels that it lacks."""
    wait_s: float
    load_s: float
    on_disk: bool
    evicts_bytes: int
    """How much must leave for it."""
    eviction_age_s: float
    damage_s: float
    estimate_s: float
    """wait + load + damage."""
    queue_delay_s: float
    affinity: float

    def reasons(self) -> tuple[str, ...]:
        """What the estimate consists of, and what else its place depends on."""
        source = "its disk" if self.on_disk else "afar"
        parts = [f"waits {self.wait_s:.2f} s", f"loads {self.load_s:.2f} s from {source}"]
        if self.evicts_bytes:
            parts.append(
                f"evicts {readable(self.evicts_bytes)} unused for {self.eviction_age_s:.0f} s (+{self.damage_s:.2f} s)"
            )
        if self.zone_copies:
            parts.append(f"{self.zone_copies} copies in its zone {self.zone or '(none)'}")
        if self.labels_missing:
            parts.append(f"lacks {self.labels_missing} preferred labels")
        if self.fading:
            parts.append("its lease ran out")
        if self.queue_delay_s >= QUEUE_STEP_S:
            parts.append(f"requests wait {self.queue_delay_s:.2f} s")
        return tuple(parts)

    def __str__(self) -> str:
        return f"{self.pod}: {self.estimate_s:.2f} s ({', '.join(self.reasons())})"


@dataclass(frozen=True, slots=True)
class LoadChoice:
    """Load it there."""

    name: ModelName
    generation: int
    pod: str
    estimate_s: float
    isolated: bool
    """In a process of its own: it is suspect."""
    considered: tuple[Candidate, ...]
    """Best first; the first is the choice."""
    ruled_out: tuple[Obstacle, ...]
    """In the order of pods, the first reason of each."""

    def explain(self) -> tuple[str, ...]:
        """A line for the choice, and one for each other pod."""
        chosen, *others = self.considered
        return (
            f"chosen {chosen}",
            *(f"considered {candidate}" for candidate in others),
            *(f"out {obstacle}" for obstacle in self.ruled_out),
        )


def choose_load_pod(
    view: PoolView,
    model: ModelFacts,
    *,
    healthy: Container[str],
    excluded: Container[str] = NOBODY,
    ordered: Iterable[str] = (),
    promised: Mapping[str, Promised] = NO_PROMISES,
) -> LoadChoice | NoPod:
    """Choose the pod that loads one more copy of this generation.

    `excluded` are not to be asked (tried for this request, or have enough to load); `ordered` were told to load this
    model, and `promised` says what they and others were promised, where the view does not show it yet.
    """
    may = may_load(view.suspicions.get(model.name), model.generation)
    if isinstance(may, Refused):
        return NoPod(model.name, model.generation, Cause.QUARANTINED, f"{model.name}: {may.message}")
    at = Situation.of(view, model, healthy=healthy, held_off=excluded, ordered=ordered, promised=promised)
    failure = failed_for_good(at.failures.values())
    if failure is not None:
        message = f"{model.name}: generation {model.generation} cannot be loaded: {failure.message} (on {failure.pod})"
        return NoPod(model.name, model.generation, Cause.FAILED_FOR_GOOD, message)

    passing: list[Pod] = []
    ruled_out: list[Obstacle] = []
    for pod in view.pods.values():
        obstacle = next(obstacles(pod, model, at), None)
        if obstacle is None:
            passing.append(pod)
        else:
            ruled_out.append(obstacle)
    if not passing:
        return no_pod_left(view, model, at)

    zones = _zones_served(view, model, at)
    shortlist = _shortlist(_candidates(model, at, passing, zones), max(SHORTLIST_MIN, 2 * (1 + sum(zones.values()))))
    considered = _ordered(shortlist)
    ruled_out.sort(key=lambda obstacle: obstacle.pod)
    return LoadChoice(
        model.name,
        model.generation,
        considered[0].pod,
        considered[0].estimate_s,
        may.isolated,
        considered,
        tuple(ruled_out),
    )


def _zones_served(view: PoolView, model: ModelFacts, at: Situation) -> dict[str, int]:
    """Copies by zone, those on their way included; a copy on a draining pod is as good as gone."""
    holders = {pod for pod, copy in at.copies.items() if model.generation in (copy.servable, copy.loading)}
    zones: dict[str, int] = {}
    for pod_id in holders | at.ordered:
        pod = view.pods.get(pod_id)
        if pod is not None and not pod.draining:
            zones[pod.zone] = zones.get(pod.zone, 0) + 1
    return zones


def _candidates(model: ModelFacts, at: Situation, pods: list[Pod], zones: Mapping[str, int]) -> list[Candidate]:
    """In the order of affinity."""
    # The pool's eviction age is the lower median of those that have one: a few idle or thrashing pods do not move it.
    ages = sorted(pod.eviction_age_s for pod in pods if pod.eviction_age_s > 0)
    pool_age_s = ages[(len(ages) - 1) // 2] if ages else 0.0
    candidates = [_candidate(model, at, pod, zones, pool_age_s) for pod in pods]
    candidates.sort(key=lambda candidate: (-candidate.affinity, candidate.pod))
    return candidates


def _candidate(model: ModelFacts, at: Situation, pod: Pod, zones: Mapping[str, int], pool_age_s: float) -> Candidate:
    promised = at.promised.get(pod.id, NOTHING)
    on_disk = pod.id in model.on_disk
    load_s = min(model.disk_load_s, model.load_s) if on_disk else model.load_s
    wait_s = pod.load_wait_s + promised.load_s
    evicts_bytes = min(model.size_bytes, max(0, model.size_bytes + promised.bytes - pod.free_bytes))
    damage_s = 0.0
    if evicts_bytes:
        age_s = pod.eviction_age_s
        youth = min(DAMAGE_MAX, pool_age_s / age_s) if age_s > 0 else DAMAGE_MAX
        # What leaves costs its users about what this load costs its own, by bytes: the best guess without their names.
        damage_s = model.load_s * (evicts_bytes / model.size_bytes) * youth
    return Candidate(
        pod.id,
        pod.id in at.fading,
        pod.zone,
        zones.get(pod.zone, 0),
        len(model.labels_preferred - pod.labels) if model.labels_preferred else 0,
        wait_s,
        load_s,
        on_disk,
        evicts_bytes,
        pod.eviction_age_s,
        damage_s,
        wait_s + load_s + damage_s,
        pod.queue_delay_s,
        affinity(model.name, pod.id, pod.capacity_bytes),
    )


def _shortlist(candidates: list[Candidate], size: int) -> list[Candidate]:
    """The model's own few, or, where none of them meets a wish that others meet, the first few of those; and every pod
    that has it on its disk, in whatever state: its place in the order says what speaks against it."""
    on_disk = [candidate for candidate in candidates if candidate.on_disk]
    for wish in _WISHES:
        best = min(map(wish, candidates))
        if all(wish(candidate) > best for candidate in candidates[:size]):
            candidates = [candidate for candidate in candidates if wish(candidate) == best]
    soon_s = min(candidate.estimate_s for candidate in candidates) * SOON_FACTOR + SOON_S
    if all(candidate.estimate_s > soon_s for candidate in candidates[:size]):
        candidates = [candidate for candidate in candidates if candidate.estimate_s <= soon_s]
    own = candidates[:size]
    return own + [candidate for candidate in on_disk if candidate not in own]


_WISHES: tuple[Callable[[Candidate], int], ...] = (
    lambda candidate: candidate.fading,
    lambda candidate: candidate.zone_copies,
    lambda candidate: candidate.labels_missing,
)


def _ordered(shortlist: list[Candidate]) -> tuple[Candidate, ...]:
    wishes = [(candidate.fading, candidate.zone_copies, candidate.labels_missing) for candidate in shortlist]
    best = min(wishes)
    soonest_s = min(c.estimate_s for c, wish in zip(shortlist, wishes, strict=True) if wish == best)
    as_good_s = soonest_s * AS_GOOD_FACTOR + AS_GOOD_S

    def order(candidate: Candidate) -> tuple[bool, int, int, float, int, bool, float, str]:
        # 1. a live lease before one that ran out; 2. a zone with fewer copies of this model; 3. more of the preferred
        # labels; 4. the sooner start, those as good as the soonest being equal; 5. the shorter queue of requests, in
        # steps; 6. a pod that need not fetch it; 7. the model's own preference by hash; 8. the id, so that equal views
        # give equal choices.
        return (
            candidate.fading,
            candidate.zone_copies,
            candidate.labels_missing,
            0.0 if candidate.estimate_s <= as_good_s else candidate.estimate_s,
            int(candidate.queue_delay_s / QUEUE_STEP_S),
            not candidate.on_disk,
            -candidate.affinity,
            candidate.pod,
        )

    return tuple(sorted(shortlist, key=order))
