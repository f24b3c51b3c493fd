"""The comparison as a record (JSON), a table for people, a chart (PNG), and Markdown for the READMEs.

Everything is drawn from the record, so that a table can be made again without measuring again.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.bench.peers.bars import ECHO, OURS, Bar
from tests.bench.peers.contestants import Contestant
from tests.bench.peers.measuring import Measured, Results
from tests.bench.peers.scenarios import Cell

BEGIN, END = "<!-- bench-peers: begin -->", "<!-- bench-peers: end -->"
_SIZE_INCHES = (10.0, 6.0)
_DOTS_PER_INCH = 90
_REASON_SHOWN_CHARACTERS = 160


@dataclass(frozen=True, slots=True)
class Figures:
    """One contestant in one cell, over all rounds: medians, and the least and most of requests a second."""

    requests_per_s: float
    least_per_s: float
    most_per_s: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    cpu_us: float
    memory_mib: float
    load_cpu_us: float
    wrong: int
    limited_by_load: bool
    rounds: int


def record_of(
    contestants: Sequence[Contestant],
    cells: Sequence[Cell],
    results: Results,
    bars: Sequence[Bar],
    about: dict[str, Any],
) -> dict[str, Any]:
    """Everything that is known of a run, ready for JSON."""
    figures: dict[str, dict[str, Any]] = {}
    for contestant in contestants:
        of_this = figures[contestant.name] = {}
        for cell in cells:
            rounds = [one for one in results.measured if (one.contestant, one.cell) == (contestant.name, cell.name)]
            if rounds:
                of_this[cell.name] = asdict(_figures(rounds))
            else:
                of_this[cell.name] = {"missing": results.missing.get((contestant.name, cell.name), "not reached")}
    return {
        "about": about,
        "contestants": {each.name: {"what": each.what, "pins": list(each.requirements)} for each in contestants},
        "cells": [cell.name for cell in cells],
        "asks": {cell.name: [cell.model, cell.rows] for cell in cells},
        "figures": figures,
        "direct": [asdict(one) for one in results.direct],
        "bars": [{**asdict(bar), "is_met": bar.is_met} for bar in bars],
        "rounds": [asdict(one) for one in results.measured],
    }


def about_this_run(
    quick: bool, rounds: int, duration_s: float, began_s: float, load_before: float, *, ended_early: bool = False
) -> dict[str, Any]:
    """Machine and moment. `load_before`: the load average before anything of ours ran."""
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "quick": quick,
        "rounds": rounds,
        "seconds_per_cell": duration_s,
        "seconds": round(time.monotonic() - began_s),
        "load_average_before": round(load_before, 2),
        "ended_early": ended_early,
    }


def _figures(rounds: Sequence[Measured]) -> Figures:
    rates = [one.requests_per_s for one in rounds]

    def median(name: str) -> float:
        return statistics.median(getattr(one, name) for one in rounds)

    return Figures(
        statistics.median(rates),
        min(rates),
        max(rates),
        median("p50_ms"),
        median("p99_ms"),
        median("p999_ms"),
        median("cpu_us"),
        median("memory_bytes") / 2**20,
        median("load_cpu_us"),
        sum(one.wrong for one in rounds),
        any(one.limited_by_load for one in rounds),
        len(rounds),
    )


def markdown_of(record: dict[str, Any]) -> str:
    """One table per cell's scenario, the bars, and why what is missing is missing."""
    lines = [
        _heading(record["about"]),
        "",
        "| bar | needed | measured | |",
        "|---|---|---|---|",
        *(_bar_row(bar) for bar in record["bars"]),
        "",
        *_breakdown(record),
    ]
    reasons: dict[str, list[str]] = {}
    for cell in record["cells"]:
        lines += [
            f"**{cell}**",
            "",
            "| server | requests/s | p50 ms | p99 ms | p99.9 ms | CPU µs | memory MiB |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, figures in record["figures"].items():
            found = figures[cell]
            if "missing" in found:
                reason = " ".join(found["missing"].split())[:_REASON_SHOWN_CHARACTERS]
                reasons.setdefault(f"{name}: {reason}", []).append(cell)
                lines.append(f"| {name} | - | | | | | |")
            else:
                lines.append(_row(name, found))
        lines.append("")
    lines += [f"- not measured, {reason} ({'; '.join(cells)})" for reason, cells in reasons.items()]
    return "\n".join(lines).rstrip() + "\n"


def summary_of(record: dict[str, Any]) -> str:
    """The short table of the root README: a line per server, requests a second of a few cells, the bars below."""
    cells = [cell for cell in record["cells"] if cell.endswith(", 32 in flight") and ", 1 row," in cell]
    tail = next((cell for cell in record["cells"] if cell.endswith("half of its peak")), None)
    heads = [cell.removesuffix(", 1 row, 32 in flight") for cell in cells]
    lines = [
        _heading(record["about"]),
        "",
        "| requests/s on one core, 32 in flight | " + " | ".join(heads) + " | p99 ms at half its peak | memory MiB |",
        "|---" * (len(cells) + 3) + "|",
    ]
    for name, figures in record["figures"].items():
        rates = [_rate(figures[cell]) for cell in cells]
        waits = f"{figures[tail]['p99_ms']:.2f}" if tail and "missing" not in figures[tail] else "-"
        held = [figure["memory_mib"] for figure in figures.values() if "missing" not in figure]
        memory = f"{held[0]:,.0f}" if held else "-"
        lines.append(f"| {record['contestants'][name]['what']} | {' | '.join(rates)} | {waits} | {memory} |")
    lines += ["", "| bar | needed | measured | |", "|---|---|---|---|", *(_bar_row(bar) for bar in record["bars"])]
    return "\n".join(lines) + "\n"


def _heading(about: dict[str, Any]) -> str:
    return (
        f"`make bench-peers`, {about['at'][:10]}: {about['machine']}; each server on one core, the load generator on "
        f"another; {about['rounds']} round{'s' if about['rounds'] > 1 else ''} of {about['seconds_per_cell']:g} s per "
        f"cell, medians (least to most). Load average before: {about['load_average_before']:g}."
        + (" The run was ended before its time." if about["ended_early"] else "")
    )


def write_between_marks(file: Path, text: str) -> None:
    """Replace what stands between the two marks. Raises ValueError when the file has none."""
    before, begin, rest = file.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{file} has no {BEGIN} ... {END}")
    file.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}")


