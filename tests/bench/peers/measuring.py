"""Rounds: in each, every contestant is started for each fleet and measured in its cells, in an order that turns.

Only one server is up at a time, because idle ones are not idle (Ray's daemons are not), and all that is compared is
measured minutes apart rather than hours: what drifts on the machine drifts for everybody.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

from tests.bench.peers.answers import LoadFailed
from tests.bench.peers.artifacts import Artifact, Asked, Fleet, ask, load_directly
from tests.bench.peers.contestants import Contestant
from tests.bench.peers.environments import CannotInstall, python_of
from tests.bench.peers.load import Load, LoadResult, pin_to, run_load
from tests.bench.peers.process_tree import proportional_bytes_of
from tests.bench.peers.running import Running, ServerFailed, encoded, expected_of, own_python, running
from tests.bench.peers.scenarios import Cell, asked_models

SERVER_CORE, LOAD_CORE = 0, 1
_HALF = 0.5
_DIRECT_S = 0.5
_LIMITED_BY_LOAD = 0.9
"""A load generator that is busy for more than this share of its core may be what limits the result."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One contestant, one cell, one round."""

    contestant: str
    cell: str
    round: int
    requests_per_s: float
    wrong: int
    p50_ms: float
    p99_ms: float
    p999_ms: float
    cpu_us: float
    """Of all the server's processes, per answer."""
    memory_bytes: int
    """Pss of all the server's processes, right after."""
    load_cpu_us: float
    """Of the load generator, per answer; in paced cells it spins."""
    limited_by_load: bool


@dataclass(frozen=True, slots=True)
class Direct:
    """A framework that is called in a loop on the server's core, per run."""

    model: str
    rows: int
    p50_us: float
    cpu_us: float


@dataclass(slots=True)
class Results:
    """What came out; `missing` says per contestant and cell why there is no figure."""

    measured: list[Measured] = field(default_factory=list)
    missing: dict[tuple[str, str], str] = field(default_factory=dict)
    direct: list[Direct] = field(default_factory=list)


