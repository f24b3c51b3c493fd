"""How much capacity keeps a promise: the least at which cold requests are rare enough, or short enough.

More capacity makes fewer requests cold. It does not make them shorter, and their p99 is not even monotonic: with memory
for everything only first loads are left, large models among them, while a small pod is cold for small popular models
too. So a plain bisection could walk past an answer. It looks in two steps:

1. on a ladder of capacities in equal ratios, from the largest model to the point where nothing is ever evicted, for the
   lowest rung that keeps the promise: on every rung when a p99 is promised, by halves when it is only a share;
2. between that rung and the one below it, which does not keep it, by bisection.

The answer is the least capacity that was tried and keeps it, beside the greatest below it that does not. When not even
the last rung does, no capacity can: what is left are first loads, one for each model, and the answer says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from mesh.planning.cells import Cell, Planned, Planner, bytes_that_never_evict

RUNGS = 8
"""Of the ladder: from a hundredth of the catalog to all of it, each rung is twice the one below."""
PRECISION = 0.02
"""Of the answer: it is at most this much larger than a capacity that does not do."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What is promised of cold requests; None is not asked for."""

    cold_fraction_max: float | None = None
    cold_p99_max_ms: float | None = None

    def missed(self, planned: Planned) -> list[str]:
        """What this cell does not keep, in words; empty: it keeps all."""
        result, why = planned.result, []
        if result.refused:
            why.append(f"{result.refused:,} requests are refused")
        if self.cold_fraction_max is not None and result.cold_fraction > self.cold_fraction_max:
            why.append(f"{result.cold_fraction:.2%} of requests are cold, not {self.cold_fraction_max:.2%}")
        if self.cold_p99_max_ms is not None and result.cold_p99_ms > self.cold_p99_max_ms:
            why.append(f"the cold p99 is {result.cold_p99_ms:,.0f} ms, not {self.cold_p99_max_ms:,.0f} ms")
        return why

    def __str__(self) -> str:
        parts = []
        if self.cold_fraction_max is not None:
            parts.append(f"at most {self.cold_fraction_max:.2%} of requests cold")
        if self.cold_p99_max_ms is not None:
            parts.append(f"a cold p99 of at most {self.cold_p99_max_ms:,.0f} ms")
        return " and ".join(parts)


@dataclass(frozen=True, slots=True)
class Found:
    """The least capacity, and the bound below it."""

    goal: Goal
    least: Planned
    below: Planned | None
    """The greatest capacity tried below `least`, which does not keep the goal; None: nothing smaller holds a pod's
    largest model."""


@dataclass(frozen=True, slots=True)
class NotFound:
    """No capacity keeps the goal."""

    goal: Goal
    most: Planned
    """With memory for everything: what is cold there is cold everywhere."""
    why: tuple[str, ...]


def find_capacity(planner: Planner, cell: Cell, goal: Goal) -> Found | NotFound:
    """The least capacity for a pool like `cell`, whose own capacity does not matter."""
    rungs = [replace(cell, capacity_bytes=rung) for rung in _ladder(planner, cell)]
    low, high = _lowest_that_keeps(planner, rungs, goal)
    if high is None:
        most = planner.plan(rungs[-1:], ideals=False)[0]
        return NotFound(goal, most, tuple(goal.missed(most)))
    least, below = high, low
    while below is not None and least.cell.capacity_bytes > (1 + PRECISION) * below.cell.capacity_bytes:
        between_bytes = round((least.cell.capacity_bytes * below.cell.capacity_bytes) ** 0.5)
        tried = planner.plan([replace(cell, capacity_bytes=between_bytes)], ideals=False)[0]
        if goal.missed(tried):
            below = tried
        else:
            least = tried
    return Found(goal, planner.plan([least.cell])[0], below)


def _lowest_that_keeps(planner: Planner, rungs: list[Cell], goal: Goal) -> tuple[Planned | None, Planned | None]:
    """(the rung below it, the lowest rung that keeps the goal); None: there is none."""
    if goal.cold_p99_max_ms is not None:
        ladder = planner.plan(rungs, ideals=False)
        keeps = next((position for position, planned in enumerate(ladder) if not goal.missed(planned)), None)
        if keeps is None:
            return ladder[-1], None
        return ladder[keeps - 1] if keeps else None, ladder[keeps]
    low: Planned | None = None
    high: Planned | None = None
    first, last = 0, len(rungs)  # the rung that is looked for lies in between; `last` itself keeps it, or is not there
    middle = len(rungs) - 1
    while first < last:
        tried = planner.plan([rungs[middle]], ideals=False)[0]
        if goal.missed(tried):
            low, first = tried, middle + 1
        else:
            high, last = tried, middle
        middle = (first + last) // 2
    return low, high


def _ladder(planner: Planner, cell: Cell) -> Iterator[int]:
    trace = planner.trace
    largest_bytes = max(trace.models[position].size_bytes for position in set(trace.asked))
    most_bytes = bytes_that_never_evict(trace, cell.pods)
    least_bytes = min(most_bytes, max(largest_bytes * cell.pods, most_bytes // 128))
    if least_bytes == most_bytes:
        yield most_bytes
        return
    for rung in range(RUNGS):
        exact = least_bytes * (most_bytes / least_bytes) ** (rung / (RUNGS - 1))
        # Upwards to the next multiple: each pod then holds what was meant, to the byte.
        yield most_bytes if rung == RUNGS - 1 else -(-int(exact) // cell.pods) * cell.pods
