"""A trace from what was recorded: access logs of pods (`mesh.access_log`), or any CSV of time and model.

    time_s,tenant,model,outcome,latency_ms,size_bytes,load_s,fetch_s,wait_ms      an access log
    time,model                                 the least; a header may be missing then
    model,size_bytes,load_s                    what models take, for those that a log does not say

Times are seconds, of any beginning, or ISO 8601. Several files are one trace: each pod of a pool wrote what it
answered. Lines need not be in order (a pod writes a request when it is answered, so never quite); they are sorted, and
how far they stood out of order is said.

What loads and runs of a model took is replayed as the log has it, each as the one recorded nearest in time. Loads
differ from time to time, a machine that is busy is so for all of them, and a p99 is made of that. A model's first
load may have fetched and prepared its artifact: `fetch_s` says how long, and the first load of a replay does that,
too. A log without that column does not tell, and its first loads are left out, as if artifacts were on the disk; of a
model that was loaded once, its load is shortened as later loads of the others are shorter than their first. Of a
model that was never missed nothing is known but from a file of sizes, or else the mean of the others; how many there
were is said.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median

from mesh.access_log import COLUMNS
from mesh.planning.log_lines import (
    UnreadableLog,
    parse_milliseconds,
    parse_model,
    parse_seconds,
    parse_size_bytes,
    parse_time_s,
    read_rows,
    shown,
)
from mesh.simulation.workloads.trace import RecordedLoad, RecordedRun, Trace, TraceModel, trace_of

_TIME_COLUMNS = ("time_s", "time", "timestamp")
_OUT_OF_ORDER_MIN_S = 0.001
"""Access logs tell milliseconds."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What a model takes; None is not known."""

    size_bytes: int | None = None
    load_s: float | None = None


@dataclass(frozen=True, slots=True)
class Observed:
    """What the log says of its own pods, to hold a replay against. In logs without outcomes there is none."""

    cold_fraction: float
    cold_p50_ms: float
    """Of requests that waited for a load, the run included."""
    cold_p99_ms: float


@dataclass(frozen=True, slots=True)
class RequestLog:
    """What was read."""

    trace: Trace
    observed: Observed | None
    remarks: tuple[str, ...]
    """Sentences on what was sorted and what was filled in."""


@dataclass(slots=True)
class _Load:
    """One load, from the requests that waited for it."""

    at_s: float
    """When the first of them asked."""
    took_s: float
    """Fetch and load."""
    fetch_s: float | None
    """None: the log does not say."""


@dataclass(slots=True)
class _Seen:
    """Of one model, while reading."""

    position: int
    sizes_bytes: list[int] = field(default_factory=list)
    loads: list[_Load] = field(default_factory=list)
    runs: list[tuple[float, float]] = field(default_factory=list)
    """When a request asked, and what its run took."""

    def loaded(self, at_s: float, took_s: float, fetch_s: float | None) -> None:
        """A request that waited says so. What is equal is one load, and several requests that waited for it."""
        last = self.loads[-1] if self.loads else None
        if last is not None and (last.took_s, last.fetch_s) == (took_s, fetch_s):
            last.at_s = min(last.at_s, at_s)
        else:
            self.loads.append(_Load(at_s, took_s, fetch_s))

    @property
    def later_share(self) -> float | None:
        """What later loads take, as a share of the first; None: nothing to compare, or what the fetch took is known."""
        first, later = self.loads[:1], self.loads[1:]
        if not later or first[0].fetch_s is not None or first[0].took_s <= 0:
            return None
        return fmean(load.took_s for load in later) / first[0].took_s

    def recorded(self, begins_s: float, later_share: float) -> tuple[RecordedLoad | None, tuple[RecordedLoad, ...]]:
        """The first load, if its fetch is known, and the later ones; of the only one what loading alone takes."""
        ordered = sorted(self.loads, key=lambda load: load.at_s)
        if not ordered:
            return None, ()
        times = [_recorded(load, begins_s) for load in ordered]
        only, at_s = ordered[0], times[0].at_s
        if only.fetch_s is not None:
            return times[0], tuple(times[1:]) or (RecordedLoad(at_s, 0.0, times[0].load_s),)
        return None, tuple(times[1:]) or (RecordedLoad(at_s, 0.0, only.took_s * later_share),)


