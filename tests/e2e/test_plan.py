"""`hexcomb plan` against a real pod, in short: a log is recorded, replayed as it was, and says about the same.

The bars of the real comparison are in `tests/bench/plan_fidelity.py`; here machines may be slow and busy, so only a
replay that has gone astray fails.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.plan_fidelity import Asked, plan, serve_schedule
from tests.e2e.conftest import ModelFiles

MODELS = 24
WEIGHT_BYTES = 256 << 10
SECONDS = 10.0
PER_S = 40.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def models(files: ModelFiles) -> list[Asked]:
    """Small ONNX models. Their ballast differs in size, so that no two share it."""
    asked = []
    for number in range(MODELS):
        example = files.scale(2.0 + number, WEIGHT_BYTES + number * 4096, f"planned-{number}.onnx")
        asked.append(
            Asked(f"planned-{number}", "onnx", example.path, dict(example.inputs), WEIGHT_BYTES + number * 4096)
        )
    return asked


def test_a_replay_of_a_pods_own_log_says_what_the_pod_did(models: list[Asked], tmp_path: Path) -> None:
    capacity_bytes = sum(model.size_bytes for model in models) // 2
    logs = serve_schedule(tmp_path, models, 1, capacity_bytes, "lru", SECONDS, PER_S)
    planned = plan(logs, "--capacity", str(capacity_bytes), "--policy", "lru")
    observed = planned["observed"]
    assert planned["requests"] > SECONDS * PER_S / 2
    assert planned["models"] > MODELS / 2
    assert 0.05 < observed["cold_fraction"] < 0.95, "the capacity was too small or too large to say anything"
    assert planned["cold_fraction"] == pytest.approx(observed["cold_fraction"], abs=0.08)
    assert planned["cold_p99_ms"] < 5 * observed["cold_p99_ms"]
    assert observed["cold_p99_ms"] < 20 * planned["cold_p99_ms"]
