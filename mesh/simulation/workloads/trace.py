"""A trace: which model was asked for when, and what each model weighs. What a replay replays.

Deliberately absent: traces as files. What was recorded is read by `mesh.planning.request_log`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RecordedLoad:
    """What bringing a model in took, once."""

    at_s: float
    """When it was asked for, by the trace's clock."""
    fetch_s: float
    """From its storage to being prepared on the disk; next to nothing when it was there."""
    load_s: float
    """From the disk."""


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """What the run of a request took, what came before and after it on the pod included."""

    at_s: float
    run_s: float


@dataclass(frozen=True, slots=True)
class TraceModel:
    """What is true of a model. What was recorded is in the order of time."""

    name: str
    size_bytes: int
    load_s: float
    """Bringing it back from the disk tier, as a rule."""
    first: RecordedLoad | None = None
    """The first time that it was brought in, where that was recorded: it also fetched."""
    loads: tuple[RecordedLoad, ...] = ()
    """The other times."""
    runs: tuple[RecordedRun, ...] = ()

    def load_at(self, time_s: float, *, is_first: bool) -> RecordedLoad:
        """What its load takes that somebody asks for now: as its first one did, or else the one recorded nearest to
        this time. A machine that is busy for a while is so for all its loads, and a p99 is made of that."""
        if is_first and self.first is not None:
            return self.first
        return self.loads[_nearest(self.loads, time_s)] if self.loads else RecordedLoad(time_s, 0.0, self.load_s)

    def run_at(self, time_s: float) -> float:
        """What the run of a request takes that comes now: as that recorded nearest to this time; 0 where none was."""
        return self.runs[_nearest(self.runs, time_s)].run_s if self.runs else 0.0


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


def _nearest(recorded: Sequence[RecordedLoad] | Sequence[RecordedRun], time_s: float) -> int:
    """The position of what was recorded nearest to a time; the earlier of two that are equally near."""
    after = bisect_left(recorded, time_s, key=lambda each: each.at_s)
    if after == 0:
        return 0
    if after == len(recorded) or time_s - recorded[after - 1].at_s <= recorded[after].at_s - time_s:
        return after - 1
    return after
