"""A plan as a picture: a PNG file.

Cells of one capacity are lines over time: memory held by all pods, and the share of requests that were cold, in each of
a few dozen stretches of time. Cells of several capacities are curves over capacity: share of cold requests, and cold
p99. What a search for a capacity tried is such a curve, with its goal as a line.

matplotlib is an extra (`pip install 'hexcomb[charts]'`), imported here and late. Its figure is drawn without pyplot,
whose global state and choice of a window system are not ours to touch.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from mesh.planning.cells import Planned
from mesh.planning.finding import Goal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INSTALL = "pip install 'hexcomb[charts]'"
_STRETCHES = 48
"""Of time; a point of the curve of cold requests is one of them."""
_SIZE_INCHES = (9.0, 6.4)
_DOTS_PER_INCH = 80
_COLORS = 64
"""Enough for lines and letters, at a third of the bytes."""
_MIB = float(1 << 20)
_GIB = float(1 << 30)


class ChartsMissing(Exception):
    """matplotlib is not installed; the message names the command that installs it."""


def check_installed() -> None:
    """Before anything long is begun. Raises ChartsMissing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ChartsMissing(f"a chart needs matplotlib; install it with: {INSTALL}")


def draw_chart(path: Path, title: str, cells: Sequence[Planned], goal: Goal | None = None) -> None:
    """Write the picture that suits these cells. Raises ChartsMissing, OSError."""
    check_installed()
    from matplotlib.figure import Figure
    from PIL import Image  # matplotlib brings it

    figure = Figure(figsize=_SIZE_INCHES, dpi=_DOTS_PER_INCH, layout="constrained")
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    if len({planned.cell.pod_bytes for planned in cells}) > 1:
        _over_capacity(figure, cells, goal)
    else:
        _over_time(figure, cells)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    with Image.open(drawn) as picture:
        picture.convert("RGB").quantize(_COLORS).save(path, format="PNG", optimize=True)


def _over_time(figure: Figure, cells: Sequence[Planned]) -> None:
    memory, cold = figure.subplots(2, 1, sharex=True)
    last_s = max((planned.result.memory[-1][0] for planned in cells if planned.result.memory), default=0.0)
    unit_s, unit = _time_unit(last_s)
    most_bytes = max(planned.cell.capacity_bytes for planned in cells)
    bytes_unit, bytes_name = (_GIB, "GiB") if most_bytes >= _GIB else (_MIB, "MiB")
    for number, planned in enumerate(cells):
        color = f"C{number}"
        memory.plot(
            [time_s / unit_s for time_s, _ in planned.result.memory],
            [held / bytes_unit for _, held in planned.result.memory],
            color=color,
            linewidth=1.1,
            label=_label(planned, cells),
        )
        points = _cold_by_stretch(planned)
        cold.plot(
            [at_s / unit_s for at_s, _ in points], [100 * share for _, share in points], color=color, linewidth=1.1
        )
    for capacity_bytes in {planned.cell.capacity_bytes for planned in cells}:
        memory.axhline(capacity_bytes / bytes_unit, color="0.6", linewidth=0.8, linestyle="--")
    _finish(memory, "", f"memory of all pods, {bytes_name}\n(dashed: capacity)")
    _finish(cold, f"time, {unit}", "cold requests, %")
    if len(cells) > 1:
        figure.legend(*memory.get_legend_handles_labels(), fontsize=8, loc="outside upper right", ncols=len(cells))


def _over_capacity(figure: Figure, cells: Sequence[Planned], goal: Goal | None) -> None:
    share, p99 = figure.subplots(2, 1, sharex=True)
    lines: dict[str, list[Planned]] = {}
    for planned in sorted(cells, key=lambda each: each.cell.capacity_bytes):
        pods = f", {planned.cell.pods} pods" if len({each.cell.pods for each in cells}) > 1 else ""
        lines.setdefault(planned.cell.policy_shown + pods, []).append(planned)
    bytes_unit, bytes_name = (
        (_GIB, "GiB") if max(planned.cell.capacity_bytes for planned in cells) >= _GIB else (_MIB, "MiB")
    )
    for label, points in lines.items():
        at = [planned.cell.capacity_bytes / bytes_unit for planned in points]
        share.plot(
            at, [100 * planned.result.cold_fraction for planned in points], marker="o", markersize=3, label=label
        )
        p99.plot(at, [planned.result.cold_p99_ms for planned in points], marker="o", markersize=3)
    if goal is not None and goal.cold_fraction_max is not None:
        share.axhline(100 * goal.cold_fraction_max, color="0.4", linewidth=0.8, linestyle="--")
    if goal is not None and goal.cold_p99_max_ms is not None:
        p99.axhline(goal.cold_p99_max_ms, color="0.4", linewidth=0.8, linestyle="--")
    _finish(share, "", "cold requests, %")
    _finish(p99, f"capacity of all pods, {bytes_name}", "cold p99, ms")
    figure.legend(*share.get_legend_handles_labels(), fontsize=8, loc="outside upper right", ncols=len(lines))


def _finish(axes: Axes, across: str, up: str) -> None:
    axes.set_xlabel(across, fontsize=9)
    axes.set_ylabel(up, fontsize=9)
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.grid(visible=True, color="0.92")
    axes.tick_params(labelsize=8)


def _cold_by_stretch(planned: Planned) -> list[tuple[float, float]]:
    """(middle of a stretch of time, share of its requests that were cold); stretches without requests are left out."""
    samples = planned.result.progress
    step = max(1, len(samples) // _STRETCHES)
    chosen = [*samples[:-1:step], samples[-1]] if samples else []
    points = []
    for before, after in pairwise(chosen):
        requests, cold = after.requests - before.requests, after.cold - before.cold
        if requests:
            points.append(((before.time_s + after.time_s) / 2, cold / requests))
    return points


def _label(planned: Planned, cells: Sequence[Planned]) -> str:
    if len({each.cell.pods for each in cells}) > 1:
        return f"{planned.cell.policy_shown}, {planned.cell.pods} pods"
    return planned.cell.policy_shown


def _time_unit(span_s: float) -> tuple[float, str]:
    for unit_s, unit, least_s in ((86_400.0, "days", 172_800.0), (3600.0, "hours", 7200.0), (60.0, "minutes", 300.0)):
        if span_s >= least_s:
            return unit_s, unit
    return 1.0, "seconds"
