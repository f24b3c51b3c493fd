"""A plan as lines and rows: what `hexcomb plan` prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mesh.cli.sizes import show_size
from mesh.planning.finding import Found

if TYPE_CHECKING:
    from mesh.cli.plan_options import Source
    from mesh.planning.cells import Planned
    from mesh.planning.finding import Goal, NotFound

_HEADINGS = (
    "pods", "capacity", "of all", "policy", "cold", "p50 ms", "p99 ms", "waited", "clairvoyant", "loads", "evicted",
    "read",
)  # fmt: skip
_PREFETCH_HEADINGS = ("prefetched", "wasted")
CELL_NUMBERS = tuple(heading for heading in (*_HEADINGS, *_PREFETCH_HEADINGS) if heading != "policy")
"""Aligned to the right."""


def headline(source: Source) -> list[str]:
    """What is replayed, and what must be known of it."""
    trace = source.trace
    lines = [
        f"{source.named}: {len(trace):,} requests in {_duration(trace.span_s)} for {len(set(trace.asked)):,} models, "
        f"which take {show_size(trace.footprint_bytes)}"
    ]
    if source.observed is not None:
        seen = source.observed
        lines.append(
            f"in the log {seen.cold_fraction:.2%} were cold, p50 {seen.cold_p50_ms:,.0f} ms, p99 "
            f"{seen.cold_p99_ms:,.0f} ms, their runs included"
        )
    return [*lines, *(f"note: {remark}" for remark in source.remarks)]


def headings_of(cells: Sequence[Planned]) -> tuple[str, ...]:
    """Columns on prefetches only where there were any."""
    return (*_HEADINGS, *_PREFETCH_HEADINGS) if _with_prefetch(cells) else _HEADINGS


def cell_rows(cells: Sequence[Planned], goal: Goal | None = None) -> list[list[str]]:
    """A row for each cell, under `headings_of`; with a goal one column more: whether it is kept."""
    with_prefetch = _with_prefetch(cells)
    rows = []
    for planned in cells:
        cell, result, ideal_s = planned.cell, planned.result, planned.clairvoyant_cold_time_s
        row = [
            str(cell.pods),
            show_size(cell.capacity_bytes),
            f"{planned.capacity_fraction:.1%}",
            cell.policy_shown,
            f"{result.cold_fraction:.2%}",
            f"{result.cold_p50_ms:,.0f}",
            f"{result.cold_p99_ms:,.0f}",
            f"{result.cold_time_s:,.1f} s",
            "-" if ideal_s is None else f"{ideal_s:,.1f} s",
            f"{result.loads:,}",
            f"{result.evictions:,}",
            show_size(result.loaded_bytes),
        ]
        if with_prefetch:
            row += [f"{result.prefetches:,}", f"{result.prefetches_wasted:,}"]
        if goal is not None:
            row.append("kept" if not goal.missed(planned) else "missed")
        rows.append(row)
    return rows


def answer_to_json(answer: Found | NotFound) -> dict[str, Any]:
    """For scripts: `capacity_bytes` is null where no capacity keeps the goal."""
    goal = {"cold_fraction": answer.goal.cold_fraction_max, "cold_p99_ms": answer.goal.cold_p99_max_ms}
    if isinstance(answer, Found):
        below = None if answer.below is None else {**_short(answer.below), "why": answer.goal.missed(answer.below)}
        return {"goal": goal, **_short(answer.least), "below": below}
    cell = answer.most.cell
    return {
        "goal": goal,
        "capacity_bytes": None,
        "pods": cell.pods,
        "policy": cell.policy,
        "prefetch": cell.prefetch,
        "most": _short(answer.most),
        "why": list(answer.why),
    }


def _short(planned: Planned) -> dict[str, Any]:
    return {name: value for name, value in planned.to_json().items() if name != "memory"}


def _with_prefetch(cells: Sequence[Planned]) -> bool:
    return any(planned.cell.prefetch for planned in cells)


def _duration(seconds: float) -> str:
    for limit, divisor, unit in ((120.0, 1.0, "s"), (7200.0, 60.0, "min"), (172_800.0, 3600.0, "h")):
        if seconds < limit:
            return f"{seconds / divisor:.1f} {unit}"
    return f"{seconds / 86_400:.1f} d"