def _recorded(load: _Load, begins_s: float) -> RecordedLoad:
    fetch_s = min(load.fetch_s or 0.0, load.took_s)
    return RecordedLoad(round(load.at_s - begins_s, 6), fetch_s, load.took_s - fetch_s)


@dataclass(slots=True)
class _Reading:
    requests: list[tuple[float, int]] = field(default_factory=list)
    models: dict[str, _Seen] = field(default_factory=dict)
    answered: int = 0
    """Requests of which the log says whether they were hits."""
    misses_ms: list[float] = field(default_factory=list)
    out_of_order: int = 0
    out_of_order_most_s: float = 0.0


def read_request_log(paths: Sequence[Path], sizes: Mapping[str, Taken] | None = None) -> RequestLog:
    """The requests in these files together. `sizes` win over what the log says. Raises UnreadableLog."""
    reading = _Reading()
    for path in paths:
        _read_file(path, reading)
    if not reading.requests:
        raise UnreadableLog(
            f"{_names(paths)}: no requests; there is nothing to replay. A pod writes them with "
            "`hexcomb serve --access-log FILE`, within a second of the answer"
        )
    remarks = []
    if reading.out_of_order:
        remarks.append(
            f"{reading.out_of_order:,} of {len(reading.requests):,} lines stood out of the order of time, by up to "
            f"{reading.out_of_order_most_s:.3f} s, and were sorted"
        )
    models, filled = _models(reading, sizes or {}, _names(paths))
    begins_s = min(time_s for time_s, _ in reading.requests)
    trace = trace_of(models, ((round(time_s - begins_s, 6), position) for time_s, position in reading.requests))
    return RequestLog(trace, _observed(reading), (*remarks, *filled))


def read_sizes(path: Path) -> dict[str, Taken]:
    """A file of model, size_bytes and load_s. Raises UnreadableLog."""
    sizes: dict[str, Taken] = {}
    for where, row in read_rows(
        path, ("model", "size_bytes", "load_s"), known={"model", "size_bytes", "load_s", "tenant"}
    ):
        if "model" not in row or not ({"size_bytes", "load_s"} & set(row)):
            raise UnreadableLog(
                f"{where}: the columns are {', '.join(row)}; needed are model and size_bytes, and load_s (seconds)"
            )
        sizes[parse_model(row, where)] = Taken(parse_size_bytes(row, where), parse_seconds(row, "load_s", where))
    if not sizes:
        raise UnreadableLog(f"{path}: no models; a line is model,size_bytes,load_s, as in iris,182304,0.024")
    return sizes


def _read_file(path: Path, reading: _Reading) -> None:
    latest_s = -float("inf")
    for where, row in read_rows(path, ("time_s", "model", "size_bytes", "load_s"), known={*COLUMNS, *_TIME_COLUMNS}):
        time_column = next((name for name in _TIME_COLUMNS if name in row), None)
        if time_column is None or "model" not in row:
            raise UnreadableLog(
                f"{where}: the columns are {', '.join(row)}; needed are time_s (or {' or '.join(_TIME_COLUMNS[1:])}) "
                f"and model; an access log has {','.join(COLUMNS)}"
            )
        time_s = parse_time_s(row[time_column], f"{where}, field {time_column}")
        if latest_s - time_s >= _OUT_OF_ORDER_MIN_S:
            reading.out_of_order += 1
            reading.out_of_order_most_s = max(reading.out_of_order_most_s, latest_s - time_s)
        latest_s = max(latest_s, time_s)
        seen = reading.models.setdefault(parse_model(row, where), _Seen(len(reading.models)))
        reading.requests.append((time_s, seen.position))
        if (size_bytes := parse_size_bytes(row, where)) is not None:
            seen.sizes_bytes.append(size_bytes)
        if (load_s := parse_seconds(row, "load_s", where)) is not None:
            seen.loaded(time_s, load_s, parse_seconds(row, "fetch_s", where))
        outcome = row.get("outcome", "")
        if outcome not in ("", "hit", "miss"):
            raise UnreadableLog(f"{where}, field outcome: found {shown(outcome)}; allowed are hit, miss and nothing")
        reading.answered += outcome != ""
        latency_ms = parse_milliseconds(row, "latency_ms", where)
        wait_ms = parse_milliseconds(row, "wait_ms", where) if outcome == "miss" else 0.0
        if outcome and latency_ms is not None and wait_ms is not None:
            seen.runs.append((time_s, max(0.0, latency_ms - wait_ms) / 1e3))
        if outcome == "miss" and latency_ms is not None:
            reading.misses_ms.append(latency_ms)


