"""Which pods are so slow that requests should go elsewhere, although they answer.

Models differ by orders of magnitude, so a pod is measured by ratios: how long a call took against what that model
takes in this pool. The median of them over a window says whether the pod as a whole is slow. A pod that stalls on one
call in a hundred has a good median and stays: taking it out would cost more than its stalls. A pod is slow only
against the others; when all are, none is an outlier.

A pod that was taken out comes back by itself, because nothing but traffic can show that it is well again. If it is
slow again within its probation it stays out twice as long, up to a limit. Never is more than a third of the pods out:
beyond that it is not the pods.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LatencySample:
    """What calls to one pod took in the last window, as the calling pod measured it."""

    pod: str
    calls: int
    ratio_median: float
    """Time of a call over what its model takes in this pool: 1 is as everywhere."""


@dataclass(frozen=True, slots=True)
class Ejection:
    """A pod that was taken out: for how long, and how it stood when."""

    pod: str
    since_s: float
    until_s: float
    """Afterwards it gets requests again, on probation."""
    ratio: float
    """What it was taken out for."""
    times: int = 1
    """In a row, without a good probation between."""

    def out(self, now_s: float) -> bool:
        """Whether it is out now; else it is on probation."""
        return now_s < self.until_s


@dataclass(frozen=True, slots=True)
class OutlierLimits:
    """When a pod is out, and for how long."""

    slow_ratio: float = 5.0
    """Times slower than the others. Machines of one pool differ by two or three."""
    calls_min: int = 20
    """Fewer prove nothing."""
    out_share_max: float = 1 / 3
    out_first_s: float = 10.0
    """Must be at least the window of the samples, so that old ones do not count after the return."""
    out_max_s: float = 300.0
    probation_s: float = 60.0
    """Good for so long after its return, its record is clean."""


LIMITS = OutlierLimits()


def plan_ejections(
    samples: Iterable[LatencySample],
    current: Iterable[Ejection],
    *,
    pods: int,
    now_s: float,
    limits: OutlierLimits = LIMITS,
) -> tuple[Ejection, ...]:
    """Who is out or on probation from now on, in the order of ids. `pods` is the number of pods that can be called."""
    kept = {ejection.pod: ejection for ejection in current if now_s < ejection.until_s + limits.probation_s}
    judged = sorted((sample for sample in samples if sample.calls >= limits.calls_min), key=lambda sample: sample.pod)
    places = int(pods * limits.out_share_max) - sum(ejection.out(now_s) for ejection in kept.values())
    # 1. The slowest first, since there are only so many places; 2. the id.
    for sample in sorted(judged, key=lambda sample: (-sample.ratio_median, sample.pod)):
        before = kept.get(sample.pod)
        if places <= 0 or (before is not None and before.out(now_s)):
            continue
        others = sorted(
            other.ratio_median
            for other in judged
            if other.pod != sample.pod and not (other.pod in kept and kept[other.pod].out(now_s))
        )
        usual = others[(len(others) - 1) // 2] if others else 1.0
        if sample.ratio_median < limits.slow_ratio * max(1.0, usual):
            continue
        times = before.times + 1 if before is not None else 1
        length_s = min(limits.out_max_s, limits.out_first_s * 2.0 ** (times - 1))
        kept[sample.pod] = Ejection(sample.pod, now_s, now_s + length_s, sample.ratio_median, times)
        places -= 1
    return tuple(kept[pod] for pod in sorted(kept))
