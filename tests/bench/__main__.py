"""`make bench`: run the benches one after the other, show one table, keep the figures as JSON.

Exits with 1 when a figure misses its bar or a bench fails.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from tests.bench.figures import Figure, figure_from_json
from tests.bench.worker import SETUP

BENCHES = (
    "load_time", "density", "churn", "sizes", "admission", "idle", "stampede", "request_cost", "registration",
    "etcd_store", "placement_decisions", "large_pool", "pool_memory", "forwarding", "cold_path", "thrash",
    "fine_tunes", "hot_copies", "plan_fidelity", "eviction_policies", "demo",
)  # fmt: skip
ROOT = Path(__file__).parents[2]
CACHE_DIR = ROOT / ".cache" / "bench"
RESULTS = ROOT / ".cache" / "bench.json"
_STDERR_SHOWN_CHARACTERS = 1500


@dataclass(slots=True)
class _Outcome:
    figures: list[Figure] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        return 1 if self.failed or any(figure.meets is False for figure in self.figures) else 0


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--only", action="append", choices=BENCHES, metavar="NAME", help=f"one of {', '.join(BENCHES)}")
    parser.add_argument("--quick", action="store_true", help="fewer models and samples; no demo")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, not as a table")
    given = parser.parse_args()
    chosen = [name for name in BENCHES if not given.only or name in given.only]
    CACHE_DIR.mkdir(parents=True, exist_ok=True)
    outcome = _Outcome()
    began = time.perf_counter()
    load_before = os.getloadavg()[0]
    with _progress(enabled=not given.json) as progress:
        for name in (SETUP, *chosen):
            _run_one(name, given.quick, progress, outcome)
            if name == SETUP and outcome.failed:
                break
    about = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "quick": given.quick,
        "seconds": round(time.perf_counter() - began, 1),
        "load_average_before": round(load_before, 2),
        "load_average_after": round(os.getloadavg()[0], 2),
    }
    record = {
        **about,
        "figures": [figure.to_json() for figure in outcome.figures],
        "skipped": outcome.skipped,
        "failed": outcome.failed,
    }
    RESULTS.write_text(json.dumps(record, indent=1))
    if given.json:
        print(json.dumps(record))
    else:
        _show(outcome, about)
    return outcome.exit_code


def _run_one(name: str, quick: bool, progress: Progress, outcome: _Outcome) -> None:
    task = progress.add_task(f"{name:<13}", total=None, remark="")
    command = [sys.executable, "-m", "tests.bench.worker", name, str(CACHE_DIR), *(["quick"] if quick else [])]
    with tempfile.TemporaryFile("w+") as stderr:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True)
        try:
            assert process.stdout is not None
            for line in process.stdout:
                _take(json.loads(line), progress, task, outcome)
            process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        total = progress.tasks[task].total or 1
        progress.update(task, total=total, completed=total, remark="")
        if process.returncode:
            stderr.seek(0)
            outcome.failed.append(f"{name}: {stderr.read()[-_STDERR_SHOWN_CHARACTERS:].strip()}")


def _take(said: dict[str, Any], progress: Progress, task: Any, outcome: _Outcome) -> None:
    if "figure" in said:
        outcome.figures.append(figure_from_json(said["figure"]))
    elif "skipped" in said:
        outcome.skipped.append(said["skipped"])
    else:
        done, total, remark = said["progress"]
        progress.update(task, completed=done, total=total, remark=remark)


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
