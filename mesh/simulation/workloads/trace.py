"""A trace: which model was asked for when, and what each model weighs. What a replay replays.

Deliberately absent: traces as files. What was recorded is read by `mesh.planning.request_log`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TraceModel:
    """What is true of a model."""

    name: str
    size_bytes: int
    load_s: float
    """Bringing it back from the disk tier, on an idle pod."""
    loads_s: tuple[float, ...] = ()
    """What its loads took one after the other, where that was recorded."""

    def load_s_of(self, number: int) -> float:
        """What its load of this number (from 0) takes: as recorded, over again when more are needed."""
        return self.loads_s[number % len(self.loads_s)] if self.loads_s else self.load_s


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in the order of time. Each is a position in `models` at the same position as its time."""

    models: tuple[TraceModel, ...]
    times_s: tuple[float, ...]
    asked: tuple[int, ...]

    @property
    def footprint_bytes(self) -> int:
        """What all models that are asked for take together: a pod of this capacity never evicts."""
        return sum(self.models[position].size_bytes for position in set(self.asked))

    @property
    def span_s(self) -> float:
        """From time 0 to the last request."""
        return self.times_s[-1] if self.times_s else 0.0

    def __len__(self) -> int:
        return len(self.times_s)


def trace_of(models: Sequence[TraceModel], requests: Iterable[tuple[float, int]]) -> Trace:
    """A trace of requests in any order; equal times are ordered by model."""
    ordered = sorted(requests)
    return Trace(tuple(models), tuple(time_s for time_s, _ in ordered), tuple(position for _, position in ordered))
