"""Where the randomness of a run comes from: one seed, and one stream of numbers for each use.

Streams are apart so that a change in one place (a retry more, a probe less) does not shift the luck of all others: the
workload and the faults of a seed stay the same while the code under test changes. Seeding by text goes through a
cryptographic hash inside `random`, so Python's hash seed plays no part.
"""

from __future__ import annotations

from random import Random
from typing import TypeVar

T = TypeVar("T")


def stream(seed: int, use: str) -> Random:
    """The numbers for one use of one seed."""
    return Random(f"{seed}/{use}")


def delay_s(random: Random, usual_s: float, slow_share: float = 0.01, slow_s: float = 0.0) -> float:
    """A message's time on its way: around `usual_s`, and for a small share of them up to `slow_s` more."""
    delay = usual_s * (0.5 + random.random())
    if slow_s and random.random() < slow_share:
        delay += slow_s * random.random()
    return delay


def weighted(random: Random, choices: tuple[tuple[T, float], ...]) -> T:
    """One of the choices, by weight."""
    total = sum(weight for _, weight in choices)
    point = random.random() * total
    for choice, weight in choices:
        point -= weight
        if point < 0:
            return choice
    return choices[-1][0]
