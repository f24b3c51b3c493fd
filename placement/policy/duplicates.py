"""Which copies to retire when a model has more than anybody ordered.

A pod that cannot reach the store loads what it is asked for without a claim, so a partition leaves models with two
first copies. Both serve, which is harmless and a waste. Once the pool sees itself again, the surplus goes, and it must
not go twice: the choice is a function of the picture, so that a leader that is new to its office, or two of them for a
moment, retire the same copies.

A model whose work needs more than one copy keeps what it has: `scaling` decides about that, with patience.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from math import ceil

from placement.policy.rendezvous import affinity
from placement.policy.scaling import LIMITS, ScalingLimits
from placement.policy.snapshot import BusyModel, Copy, ModelFacts, PoolView
from placement.policy.work import Work


@dataclass(frozen=True, slots=True)
class Surplus:
    """Retire the copies of `retired`; those of `kept` serve on."""

    kept: tuple[str, ...]
    retired: tuple[str, ...]
    reason: str


def plan_surplus(
    view: PoolView,
    model: ModelFacts,
    wanted: int,
    busy: Mapping[str, BusyModel],
    *,
    healthy: Container[str],
    limits: ScalingLimits = LIMITS,
) -> Surplus | None:
    """What is too much of a model that somebody wants `wanted` copies of (0: none in particular); None: nothing.

    Only copies of the registered generation on pods that answer are counted and retired, so one always remains.
    """
    serving = [
        copy
        for copy in view.copies.get(model.name, ())
        if copy.servable == model.generation and copy.pod in view.pods and copy.pod in healthy
    ]
    work = Work.of(busy[copy.pod] for copy in serving if copy.pod in busy)
    needed = ceil(work.runs / (limits.idle_below * work.concurrency))
    keep = max(1, wanted, model.copies_min, needed)
    if len(serving) <= keep:
        return None
    kept: list[Copy] = []
    left = list(serving)
    while len(kept) < keep:
        zones = {view.pods[copy.pod].zone for copy in kept}

        def order(copy: Copy, zones: set[str] = zones) -> tuple[bool, bool, bool, bool, float, float, str]:
            # 1. on a pod that stays, 2. that is ready, 3. whose lease holds; 4. in a zone without a copy that is kept;
            # 5. where it is used most; 6. where the model belongs by hash; 7. the id, so that equal views agree.
            pod = view.pods[copy.pod]
            rate_per_s = busy[copy.pod].rate_per_s if copy.pod in busy else 0.0
            return (
                pod.draining,
                not pod.ready,
                pod.id in view.fading,
                pod.zone in zones,
                -rate_per_s,
                -affinity(model.name, pod.id, pod.capacity_bytes),
                pod.id,
            )

        best = min(left, key=order)
        left.remove(best)
        kept.append(best)
    return Surplus(
        tuple(copy.pod for copy in kept),
        tuple(sorted(copy.pod for copy in left)),
        f"{len(serving)} copies, and {keep} are wanted",
    )
