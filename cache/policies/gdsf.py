"""Greedy-Dual-Size-Frequency: worth = L + F * cost / bytes.

F is how often the model was used lately (it outlives the copy), cost the seconds that a miss takes, and L a clock that
moves to the worth of each victim. A use lifts a copy to the L of that moment, so what was worth much once and is not
used any more is overtaken by those used since: ageing without a walk over the copies. It does not look at how
regular uses are. (Cherkasova 1998; as keep-alive of functions: FaasCache, ASPLOS'21.)
"""

from __future__ import annotations

from dataclasses import replace

from cache.policies.base import EvictionMemory, Score, Situation, return_cost_s
from cache.views import CopyView


def score(copy: CopyView) -> float:
    """The worth of a copy; no part of the situation enters: the clock is the one at its last use."""
    return copy.uses.inflation + _per_byte(copy)


def _per_byte(copy: CopyView) -> float:
    return copy.uses.frequency * return_cost_s(copy) / max(1, copy.size.total_bytes)


class GreedyDualSizeFrequency:
    """GDSF."""

    name = "gdsf"

    def scorer(self, situation: Situation) -> Score:
        """See `EvictionPolicy`."""
        return score

    def soon(self, situation: Situation, copy: CopyView, within_s: float) -> float:
        """As if it were used now."""
        return situation.memory.inflation + _per_byte(copy)

    def after_eviction(self, memory: EvictionMemory, score: float, idle_s: float) -> EvictionMemory:
        """The clock moves to the victim's worth; never back."""
        return memory if score <= memory.inflation else replace(memory, inflation=score)
