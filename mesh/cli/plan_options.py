"""What `hexcomb plan` was asked for, checked: from words on a command line to a trace and its cells.

Every refusal names the option, what was found and what is allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from cache.policies import POLICIES
from mesh.cli.failure import USAGE, Failure
from mesh.cli.sizes import parse_size
from mesh.planning.cells import Cell
from mesh.planning.finding import Goal
from mesh.planning.log_lines import UnreadableLog
from mesh.planning.request_log import Observed, RequestLog, Taken, read_request_log, read_sizes
from mesh.simulation.workloads import WORKLOADS, workload
from mesh.simulation.workloads.trace import Trace

CAPACITY_FRACTION = "0.2"
"""Planned when no capacity is named: what `hexcomb demo` has."""
PODS_MAX = 1000
FRACTION_MAX = 100.0
_PREFETCH = "+prefetch"
_SHOWN_CHARACTERS = 60
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Source:
    """The trace, and where it came from."""

    trace: Trace
    named: str
    """For people: `azure, seed 1`."""
    about: dict[str, Any]
    """For scripts."""
    observed: Observed | None
    remarks: tuple[str, ...]


def read_source(workloads: Sequence[str], files: Sequence[Path], seed: int, sizes: Path | None) -> Source:
    """Generate or read the trace. Raises Failure."""
    named = [*workloads, *map(str, files)]
    if not named:
        _refuse("--workload", "nothing", f"{_or(WORKLOADS)}, or files of requests: an access log, or CSV of time,model")
    if len(named) == 1 and named[0] in WORKLOADS:
        if sizes is not None:
            _refuse("--sizes", str(sizes), "nothing with a workload that is generated: it says what its models take")
        trace = workload(named[0], seed)
        return Source(trace, f"{named[0]}, seed {seed}", {"workload": named[0], "seed": seed}, None, ())
    for name in named:
        if name in WORKLOADS:
            _refuse("--workload", ", ".join(named), "one workload that is generated, or files")
        if not Path(name).exists():
            _refuse("--workload", name, f"{_or(WORKLOADS)}, or a file; there is no file of that name")
    log = _read_log([Path(name) for name in named], sizes)
    about = {"workload": named[0] if len(named) == 1 else named, "seed": None}
    return Source(log.trace, ", ".join(Path(name).name for name in named), about, log.observed, log.remarks)


def _read_log(paths: Sequence[Path], sizes: Path | None) -> RequestLog:
    try:
        taken: dict[str, Taken] = {} if sizes is None else read_sizes(sizes)
        return read_request_log(paths, taken)
    except UnreadableLog as error:
        raise Failure(str(error), exit_code=USAGE) from error


def parse_cells(
    trace: Trace,
    *,
    pods: str,
    capacity: str | None,
    capacity_fraction: str | None,
    policy: str,
    prefetch: bool,
    loads_concurrent_max: int,
) -> list[Cell]:
    """All combinations: by pods, then capacity, then policy. Raises Failure.

    `capacity` is a pod's, as in `hexcomb serve`; `capacity_fraction` is that of all pods of the first number of pods.
    Other numbers of pods have pods of the same capacity.
    """
    if capacity is not None and capacity_fraction is not None:
        _refuse("--capacity-fraction", capacity_fraction, "nothing beside --capacity: one of the two")
    counts = _list("--pods", pods, _pods)
    policies = _list("--policy", policy, lambda name: _policy(name, prefetch))
    if capacity is not None:
        pod_bytes = _list("--capacity", capacity, _capacity_bytes)
    else:
        fractions = _list("--capacity-fraction", capacity_fraction or CAPACITY_FRACTION, _fraction)
        pod_bytes = [max(1, int(fraction * trace.footprint_bytes / counts[0])) for fraction in fractions]
    return [
        Cell(count, each_bytes * count, name, prefetch=with_prefetch, loads_concurrent_max=loads_concurrent_max)
        for count in counts
        for each_bytes in pod_bytes
        for name, with_prefetch in policies
    ]


def parse_goal(cold_p99_ms: float | None, cold_fraction: float | None, *, find_capacity: bool) -> Goal | None:
    """What is promised; None: nothing is searched for. Raises Failure."""
    if find_capacity and cold_p99_ms is None and cold_fraction is None:
        _refuse("--find-capacity", "no goal", "--cold-p99-ms X, --cold-fraction X or both beside it")
    if not find_capacity:
        for option, given in (("--cold-p99-ms", cold_p99_ms), ("--cold-fraction", cold_fraction)):
            if given is not None:
                _refuse(option, f"{given:g}", "nothing without --find-capacity, whose goal it is")
        return None
    return Goal(cold_fraction, cold_p99_ms)


def _pods(text: str) -> int:
    count = int(text)
    if not 1 <= count <= PODS_MAX:
        raise ValueError(text)
    return count


def _fraction(text: str) -> float:
    fraction = float(text)
    if not 0 < fraction <= FRACTION_MAX:
        raise ValueError(text)
    return fraction


def _capacity_bytes(text: str) -> int:
    capacity_bytes = parse_size(text)
    if capacity_bytes < 1:
        raise ValueError(text)
    return capacity_bytes


def _policy(text: str, prefetch: bool) -> tuple[str, bool]:
    name, plus, _ = text.partition(_PREFETCH)
    if name not in POLICIES or text != name + plus:
        raise ValueError(text)
    return name, prefetch or bool(plus)


_ALLOWED = {
    "--pods": f"numbers of pods from 1 to {PODS_MAX}, separated by commas, as in 4,2",
    "--capacity": "what a pod holds, above zero, in bytes or with a unit, separated by commas, as in 2GiB,4GiB",
    "--capacity-fraction": f"shares above 0 and up to {FRACTION_MAX:g} of what all models take, separated by commas, "
    "as in 0.1,0.2",
    "--policy": f"{', '.join(POLICIES)}, each also as NAME{_PREFETCH}, separated by commas",
}


def _list(option: str, text: str, parse: Callable[[str], _Value]) -> list[_Value]:
    values = []
    for part in text.split(","):
        try:
            values.append(parse(part.strip()))
        except ValueError:
            _refuse(option, part.strip(), _ALLOWED[option])
    return list(dict.fromkeys(values))


def _refuse(option: str, found: str, allowed: str) -> NoReturn:
    shown = found if len(found) <= _SHOWN_CHARACTERS else found[:_SHOWN_CHARACTERS] + "..."
    raise Failure(f"{option}: found {shown!r}; allowed are {allowed}", hint="hexcomb plan --help", exit_code=USAGE)


def _or(names: Sequence[str] | dict[str, Any]) -> str:
    return ", ".join(names)
