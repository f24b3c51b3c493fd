"""The bars of `make bench-peers`, from figures that are made up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.bench.figures import Figure
from tests.bench.peers import own_bars as own_bars_module
from tests.bench.peers.bars import bars_of
from tests.bench.peers.contestants import CONTESTANTS
from tests.bench.peers.measuring import Direct, Measured, Results
from tests.bench.peers.own_bars import left_out, own_bars
from tests.bench.peers.reporting import about_this_run, draw, markdown_of, record_of, summary_of
from tests.bench.peers.scenarios import IMAGE, QUICK, TINY, TREES, WHOLE
from tests.bench.running import BenchFailed

A_FIGURE = Measured("hexcomb", f"{TINY}, 1 row, 32 in flight", 0, 1000.0, 0, 1.0, 2.0, 3.0, 50.0, 1 << 20, 11.0, False)


def figure(contestant: str, cell: str, **rest: float) -> Measured:
    """One with this cell, and what the test is about."""
    return replace(A_FIGURE, contestant=contestant, cell=cell, **rest)  # type: ignore[arg-type]


def bar_named(results: Results, words: str) -> float:
    """The value of the one bar that was measured and whose name has these words."""
    (found,) = [bar.value for bar in bars_of(results) if words in bar.what and bar.value is not None]
    return found


def test_a_rate_is_compared_with_the_best_of_each_contestants_own_cells() -> None:
    results = Results(
        [
            figure("hexcomb", f"{TINY}, 1 row, 32 in flight", requests_per_s=20_000.0),
            figure("hexcomb", f"{TINY}, 1 row, 512 in flight", requests_per_s=30_000.0),
            figure("mlserver", f"{TINY}, 1 row, 32 in flight", requests_per_s=1_000.0),
            figure("mlserver", f"{TINY}, 1 row, 512 in flight", requests_per_s=500.0),
        ]
    )
    assert bar_named(results, "against mlserver") == 30.0


def test_cells_of_many_rows_and_paced_ones_are_no_peak() -> None:
    results = Results(
        [
            figure("hexcomb", f"{TINY}, 1 row, 32 in flight", requests_per_s=20_000.0),
            figure("hexcomb", f"{TINY}, 32 rows, 32 in flight", requests_per_s=90_000.0),
            figure("triton", f"{TINY}, 1 row, 32 in flight", requests_per_s=5_000.0),
            figure("triton", f"{TINY}, 1 row, half of its peak", requests_per_s=9_000.0),
        ]
    )
    assert bar_named(results, "requests/s per core, tiny ONNX, 64 B, against triton") == 4.0


def test_the_median_of_the_rounds_is_judged_and_its_spread_told() -> None:
    cell = f"{TREES}, 1 row, 32 in flight"
    results = Results(
        [
            figure(name, cell, requests_per_s=rate, round=number)
            for number, ours in enumerate((10.0, 16.0, 40.0))
            for name, rate in (("hexcomb", ours), ("mlserver", 1.0))
        ]
    )
    (bar,) = [bar for bar in bars_of(results) if TREES in bar.what and bar.value is not None]
    assert (bar.value, bar.spread, bar.is_met) == (16.0, (10.0, 40.0), True)


def test_the_overhead_is_what_neither_framework_nor_echo_takes() -> None:
    cell = f"{TINY}, 1 row, 1 in flight"
    results = Results(
        [figure("hexcomb", cell, p50_ms=0.25), figure("echo", cell, p50_ms=0.15)],
        direct=[Direct("tiny", 1, 10.0, 10.0)],
    )
    assert round(bar_named(results, "less the echo's p50"), 6) == 90.0


def test_the_image_is_compared_with_the_best_python_server_there_is() -> None:
    cell = f"{IMAGE}, 1 row, 32 in flight"
    results = Results(
        [
            figure("hexcomb", cell, requests_per_s=900.0, cpu_us=1100.0),
            figure("mlserver", cell, requests_per_s=100.0, cpu_us=9000.0),
            figure("kserve", cell, requests_per_s=300.0, cpu_us=3300.0),
            figure("triton", cell, requests_per_s=2000.0, cpu_us=500.0),
        ],
        direct=[Direct("image", 1, 300.0, 300.0)],
    )
    assert bar_named(results, "best Python contestant") == 3.0
    assert round(bar_named(results, "CPU outside the run"), 6) == round(800 / 3000, 6)


def test_a_bar_without_its_figures_says_which_is_wanting() -> None:
    cell = f"{TINY}, 1 row, 32 in flight"
    results = Results([figure("hexcomb", cell)], {("triton", cell): "did not start: no such file"})
    bars = bars_of(results)
    assert {bar.value for bar in bars} == {None}
    assert {bar.is_met for bar in bars} == {None}
    missing = {bar.what: bar.missing for bar in bars}
    assert missing[f"requests/s per core, {TINY}, against triton"] == "triton: did not start: no such file"
    assert missing[f"requests/s per core, {TINY}, against kserve"] == f"kserve was not asked for {TINY}, in flight"


def test_every_comparison_of_the_table_is_there_whatever_ran() -> None:
    bars = [bar.what for bar in bars_of(Results())]
    for peer in ("mlserver", "kserve", "triton", "bentoml", "ray", "litserve", "grpc-aio"):
        for scenario in (TINY, TREES):
            assert f"p99 at half of each one's own peak, {scenario}, against {peer}" in bars
    assert len(bars) == len(set(bars)) == 5 + 14 + 1 + 2


def test_bars_of_other_benches_stand_beside_and_a_bench_that_failed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def said_by(name: str, cache_dir: Path, *, quick: bool) -> Iterator[dict[str, Any]]:
        yield {"progress": [0, 1, ""]}
        if name == "forwarding":
            yield {"figure": Figure(name, "forwarded / local", 2.0, "times", bar=2.5, note="64 in flight").to_json()}
            yield {"figure": Figure(name, "local", 40.0, "µs").to_json()}
            yield {"skipped": "forwarding: four pods: no etcd"}
        if name == "loads_beside":
            raise BenchFailed("Traceback\nServerFailed: the pod did not start")

    monkeypatch.setattr(own_bars_module, "said_by", said_by)
    met, skipped, failed = own_bars(Path(), quick=True, say=lambda _: None)
    assert (met.what, met.value, met.unit, met.is_met) == ("forwarded / local (64 in flight)", 2.0, "×", True)
    assert (skipped.is_met, skipped.missing) == (None, "forwarding: four pods: no etcd")
    assert (failed.is_met, failed.missing) == (None, "ServerFailed: the pod did not start")


def test_a_bar_that_was_not_measured_stands_in_the_tables_with_its_reason() -> None:
    about = about_this_run(True, 1, 2.0, 0.0, 0.5)
    bars = [*bars_of(Results([A_FIGURE])), *left_out("--only leaves it out")]
    record = json.loads(json.dumps(record_of(CONTESTANTS, QUICK, Results([A_FIGURE]), bars, about)))
    for text in (markdown_of(record), summary_of(record)):
        assert "| all of the bench `forwarding` |  | - | not measured: --only leaves it out |" in text
        assert f"| requests/s per core, {TINY}, against mlserver | ≥ 20 × | - | not measured: mlserver was" in text


def test_every_cell_of_a_report_has_figures_or_a_reason() -> None:
    results = Results([A_FIGURE], {("ray", QUICK[0].name): "it did not start"})
    record = record_of(CONTESTANTS, QUICK, results, [], about_this_run(True, 1, 2.0, 0.0, 0.5))
    for figures in record["figures"].values():
        assert list(figures) == [cell.name for cell in QUICK]
        assert all("requests_per_s" in found or found["missing"] for found in figures.values())
    assert "it did not start" in markdown_of(record)
    assert "1,000" in summary_of(record)


def test_a_report_says_where_the_time_goes_beside_framework_and_echo() -> None:
    cell = QUICK[1]
    results = Results(
        [figure("hexcomb", cell.name, cpu_us=60.0), figure("echo", cell.name, cpu_us=20.0)],
        direct=[Direct(cell.model, cell.rows, 6.0, 7.0)],
    )
    record = record_of(CONTESTANTS, QUICK, results, [], about_this_run(True, 1, 2.0, 0.0, 0.5))
    assert f"| {cell.name} | 60 | 7 | 20 | +33 |" in markdown_of(record)


def test_a_chart_is_drawn_only_of_what_was_measured(tmp_path: Path) -> None:
    path = tmp_path / "chart.png"
    about = about_this_run(True, 1, 2.0, 0.0, 0.5)
    assert not draw(record_of(CONTESTANTS, QUICK, Results(), [], about), path)
    assert draw(record_of(CONTESTANTS, QUICK, Results([A_FIGURE]), [], about), path)
    assert path.stat().st_size > 1000


def test_a_run_that_was_ended_says_so() -> None:
    about = about_this_run(True, 1, 2.0, 0.0, 0.5, ended_early=True)
    assert "ended before its time" in markdown_of(record_of(CONTESTANTS, QUICK, Results([A_FIGURE]), [], about))


def test_no_two_cells_have_one_name() -> None:
    for cells in (WHOLE, QUICK):
        assert len({cell.name for cell in cells}) == len(cells)
