"""How many copies a model has: up within seconds when requests wait, down when fewer would do.

The measure is work: the runs that are under way or waiting on all of a model's copies, against the runs that the
copies take at a time. Little's law makes rate × run time the least that this can be; what is measured in flight adds
what waits. A rate alone says nothing (a thousand requests of a millisecond are one copy's work), and a threshold in
requests per minute, as ModelMesh has it, is wrong for every model but one.

* Up, when the copies are busier than `busy_max`, or requests wait longer than is fair, for `up_after_s`: to as many
  copies as bring them to `busy_goal`, at most doubling and one. While copies are on their way nothing is ordered, and
  the seconds begin anew when they serve, so one burst orders once.
* Down, when without some of them the rest would stay below `idle_below` for `down_after_s`, and none was added for
  `rest_after_up_s`: to what the work needs, at most halving. The last copy is never taken: only eviction and a time to
  live end a cold model, on its own pod. Memory pressure needs no rule here: a copy that is not used is what its pod
  evicts first.
* Always: no fewer than the spec's minimum (a pinned model has one), no more than its maximum.

Copies on draining pods do not count, so a drain makes up for what it takes away.

Time comes in as `now_s` and as the history of one model, a value that the caller keeps from turn to turn. A leader that
is new has no history, and waits its two seconds like any other.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from math import ceil, inf

from placement.policy.rendezvous import affinity
from placement.policy.snapshot import BusyModel, Copy, ModelFacts, ModelName, PoolView, is_there
from placement.policy.work import Work


@dataclass(frozen=True, slots=True)
class ScalingLimits:
    """When copies come and go."""

    busy_max: float = 0.75
    """Share of the runs that copies take at a time; above it waits grow faster than work."""
    busy_goal: float = 0.6
    """What further copies shall bring it to."""
    idle_below: float = 0.4
    """Fewer copies must stay below this: well below the goal, or copies would come and go."""
    queue_delay_max_s: float = 0.05
    """A mean wait that is always fair; for models that run longer, a wait of one run is."""
    up_after_s: float = 2.0
    """Two records of a pod agree. With a second to publish and one to decide, copies are ordered within five."""
    down_after_s: float = 60.0
    rest_after_up_s: float = 30.0
    """A copy that was just loaded has a chance to be used."""


LIMITS = ScalingLimits()


@dataclass(frozen=True, slots=True)
class ScalingHistory:
    """What must be remembered of one model between two turns. Times by the caller's monotonic clock."""

    over_since_s: float | None = None
    under_since_s: float | None = None
    needed_since: int = 0
    """Most copies that were needed since then."""
    added_at_s: float = -inf


NO_HISTORY = ScalingHistory()


@dataclass(frozen=True, slots=True)
class KeepCopies:
    """As many as there are."""

    reason: str


@dataclass(frozen=True, slots=True)
class AddCopies:
    """So many more; where, `load_choice` says for each."""

    count: int
    reason: str


@dataclass(frozen=True, slots=True)
class DropCopies:
    """Those of these pods, in this order."""

    pods: tuple[str, ...]
    reason: str


CopiesDecision = KeepCopies | AddCopies | DropCopies


