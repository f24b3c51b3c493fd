"""The cells of a plan: one pool each (pods, capacity, policy, prefetch), replayed on one trace.

    trace  x  (pods, capacity, policy)...  ->  what would have happened in each

A cell says what its pool is, not how it came about; capacities are of all pods together, in equal parts. Beside each
cell stands what a clairvoyant would have waited there: somebody who knows every next use, but loads on demand only.
That is a cell like any other, replayed once for all policies of a pool.

Cells are replayed side by side in processes (a replay is pure Python, and nothing but the cell and the trace enters
it), so the answers do not depend on how many there are. Deliberately absent: which cells to ask for (`mesh.cli.plan`,
`mesh.planning.finding`), how they look (`mesh.cli.plan_tables`, `mesh.planning.charts`).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.pool import Pool
from typing import Any

from mesh.simulation.bounds import Clairvoyant
from mesh.simulation.replay import ReplayOptions, ReplayResult, home_of, replay
from mesh.simulation.workloads.trace import Trace

PROCESSES_MAX = 8
"""Each holds the trace and a pod's state; more help no plan that anyone waits for."""

REQUESTS_WORTH_PROCESSES = 20_000
"""Replayed in all cells together; less is done before a process has started."""

CLAIRVOYANT = "clairvoyant"
"""The policy of the cells that others are held against. It cannot be asked for: no pod has it."""

Advance = Callable[[int], None]
"""Told how many replays more are done."""


class TooSmall(Exception):
    """A model of the trace is larger than a pod; the message says which, and what would do."""


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """One pool."""

    pods: int
    capacity_bytes: int
    """Of all pods together."""
    policy: str
    prefetch: bool = False
    loads_concurrent_max: int = 2
    """On each pod."""

    @property
    def pod_bytes(self) -> int:
        """What one pod holds."""
        return self.capacity_bytes // self.pods

    @property
    def policy_shown(self) -> str:
        """`hazard+prefetch`: as it is asked for."""
        return f"{self.policy}+prefetch" if self.prefetch else self.policy

    @property
    def ideal(self) -> Cell:
        """The same pool with one who knows the future."""
        return replace(self, policy=CLAIRVOYANT, prefetch=False)


@dataclass(frozen=True, slots=True)
class Planned:
    """What would have happened in a cell."""

    cell: Cell
    capacity_fraction: float
    """Of what all models take together."""
    result: ReplayResult
    clairvoyant_cold_time_s: float | None = None
    """None: it was not asked."""

    def to_json(self) -> dict[str, Any]:
        """For scripts; times in seconds unless the name says otherwise."""
        cell, result = self.cell, self.result
        return {
            "pods": cell.pods,
            "capacity_bytes": cell.capacity_bytes,
            "capacity_fraction": round(self.capacity_fraction, 6),
            "policy": cell.policy,
            "prefetch": cell.prefetch,
            "cold_fraction": round(result.cold_fraction, 6),
            "hit_ratio": round(1 - (result.cold + result.refused) / result.requests, 6) if result.requests else 1.0,
            "cold_time_s": round(result.cold_time_s, 6),
            "clairvoyant_cold_time_s": None
            if self.clairvoyant_cold_time_s is None
            else round(self.clairvoyant_cold_time_s, 6),
            "cold_p50_ms": round(result.cold_p50_ms, 3),
            "cold_p99_ms": round(result.cold_p99_ms, 3),
            "requests": result.requests,
            "cold": result.cold,
            "refused": result.refused,
            "loads": result.loads,
            "loaded_bytes": result.loaded_bytes,
            "evictions": result.evictions,
            "prefetches": result.prefetches,
            "prefetches_used": result.prefetches_used,
            "prefetches_wasted": result.prefetches_wasted,
            "memory_max_bytes": max((held for _, held in result.memory), default=0),
            "memory": [[round(time_s, 3), held] for time_s, held in result.memory],
        }


