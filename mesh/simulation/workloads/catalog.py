"""The models that workloads ask for: many small, many middling, few large ones, as in a company's catalog.

45 % tree ensembles (median 1 MB), 45 % networks of vision and language (80 MB), 10 % large ones (900 MB), lognormal.
Bringing one back takes a base (the graph, the session, the first run: median 50 ms) and its bytes at 500 MB/s, what a
cloud's block disk gives. So per byte a tree costs twenty times what a network costs to miss, and large networks all
cost the same: what a policy gains among them, it gains by knowing the next use.
"""

from __future__ import annotations

from math import log
from random import Random

from mesh.simulation.chance import weighted
from mesh.simulation.workloads.trace import TraceModel

MB = 1_000_000
LOAD_BASE_S = 0.05
LOAD_BASE_SIGMA = 0.5
LOAD_BYTES_PER_S = 500 * MB

_KINDS = (
    # share, median bytes, sigma of the logarithm, largest bytes
    (0.45, 1 * MB, 1.0, 100 * MB),
    (0.45, 80 * MB, 0.9, 1_500 * MB),
    (0.10, 900 * MB, 0.6, 3_000 * MB),
)


def draw_models(random: Random, count: int) -> list[TraceModel]:
    """So many models, in an order that says nothing of their sizes."""
    models: list[TraceModel] = []
    kinds = tuple((size, share) for share, *size in _KINDS)
    for number in range(count):
        median_bytes, sigma, bytes_max = weighted(random, kinds)
        size_bytes = int(min(bytes_max, random.lognormvariate(log(median_bytes), sigma)))
        base_s = random.lognormvariate(log(LOAD_BASE_S), LOAD_BASE_SIGMA)
        load_s = round(base_s + size_bytes / LOAD_BYTES_PER_S, 6)
        models.append(TraceModel(f"m{number:04d}", size_bytes, load_s))
    return models
