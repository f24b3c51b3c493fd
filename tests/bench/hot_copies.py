"""Copies that were promoted: how fast they run against the framework's own session, and how soon a pod promotes one.

The baseline is `onnxruntime.InferenceSession` on the user's own file, as its documentation creates it, with as many
threads as a pod gives a run (one). Sessions of both kinds are made in turn, several of each, and run in random turns:
where a session's weights come to lie in memory changes its runs by 10 %, and a busy machine is then busy for both. What
is compared is the CPU time of the calling thread, which has the whole run to itself: what others take of the core is
left out.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np

from mesh.client.client import Client
from runtime_adapters.base import Promotable
from tests.bench.figures import Reporter
from tests.bench.models import BenchModel, read_models, sample_inputs
from tests.bench.pods import running_pod

BAR = 1.05
"""Of the default session's run."""
_MODELS = ("onnx-6mb", "onnx-25mb", "onnx-100mb")
_ROWS = (1, 8, 32)
_INSTANCES = 6
_PROMOTED_WITHIN_S = 60.0


def run(bench: Reporter) -> None:
    """Run times, then a real pod."""
    models = [model for name, model in read_models(bench.cache_dir).items() if name in _MODELS]
    for number, model in enumerate(models):
        bench.progress(number, len(models) + 1, model.name)
        _run_times(bench, model)
    bench.progress(len(models), len(models) + 1, "pod")
    _in_a_pod(bench, models[-1])
    bench.progress(len(models) + 1, len(models) + 1)


def _run_times(bench: Reporter, model: BenchModel) -> None:
    import onnxruntime

    cold = model.load()
    hot, plain = [], []
    for _ in range(_INSTANCES):
        loaded = model.load()
        assert isinstance(loaded, Promotable)
        loaded.promote()
        hot.append(loaded)
        one_thread = onnxruntime.SessionOptions()
        one_thread.intra_op_num_threads = 1
        plain.append(onnxruntime.InferenceSession(str(model.artifact), one_thread))
    for rows in _ROWS:
        inputs = sample_inputs(cold.metadata, rows)
        kinds: dict[str, list[Callable[[], Any]]] = {
            "hot": [_ours(loaded, inputs) for loaded in hot],
            "default": [_theirs(session, inputs) for session in plain],
            "cold": [_ours(cold, inputs)],
        }
        for ours, theirs in zip(hot[0].infer(inputs).values(), plain[0].run(None, inputs), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
        times_ms = _in_turn(kinds, rounds=bench.choose(40, 10))
        median = {kind: statistics.median(times) for kind, times in times_ms.items()}
        bench.figure(
            f"{model.name} ({model.file_bytes / 1e6:.0f} MB), {rows} rows: hot against the default session",
            median["hot"] / median["default"],
            "times",
            bar=BAR,
            note=f"hot {median['hot']:.2f} ms, default {median['default']:.2f}, cold {median['cold']:.2f}",
        )
    for loaded in (*hot, cold):
        loaded.unload()


def _in_turn(kinds: dict[str, list[Callable[[], Any]]], rounds: int) -> dict[str, list[float]]:
    """CPU milliseconds of each run: rounds of all instances of all kinds, each in an order of its own, since what ran
    before decides what the caches hold."""
    order = Random(1)
    turns = [(kind, run) for kind, runs in kinds.items() for run in runs]
    times_ms: dict[str, list[float]] = {kind: [] for kind in kinds}
    for number in range(rounds + 2):
        order.shuffle(turns)
        for kind, run in turns:
            began = time.thread_time()
            run()
            if number >= 2:
                times_ms[kind].append((time.thread_time() - began) * 1e3)
    return times_ms


def _ours(loaded: Any, inputs: Any) -> Callable[[], Any]:
    return lambda: loaded.infer(inputs)


def _theirs(session: Any, inputs: Any) -> Callable[[], Any]:
    return lambda: session.run(None, inputs)


def _in_a_pod(bench: Reporter, model: BenchModel) -> None:
    loaded = model.load()
    inputs = sample_inputs(loaded.metadata, 8)
    expected = loaded.infer(inputs)
    loaded.unload()
    before_ms: list[float] = []
    after_ms: list[float] = []
    with running_pod(bench) as pod, Client(pod.grpc_endpoint, timeout_s=60.0) as client:
        client.register(model.name, uri=model.artifact.as_uri(), format=model.format)
        client.infer(model.name, inputs)
        began = time.perf_counter()
        promoted_s = 0.0
        while len(after_ms) < bench.choose(200, 20) and time.perf_counter() - began < _PROMOTED_WITHIN_S:
            asked = time.perf_counter()
            answer = client.infer(model.name, inputs)
            took_ms = (time.perf_counter() - asked) * 1e3
            for output, array in expected.items():
                np.testing.assert_allclose(answer.outputs[output], array, rtol=1e-3, atol=1e-4)
            if promoted_s:
                after_ms.append(took_ms)
                continue
            before_ms.append(took_ms)
            if len(before_ms) % 20 == 0 and client.describe(model.name).copies[0].form == "hot":
                promoted_s = time.perf_counter() - began
        status = client.pod_status()[0]
    bench.figure(
        f"pod: {model.name} is hot after", promoted_s or float("inf"), "s", bar=_PROMOTED_WITHIN_S,
        note=f"asked without a pause, 8 rows; {status.models_resident} resident",
    )  # fmt: skip
    if after_ms:
        bench.samples(
            "pod: 8 rows, answered by the hot copy",
            after_ms,
            "ms",
            baseline=statistics.median(before_ms),
            baseline_name="cold, and while it was promoted",
        )