def plan_copies(
    view: PoolView,
    model: ModelFacts,
    busy: Mapping[str, BusyModel],
    history: ScalingHistory,
    *,
    healthy: Container[str],
    now_s: float,
    limits: ScalingLimits = LIMITS,
) -> tuple[CopiesDecision, ScalingHistory]:
    """Decide on one model. `busy` has what pods measured of it; a pod that says nothing has an idle copy.

    Orders that were given must show in the view as copies that are being loaded, or gone.
    """
    standing = [copy for copy in view.copies.get(model.name, ()) if is_there(view, copy.pod, healthy)]
    staying = [copy for copy in standing if not view.pods[copy.pod].draining]
    serving = sum(copy.servable > 0 and copy.pod in healthy for copy in staying)
    total = len(staying)
    least = max(model.copies_min, 1 if model.pinned else 0)
    most = model.copies_max if model.copies_max is not None else max(least, len(view.pods))
    free_pods = _free_pods(view, standing, healthy)

    # 1. What the spec says holds at once.
    if total < least:
        missing = min(least - total, len(free_pods))
        if missing:
            return AddCopies(missing, f"{total} of at least {least}"), replace(history, added_at_s=now_s)
        return KeepCopies(f"{total} of at least {least}, and no pod is without one"), history
    if serving > max(1, most) and serving == total:
        return _drop(view, model.name, standing, serving - max(1, most), f"{serving} of at most {most}"), history
    if not serving:
        return KeepCopies("none serves"), NO_HISTORY

    # 2. What the work asks for. Draining copies' work comes to the others.
    work = Work.of(busy[copy.pod] for copy in standing if copy.pod in busy)
    share = work.runs / (serving * work.concurrency)
    waits_max_s = max(limits.queue_delay_max_s, work.run_s)
    waits = work.queue_delay_s > waits_max_s
    over = share > limits.busy_max or waits
    needed = max(1, least, ceil(work.runs / (limits.idle_below * work.concurrency)))
    under = not over and needed < serving
    history = replace(
        history,
        # While copies are on their way, waits prove nothing about how many more are needed.
        over_since_s=_since(history.over_since_s, over and serving == total, now_s),
        under_since_s=_since(history.under_since_s, under, now_s),
        needed_since=max(history.needed_since, needed) if under else 0,
    )
    seen = (
        f"{serving} copies {share:.0%} busy, requests wait {work.queue_delay_s * 1e3:.0f} ms, "
        f"{work.rate_per_s:.3g} a second"
    )

    if history.over_since_s is not None and now_s - history.over_since_s >= limits.up_after_s:
        wanted = ceil(work.runs / (limits.busy_goal * work.concurrency))
        if wanted <= serving:
            # Not its own work makes it wait: one more copy helps where requests do not wait for others.
            free_pods = [pod for pod in free_pods if view.pods[pod].queue_delay_s <= waits_max_s]
            wanted = serving + 1
        count = min(wanted, 2 * serving + 1, most, serving + len(free_pods)) - serving
        if count > 0:
            return AddCopies(count, f"{seen} for {limits.up_after_s:g} s"), replace(
                history, over_since_s=None, added_at_s=now_s
            )
        return KeepCopies(f"{seen}; at most {most}, and {len(free_pods)} pods could have one more"), history

    if (
        history.under_since_s is not None
        and now_s - history.under_since_s >= limits.down_after_s
        and now_s - history.added_at_s >= limits.rest_after_up_s
        and serving == total
    ):
        fewer = max(history.needed_since, (serving + 1) // 2)
        reason = f"{seen}; {fewer} would have done for {limits.down_after_s:g} s"
        return (
            _drop(view, model.name, standing, serving - fewer, reason),
            replace(history, under_since_s=None, needed_since=0),
        )
    return KeepCopies(seen), history


def _since(since_s: float | None, holds: bool, now_s: float) -> float | None:
    if not holds:
        return None
    return now_s if since_s is None else since_s


def _free_pods(view: PoolView, standing: list[Copy], healthy: Container[str]) -> list[str]:
    taken = {copy.pod for copy in standing}
    return [
        pod.id
        for pod in view.pods.values()
        if pod.id not in taken and pod.id in healthy and pod.ready and not pod.draining and pod.capacity_bytes > 0
    ]


def _drop(view: PoolView, name: ModelName, standing: list[Copy], count: int, reason: str) -> DropCopies:
    left = [copy for copy in standing if copy.servable]
    dropped: list[str] = []
    for _ in range(count):
        zones: dict[str, int] = {}
        for copy in left:
            zone = view.pods[copy.pod].zone
            zones[zone] = zones.get(zone, 0) + 1

        def order(copy: Copy, zones: dict[str, int] = zones) -> tuple[bool, int, int, float, float, float, str]:
            # 1. on a pod that drains; 2. the older generation; 3. in the zone with the most copies; 4. where the
            # longest unused copies are youngest, memory being scarcest there; 5. where requests wait longest; 6. where
            # the model belongs least by hash; 7. the id, so that equal views give equal plans.
            pod = view.pods[copy.pod]
            return (
                not pod.draining,
                copy.servable,
                -zones[pod.zone],
                pod.eviction_age_s or inf,
                -pod.queue_delay_s,
                affinity(name, pod.id, pod.capacity_bytes),
                pod.id,
            )

        gone = min(left, key=order)
        left.remove(gone)
        dropped.append(gone.pod)
    return DropCopies(tuple(dropped), reason)
