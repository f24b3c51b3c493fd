"""A trace from what was recorded: access logs of pods (`mesh.access_log`), or any CSV of time and model.

    time_s,tenant,model,outcome,latency_ms,size_bytes,load_s      an access log
    time,model                                                    the least; a header may be missing then
    model,size_bytes,load_s                                       what models take, for those that a log does not say

Times are seconds, of any beginning, or ISO 8601. Several files are one trace: each pod of a pool wrote what it
answered. Lines need not be in order (a pod writes a request when it is answered, so never quite); they are sorted, and
how far they stood out of order is said.

What loads of a model took is replayed in the order in which the log has them, and then over again: loads differ from
time to time, and a p99 is made of that. The first is left out if there are others: as far as the log can tell it also
fetched and prepared the artifact, which a replay takes to be on the disk. Of a model that was never missed nothing is
known but from a file of sizes, or else the mean of the others; how many there were is said.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import TextIO

from mesh.access_log import COLUMNS
from mesh.cli.sizes import parse_size
from mesh.simulation.workloads.trace import Trace, TraceModel, trace_of

TENANT_UNNAMED = "default"
"""The tenant whose models go by their bare names."""
_TIME_COLUMNS = ("time_s", "time", "timestamp")
_FOUND_SHOWN_CHARACTERS = 60
_OUT_OF_ORDER_MIN_S = 0.001
"""Access logs tell milliseconds."""


class UnreadableLog(Exception):
    """A file is no request log; the message names the file, the line, what was found and what is allowed."""


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

    def taken(self) -> Taken:
        """The newest size, the mean of later loads."""
        loads_s = self.later_loads_s
        return Taken(self.sizes_bytes[-1] if self.sizes_bytes else None, fmean(loads_s) if loads_s else None)

    @property
    def later_loads_s(self) -> list[float]:
        """Without the first, if there are others."""
        return self.loads_s[1:] or self.loads_s


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
    for where, row in _rows(path, ("model", "size_bytes", "load_s"), known={"model", "size_bytes", "load_s", "tenant"}):
        if "model" not in row or not ({"size_bytes", "load_s"} & set(row)):
            raise UnreadableLog(
                f"{where}: the columns are {', '.join(row)}; needed are model and size_bytes, and load_s (seconds)"
            )
        sizes[_model(row, where)] = Taken(_size_bytes(row, where), _load_s(row, where))
    if not sizes:
        raise UnreadableLog(f"{path}: no models; a line is model,size_bytes,load_s, as in iris,182304,0.024")
    return sizes


def _read_file(path: Path, reading: _Reading) -> None:
    latest_s = -float("inf")
    for where, row in _rows(path, ("time_s", "model", "size_bytes", "load_s"), known={*COLUMNS, *_TIME_COLUMNS}):
        time_column = next((name for name in _TIME_COLUMNS if name in row), None)
        if time_column is None or "model" not in row:
            raise UnreadableLog(
                f"{where}: the columns are {', '.join(row)}; needed are time_s (or {' or '.join(_TIME_COLUMNS[1:])}) "
                f"and model; an access log has {','.join(COLUMNS)}"
            )
        time_s = _time_s(row[time_column], f"{where}, field {time_column}")
        if latest_s - time_s >= _OUT_OF_ORDER_MIN_S:
            reading.out_of_order += 1
            reading.out_of_order_most_s = max(reading.out_of_order_most_s, latest_s - time_s)
        latest_s = max(latest_s, time_s)
        seen = reading.models.setdefault(_model(row, where), _Seen(len(reading.models)))
        reading.requests.append((time_s, seen.position))
        if (size_bytes := _size_bytes(row, where)) is not None:
            seen.sizes_bytes.append(size_bytes)
        if (load_s := _load_s(row, where)) is not None and seen.loads_s[-1:] != [load_s]:
            seen.loads_s.append(load_s)  # equal ones are one load, and several requests that waited for it
        outcome = row.get("outcome", "")
        if outcome not in ("", "hit", "miss"):
            raise UnreadableLog(f"{where}, field outcome: found {_shown(outcome)}; allowed are hit, miss and nothing")
        reading.answered += outcome != ""
        if outcome == "miss" and row.get("latency_ms"):
            reading.misses_ms.append(
                _number(row["latency_ms"], f"{where}, field latency_ms", "milliseconds, as 31.207")
            )


def _models(reading: _Reading, sizes: Mapping[str, Taken], source: str) -> tuple[list[TraceModel], list[str]]:
    """All models, in the order of their positions, and what was filled in."""
    taken = {}
    for name, seen in reading.models.items():
        logged, given = seen.taken(), sizes.get(name, Taken())
        taken[name] = Taken(
            logged.size_bytes if given.size_bytes is None else given.size_bytes,
            logged.load_s if given.load_s is None else given.load_s,
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
            () if sizes.get(name, Taken()).load_s is not None else tuple(reading.models[name].later_loads_s),
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


# One line ---------------------------------------------------------------------------------------------------------


def _rows(path: Path, columns: Sequence[str], *, known: set[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """(where, fields by column) of each line; `columns` where the file does not name its own."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from _rows_of(path, file, columns, known)
    except UnicodeDecodeError as error:
        raise UnreadableLog(
            f"{path}: no text (byte {error.start} of a part of it is not UTF-8); a CSV file is"
        ) from error
    except csv.Error as error:
        raise UnreadableLog(f"{path}: no CSV: {error}") from error
    except OSError as error:
        raise UnreadableLog(f"{path}: cannot be read: {error.strerror or error}") from error


