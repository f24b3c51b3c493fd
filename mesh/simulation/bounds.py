"""How well could any policy do? For a trace and a capacity, what can be reached, and what cannot be beaten.

*Clairvoyant*: the same cache and the same loads, but what leaves is what is used again latest, weighed by bytes and
load time: the largest (time to the next use) * bytes / load time. It can be reached by whoever knows the future and
loads only on demand. It is not the best possible: choosing well with sizes and costs is hard even in hindsight.

*PFOO-L* (Berger et al., SIGMETRICS'18): a lower bound on the cold time of any cache that loads on demand. Between two
requests for a model the cache either holds it, which costs its bytes times that time, or pays the load. Give the
cache all its bytes times the whole span, to be spent freely (as if it could hold more now because it held less then),
on the intervals that save most per byte and second. Waiting for loads under way is left out, which keeps it a bound.

A cache that prefetches may do better than both. Report what it loads beside it.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf

import numpy as np

from cache.policies.base import EvictionMemory, Score, Situation
from cache.views import CopyView
from mesh.simulation.replay import ReplayOptions, ReplayResult, replay
from mesh.simulation.workloads.trace import Trace


class Clairvoyant:
    """The eviction policy that has read the trace. For one replay of it: time may not go back."""

    name = "clairvoyant"

    def __init__(self, trace: Trace) -> None:
        uses_s: list[list[float]] = [[] for _ in trace.models]
        for time_s, position in zip(trace.times_s, trace.asked, strict=True):
            uses_s[position].append(time_s)
        # Latest first, so that what has passed is popped.
        self._ahead_s = {model.name: times_s[::-1] for model, times_s in zip(trace.models, uses_s, strict=True)}
        self._load_s = {model.name: model.load_s for model in trace.models}

    def scorer(self, situation: Situation) -> Score:
        """See `EvictionPolicy`."""
        now_s, ahead_by_model, load_by_model = situation.now_s, self._ahead_s, self._load_s

        def score(copy: CopyView) -> float:
            name = copy.key.model_id
            ahead_s = ahead_by_model[name]
            while ahead_s and ahead_s[-1] <= now_s:
                ahead_s.pop()
            if not ahead_s:
                return 0.0
            return load_by_model[name] / (copy.size.total_bytes * (ahead_s[-1] - now_s))

        return score

    def soon(self, situation: Situation, copy: CopyView, within_s: float) -> float:
        """It loads on demand only."""
        return -inf

    def after_eviction(self, memory: EvictionMemory, score: float, idle_s: float) -> EvictionMemory:
        """Nothing to remember."""
        return memory


def clairvoyant(trace: Trace, options: ReplayOptions) -> ReplayResult:
    """What one that knows the future, and loads on demand, makes of this trace with these options."""
    return replay(trace, replace(options, policy=Clairvoyant(trace), prefetch=False))


def clairvoyant_cold_time_s(
    trace: Trace, capacity_bytes: int, *, pods: int = 1, loads_concurrent_max: int = 4
) -> float:
    """Its cold time alone. As pods with as much in all, and as many loads at a time, would have it."""
    options = ReplayOptions(capacity_bytes=capacity_bytes, pods=pods, loads_concurrent_max=loads_concurrent_max)
    return clairvoyant(trace, options).cold_time_s


def pfoo_lower_s(trace: Trace, capacity_bytes: int) -> float:
    """No cache of this capacity that loads on demand has less cold time than this."""
    last_s: dict[int, float] = {}
    saved_s: list[float] = []
    areas: list[float] = []
    cold_s = 0.0
    for time_s, position in zip(trace.times_s, trace.asked, strict=True):
        model, before_s = trace.models[position], last_s.get(position)
        last_s[position] = time_s
        if before_s is None:
            cold_s += model.load_s
        elif (gap_s := time_s - before_s) > model.load_s:  # else it may have joined a load, and waited for nothing
            cold_s += model.load_s
            saved_s.append(model.load_s)
            areas.append(gap_s * model.size_bytes)
    saved, area = np.array(saved_s), np.array(areas)
    order = np.argsort(-saved / area, kind="stable")
    spent = np.cumsum(area[order])
    budget = float(capacity_bytes) * trace.span_s
    held = int(np.searchsorted(spent, budget, side="right"))
    cold_s -= float(saved[order[:held]].sum())
    if held < len(order):  # a part of the next one
        left = budget - (float(spent[held - 1]) if held else 0.0)
        cold_s -= float(saved[order[held]] * left / area[order[held]])
    return cold_s
