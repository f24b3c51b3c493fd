"""Who is asked for, and in what order: popularity after Zipf, spread over the formats by chance.

The model at popularity rank r is asked for in proportion to 1 / r^s. With s near one and 300 models, the sixty most
popular get about three quarters of the requests, and the rest keeps coming back: what fits is mostly hit, what does
not has to be loaded, and an eviction order shows its worth. Ranks are dealt to models at random, so that no format is
popular as such.

The same arguments give the same draws. Deliberately absent: time. The demo asks as fast as answers come.
"""

from __future__ import annotations

import random


def draw_requests(models: int, requests: int, *, exponent: float, cases: int, seed: int) -> list[tuple[int, int]]:
    """(index of the model, index of its case) for each request."""
    draw = random.Random(f"workload/{seed}")
    by_rank = list(range(models))
    draw.shuffle(by_rank)
    weights = [1.0 / rank**exponent for rank in range(1, models + 1)]
    chosen = draw.choices(by_rank, weights, k=requests)
    return [(model, draw.randrange(cases)) for model in chosen]
