"""The outcome of a demo: a record for scripts and a table for people, made from the same numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mesh.demo.memory import RESIDENT_SET_BAR, ServerMemory
from mesh.demo.upheaval import UpheavalOutcome

if TYPE_CHECKING:
    from rich.console import Console

MIB = 1024 * 1024
_BAR_WIDTH = 40


@dataclass(frozen=True, slots=True)
class FormatRow:
    """One format. `evictions` is what the server counted; all else is what the client saw."""

    format: str
    models: int
    requests: int
    hits: int
    misses: int
    evictions: int
    warm_p50_ms: float | None
    warm_p99_ms: float | None
    cold_p50_ms: float | None
    cold_p99_ms: float | None
    bit_equal: int
    wrong: int
    errors: int


@dataclass(frozen=True, slots=True)
class DemoOutcome:
    """Everything that a run of the demo found."""

    total: FormatRow
    formats: tuple[FormatRow, ...]
    capacity_bytes: int
    used_bytes: int
    models_bytes: int
    """Estimated size of all models, loaded together."""
    models_resident: int
    memory: tuple[ServerMemory, ...]
    """Of each server."""
    pods: int
    upheaval: UpheavalOutcome
    requests_per_s: float
    training_s: float
    serving_s: float
    total_s: float
    seed: int
    complaints: tuple[str, ...]

    @property
    def baseline_rss_bytes(self) -> int:
        """Of all servers without models."""
        return sum(server.baseline_rss_bytes for server in self.memory)

    @property
    def peak_rss_bytes(self) -> int:
        """Each server's highest, together."""
        return sum(server.peak_rss_bytes for server in self.memory)

    @property
    def rss_limit_bytes(self) -> int:
        """What the resident sets may not exceed together; each has a limit of its own."""
        return sum(server.rss_limit_bytes for server in self.memory)

    @property
    def failures(self) -> tuple[str, ...]:
        """Why the demo failed; empty when it did not."""
        found = []
        if self.total.wrong:
            found.append(f"{self.total.wrong:,} answers differ from the framework's own")
        if self.total.errors:
            found.append(f"{self.total.errors:,} requests were answered with an error")
        found += [
            f"the resident set of {server.name} reached {_mib(server.peak_rss_bytes)}, above the "
            f"{_mib(server.rss_limit_bytes)} that baseline and capacity allow"
            for server in self.memory
            if server.peak_rss_bytes > server.rss_limit_bytes
        ]
        if self.used_bytes > self.capacity_bytes:
            found.append(f"the ledger holds {_mib(self.used_bytes)} on a capacity of {_mib(self.capacity_bytes)}")
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """One object: the totals at the top, a list of formats."""
        totals = {name: value for name, value in asdict(self.total).items() if name != "format"}
        nested = {"total", "formats", "complaints", "memory", "upheaval"}
        rest = {name: value for name, value in asdict(self).items() if name not in nested}
        upheaval = {name: value for name, value in asdict(self.upheaval).items() if name != "complaints"}
        return {
            **totals,
            **rest,
            **upheaval,
            "baseline_rss_bytes": self.baseline_rss_bytes,
            "peak_rss_bytes": self.peak_rss_bytes,
            "rss_limit_bytes": self.rss_limit_bytes,
            "memory": [{**asdict(server), "rss_limit_bytes": server.rss_limit_bytes} for server in self.memory],
            "formats": [asdict(row) for row in self.formats],
            "complaints": list(self.complaints),
            "failures": list(self.failures),
        }


def make_row(format_name: str, models: int, evictions: int, tally: Mapping[str, Any]) -> FormatRow:
    """A row from what the load generator counted."""
    return FormatRow(
        format=format_name,
        models=models,
        requests=int(tally.get("requests", 0)),
        hits=int(tally.get("hits", 0)),
        misses=int(tally.get("misses", 0)),
        evictions=evictions,
        warm_p50_ms=tally.get("warm_p50_ms"),
        warm_p99_ms=tally.get("warm_p99_ms"),
        cold_p50_ms=tally.get("cold_p50_ms"),
        cold_p99_ms=tally.get("cold_p99_ms"),
        bit_equal=int(tally.get("bit_equal", 0)),
        wrong=int(tally.get("wrong", 0)),
        errors=int(tally.get("errors", 0)),
    )


