"""Hazard: worth = what a miss costs / bytes * how soon the next use is to be expected, by the model's own gaps.

The ideal (Belady, with sizes and costs) evicts the largest (time to next use) * bytes / cost. We do not know the next
use, but from the gaps between the model's uses so far we know its distribution, given that the copy has been idle for
`a` seconds already. With a horizon T (a use later than that does not matter: by then the copy would have been evicted
anyway):

    p = P(next use within T | idle for a)         e = E[min(wait, T) | idle for a]
    worth = cost / bytes * p / e

p / e is the rate of uses that lie ahead. A model with short gaps that suddenly falls silent loses its worth at once;
one that comes every ten minutes keeps it through the tenth. T follows the ages at which copies are evicted.

Not done, after it was measured: to take the time that is left to a timer's next call for its wait. That is sharper
than buckets, but a timer whose calls are sometimes left out is then given up for its whole period; prefetching such
models (`cache.prefetch`) gains more.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf

from cache.policies.base import HORIZON_MIN_S, EvictionMemory, Score, Situation, return_cost_s
from cache.views import CopyView

HORIZON_AGES = 2.0
"""The horizon in ages at eviction."""

WITHIN_MIN_S = 1.0
"""A use is never expected sooner, as far as its worth goes."""

HORIZON_WEIGHT = 0.05
"""Of the newest eviction in the horizon's moving average."""


class Hazard:
    """The hazard policy."""

    name = "hazard"

    def scorer(self, situation: Situation) -> Score:
        """See `EvictionPolicy`."""
        now_s, horizon_s = situation.now_s, situation.memory.horizon_s

        def score(copy: CopyView) -> float:
            uses = copy.uses
            idle_s = now_s - (uses.last_s if uses.last_s > -inf else copy.last_used_s)
            uses_per_s = uses.waits.uses_per_s(idle_s if idle_s > 0.0 else 0.0, horizon_s)
            return (copy.return_time_s + uses.joined_s) * uses_per_s / (copy.size.total_bytes or 1)

        return score

    def soon(self, situation: Situation, copy: CopyView, within_s: float) -> float:
        """The rate of uses is one in that time."""
        return return_cost_s(copy) / max(within_s, WITHIN_MIN_S) / max(1, copy.size.total_bytes)

    def after_eviction(self, memory: EvictionMemory, score: float, idle_s: float) -> EvictionMemory:
        """The horizon follows the ages of victims."""
        horizon_s = memory.horizon_s + HORIZON_WEIGHT * (HORIZON_AGES * idle_s - memory.horizon_s)
        return replace(memory, horizon_s=max(HORIZON_MIN_S, horizon_s))
