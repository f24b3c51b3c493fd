"""Workloads in which models differ by popularity: Zipf with drift, flash crowds, scans.

A model's rate follows from its rank by Zipf's law with exponent 0.9. Each hour a share of the ranks is dealt anew: what
was popular is not for ever. One model in six is called by a timer, whose period is that of its rate (the share that
timers have among Azure's functions); all others are called at random (Poisson). On top of that

    flash   every 40 minutes a model that nobody asked for lately takes 30 % of the requests within 5 s, then fades
    scan    every two hours something asks for every model once, in the order of the catalog, in ten minutes
"""

from __future__ import annotations

from bisect import bisect
from itertools import accumulate
from math import exp
from random import Random

from mesh.simulation.chance import stream
from mesh.simulation.workloads.catalog import draw_models
from mesh.simulation.workloads.trace import Trace, trace_of

ZIPF_EXPONENT = 0.9
DRIFT_EVERY_S = 3600.0
DRIFT_SHARE = 0.08

TIMER_SHARE = 0.16
"""Of models."""
TIMER_JITTER_S = 1.0
TIMER_JITTER_MAX = 0.01
"""Of the period: that of frequent timers is less than a second."""

CROWD_EVERY_S = 2400.0
CROWD_SHARE = 0.3
CROWD_RISE_S = 5.0
CROWD_FADES_S = 240.0

SCAN_EVERY_S = 7200.0
SCAN_FIRST_S = 1800.0
SCAN_TAKES_S = 600.0


def zipf(seed: int, models: int, requests: int, span_s: float) -> Trace:
    """Zipf 0.9 with drift."""
    random = stream(seed, "zipf")
    catalog = draw_models(random, models)
    return trace_of(catalog, _background(random, models, requests / span_s, span_s))


def flash(seed: int, models: int, requests: int, span_s: float) -> Trace:
    """Flash crowds."""
    random = stream(seed, "flash")
    catalog = draw_models(random, models)
    asked = _background(random, models, requests / span_s, span_s)
    begins_s = CROWD_EVERY_S * (0.25 + 0.5 * random.random())
    peak_per_s = requests / span_s * CROWD_SHARE / (1.0 - CROWD_SHARE)
    while begins_s < span_s:
        recent = {model for time_s, model in asked if begins_s - CROWD_EVERY_S < time_s < begins_s}
        unused = [model for model in range(models) if model not in recent]
        crowd = random.choice(unused or range(models))
        time_s = 0.0
        while time_s < 6 * CROWD_FADES_S:
            time_s += random.expovariate(peak_per_s)
            strength = min(1.0, time_s / CROWD_RISE_S) * exp(-max(0.0, time_s - CROWD_RISE_S) / CROWD_FADES_S)
            if random.random() < strength and begins_s + time_s < span_s:
                asked.append((round(begins_s + time_s, 6), crowd))
        begins_s += CROWD_EVERY_S * (0.75 + 0.5 * random.random())
    return trace_of(catalog, asked)


def scan(seed: int, models: int, requests: int, span_s: float) -> Trace:
    """Scans."""
    random = stream(seed, "scan")
    catalog = draw_models(random, models)
    asked = _background(random, models, requests / span_s, span_s)
    begins_s = SCAN_FIRST_S
    while begins_s < span_s:
        for model in range(models):
            time_s = begins_s + SCAN_TAKES_S * (model + random.random()) / models
            if time_s < span_s:
                asked.append((round(time_s, 6), model))
        begins_s += SCAN_EVERY_S
    return trace_of(catalog, asked)


def _background(random: Random, models: int, per_s: float, span_s: float) -> list[tuple[float, int]]:
    weights = [(rank + 1) ** -ZIPF_EXPONENT for rank in range(models)]
    cumulated = list(accumulate(weights))
    by_rank = list(range(models))
    random.shuffle(by_rank)
    timers = {model: random.random() for model in range(models) if random.random() < TIMER_SHARE}
    """When each timer rings next; at first, in periods."""
    asked: list[tuple[float, int]] = []
    begins_s = 0.0
    while begins_s < span_s:
        ends_s = min(span_s, begins_s + DRIFT_EVERY_S)
        time_s = begins_s + random.expovariate(per_s)
        while time_s < ends_s:
            model = by_rank[min(models - 1, bisect(cumulated, random.random() * cumulated[-1]))]
            if model not in timers:
                asked.append((round(time_s, 6), model))
            time_s += random.expovariate(per_s)
        for rank, model in enumerate(by_rank):
            if model not in timers:
                continue
            period_s = cumulated[-1] / weights[rank] / per_s
            time_s = timers[model] * period_s if begins_s == 0.0 else timers[model]
            while time_s < ends_s:
                jitter_s = random.gauss(0.0, min(TIMER_JITTER_S, TIMER_JITTER_MAX * period_s))
                asked.append((round(max(0.0, time_s + jitter_s), 6), model))
                time_s += period_s
            timers[model] = time_s
        _drift(random, by_rank)
        begins_s = ends_s
    return asked


def _drift(random: Random, by_rank: list[int]) -> None:
    """Deal some ranks anew."""
    places = random.sample(range(len(by_rank)), min(len(by_rank), max(2, int(DRIFT_SHARE * len(by_rank)))))
    moved = [by_rank[place] for place in places]
    random.shuffle(moved)
    for place, model in zip(places, moved, strict=True):
        by_rank[place] = model