def _rows_of(path: Path, file: TextIO, columns: Sequence[str], known: set[str]) -> Iterator[tuple[str, dict[str, str]]]:
    rows = csv.reader(file)
    header: Sequence[str] | None = None
    for row in rows:
        if not row or (len(row) == 1 and not row[0].strip()):
            continue
        fields = [cell.strip() for cell in row]
        where = f"{path}, line {rows.line_num}"
        if header is None:
            named = [cell.lower() for cell in fields]
            header = named if known & set(named) else columns
            if header is named:
                if twice := {name for name in named if named.count(name) > 1}:
                    raise UnreadableLog(f"{where}: the column {sorted(twice)[0]} is named twice")
                continue
        if len(fields) > len(header):
            raise UnreadableLog(
                f"{where}: found {len(fields)} fields, the columns are {len(header)}: {','.join(header)}"
            )
        yield where, dict(zip(header, fields, strict=False))


def _time_s(text: str, where: str) -> float:
    try:
        return _finite(float(text))
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UnreadableLog(
            f"{where}: found {_shown(text)}; allowed are seconds, as in 1795280947.633, and ISO 8601, as in "
            "2026-11-21T18:00:00Z"
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _model(row: Mapping[str, str], where: str) -> str:
    name, tenant = row.get("model", ""), row.get("tenant", "")
    if not name:
        raise UnreadableLog(f"{where}, field model: found nothing; needed is the model's name")
    return name if tenant in ("", TENANT_UNNAMED) else f"{tenant}/{name}"


def _size_bytes(row: Mapping[str, str], where: str) -> int | None:
    text = row.get("size_bytes")
    if not text:
        return None
    try:
        size_bytes = parse_size(text)
    except ValueError:
        size_bytes = 0
    if size_bytes <= 0:
        raise UnreadableLog(
            f"{where}, field size_bytes: found {_shown(text)}; allowed are bytes above zero, as in 182304 or 25MiB"
        )
    return size_bytes


def _load_s(row: Mapping[str, str], where: str) -> float | None:
    text = row.get("load_s")
    return _number(text, f"{where}, field load_s", "seconds, as 0.024") if text else None


def _number(text: str, where: str, allowed: str) -> float:
    try:
        value = _finite(float(text))
    except ValueError:
        value = -1.0
    if value < 0:
        raise UnreadableLog(f"{where}: found {_shown(text)}; allowed are {allowed}, zero or more")
    return value


def _finite(value: float) -> float:
    if not isfinite(value):
        raise ValueError(value)
    return value


def _shown(text: str) -> str:
    return repr(text if len(text) <= _FOUND_SHOWN_CHARACTERS else text[:_FOUND_SHOWN_CHARACTERS] + "...")


def _names(paths: Iterable[Path]) -> str:
    return ", ".join(map(str, paths))
