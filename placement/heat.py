"""How much each model is in demand, as the leader remembers it.

A model is as hot as its rate of requests, and cools with a half-life once the rate falls: a pod that dies takes its
measurements with it, and what it served must still count as hot while it is brought back. So a higher rate counts at
once and a lower one slowly.

What is kept per model is one number that does not change while it cools: log2(rate) + now / half-life. Its order among
models is the order of their heat at any time, so quiet models cost nothing per turn.

Deliberately absent: queue delays and utilisation (`policy/scaling.py` has its own history), and the heat of models that
are in no pod's list of busy ones: those are cold for every purpose here.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from math import log2

from placement.policy.snapshot import ModelName

RATE_MIN_PER_S = 1e-6
"""Less is no demand: one request in twelve days."""
PRUNE_TO = 0.9
"""Share that is kept when there are too many, so that pruning is rare."""


class Heat:
    """Rates of requests by model, cooling. Not persistent: the `hot` key carries the top over to the next leader."""

    def __init__(self, *, half_life_s: float, models_max: int) -> None:
        self._half_life_s = half_life_s
        self._models_max = models_max
        self._scores: dict[ModelName, float] = {}

    def __len__(self) -> int:
        return len(self._scores)

    def observe(self, rates: Mapping[ModelName, float], now_s: float) -> None:
        """Rates per second as they are now; a model that is not among them cools on."""
        age = now_s / self._half_life_s
        scores = self._scores
        for name, rate_per_s in rates.items():
            if rate_per_s <= RATE_MIN_PER_S:
                continue
            score = log2(rate_per_s) + age
            known = scores.get(name)
            if known is None or score > known:
                scores[name] = score
        if len(scores) > self._models_max:
            kept = heapq.nlargest(int(self._models_max * PRUNE_TO), scores.items(), key=_hottest_first)
            self._scores = dict(kept)

    def rate_per_s(self, name: ModelName, now_s: float) -> float:
        """The rate as it has cooled to; 0 for a model that was never busy."""
        score = self._scores.get(name)
        if score is None:
            return 0.0
        rate_per_s: float = 2.0 ** (score - now_s / self._half_life_s)
        return rate_per_s if rate_per_s > RATE_MIN_PER_S else 0.0

    def hottest(self, count: int, now_s: float) -> list[tuple[ModelName, float]]:
        """The hottest models with their rates, hottest first; equally hot ones in the order of names."""
        top = heapq.nlargest(count, self._scores.items(), key=_hottest_first)
        top.sort(key=lambda item: (-item[1], item[0]))
        rates = ((name, self.rate_per_s(name, now_s)) for name, _ in top)
        return [(name, rate_per_s) for name, rate_per_s in rates if rate_per_s > 0]

    def forget(self, name: ModelName) -> None:
        """The model is no longer registered."""
        self._scores.pop(name, None)


def _hottest_first(item: tuple[ModelName, float]) -> tuple[float, ModelName]:
    return item[1], item[0]
