"""Charts of plans."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from mesh.planning.charts import ChartsMissing, draw_chart
from mesh.planning.finding import Goal
from tests.unit.mesh.planning.builders import MB, cell, planned


def test_a_chart_is_a_small_png_and_the_same_again(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    cells = [planned(cell(policy="lru")), planned(cell(policy="hazard"), cold=50)]
    for name in ("one.png", "two.png"):
        draw_chart(tmp_path / name, "a log", cells)
    content = (tmp_path / "one.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) < 60_000
    assert content == (tmp_path / "two.png").read_bytes()


def test_several_capacities_make_a_curve_with_the_goal_in_it(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    cells = [planned(cell(capacity_bytes=size * MB), cold=200 - size) for size in (50, 100, 150)]
    draw_chart(tmp_path / "curve.png", "a log", cells, Goal(0.1, 40.0))
    assert (tmp_path / "curve.png").stat().st_size > 1000


def test_without_matplotlib_the_command_that_installs_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ChartsMissing, match=r"pip install 'hexcomb\[charts\]'"):
        draw_chart(tmp_path / "chart.png", "a log", [planned()])
