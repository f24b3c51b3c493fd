"""Eviction policies and prefetching, side by side, on traces that they were not tuned on: who waits how long for loads.

Four workloads (`mesh.simulation.workloads`) x three capacities, each replayed on the real cache machine with each
policy, with what a clairvoyant would make of it and a bound that nobody can beat (`mesh.simulation.bounds`). Cold time
is all that requests waited for loads, those that joined a load included.

The policies' constants were chosen on TUNING_SEEDS; figures are of UNSEEN_SEED. Capacities are fractions of what all
models of the trace take together. At a twentieth (for information, outside the bars) LRU serves two thirds of the Zipf
requests cold and nobody could help much: no pod is run like that.

Replays are pure Python and do not depend on the machine: only how long they take does.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from math import inf
from os import cpu_count
from statistics import mean

from mesh.simulation.bounds import clairvoyant, pfoo_lower_s
from mesh.simulation.replay import ReplayOptions, ReplayResult, replay
from mesh.simulation.workloads import WORKLOADS, workload
from tests.bench.figures import Reporter

TUNING_SEEDS = (1, 2)
UNSEEN_SEED = 11
"""The README has seed 12 as well; each takes ten minutes of two cores."""
FRACTIONS = (0.1, 0.2, 0.4)
TIGHT_FRACTION = 0.05
SHARES_OF_CAPACITY = (0.45, 0.6, 0.75, 0.9)
"""Of LRU's capacity, at which hazard with prefetch is measured to find where it waits as long as LRU."""
QUICK_FRACTIONS = (0.2,)
"""Fewer cells, of the same length: in shorter ones there would be no history to learn from."""

POLICIES = ("lru", "gdsf", "hazard", "hazard+prefetch")
BEST = "hazard+prefetch"


@dataclass(frozen=True, slots=True)
class _Cell:
    workload: str
    fraction: float
    seed: int


@dataclass(slots=True)
class _Measured:
    by_policy: dict[str, ReplayResult] = field(default_factory=dict)
    clairvoyant_s: float = 0.0
    pfoo_s: float = 0.0
    share_needed: float | None = None
    """Of LRU's capacity, at which the best waits as long as LRU; None: not asked for."""

    def change(self, policy: str) -> float:
        """Of the cold time against LRU, in percent."""
        return 100.0 * (self.by_policy[policy].cold_time_s / self.by_policy["lru"].cold_time_s - 1.0)

    def gap_closed(self, policy: str) -> float:
        """Of what lies between LRU and the clairvoyant."""
        lru_s = self.by_policy["lru"].cold_time_s
        return (lru_s - self.by_policy[policy].cold_time_s) / (lru_s - self.clairvoyant_s)

    def times_fewer(self, policy: str) -> float:
        """Cold requests."""
        return self.by_policy["lru"].cold_fraction / self.by_policy[policy].cold_fraction


def run(bench: Reporter) -> None:
    """All cells, in as many processes as there are cores."""
    fractions = QUICK_FRACTIONS if bench.quick else (TIGHT_FRACTION, *FRACTIONS)
    cells = [_Cell(name, fraction, UNSEEN_SEED) for name in WORKLOADS for fraction in fractions]
    measured: dict[_Cell, _Measured] = {}
    with ProcessPoolExecutor(cpu_count()) as processes:
        running = {processes.submit(_measure, cell, shares=not bench.quick): cell for cell in cells}
        for done, future in enumerate(as_completed(running), start=1):
            measured[running[future]] = future.result()
            bench.progress(done, len(cells))
    judged = {cell: measured[cell] for cell in cells if cell.fraction in FRACTIONS}
    _summary(bench, judged)
    for cell in cells:
        _row(bench, cell, measured[cell])


def _measure(cell: _Cell, *, shares: bool) -> _Measured:
    trace = workload(cell.workload, cell.seed)
    capacity_bytes = int(cell.fraction * trace.footprint_bytes)

    def played(policy: str, share: float = 1.0) -> ReplayResult:
        name, _, prefetch = policy.partition("+")
        bytes_here = int(share * capacity_bytes)
        return replay(trace, ReplayOptions(capacity_bytes=bytes_here, policy=name, prefetch=bool(prefetch)))

    found = _Measured({policy: played(policy) for policy in POLICIES})
    found.clairvoyant_s = clairvoyant(trace, ReplayOptions(capacity_bytes=capacity_bytes)).cold_time_s
    found.pfoo_s = pfoo_lower_s(trace, capacity_bytes)
    if shares and cell.fraction in FRACTIONS:
        at_shares = [(share, played(BEST, share)) for share in SHARES_OF_CAPACITY]
        # Where a model is larger than the pod, its requests are refused, and wait for nothing: that is no equal.
        by_share = [(share, inf if result.refused else result.cold_time_s) for share, result in at_shares]
        by_share.append((1.0, found.by_policy[BEST].cold_time_s))
        found.share_needed = _share_for(by_share, found.by_policy["lru"].cold_time_s)
    return found