def draw(record: dict[str, Any], path: Path) -> bool:
    """Requests a second of every contestant in the cells with 32 in flight, on a logarithmic scale.

    Whether there was anything to draw.
    """
    from matplotlib.figure import Figure

    every = record["figures"].values()
    cells = [
        cell
        for cell in record["cells"]
        if cell.endswith(", 1 row, 32 in flight") and any("requests_per_s" in figures[cell] for figures in every)
    ]
    if not cells:
        return False
    figure = Figure(figsize=_SIZE_INCHES, dpi=_DOTS_PER_INCH, layout="constrained")
    axes = figure.subplots()
    names = list(record["figures"])
    height = 0.8 / len(names)
    for number, name in enumerate(names):
        figures = [record["figures"][name][cell] for cell in cells]
        rates = [figure.get("requests_per_s", 0.0) for figure in figures]
        places = [row + number * height for row in range(len(cells))]
        bars = axes.barh(places, rates, height, label=name)
        axes.bar_label(bars, [f"{rate:,.0f}" if rate else "" for rate in rates], padding=2, fontsize=7)
    axes.set_yticks([row + 0.4 for row in range(len(cells))], [cell.split(", 1 row")[0] for cell in cells])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("requests a second on one core, 32 in flight (logarithmic)")
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(path)
    return True


def save(record: dict[str, Any], path: Path) -> None:
    """As JSON."""
    path.write_text(json.dumps(record, indent=1))


def _breakdown(record: dict[str, Any]) -> list[str]:
    """Where a request's CPU time goes: in the framework, in the transport (by its echo), and in Hexcomb."""
    lines = []
    runs_us = {(one["model"], one["rows"]): one["cpu_us"] for one in record["direct"]}
    for cell, (model, rows) in record["asks"].items():
        ours, echo = (record["figures"].get(name, {}).get(cell, {}).get("cpu_us") for name in (OURS, ECHO))
        run_us = runs_us.get((model, rows))
        if ours and echo and run_us and not cell.endswith("half of its peak"):
            lines.append(f"| {cell} | {ours:,.0f} | {run_us:,.0f} | {echo:,.0f} | {ours - echo - run_us:+,.0f} |")
    if not lines:
        return []
    return [
        "Where Hexcomb's CPU time goes, µs per request. The echo sends a request's tensor back as well, so for large",
        "ones it costs more than a transport that answers a few numbers; where requests run together, a run is shared.",
        "",
        "| | all | the framework alone | echo on the same transport | the rest |",
        "|---|---|---|---|---|",
        *lines,
        "",
    ]


def _rate(found: dict[str, Any]) -> str:
    if "missing" in found:
        return "-"
    return f"{found['requests_per_s']:,.0f}" + (" (load-bound)" if found["limited_by_load"] else "")


def _row(name: str, found: dict[str, Any]) -> str:
    rate = _rate(found)
    if found["rounds"] > 1:
        rate += f" ({found['least_per_s']:,.0f} to {found['most_per_s']:,.0f})"
    if found["wrong"]:
        rate += f", {found['wrong']} wrong"
    return (
        f"| {name} | {rate} | {found['p50_ms']:.2f} | {found['p99_ms']:.2f} | {found['p999_ms']:.2f} "
        f"| {found['cpu_us']:,.0f} | {found['memory_mib']:,.0f} |"
    )


def _bar_row(bar: dict[str, Any]) -> str:
    unit = bar["unit"]
    needed = "" if bar["bar"] is None else f"{'≥' if bar['at_least'] else '≤'} {bar['bar']:,g} {unit}"
    if bar["value"] is None:
        reason = " ".join(bar["missing"].split())[:_REASON_SHOWN_CHARACTERS]
        return f"| {bar['what']} | {needed} | - | not measured: {reason} |"
    low, high = bar["spread"]
    spread = f" ({low:,.2f} to {high:,.2f})" if low != high else ""
    verdict = "met" if bar["is_met"] else "**missed**"
    return f"| {bar['what']} | {needed} | {bar['value']:,.2f} {unit}{spread} | {verdict} |"
