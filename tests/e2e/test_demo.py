"""The demo as a user runs it, small: real training, a real server, a real V2 client, every answer compared."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

MODELS = 20
REQUESTS = 500
KINDS = "onnx,xgboost json,xgboost ubj,lightgbm,sklearn skops,sklearn joblib"
"""Without torch, whose import alone takes longer than all the rest."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo-cache")


def _demo(cache: Path, *arguments: str) -> list[str]:
    return [
        sys.executable, "-m", "mesh.cli.main", "demo",
        "--models", str(MODELS), "--requests", str(REQUESTS), "--cache-dir", str(cache), "--kinds", KINDS, *arguments,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def outcome(cache: Path) -> dict[str, Any]:
    done = subprocess.run(_demo(cache, "--json"), capture_output=True, text=True, timeout=250)
    # The resident-set bar is judged on the full demo: three of twenty models are a capacity of nothing.
    assert done.stdout, done.stderr
    value: dict[str, Any] = json.loads(done.stdout)
    assert "error" not in value, value
    return value


def test_every_prediction_is_the_frameworks_own(outcome: dict[str, Any]) -> None:
    assert (outcome["wrong"], outcome["errors"]) == (0, 0), outcome["complaints"]
    assert outcome["models"] == MODELS
    assert outcome["requests"] == REQUESTS


def test_the_cache_was_hit_missed_and_emptied(outcome: dict[str, Any]) -> None:
    assert outcome["hits"] + outcome["misses"] == REQUESTS
    assert outcome["hits"] > 0
    assert outcome["misses"] >= MODELS / 2
    assert outcome["evictions"] > 0
    assert outcome["evictions"] == sum(row["evictions"] for row in outcome["formats"])


def test_the_server_stays_within_its_capacity(outcome: dict[str, Any]) -> None:
    assert 0 < outcome["used_bytes"] <= outcome["capacity_bytes"]
    assert 0 < outcome["models_resident"] < MODELS


def test_the_object_has_what_scripts_rely_on(outcome: dict[str, Any]) -> None:
    promised = {
        "models", "requests", "wrong", "errors", "hits", "misses", "evictions", "warm_p50_ms", "warm_p99_ms",
        "cold_p50_ms", "cold_p99_ms", "capacity_bytes", "used_bytes",
    }  # fmt: skip
    assert promised <= set(outcome)
    assert 0 < outcome["warm_p50_ms"] <= outcome["warm_p99_ms"]
    assert 0 < outcome["cold_p50_ms"] <= outcome["cold_p99_ms"]
    rows = outcome["formats"]
    assert {row["format"] for row in rows} >= {"onnx", "xgboost", "lightgbm", "sklearn"}
    for count in ("models", "requests", "hits", "misses", "wrong", "errors"):
        assert sum(row[count] for row in rows) == outcome[count]


def test_the_table_is_for_people(cache: Path, outcome: dict[str, Any]) -> None:
    done = subprocess.run(_demo(cache, "--seed", "1"), capture_output=True, text=True, timeout=250)
    for word in ("format", "warm p50", "cold p50", "xgboost", "lightgbm", "capacity", "server"):
        assert word in done.stdout
    assert "training" in done.stderr


def test_an_interrupted_demo_leaves_nothing_running(cache: Path, outcome: dict[str, Any]) -> None:
    process = subprocess.Popen(
        _demo(cache, "--requests", "1000000"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    children: list[psutil.Process] = []
    try:
        children = _wait_for_children(process.pid, 2)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    except BaseException:
        for left in [process, *children]:
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()
        raise
    assert process.returncode == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors
    gone, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    assert len(gone) >= 2


def _wait_for_children(pid: int, wanted: int) -> list[psutil.Process]:
    """The server and the load generator."""
    until_s = time.monotonic() + 60
    while time.monotonic() < until_s:
        children = psutil.Process(pid).children(recursive=True)
        if len([child for child in children if "mesh.demo.requesting" in child.cmdline()]) and len(children) >= wanted:
            return children
        time.sleep(0.05)
    raise AssertionError("the demo did not come so far as to ask")