def _models(reading: _Reading, sizes: Mapping[str, Taken], source: str) -> tuple[list[TraceModel], list[str]]:
    """All models, in the order of their positions, and what was filled in."""
    shares = [share for seen in reading.models.values() if (share := seen.later_share) is not None]
    later_share = min(1.0, median(shares)) if shares else 1.0
    begins_s = min(time_s for time_s, _ in reading.requests)
    taken: dict[str, Taken] = {}
    recorded: dict[str, tuple[RecordedLoad | None, tuple[RecordedLoad, ...]]] = {}
    for name, seen in reading.models.items():
        given = sizes.get(name, Taken())
        recorded[name] = (None, ()) if given.load_s is not None else seen.recorded(begins_s, later_share)
        loads = recorded[name][1]
        taken[name] = Taken(
            (seen.sizes_bytes[-1] if seen.sizes_bytes else None) if given.size_bytes is None else given.size_bytes,
            (fmean(load.load_s for load in loads) if loads else None) if given.load_s is None else given.load_s,
        )
    sizes_bytes = [each.size_bytes for each in taken.values() if each.size_bytes is not None]
    loads_s = [each.load_s for each in taken.values() if each.load_s is not None]
    for column, known in (("size_bytes", sizes_bytes), ("load_s", loads_s)):
        if not known:
            raise UnreadableLog(
                f"{source}: nothing says the {column} of any of the {len(taken)} models; the misses of an access log "
                f"do, or a column {column}, or --sizes FILE.csv with the columns model,size_bytes,load_s"
            )
    size_mean_bytes, load_mean_s = round(fmean(sizes_bytes)), fmean(loads_s)
    remarks = []
    loaded_once = sum(
        len(reading.models[name].loads) == 1 and first is None for name, (first, loads) in recorded.items() if loads
    )
    if loaded_once and later_share < 1:
        remarks.append(
            f"{loaded_once} of {len(taken)} models were loaded once, fetch and preparation perhaps included; "
            f"{later_share:.0%} of that is taken, which is what later loads of the others take"
        )
    without_size = len(taken) - len(sizes_bytes)
    without_load = len(taken) - len(loads_s)
    if without_size:
        remarks.append(
            f"{without_size} of {len(taken)} models were never missed and are in no --sizes; they are taken to be as "
            f"large as the mean, {size_mean_bytes:,} bytes"
        )
    if without_load:
        remarks.append(
            f"of {without_load} of {len(taken)} models no load time is known; the mean, {load_mean_s * 1e3:.1f} ms, is "
            "taken"
        )
    models = [
        TraceModel(
            name,
            size_mean_bytes if each.size_bytes is None else each.size_bytes,
            load_mean_s if each.load_s is None else each.load_s,
            *recorded[name],
            tuple(RecordedRun(round(at_s - begins_s, 6), run_s) for at_s, run_s in sorted(reading.models[name].runs)),
        )
        for name, each in taken.items()
    ]
    return models, remarks


def _observed(reading: _Reading) -> Observed | None:
    if reading.answered < len(reading.requests) or not reading.misses_ms:
        return None
    ordered = sorted(reading.misses_ms)

    def percentile(share: float) -> float:
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    return Observed(len(ordered) / len(reading.requests), percentile(0.5), percentile(0.99))


def _names(paths: Iterable[Path]) -> str:
    return ", ".join(map(str, paths))
