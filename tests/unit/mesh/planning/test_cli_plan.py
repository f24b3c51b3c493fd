"""`hexcomb plan` as a command: what it prints, and what it says of what it cannot do."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from mesh.access_log import COLUMNS
from mesh.cli.main import run
from mesh.cli.plan import LOADS_CONCURRENT_MAX
from mesh.settings import Settings

CONTRACT = {
    "cold_fraction", "cold_time_s", "cold_p99_ms", "evictions", "prefetches", "prefetches_wasted",
    "clairvoyant_cold_time_s",
}  # fmt: skip


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Six models of 10 MB each, in turn, one a second; all were cold once, then warm."""
    lines = [",".join(COLUMNS)]
    for at in range(240):
        taken = ("miss", "120.0", "10000000", "0.1") if at < 6 else ("hit", "1.0", "", "")
        lines.append(",".join((f"{1_000_000 + at}", "default", f"m{at % 6}", *taken)))
    path = tmp_path / "access.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def plan(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = run(["plan", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def plan_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    code, out, err = plan(capsys, *arguments, "--json")
    assert code == 0, err
    value: dict[str, Any] = json.loads(out)
    return value


def test_one_cell_is_one_object_with_what_scripts_rely_on(capsys: pytest.CaptureFixture[str], log: Path) -> None:
    value = plan_json(capsys, "--workload", log, "--capacity", "60MB", "--policy", "gdsf")
    assert set(value) >= CONTRACT
    assert (value["models"], value["requests"], value["evictions"]) == (6, 240, 0)
    assert value["cold_fraction"] == pytest.approx(6 / 240, abs=1e-6)
    assert value["observed"]["cold_fraction"] == pytest.approx(6 / 240, abs=1e-6)
    assert value == plan_json(capsys, log, "--capacity", "60MB", "--policy", "gdsf"), "same arguments, same answer"


def test_the_policy_and_the_loads_at_a_time_are_a_pods_defaults(capsys: pytest.CaptureFixture[str], log: Path) -> None:
    fields = Settings.model_fields
    assert plan_json(capsys, log)["policy"] == fields["eviction_policy"].default
    assert fields["loads_concurrent_max"].default == LOADS_CONCURRENT_MAX


def test_pods_capacities_and_policies_stand_side_by_side(capsys: pytest.CaptureFixture[str], log: Path) -> None:
    arguments = (log, "--pods", "2,1", "--capacity-fraction", "0.5,1.5", "--policy", "lru,hazard+prefetch")
    cells = plan_json(capsys, *arguments)["cells"]
    assert [(cell["pods"], cell["capacity_bytes"], cell["policy"], cell["prefetch"]) for cell in cells] == [
        (2, 30_000_000, "lru", False),
        (2, 30_000_000, "hazard", True),
        (2, 90_000_000, "lru", False),
        (2, 90_000_000, "hazard", True),
        (1, 15_000_000, "lru", False),
        (1, 15_000_000, "hazard", True),
        (1, 45_000_000, "lru", False),
        (1, 45_000_000, "hazard", True),
    ]
    code, out, err = plan(capsys, *arguments)
    assert code == 0, err
    assert "1 pods in place of 2" in out
    assert "hazard+prefetch" in out
    assert "prefetched" in out
    assert "in the log 2.50% were cold" in out


def test_the_capacity_that_keeps_a_promise_is_found(capsys: pytest.CaptureFixture[str], log: Path) -> None:
    value = plan_json(capsys, log, "--find-capacity", "--cold-fraction", "0.05", "--policy", "lru")
    assert 59_000_000 <= value["capacity_bytes"] <= 60_000_000
    assert value["cold_fraction"] <= 0.05
    assert value["below"]["capacity_bytes"] < value["capacity_bytes"]
    code, out, _ = plan(capsys, log, "--find-capacity", "--cold-p99-ms", "50")
    assert code == 1, "a script must see that there is none"
    assert "No capacity keeps a cold p99 of at most 50 ms" in out


def test_a_chart_is_written(capsys: pytest.CaptureFixture[str], log: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plan_json(capsys, log, "--policy", "lru,hazard", "--chart", tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--workload: found 'nothing'; allowed are azure, zipf, flash, scan, or files"),
        (["--workload", "azur"], "--workload: found 'azur'; allowed are azure, zipf, flash, scan, or a file"),
        (["--workload", "azure", "LOG"], "allowed are one workload that is generated, or files"),
        (
            ["LOG", "--policy", "lfu"],
            "--policy: found 'lfu'; allowed are lru, gdsf, hazard, each also as NAME+prefetch",
        ),
        (["LOG", "--policy", ""], "--policy: found ''"),
        (["LOG", "--policy", "clairvoyant"], "--policy: found 'clairvoyant'"),
        (["LOG", "--capacity", "0"], "--capacity: found '0'; allowed are what a pod holds, above zero"),
        (["LOG", "--capacity", "plenty"], "--capacity: found 'plenty'"),
        (["LOG", "--capacity-fraction", "0"], "--capacity-fraction: found '0'; allowed are shares above 0"),
        (["LOG", "--capacity-fraction", "nan"], "--capacity-fraction: found 'nan'"),
        (["LOG", "--capacity-fraction", "0.1", "--capacity", "1GiB"], "one of the two"),
        (["LOG", "--pods", "4,0"], "--pods: found '0'; allowed are numbers of pods from 1"),
        (["LOG", "--capacity", "9MB"], "takes 10,000,000 bytes, more than a pod holds: 9,000,000"),
        (["LOG", "--find-capacity"], "--find-capacity: found 'no goal'"),
        (
            ["LOG", "--cold-fraction", "0.1"],
            "--cold-fraction: found '0.1'; allowed are nothing without --find-capacity",
        ),
        (["LOG", "--find-capacity", "--cold-fraction", "0.1", "--capacity", "1GiB"], "found a capacity beside it"),
        (["LOG", "--chart", "chart.svg"], "--chart: found 'chart.svg'; allowed is a file that ends in .png"),
        (["LOG", "--chart", "/no/such/chart.png"], "there is no directory /no/such"),
        (["--workload", "azure", "--sizes", "LOG"], "--sizes: found"),
        (["LOG", "--sizes", "gone.csv"], "gone.csv: cannot be read"),
    ],
)
def test_wrong_usage_names_the_option_what_was_found_and_what_is_allowed(
    capsys: pytest.CaptureFixture[str], log: Path, arguments: list[str], said: str
) -> None:
    code, out, err = plan(capsys, *(str(log) if each == "LOG" else each for each in arguments))
    assert said in err
    assert (code, out) == (2, "")


def test_an_empty_log_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "empty.csv").touch()
    code, _, err = plan(capsys, tmp_path / "empty.csv")
    assert code == 2
    assert "empty.csv: no requests; there is nothing to replay" in err


def test_a_chart_without_matplotlib_names_the_command_before_anything_is_replayed(
    capsys: pytest.CaptureFixture[str], log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, out, err = plan(capsys, log, "--chart", tmp_path / "chart.png")
    assert (code, out) == (1, "")
    assert "pip install 'hexcomb[charts]'" in err