def check_fits(trace: Trace, cell: Cell) -> None:
    """Raises TooSmall when a pod of this cell could not hold some model even alone."""
    largest = max((trace.models[position] for position in set(trace.asked)), key=lambda model: model.size_bytes)
    if largest.size_bytes > cell.pod_bytes:
        raise TooSmall(
            f"model {largest.name!r} takes {largest.size_bytes:,} bytes, more than a pod holds: {cell.pod_bytes:,} "
            f"({cell.capacity_bytes:,} over {cell.pods} pod{'s' if cell.pods > 1 else ''}); the least that would do is "
            f"{largest.size_bytes * cell.pods:,} over all pods, a fraction of "
            f"{largest.size_bytes * cell.pods / trace.footprint_bytes:.4f}"
        )


def bytes_that_never_evict(trace: Trace, pods: int) -> int:
    """The least capacity, over all pods, at which no pod ever evicts: the fullest pod's share, for each."""
    homes = [0] * pods
    for position in set(trace.asked):
        model = trace.models[position]
        homes[home_of(model.name, pods)] += model.size_bytes
    return max(homes) * pods


def replay_cell(trace: Trace, cell: Cell) -> ReplayResult:
    """What happens in one cell; every model fits a pod."""
    options = ReplayOptions(
        capacity_bytes=cell.capacity_bytes,
        pods=cell.pods,
        policy=Clairvoyant(trace) if cell.policy == CLAIRVOYANT else cell.policy,
        prefetch=cell.prefetch,
        loads_concurrent_max=cell.loads_concurrent_max,
    )
    return replay(trace, options)


class Planner:
    """Plans cells of one trace, side by side; remembers what was replayed."""

    def __init__(self, trace: Trace, pool: Pool | None = None, advance: Advance = lambda more: None) -> None:
        self.trace = trace
        self._pool = pool
        self._advance = advance
        self._results: dict[Cell, ReplayResult] = {}

    def plan(self, cells: Sequence[Cell], *, ideals: bool = True) -> list[Planned]:
        """These cells, in this order; with `ideals` each beside the clairvoyant's. Raises TooSmall before the first
        is replayed."""
        wanted = dict.fromkeys(cells)
        for cell in wanted:
            check_fits(self.trace, cell)
        if ideals:
            wanted |= dict.fromkeys(cell.ideal for cell in cells)
        self._replay([cell for cell in wanted if cell not in self._results])
        return [self._planned(cell) for cell in cells]

    @property
    def planned(self) -> list[Planned]:
        """All cells so far, in order."""
        return [self._planned(cell) for cell in sorted(self._results) if cell.policy != CLAIRVOYANT]

    def _replay(self, cells: Sequence[Cell]) -> None:
        if self._pool is None:
            done: Iterable[tuple[Cell, ReplayResult]] = ((cell, replay_cell(self.trace, cell)) for cell in cells)
        else:
            done = self._pool.imap_unordered(_replay_there, cells)
        for cell, result in done:
            self._results[cell] = result
            self._advance(1)

    def _planned(self, cell: Cell) -> Planned:
        ideal = self._results.get(cell.ideal)
        return Planned(
            cell,
            cell.capacity_bytes / self.trace.footprint_bytes,
            self._results[cell],
            None if ideal is None else ideal.cold_time_s,
        )


def replays_for(cells: Sequence[Cell]) -> int:
    """How many replays these cells take, with their ideals."""
    return len({*cells, *(cell.ideal for cell in cells)})


@contextmanager
def planning(trace: Trace, replays_about: int, advance: Advance) -> Iterator[Planner]:
    """A planner, with processes of its own when there is more than one replay to do and more than one core."""
    processes = min(PROCESSES_MAX, replays_about, len(os.sched_getaffinity(0)))
    if processes < 2 or len(trace) * replays_about < REQUESTS_WORTH_PROCESSES:
        yield Planner(trace, None, advance)
        return
    # Not forked: the thread of a progress bar may hold a lock at that moment. Leaving the block ends them.
    with multiprocessing.get_context("spawn").Pool(processes, _begin_there, (trace,)) as pool:
        yield Planner(trace, pool, advance)


_trace_there: list[Trace] = []
"""In a process of a pool: the trace of its plan, handed over once and not with every cell."""


def _begin_there(trace: Trace) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the parent ends its children, without noise
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _trace_there[:] = [trace]


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _replay_there(cell: Cell) -> tuple[Cell, ReplayResult]:
    return cell, replay_cell(_trace_there[0], cell)
