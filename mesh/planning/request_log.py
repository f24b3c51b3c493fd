"""A trace from what was recorded: access logs of pods (`mesh.access_log`), or any CSV of time and model.

    time_s,tenant,model,outcome,latency_ms,size_bytes,load_s      an access log
    time,model                                                    the least; a header may be missing then
    model,size_bytes,load_s                                       what models take, for those that a log does not say

Times are seconds, of any beginning, or ISO 8601. Several files are one trace: each pod of a pool wrote what it
answered. Lines need not be in order (a pod writes a request when it is answered, so never quite); they are sorted, and
how far they stood out of order is said.

What loads of a model took is replayed in the order in which the log has them, and then over again: loads differ from
time to time, and a p99 is made of that. First loads are left out: as far as a log can tell they also fetched and
prepared the artifact, which a replay takes to be on the disk. Of a model that was loaded once, its load is shortened as
later loads of the others are shorter than their first. Of a model that was never missed nothing is known but from a
file of sizes, or else the mean of the others; how many there were of each is said.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median

from mesh.access_log import COLUMNS
from mesh.planning.log_lines import (
    UnreadableLog,
    parse_load_s,
    parse_model,
    parse_number,
    parse_size_bytes,
    parse_time_s,
    read_rows,
    shown,
)
from mesh.simulation.workloads.trace import Trace, TraceModel, trace_of

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
class _Seen:
    """Of one model, while reading."""

    position: int
    sizes_bytes: list[int] = field(default_factory=list)
    loads_s: list[float] = field(default_factory=list)

    @property
    def later_share(self) -> float | None:
        """What later loads take, as a share of the first; None: there is none to compare."""
        return fmean(self.loads_s[1:]) / self.loads_s[0] if len(self.loads_s) > 1 and self.loads_s[0] > 0 else None

    def loads_from_disk_s(self, later_share: float) -> tuple[float, ...]:
        """Later loads as they were, or the only one shortened."""
        return tuple(self.loads_s[1:]) or tuple(load_s * later_share for load_s in self.loads_s)


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
        sizes[parse_model(row, where)] = Taken(parse_size_bytes(row, where), parse_load_s(row, where))
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
        if (load_s := parse_load_s(row, where)) is not None and seen.loads_s[-1:] != [load_s]:
            seen.loads_s.append(load_s)  # equal ones are one load, and several requests that waited for it
        outcome = row.get("outcome", "")
        if outcome not in ("", "hit", "miss"):
            raise UnreadableLog(f"{where}, field outcome: found {shown(outcome)}; allowed are hit, miss and nothing")
        reading.answered += outcome != ""
        if outcome == "miss" and row.get("latency_ms"):
            reading.misses_ms.append(
                parse_number(row["latency_ms"], f"{where}, field latency_ms", "milliseconds, as 31.207")
            )


def _models(reading: _Reading, sizes: Mapping[str, Taken], source: str) -> tuple[list[TraceModel], list[str]]:
    """All models, in the order of their positions, and what was filled in."""
    shares = [share for seen in reading.models.values() if (share := seen.later_share) is not None]
    later_share = min(1.0, median(shares)) if shares else 1.0
    taken, loads_s_of = {}, {}
    for name, seen in reading.models.items():
        given = sizes.get(name, Taken())
        loads_s_of[name] = () if given.load_s is not None else seen.loads_from_disk_s(later_share)
        taken[name] = Taken(
            (seen.sizes_bytes[-1] if seen.sizes_bytes else None) if given.size_bytes is None else given.size_bytes,
            (fmean(loads_s_of[name]) if loads_s_of[name] else None) if given.load_s is None else given.load_s,
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
    loaded_once = sum(len(reading.models[name].loads_s) == 1 for name, loads in loads_s_of.items() if loads)
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
            loads_s_of[name],
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
