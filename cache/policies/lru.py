"""Least recently used: a copy is worth as much as its last use is recent. The baseline.

It needs no history and is hard to beat by much; what it does not see is that copies differ in bytes, in the time
that bringing them back takes, and in how regularly they are used. A scan (every model once) empties it.
"""

from __future__ import annotations

from cache.policies.base import EvictionMemory, Score, Situation
from cache.views import CopyView


def last_use_s(copy: CopyView) -> float:
    """The score."""
    return copy.last_used_s


class LeastRecentlyUsed:
    """LRU."""

    name = "lru"

    def scorer(self, situation: Situation) -> Score:
        """See `EvictionPolicy`."""
        return last_use_s

    def soon(self, situation: Situation, copy: CopyView, within_s: float) -> float:
        """As if it were used now."""
        return situation.now_s

    def after_eviction(self, memory: EvictionMemory, score: float, idle_s: float) -> EvictionMemory:
        """Nothing to remember."""
        return memory