class Comparison:
    """Everything that a run of the comparison needs to know."""

    def __init__(
        self,
        home: Path,
        contestants: Sequence[Contestant],
        cells: Sequence[Cell],
        fleets: dict[str, Fleet],
        *,
        warm_up_s: float,
        duration_s: float,
        say: Callable[[str], None],
    ) -> None:
        self._home = home
        self._contestants = contestants
        self._cells = cells
        self._fleets = fleets
        self._warm_up_s = warm_up_s
        self._duration_s = duration_s
        self._say = say
        self._asked: dict[tuple[str, str, int], list[Asked]] = {}
        spawn = get_context("spawn")
        self._loader = ProcessPoolExecutor(1, mp_context=spawn, initializer=pin_to, initargs=((LOAD_CORE,),))
        self.results = Results()

    def run(self, rounds: int) -> None:
        """All rounds, then how long the frameworks alone take; `results` grow as it goes."""
        pythons = dict(self._installed())
        for number in range(rounds):
            for fleet_name in dict.fromkeys(cell.fleet for cell in self._cells):
                turned = number % max(1, len(self._contestants))
                for contestant in (*self._contestants[turned:], *self._contestants[:turned]):
                    if contestant.name in pythons:
                        self._measure(contestant, pythons[contestant.name], fleet_name, number)
        self._measure_directly()
        self._loader.shutdown()

    def give_up(self) -> None:
        """The run was ended: what is measured just now is not waited for."""
        self._loader.shutdown(wait=False, cancel_futures=True)

    def _installed(self) -> Iterator[tuple[str, Path]]:
        for contestant in self._contestants:
            if not contestant.requirements:
                yield contestant.name, own_python()
                continue
            self._say(f"{contestant.name}: its environment")
            try:
                yield contestant.name, python_of(self._home / "environments", contestant.name, contestant.requirements)
            except CannotInstall as error:
                self._miss(contestant, self._cells, str(error))

    def _measure(self, contestant: Contestant, python: Path, fleet_name: str, number: int) -> None:
        cells = []
        for cell in self._cells:
            if cell.fleet != fleet_name:
                continue
            reason = contestant.why_not(cell)
            if reason:
                self._miss(contestant, [cell], reason)
            elif (contestant.name, cell.name) not in self.results.missing:
                cells.append(cell)
        if not cells:
            return
        fleet = self._fleets[fleet_name]
        self._say(f"round {number + 1}, {contestant.name}, {fleet_name}: starting")
        used = dict.fromkeys(name for cell in cells for name in asked_models(cell, fleet))
        first = [self._questions(fleet_name, name, 1)[0] for name in used]
        began_s = time.perf_counter()
        try:
            with running(contestant, python, fleet_name, fleet, first, SERVER_CORE, self._home / "servers") as server:
                self._say(f"round {number + 1}, {contestant.name}: ready in {time.perf_counter() - began_s:.1f} s")
                for cell in cells:
                    self._measure_cell(server, cell, number)
        except ServerFailed as error:
            self._miss(contestant, cells, f"did not start: {error}")

    def _measure_cell(self, server: Running, cell: Cell, number: int) -> None:
        rate_per_s = 0.0
        if cell.half_peak:
            rate_per_s = self._peak(server.contestant.name, cell, number) * _HALF
            if not rate_per_s:
                return self._miss(server.contestant, [cell], "no peak was measured")
        load = self._load(server, cell, rate_per_s)
        try:
            result = self._loader.submit(run_load, load).result()
            if not result.answered:
                raise LoadFailed(f"no right answer in {result.duration_s:.1f} s, {result.wrong} wrong or failed")
        except LoadFailed as error:
            return self._miss(server.contestant, [cell], f"round {number + 1}: {error}")
        measured = _measured(server, cell, number, result)
        self.results.measured.append(measured)
        self._say(
            f"round {number + 1}, {measured.contestant}: {cell.name}: {measured.requests_per_s:,.0f}/s, "
            f"p50 {measured.p50_ms:.2f} p99 {measured.p99_ms:.2f} ms, {measured.cpu_us:.0f} µs of CPU, "
            f"load {measured.load_cpu_us:.0f} µs" + (f", {measured.wrong} WRONG" if measured.wrong else "")
        )

    def _load(self, server: Running, cell: Cell, rate_per_s: float) -> Load:
        fleet = self._fleets[cell.fleet]
        order: list[int] = []
        questions: list[Asked] = []
        numbers: dict[str, list[int]] = {}
        turns: dict[str, int] = defaultdict(int)
        for name in asked_models(cell, fleet):
            if name not in numbers:
                added = self._questions(cell.fleet, name, cell.rows)
                numbers[name] = list(range(len(questions), len(questions) + len(added)))
                questions += added
            order.append(numbers[name][turns[name] % len(numbers[name])])
            turns[name] += 1
        if cell.model:
            order = numbers[cell.model]
        contestant, address = server.contestant, server.address
        return Load(
            address=address,
            grpc_path="/inference.GRPCInferenceService/ModelInfer" if contestant.speaks_grpc else "",
            requests=tuple(encoded(contestant, address, asked) for asked in questions),
            expected=tuple(expected_of(contestant, address, asked) for asked in questions),
            order=tuple(order),
            in_flight=cell.in_flight,
            rate_per_s=rate_per_s,
            warm_up_s=self._warm_up_s,
            duration_s=self._duration_s,
            server_pids=server.pids(),
        )

    def _questions(self, fleet_name: str, model: str, rows: int) -> list[Asked]:
        key = (fleet_name, model, rows)
        if key not in self._asked:
            self._asked[key] = ask(self._fleets[fleet_name][model], rows)
        return self._asked[key]

    def _peak(self, contestant: str, cell: Cell, number: int) -> float:
        same = {
            other.name
            for other in self._cells
            if (other.model, other.rows, other.half_peak) == (cell.model, cell.rows, False)
        }
        return max(
            (
                measured.requests_per_s
                for measured in self.results.measured
                if measured.contestant == contestant and measured.round == number and measured.cell in same
            ),
            default=0.0,
        )

    def _measure_directly(self) -> None:
        spawn = get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawn, initializer=pin_to, initargs=((SERVER_CORE,),)) as caller:
            for fleet_name, model, rows in sorted({(cell.fleet, cell.model, cell.rows) for cell in self._cells}):
                if model:
                    artifact = self._fleets[fleet_name][model]
                    self.results.direct.append(caller.submit(_call_directly, artifact, rows).result())

    def _miss(self, contestant: Contestant, cells: Sequence[Cell], reason: str) -> None:
        for cell in cells:
            if (contestant.name, cell.name) not in self.results.missing:
                self.results.missing[contestant.name, cell.name] = reason
                self._say(f"{contestant.name}: {cell.name}: not measured: {reason}")


def _measured(server: Running, cell: Cell, number: int, result: LoadResult) -> Measured:
    p50_ms, p99_ms, p999_ms = result.latencies_ms
    own_share = result.own_cpu_s / result.duration_s
    return Measured(
        server.contestant.name,
        cell.name,
        number,
        result.answered / result.duration_s,
        result.wrong,
        p50_ms,
        p99_ms,
        p999_ms,
        result.server_cpu_s / result.answered * 1e6,
        proportional_bytes_of(server.pids()),
        result.own_cpu_s / result.answered * 1e6,
        not cell.half_peak and own_share > _LIMITED_BY_LOAD,
    )


def _call_directly(artifact: Artifact, rows: int) -> Direct:
    asked = ask(artifact, rows)[0]
    run = load_directly(artifact)
    for _ in range(20):
        run(asked.rows)
    took_s = []
    cpu_s, until_s = time.process_time(), time.perf_counter() + _DIRECT_S
    while (began_s := time.perf_counter()) < until_s:
        run(asked.rows)
        took_s.append(time.perf_counter() - began_s)
    cpu_s = time.process_time() - cpu_s
    return Direct(artifact.name, rows, statistics.median(took_s) * 1e6, cpu_s / len(took_s) * 1e6)
