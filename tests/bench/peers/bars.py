"""What Hexcomb is held to, as ratios of figures of one run.

Every bar is worked out per round, from contestants measured minutes apart, and its median over the rounds is judged.
A bar whose figures there are not says which is wanting. Those that are about Hexcomb alone come from its own benches
(`own_bars`).
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tests.bench.peers.measuring import Measured, Results
from tests.bench.peers.scenarios import IMAGE, TINY, TREES

OURS, ECHO = "hexcomb", "echo"
PYTHON_SERVERS = ("mlserver", "kserve", "bentoml", "ray", "litserve", "grpc-aio")
RUN_THE_MODEL = (*PYTHON_SERVERS, "triton")
OVERHEAD_US = 60.0
_HALF_PEAK, _ONE = "half of its peak", "1 in flight"


@dataclass(frozen=True, slots=True)
class Bar:
    """One promise. `value` is the median over rounds; `spread` its least and most."""

    what: str
    value: float | None
    """None: not measured."""
    spread: tuple[float, float] | None
    bar: float | None
    """None: what was to be judged failed before it was known."""
    at_least: bool
    unit: str
    missing: str = ""
    """Why there is no value."""

    @property
    def is_met(self) -> bool | None:
        """Whether the promise is kept; None: not measured."""
        if self.value is None or self.bar is None:
            return None
        return self.value >= self.bar if self.at_least else self.value <= self.bar


class _Round:
    """The figures of one round, by contestant."""

    def __init__(self, measured: Sequence[Measured], results: Results) -> None:
        self._measured = measured
        self._results = results

    def peak(self, contestant: str, scenario: str) -> Measured:
        """The cell of one row with most answers a second. Raises LookupError when there is none."""
        return max(self._of(contestant, scenario, "in flight"), key=lambda one: one.requests_per_s)

    def one(self, contestant: str, scenario: str, ending: str) -> Measured:
        """The cell of one row with this load. Raises LookupError when there is none."""
        return self._of(contestant, scenario, ending)[0]

    def direct(self, model: str) -> tuple[float, float]:
        """Median and CPU time of one row in the framework itself, microseconds. Raises LookupError."""
        found = [(one.p50_us, one.cpu_us) for one in self._results.direct if (one.model, one.rows) == (model, 1)]
        if not found:
            raise LookupError(f"{model} was not called directly")
        return found[0]

    def _of(self, contestant: str, scenario: str, ending: str) -> list[Measured]:
        found = [
            one
            for one in self._measured
            if one.contestant == contestant and one.cell.startswith(f"{scenario}, 1 row,") and one.cell.endswith(ending)
        ]
        if not found:
            raise LookupError(self._why(contestant, scenario, ending))
        return found

    def _why(self, contestant: str, scenario: str, ending: str) -> str:
        for (name, cell), reason in self._results.missing.items():
            if name == contestant and cell.startswith(f"{scenario}, 1 row,") and cell.endswith(ending):
                return f"{contestant}: {reason}"
        return f"{contestant} was not asked for {scenario}, {ending}"


def bars_of(results: Results) -> list[Bar]:
    """All that compare Hexcomb with others."""
    numbers = sorted({one.round for one in results.measured}) or [0]
    rounds = [_Round([one for one in results.measured if one.round == number], results) for number in numbers]
    return [_judged(plan, rounds) for plan in _plans()]


@dataclass(frozen=True, slots=True)
class _Plan:
    what: str
    value: Callable[[_Round], float]
    bar: float
    at_least: bool = True
    unit: str = "×"


def _plans() -> Iterator[_Plan]:
    for other, bar in (("mlserver", 20.0), ("kserve", 10.0), ("triton", 4.0), (ECHO, 0.5)):
        yield _Plan(f"requests/s per core, {TINY}, against {other}", _rates(TINY, other), bar)
    yield _Plan(f"requests/s per core, {TREES}, against mlserver", _rates(TREES, "mlserver"), 15.0)
    for scenario in (TINY, TREES):
        for other in RUN_THE_MODEL:
            what = f"p99 at half of each one's own peak, {scenario}, against {other}"
            yield _Plan(what, _tails(scenario, other), 1.0, at_least=False)
    what = f"{TINY}, 1 in flight: p50 over the framework's own, less the echo's p50"
    yield _Plan(what, _overhead_us, OVERHEAD_US, at_least=False, unit="µs")
    yield _Plan(f"requests/s per core, {IMAGE}, against the best Python contestant", _image_rate, 1.5)
    what = f"CPU outside the run, {IMAGE}, against the same"
    yield _Plan(what, _image_cpu, 0.5, at_least=False)


def _judged(plan: _Plan, rounds: Sequence[_Round]) -> Bar:
    values, missing = list[float](), ""
    for each in rounds:
        try:
            values.append(plan.value(each))
        except LookupError as error:
            missing = str(error)
    if not values:
        return Bar(plan.what, None, None, plan.bar, plan.at_least, plan.unit, missing)
    return Bar(plan.what, statistics.median(values), (min(values), max(values)), plan.bar, plan.at_least, plan.unit)


def _rates(scenario: str, other: str) -> Callable[[_Round], float]:
    return lambda each: each.peak(OURS, scenario).requests_per_s / each.peak(other, scenario).requests_per_s


def _tails(scenario: str, other: str) -> Callable[[_Round], float]:
    return lambda each: each.one(OURS, scenario, _HALF_PEAK).p99_ms / each.one(other, scenario, _HALF_PEAK).p99_ms


def _overhead_us(each: _Round) -> float:
    ours_ms, echo_ms = each.one(OURS, TINY, _ONE).p50_ms, each.one(ECHO, TINY, _ONE).p50_ms
    return (ours_ms - echo_ms) * 1e3 - each.direct("tiny")[0]


def _best_python(each: _Round) -> Measured:
    peaks = []
    for name in PYTHON_SERVERS:
        with contextlib.suppress(LookupError):
            peaks.append(each.peak(name, IMAGE))
    if not peaks:
        raise LookupError("no Python contestant has a figure for the image")
    return max(peaks, key=lambda one: one.requests_per_s)


def _image_rate(each: _Round) -> float:
    return each.peak(OURS, IMAGE).requests_per_s / _best_python(each).requests_per_s


def _image_cpu(each: _Round) -> float:
    run_us = each.direct("image")[1]
    return (each.peak(OURS, IMAGE).cpu_us - run_us) / (_best_python(each).cpu_us - run_us)