def _share_for(by_share: list[tuple[float, float]], cold_time_s: float) -> float:
    """Where the cold time falls to this, between the shares that were measured; the least of them if it is lower."""
    before_share, before_s = by_share[0]
    if before_s <= cold_time_s:
        return before_share
    for share, share_s in by_share[1:]:
        if share_s <= cold_time_s:
            if before_s == inf:
                return share
            return before_share + (share - before_share) * (before_s - cold_time_s) / (before_s - share_s)
        before_share, before_s = share, share_s
    return before_share


def _summary(bench: Reporter, judged: dict[_Cell, _Measured]) -> None:
    every = list(judged.values())
    note = f"{len(every)} cells: workloads x capacities, seed {UNSEEN_SEED}"
    for policy, bar in (("gdsf", None), ("hazard", -22.0), (BEST, -33.0)):
        change = mean(each.change(policy) for each in every)
        bench.figure(f"{policy}: cold time against LRU, mean", change, "%", bar=bar, note=note)
        worst = max(judged, key=lambda cell: judged[cell].change(policy))
        bench.figure(
            f"{policy}: the same, worst cell",
            judged[worst].change(policy),
            "%",
            bar=2.0,
            note=f"{worst.workload} {worst.fraction:.0%} seed {worst.seed}",
        )
    bench.figure("clairvoyant: cold time against LRU, mean", mean(_against_lru(each) for each in every), "%")
    for policy, gap_bar in (("hazard", None), (BEST, 0.7)):
        closed = mean(each.gap_closed(policy) for each in every)
        bench.figure(f"{policy}: share of the gap to the clairvoyant", closed, "", bar=gap_bar, at_least=True)
        fewer = mean(each.times_fewer(policy) for each in every)
        bench.figure(f"{policy}: cold requests against LRU", fewer, "x fewer", bar=1.5, at_least=True)
    if needed := [each.share_needed for each in every if each.share_needed is not None]:
        bench.figure(f"{BEST}: capacity for LRU's cold time", mean(needed), "x LRU's", bar=0.75)
    prefetches = sum(each.by_policy[BEST].prefetches for each in every)
    wasted = sum(each.by_policy[BEST].prefetches_wasted for each in every)
    loads = sum(each.by_policy[BEST].loads for each in every)
    bench.figure("prefetches for nothing", 100.0 * wasted / max(1, prefetches), "%", note=f"of {prefetches:,}")
    lru_loads = sum(each.by_policy["lru"].loads for each in every)
    bench.figure("loads in all", float(loads), "", baseline=float(lru_loads), baseline_name="LRU")


def _against_lru(each: _Measured) -> float:
    return 100.0 * (each.clairvoyant_s / each.by_policy["lru"].cold_time_s - 1.0)


def _row(bench: Reporter, cell: _Cell, each: _Measured) -> None:
    lru = each.by_policy["lru"]
    changes = ", ".join(
        f"{policy} {each.change(policy):+.1f} % ({each.by_policy[policy].cold_fraction:.3f})" for policy in POLICIES[1:]
    )
    best = each.by_policy[BEST]
    pfoo = 100.0 * (each.pfoo_s / lru.cold_time_s - 1.0)
    bench.figure(
        f"{cell.workload} {cell.fraction:.0%} seed {cell.seed}: LRU",
        lru.cold_time_s,
        "s cold",
        note=f"({lru.cold_fraction:.3f}); {changes}; clairvoyant {_against_lru(each):+.1f} %, PFOO-L {pfoo:+.1f} %; "
        f"p99 {lru.cold_p99_ms:.0f} -> {best.cold_p99_ms:.0f} ms; prefetched {best.prefetches}, "
        f"{best.prefetches_wasted} for nothing",
    )
