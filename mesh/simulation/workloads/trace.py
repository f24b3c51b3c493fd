"""A trace: which model was asked for when, and what each model weighs. What a replay replays.

As a file it is CSV with the columns `time_s,model,size_bytes,load_s`, in the order of time; bytes and load time stand
where a model appears first. Reading takes more: further columns are passed over (so that a pod's access log is a
trace), columns for tenant, size and load time may be missing, times may begin anywhere (they are shifted to 0), and
what a file does not say of a model is filled in by the caller.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TextIO

COLUMNS = ("time_s", "model", "size_bytes", "load_s")


class UnreadableTrace(Exception):
    """The file is no trace; the message names the line and what is missing."""


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


def write_csv(trace: Trace, file: TextIO) -> None:
    """The trace as a file; times in microseconds, so that reading it gives the same trace within that."""
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(COLUMNS)
    known: set[int] = set()
    for time_s, position in zip(trace.times_s, trace.asked, strict=True):
        model = trace.models[position]
        about = ("", "") if position in known else (str(model.size_bytes), f"{model.load_s:.6f}")
        known.add(position)
        rows.writerow((f"{time_s:.6f}", model.name, *about))


def read_csv(
    file: Iterable[str], size_bytes_of: Callable[[str], int] | None, load_s_of: Callable[[str, int], float] | None
) -> Trace:
    """The trace in a file. The functions say what the file does not: bytes by name, load time by name and bytes.

    Raises UnreadableTrace.
    """
    names: dict[str, int] = {}
    sizes: dict[int, int] = {}
    loads: dict[int, float] = {}
    requests: list[tuple[float, int]] = []
    for line, row in _rows(file):
        try:
            time_s, model = float(row["time_s"]), row["model"]
            size, load = row.get("size_bytes"), row.get("load_s")
            position = names.setdefault(f"{row['tenant']}/{model}" if row.get("tenant") else model, len(names))
            requests.append((time_s, position))
            if size:
                sizes[position] = int(float(size))
            if load:
                loads[position] = float(load)
        except (TypeError, ValueError) as error:
            raise UnreadableTrace(f"line {line}: {error}") from error
    models: list[TraceModel] = []
    for name, position in names.items():
        if position not in sizes:
            if size_bytes_of is None:
                raise UnreadableTrace(f"the file never says how many bytes model {name!r} takes (column size_bytes)")
            sizes[position] = size_bytes_of(name)
        if position not in loads:
            if load_s_of is None:
                raise UnreadableTrace(f"the file never says how long model {name!r} takes to load (column load_s)")
            loads[position] = load_s_of(name, sizes[position])
        models.append(TraceModel(name, sizes[position], loads[position]))
    requests.sort(key=itemgetter(0))  # equal times stay in the order of the file
    begins_s = requests[0][0] if requests else 0.0
    times_s = tuple(time_s - begins_s for time_s, _ in requests)
    return Trace(tuple(models), times_s, tuple(position for _, position in requests))


def _rows(file: Iterable[str]) -> Iterator[tuple[int, dict[str, str]]]:
    reader = csv.DictReader(file)
    missing = {"time_s", "model"} - set(reader.fieldnames or ())
    if missing:
        raise UnreadableTrace(f"the first line must name the columns; missing: {', '.join(sorted(missing))}")
    for row in reader:
        yield reader.line_num, row
