"""`make bench`: run the benches one after the other, show one table, keep the figures as JSON.

What was found is kept as it comes, so that a run that is ended before its time has not been for nothing: `finished` is
false in the file then, and `standing` says how far its last bench was. Where nobody watches a terminal, the same is
said in lines on stderr. Exits with 1 when a figure misses its bar or a bench fails.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import signal
import sys
import time
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from tests.bench.figures import Figure, figure_from_json
from tests.bench.running import ROOT, BenchFailed, said_by
from tests.bench.worker import SETUP

BENCHES = (
    "load_time", "density", "churn", "sizes", "admission", "idle", "stampede", "request_cost", "batching",
    "registration", "transport", "loads_beside", "etcd_store", "placement_decisions", "large_pool", "pool_memory",
    "forwarding", "cold_path", "thrash", "fine_tunes", "hot_copies", "gpu_return", "plan_fidelity", "eviction_policies",
    "demo", "pipelines",
)  # fmt: skip
CACHE_DIR = ROOT / ".cache" / "bench"
RESULTS = ROOT / ".cache" / "bench.json"
_KEPT_EVERY_S = 10.0
"""And with each figure."""


@dataclass(slots=True)
class _Outcome:
    quick: bool
    figures: list[Figure] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    standing: str = ""
    """Where the bench that runs is."""
    began_s: float = field(default_factory=time.perf_counter)
    load_before: float = field(default_factory=lambda: os.getloadavg()[0])
    kept_s: float = -math.inf

    @property
    def exit_code(self) -> int:
        return 1 if self.failed or any(figure.meets is False for figure in self.figures) else 0

    def keep(self, *, finished: bool) -> dict[str, Any]:
        """Write all there is, and return it."""
        self.kept_s = time.perf_counter()
        record = {
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "quick": self.quick,
            "seconds": round(self.kept_s - self.began_s, 1),
            "load_average_before": round(self.load_before, 2),
            "load_average_after": round(os.getloadavg()[0], 2),
            "finished": finished,
            **({} if finished else {"standing": self.standing}),
            "figures": [figure.to_json() for figure in self.figures],
            "skipped": self.skipped,
            "failed": self.failed,
        }
        RESULTS.write_text(json.dumps(record, indent=1))
        return record


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--only", action="append", choices=BENCHES, metavar="NAME", help=f"one of {', '.join(BENCHES)}")
    parser.add_argument("--quick", action="store_true", help="fewer models and samples; no demo")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, not as a table")
    given = parser.parse_args()
    chosen = [name for name in BENCHES if not given.only or name in given.only]
    CACHE_DIR.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, _interrupt)
    outcome = _Outcome(given.quick)
    with _progress(enabled=not given.json) as progress:
        for name in (SETUP, *chosen):
            _run_one(name, given.quick, progress, outcome)
            if name == SETUP and outcome.failed:
                break
    record = outcome.keep(finished=True)
    if given.json:
        print(json.dumps(record))
    else:
        _show(outcome, record)
    return outcome.exit_code


def _run_one(name: str, quick: bool, progress: Progress, outcome: _Outcome) -> None:
    task = progress.add_task(f"{name:<13}", total=None, remark="")
    try:
        with contextlib.closing(said_by(name, CACHE_DIR, quick=quick)) as lines:
            for line in lines:
                _take(name, line, progress, task, outcome)
    except BenchFailed as error:
        outcome.failed.append(f"{name}: {error}")
    total = progress.tasks[task].total or 1
    progress.update(task, total=total, completed=total, remark="")


def _take(bench: str, said: dict[str, Any], progress: Progress, task: Any, outcome: _Outcome) -> None:
    is_due = time.perf_counter() - outcome.kept_s >= _KEPT_EVERY_S
    if "figure" in said:
        figure = figure_from_json(said["figure"])
        outcome.figures.append(figure)
        outcome.standing = f"{bench}: {figure.name}: {_number(figure.value)} {figure.unit} {figure.note}".strip()
        is_due = True
    elif "skipped" in said:
        outcome.skipped.append(said["skipped"])
    else:
        done, total, remark = said["progress"]
        progress.update(task, completed=done, total=total, remark=remark)
        outcome.standing = f"{bench}: {done} of {total} {remark}".strip()
    if is_due:
        outcome.keep(finished=False)
        if not progress.disable and not progress.console.is_terminal:
            progress.console.print(Text(outcome.standing))


def _interrupt(number: int, frame: FrameType | None) -> None:
    """SIGTERM leaves through every `finally`, which is where benches are ended."""
    raise KeyboardInterrupt


def _progress(*, enabled: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[remark]}[/dim]"),
        console=Console(stderr=True),
        disable=not enabled,
    )


def _show(outcome: _Outcome, about: dict[str, Any]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 220, highlight=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("bench", "figure", "measured", "bar", "", "spread", "baseline", "note"):
        table.add_column(heading, justify="right" if heading in {"measured", "bar"} else "left", overflow="fold")
    last = ""
    for figure in outcome.figures:
        table.add_row(*_cells(figure, figure.bench if figure.bench != last else ""))
        last = figure.bench
    console.print(table)
    for line in outcome.skipped:
        console.print(Text(f"skipped: {line}", style="dim"))
    for line in outcome.failed:
        console.print(Text(f"failed: {line}", style="bold red"))
    console.print(
        f"{about['machine']}; {about['seconds']:.0f} s; load average {about['load_average_before']} -> "
        f"{about['load_average_after']}; as JSON in {RESULTS.relative_to(ROOT)}"
    )


def _cells(figure: Figure, bench: str) -> list[Text]:
    bar = "" if figure.bar is None else f"{'≥' if figure.at_least else '≤'} {_number(figure.bar)}"
    verdict = {None: Text(""), True: Text("ok", style="green"), False: Text("MISSED", style="bold red")}[figure.meets]
    spread = ""
    if figure.spread is not None:
        s = figure.spread
        spread = f"p50 {_number(s.p50)} p95 {_number(s.p95)} p99 {_number(s.p99)} ({s.runs})"
    baseline = "" if figure.baseline is None else f"{_number(figure.baseline)} ({figure.baseline_name})"
    measured = f"{_number(figure.value)} {figure.unit}"
    return [
        Text(bench),
        Text(figure.name),
        Text(measured),
        Text(bar),
        verdict,
        Text(spread),
        Text(baseline),
        Text(figure.note),
    ]


def _number(value: float) -> str:
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value == int(value) else f"{value:.{1 if size >= 100 else 2 if size >= 1 else 3}f}"


if __name__ == "__main__":
    sys.exit(main())
