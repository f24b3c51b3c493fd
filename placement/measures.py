"""What pods measured of the models that they run most, by model: the input of every decision about demand."""

from __future__ import annotations

from collections.abc import Iterable

from placement.policy.snapshot import BusyModel, ModelName, Pod

Measures = dict[ModelName, dict[str, BusyModel]]
"""By model, then pod."""


def measures_of(pods: Iterable[Pod]) -> Measures:
    """What these pods report."""
    measures: Measures = {}
    for pod in pods:
        for busy in pod.busy:
            measures.setdefault(busy.name, {})[pod.id] = busy
    return measures


def rates_of(measures: Measures) -> dict[ModelName, float]:
    """Requests per second of each model, over all pods."""
    return {name: sum(busy.rate_per_s for busy in by_pod.values()) for name, by_pod in measures.items()}
