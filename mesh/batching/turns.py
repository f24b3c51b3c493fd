"""Which model's turn is it, when several wait for the same threads? Fair by time, not by number.

Start-time fair queueing: each model has a clock that its runs move on by what they take, and the model whose clock is
furthest behind goes next. A model with long runs, or with thousands of requests, then gets its share of the threads and
no more; one that asks seldom is served after at most one run of each other. A model that was idle begins at the clock
of the one that is served now: nobody saves up turns.

Ties go to the model that has waited longest. Pure; the heap holds each model at most once.
"""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

M = TypeVar("M")


class Turns(Generic[M]):
    """Models that wait for a thread."""

    __slots__ = ("_heap", "_now_s", "_order")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, M]] = []
        self._now_s = 0.0
        """The clock of the model that was served last."""
        self._order = 0

    def __len__(self) -> int:
        return len(self._heap)

    def wait(self, model: M, clock_s: float) -> None:
        """A model has something to run, and is not waiting yet. `clock_s`: where its clock stands."""
        self._order += 1
        heapq.heappush(self._heap, (max(clock_s, self._now_s), self._order, model))

    def next(self) -> tuple[M, float] | None:
        """The model whose turn it is, and its clock; it does not wait any more. None when nobody waits."""
        if not self._heap:
            return None
        self._now_s, _, model = heapq.heappop(self._heap)
        return model, self._now_s
