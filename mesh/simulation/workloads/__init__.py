"""The four fixed workloads by name. A seed is one trace, the same on every machine."""

from __future__ import annotations

from collections.abc import Callable

from mesh.simulation.workloads import azure, popularity
from mesh.simulation.workloads.trace import Trace

MODELS = 800
REQUESTS = 60_000
SPAN_S = 6 * 3600.0

Generator = Callable[[int, int, int, float], Trace]

WORKLOADS: dict[str, Generator] = {
    "azure": azure.generate,
    "zipf": popularity.zipf,
    "flash": popularity.flash,
    "scan": popularity.scan,
}


def workload(name: str, seed: int, *, models: int = MODELS, requests: int = REQUESTS, span_s: float = SPAN_S) -> Trace:
    """The trace of this workload and seed, with about so many requests. Raises ValueError."""
    generate = WORKLOADS.get(name)
    if generate is None:
        raise ValueError(f"There is no workload {name!r}; there are {', '.join(WORKLOADS)}.")
    return generate(seed, models, requests, span_s)
