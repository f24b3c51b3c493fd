"""What copies take, against what was said before the load, what is recorded after it, and what the weights need.

Truth is the growth of a fresh process (`python -m runtime_adapters.memory probe`): anonymous pages over one load and
warm-up, after an earlier load has brought the framework's own baggage, plus the bytes that are mapped. Against it stand

* the adapter's estimate from the prepared form, which is what a pod reserves before the first load,
* what a real pod records once it has measured: its cache's own figure, asked for over the wire,
* the weights, for models of 10 MB and more.

A tiny model's growth is less than a page or two of noise, so small ones are judged as a sum: all of one format resident
in one fresh process, against the sum of what their adapter says of them.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from mesh.client.client import Client
from mesh.client.operations import registration
from runtime_adapters.malloc import trim
from runtime_adapters.memory import anonymous_bytes
from tests.bench.figures import Reporter, spread_of
from tests.bench.models import BenchModel, read_models, read_tiny
from tests.bench.pods import running_pod, wait_prepared

BEFORE_BAR_PERCENT, MEASURED_BAR_PERCENT, SUM_BAR_PERCENT = 30.0, 10.0, 10.0
RATIO_BAR = 1.2
_LARGE_BYTES, _RATIO_BYTES = 5_000_000, 10_000_000
_SMALL_COPIES = 60


@dataclass(frozen=True, slots=True)
class _Row:
    model: BenchModel
    truth_bytes: int
    estimate_bytes: int
    recorded_bytes: int

    @property
    def estimate_off(self) -> float:
        return 100 * (self.estimate_bytes / self.truth_bytes - 1)

    @property
    def recorded_off(self) -> float:
        return 100 * (self.recorded_bytes / self.truth_bytes - 1)


def run(bench: Reporter) -> None:
    """Probe each large model, ask a pod about it, then the sums."""
    models = read_models(bench.cache_dir)
    large = [m for m in models.values() if m.weight_bytes >= _LARGE_BYTES and m.format != "python"]
    small = [m for m in models.values() if m.weight_bytes < _LARGE_BYTES / 5 and m.format != "python"]
    steps = 2 * len(large) + 1
    truths = {}
    for number, model in enumerate(large):
        bench.progress(number, steps, f"probe {model.name}")
        truths[model.name] = _probe(model)
    recorded = {}
    with running_pod(bench) as pod, Client(pod.grpc_endpoint, timeout_s=120.0) as client:
        _record(client, [m for m in small if m.name != "onnx-tiny"])  # the frameworks' own baggage
        for number, model in enumerate(large):
            bench.progress(len(large) + number, steps, f"pod {model.name}")
            recorded.update(_record(client, [model]))
    rows = [
        _Row(model, truths[model.name]["grown_bytes"], truths[model.name]["estimate_bytes"], recorded[model.name])
        for model in large
    ]
    _report(bench, rows)
    _report_sum(bench, small)
    bench.progress(steps, steps)


def _report(bench: Reporter, rows: list[_Row]) -> None:
    for row in rows:
        said = f"truth {row.truth_bytes / 1e6:.2f} MB, weights {row.model.weight_bytes / 1e6:.2f} MB, estimate "
        said += f"{row.estimate_off:+.1f} %, pod {row.recorded_off:+.1f} %"
        bar = RATIO_BAR if row.model.weight_bytes >= _RATIO_BYTES else None
        bench.figure(
            f"resident / weights, {row.model.name}",
            row.truth_bytes / row.model.weight_bytes,
            "x",
            bar=bar,
            note=said,
        )
    for name, errors, bar in (
        ("estimate before the load", [abs(row.estimate_off) for row in rows], BEFORE_BAR_PERCENT),
        ("recorded by the pod", [abs(row.recorded_off) for row in rows], MEASURED_BAR_PERCENT),
    ):
        spread = spread_of(errors)
        bench.figure(f"{name}, p95 error", spread.p95, "%", bar=bar, spread=spread, note="over models of 5 MB and more")


def _probe(model: BenchModel) -> dict[str, Any]:
    command = [sys.executable, "-m", "runtime_adapters.memory", "probe", "--format", model.format]
    command += ["--artifact", str(model.prepared), "--trusted"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise RuntimeError(f"the probe of {model.name} failed: {answer.stderr[-2000:]}")
    report: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return report


def _record(client: Client, models: list[BenchModel]) -> dict[str, int]:
    """Load each in the pod, one at a time, and read what the ledger then holds for it."""
    recorded = {}
    for model in models:
        client.register_many([registration(model.name, uri=model.artifact.as_uri(), format=model.format)])
        client.ensure_loaded(model.name, timeout_s=120.0)
        wait_prepared(client, model.name)
        (copy,) = client.describe(model.name).copies
        recorded[model.name] = copy.host_bytes + copy.mapped_bytes + copy.device_bytes
    return recorded


def _report_sum(bench: Reporter, small: list[BenchModel]) -> None:
    tiny = read_tiny(bench.cache_dir, 10 * _SMALL_COPIES)
    groups = {model.name: [model] * _SMALL_COPIES for model in small if model.name != "onnx-tiny"}
    groups["onnx-tiny"] = tiny
    said_total, grown_total = 0, 0
    notes = []
    for group in groups.values():
        residents = [group[0].load() for _ in range(3)]  # baggage of the first few
        for loaded in residents:
            loaded.warm_up()
        before_bytes = _settled_bytes()
        for model in group:
            loaded = model.load()
            loaded.warm_up()
            residents.append(loaded)
        grown = _settled_bytes() - before_bytes
        said = sum(loaded.size().host_bytes for loaded in residents[3:])
        said_total += said
        grown_total += grown
        notes.append(f"{group[0].name} {100 * (said / grown - 1):+.0f} %" if grown else group[0].name)
    bench.figure(
        "sum over all small residents",
        100 * abs(said_total / grown_total - 1),
        "%",
        bar=SUM_BAR_PERCENT,
        note=f"said {said_total / 1e6:.1f} MB, grew {grown_total / 1e6:.1f} MB; " + ", ".join(notes),
    )


def _settled_bytes() -> int:
    gc.collect()
    trim()
    return anonymous_bytes()