def show_outcome(outcome: DemoOutcome, console: Console) -> None:
    """The table, the memory, the verdict."""
    from rich.table import Table

    table = Table(title=None, box=None, pad_edge=False, header_style="bold")
    for heading in (
        "format", "models", "requests", "hits", "misses", "evicted", "warm p50", "p99", "cold p50", "p99 ", "wrong",
        "errors",
    ):  # fmt: skip
        table.add_column(heading, justify="left" if heading == "format" else "right")
    for row in outcome.formats:
        table.add_row(*_cells(row))
    table.add_section()
    table.add_row(*_cells(outcome.total), style="bold")
    console.print(table)
    console.print("[dim]times in ms, as the client saw them[/dim]")
    console.print()
    _show_memory(outcome, console)
    console.print()
    if outcome.pods > 1:
        _show_upheaval(outcome, console)
    answered = outcome.total.hits + outcome.total.misses
    console.print(
        f"{answered:,} answers, {outcome.total.bit_equal:,} of them equal to the bit to the framework's own; "
        f"{outcome.requests_per_s:,.0f} requests/s in {outcome.serving_s:.1f} s; {outcome.total_s:.1f} s in all "
        f"(training {outcome.training_s:.1f} s)."
    )
    for complaint in outcome.complaints[:5]:
        console.print(f"  {complaint}", style="red", markup=False, highlight=False)
    if outcome.failures:
        for failure in outcome.failures:
            console.print(f"FAILED: {failure}.", style="bold red", markup=False, highlight=False)
    else:
        console.print("Every prediction was right.", style="bold green")


def _show_memory(outcome: DemoOutcome, console: Console) -> None:
    share = outcome.capacity_bytes / outcome.models_bytes if outcome.models_bytes else 1.0
    filled = outcome.used_bytes / outcome.capacity_bytes if outcome.capacity_bytes else 0.0
    console.print(
        f"capacity   {_bar(filled)} {_mib(outcome.used_bytes)} of {_mib(outcome.capacity_bytes)}: "
        f"{outcome.models_resident} of {outcome.total.models} models resident, room for {share:.0%} of their bytes",
        highlight=False,
    )
    for server in outcome.memory:
        filled = server.peak_rss_bytes / server.rss_limit_bytes if server.rss_limit_bytes else 0.0
        console.print(
            f"{server.name:<10} {_bar(filled)} "
            f"{_mib(server.peak_rss_bytes)} at its peak, {_mib(server.rss_limit_bytes)} allowed "
            f"({RESIDENT_SET_BAR} x (baseline {_mib(server.baseline_rss_bytes)} + capacity))",
            highlight=False,
        )


def _show_upheaval(outcome: DemoOutcome, console: Console) -> None:
    found = outcome.upheaval
    lines = [f"{outcome.pods} pods, all asked."]
    if found.kills:
        back = "" if found.restored_s is None else f", servable elsewhere within {found.restored_s:.1f} s"
        again = "" if found.restarted_s is None else f"; it was ready again {found.restarted_s:.1f} s after its restart"
        lines.append(f"One was killed: {found.lost} hot models were its alone{back}{again}.")
    if found.drains:
        lines.append(f"One was drained, and had handed over and left after {found.drained_s:.1f} s.")
    console.print(" ".join(lines), highlight=False)


def _cells(row: FormatRow) -> list[str]:
    return [
        row.format,
        f"{row.models:,}",
        f"{row.requests:,}",
        f"{row.hits:,}",
        f"{row.misses:,}",
        f"{row.evictions:,}",
        _ms(row.warm_p50_ms),
        _ms(row.warm_p99_ms),
        _ms(row.cold_p50_ms),
        _ms(row.cold_p99_ms),
        _alarming(row.wrong),
        _alarming(row.errors),
    ]


def _alarming(count: int) -> str:
    return f"[bold red]{count:,}[/bold red]" if count else "0"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / MIB:,.1f} MiB"


def _bar(share: float) -> str:
    cells = round(min(max(share, 0.0), 1.0) * _BAR_WIDTH)
    return "█" * cells + "░" * (_BAR_WIDTH - cells)
