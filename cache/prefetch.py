"""What is worth bringing in before anybody asks: models that a timer calls.

A timer shows in the last gaps between uses: each is one period, or, where a call was left out, two or three of them.
Then the next use is known, and the copy need not stay until then: it may leave, and come back just before. It is
brought in `lead_s` early, twice what that takes (others may be loading), at least a fiftieth of the period, since
timers are not exact.

A guess must not cost a sure thing: such a load takes what is free, or has copies evicted that are worth less than a
copy which is expected in `lead_s` (`EvictionPolicy.soon`). If nobody came, it is not tried again until the next use.

Measured and left out (`cache/README.md`): bringing back whatever is worth more than what is here, as soon as
nothing else is loaded. Nine of ten such loads are for nothing, and it gains a quarter of what timers do.

Pure; alarms and counts are the machine's.
"""

from __future__ import annotations

from dataclasses import dataclass

from cache.history import Uses

GAPS_MIN = 3
"""Gaps that make a timer. Two agree by chance."""

TOLERANCE = 0.1
"""Of the period, by which a gap may miss it."""

PERIODS_MAX = 3
"""In one gap: so many calls in a row may have been left out, less one."""

LEAD_LOADS = 2.0
LEAD_SHARE = 0.02
"""Of the period."""


@dataclass(frozen=True, slots=True)
class Expected:
    """The next use of a model, if a timer calls it."""

    at_s: float
    begin_s: float
    """When to begin bringing it in."""

    @property
    def lead_s(self) -> float:
        return self.at_s - self.begin_s


def expected_use(uses: Uses, return_time_s: float, period_min_s: float) -> Expected | None:
    """The use that follows the last one; None where no timer shows."""
    period_s = timer_period_s(uses.gaps_s, period_min_s)
    if period_s is None:
        return None
    at_s = uses.last_s + period_s
    return Expected(at_s, at_s - max(LEAD_LOADS * return_time_s, LEAD_SHARE * period_s))


def timer_period_s(gaps_s: tuple[float, ...], period_min_s: float) -> float | None:
    """The period of the timer that these gaps come from; None: they do not, or it is shorter than `period_min_s`."""
    if len(gaps_s) < GAPS_MIN:
        return None
    shortest_s = min(gaps_s)
    if shortest_s < period_min_s:
        return None
    periods = 0
    for gap_s in gaps_s:
        count = round(gap_s / shortest_s)
        if count > PERIODS_MAX or abs(gap_s - count * shortest_s) > TOLERANCE * shortest_s:
            return None
        periods += count
    if periods > 2 * len(gaps_s):  # it is left out more often than not
        return None
    return sum(gaps_s) / periods
