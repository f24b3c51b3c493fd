"""A workload like Azure Functions (Shahrad et al., Serverless in the Wild, ATC'20), made from its published figures.

Models belong to apps: 54 % of the apps have one, others up to ten. Rates of apps are lognormal over eight orders of
magnitude: a few apps make nearly all requests, and most are asked for less than once an hour. How an app is asked:

    HTTP (55 % of apps)   clumped: gaps of gamma type with a coefficient of variation of 4, or bursts with pauses
    queue (15 %)          batches
    timer (16 %)          by the clock: every 1 to 60 minutes, with a second of jitter
    pipelines (7 %)       one after another: all models of the app within seconds
    others (7 %)          at random

In half of the other apps with several models a request asks for several of them as well. Rates follow the hour of the
day. Nothing here was fitted to a policy; the figures are those of the paper and of AlpaServe's renditions of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import pi, sin
from random import Random

from mesh.simulation.chance import stream, weighted
from mesh.simulation.workloads.catalog import draw_models
from mesh.simulation.workloads.trace import Trace, trace_of

_TRIGGERS = (("http", 0.55), ("queue", 0.15), ("timer", 0.16), ("pipeline", 0.07), ("other", 0.07))
_PERIODS_S = ((60.0, 0.1), (300.0, 0.3), (600.0, 0.2), (900.0, 0.15), (1800.0, 0.1), (3600.0, 0.15))
_RATE_SIGMA = 2.6
_SINGLE_SHARE = 0.54
_APP_MODELS_MAX = 10
_GAMMA_SHAPE = 1.0 / 16.0
"""Of gaps with a coefficient of variation of 4."""
_SHARE_MAX = 0.15
"""Of all requests that one app makes."""
_DAY_S = 86_400.0
_AWAKE = 0.75
"""Of the calls, those that the hour of the day leaves on average."""


def generate(seed: int, models: int, requests: int, span_s: float) -> Trace:
    """The workload of this seed; about so many requests."""
    random = stream(seed, "azure")
    catalog = draw_models(random, models)
    apps: list[tuple[str, list[int], float]] = []
    position = 0
    while position < models:
        size = 1 if random.random() < _SINGLE_SHARE else min(_APP_MODELS_MAX, 2 + int(random.expovariate(0.5)))
        members = list(range(position, min(models, position + size)))
        position += size
        apps.append((weighted(random, _TRIGGERS), members, random.lognormvariate(0.0, _RATE_SIGMA)))
    per_weight = _requests_per_weight([rate for trigger, _, rate in apps if trigger != "timer"], requests)
    noon_s = random.random() * _DAY_S
    asked: list[tuple[float, int]] = []
    for number, (trigger, members, weight) in enumerate(apps):
        own = stream(seed, f"azure app {number}")
        calls = min(_SHARE_MAX * requests, weight * per_weight) / _AWAKE
        together = trigger == "pipeline" or own.random() < 0.5
        per_call = len(members) if together else 1
        for time_s in _calls(own, trigger, calls / per_call, span_s, noon_s):
            if not together:
                asked.append((time_s, own.choice(members)))
                continue
            for member in members:
                if trigger == "pipeline" or own.random() < 0.8:
                    asked.append((time_s, member))
                time_s += own.expovariate(2.0)
    return trace_of(catalog, ((round(time_s, 6), member) for time_s, member in asked if time_s < span_s))


def _requests_per_weight(weights: list[float], requests: int) -> float:
    """What a weight of 1 is asked for, so that all together make `requests` though none exceeds its share."""
    per_weight = requests / sum(weights)
    for _ in range(20):  # settles in a few steps; exactness does not matter
        total = sum(min(_SHARE_MAX * requests, weight * per_weight) for weight in weights)
        per_weight *= requests / total
    return per_weight


def _calls(random: Random, trigger: str, calls: float, span_s: float, noon_s: float) -> Iterator[float]:
    """When an app is called."""
    if trigger == "timer":
        period_s = weighted(random, _PERIODS_S)
        time_s = random.random() * period_s
        while time_s < span_s:
            yield max(0.0, time_s + random.gauss(0.0, 1.0))
            time_s += period_s
        return
    gap_s = span_s / max(calls, 1e-9)
    bursts = trigger == "http" and random.random() < 0.5
    batches = 4.0 if bursts or trigger == "queue" else 1.0
    # A renewal process begins in the middle of a gap: at time 0 the rare ones must not all be asked for.
    time_s = random.random() * gap_s * batches
    while time_s < span_s:
        if random.random() < 0.5 + 0.5 * sin(2 * pi * (time_s - noon_s) / _DAY_S) ** 2:
            within_s = time_s
            for _ in range(_geometric(random, batches)):
                yield within_s
                within_s += random.expovariate(1 / 20.0) if bursts else random.expovariate(5.0)
        if trigger == "http" and not bursts:
            time_s += random.gammavariate(_GAMMA_SHAPE, gap_s / _GAMMA_SHAPE)
        else:
            time_s += random.expovariate(1.0 / (gap_s * batches))


def _geometric(random: Random, mean: float) -> int:
    count = 1
    while random.random() > 1.0 / mean:
        count += 1
    return count
