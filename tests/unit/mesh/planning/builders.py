"""Valid defaults, so that a test states only what matters."""

from __future__ import annotations

from collections.abc import Sequence

from mesh.planning.cells import Cell, Planned
from mesh.simulation.replay import Progress, ReplayResult
from mesh.simulation.workloads.trace import Trace, TraceModel, trace_of

MB = 1_000_000


def cell(pods: int = 1, capacity_bytes: int = 100 * MB, policy: str = "lru", *, prefetch: bool = False) -> Cell:
    return Cell(pods, capacity_bytes, policy, prefetch)


def planned(
    where: Cell | None = None,
    *,
    cold: int = 100,
    requests: int = 1000,
    cold_p99_ms: float = 50.0,
    cold_time_s: float = 10.0,
    refused: int = 0,
    clairvoyant_s: float = 5.0,
    fraction: float = 0.2,
) -> Planned:
    result = ReplayResult(
        requests=requests,
        cold=cold,
        refused=refused,
        cold_time_s=cold_time_s,
        cold_p50_ms=cold_p99_ms / 2,
        cold_p99_ms=cold_p99_ms,
        loads=cold,
        evictions=cold // 2,
        prefetches=0,
        prefetches_used=0,
        prefetches_wasted=0,
        loaded_bytes=cold * MB,
        memory=((0.0, 0), (50.0, 60 * MB), (100.0, 90 * MB)),
        progress=(
            Progress(0.0, 0, 0),
            Progress(50.0, requests // 2, cold // 2),
            Progress(100.0, requests, cold),
        ),
    )
    return Planned(where or cell(), fraction, result, clairvoyant_s)


def round_robin(models: int = 4, rounds: int = 50, size_bytes: int = 10 * MB, load_s: float = 0.1) -> Trace:
    """Every model in turn, one a second: LRU with less than all of them never hits."""
    catalog: Sequence[TraceModel] = [TraceModel(f"m{number}", size_bytes, load_s) for number in range(models)]
    return trace_of(catalog, [(float(at), at % models) for at in range(models * rounds)])
