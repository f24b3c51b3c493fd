"""What a warm request costs: the framework called directly, the same through the endpoint, and an echo beside them.

The echo is the same transport with a handler that answers its request: what is left when everything of ours is taken
away. Endpoint minus echo is decoding, look-ups, checks, the run and encoding. The client is gRPC's own with a request
that was encoded beforehand, in this process; the server is another. On two cores both compete, so throughput with 64
in flight is that of client and server together, the same for the echo.

`hand-over` is the price of running a model on a worker thread instead of on the loop (`run_place.HANDOVER_S`).
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from mesh.batching.run_place import HANDOVER_S
from mesh.client.client import Client
from mesh.client.operations import infer
from mesh.wire import messages
from tests.bench.figures import Reporter, spread_of
from tests.bench.models import BenchModel, read_models, sample_inputs
from tests.bench.pods import running_pod

IN_FLIGHT = 64
_MODELS = ("onnx-tiny", "xgboost-100x6", "sklearn-pipeline", "torch-small", "python-small")
_WARM_UP = 200


def run(bench: Reporter) -> None:
    """Hand-over, echo, then each model."""
    models = read_models(bench.cache_dir)
    chosen = [models[name] for name in _MODELS if name in models][:: bench.choose(1, 2)]
    steps = len(chosen) + 2
    bench.progress(0, steps, "hand-over")
    _measure_handover(bench)
    bench.progress(1, steps, "echo")
    echo = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.echo_server", "native"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert echo.stdout is not None
        echo_endpoint = f"127.0.0.1:{int(echo.stdout.readline())}"
        with running_pod(bench) as pod, Client(pod.grpc_endpoint, timeout_s=120.0) as client:
            body = _body(models["onnx-tiny"], np.zeros((1, 4), np.float32), "x")
            echo_ms, echo_rate = _measure_endpoint(bench, echo_endpoint, body)
            bench.samples("echo, concurrency 1", echo_ms, "ms")
            bench.figure(f"echo, {IN_FLIGHT} in flight", echo_rate, "1/s")
            for number, model in enumerate(chosen):
                bench.progress(2 + number, steps, model.name)
                client.register(model.name, uri=model.artifact.as_uri(), format=model.format)
                _measure_model(bench, pod.grpc_endpoint, model, spread_of(echo_ms).p50, echo_rate)
    finally:
        echo.terminate()
        echo.wait()
    bench.progress(steps, steps)


def _measure_model(bench: Reporter, endpoint: str, model: BenchModel, echo_p50_ms: float, echo_rate: float) -> None:
    loaded = model.load()
    ((input_name, row),) = sample_inputs(loaded.metadata).items()
    loaded.unload()
    direct_ms = _timed(_DIRECT_CALLS[model.format](model, row), bench.choose(2000, 300))
    body = _body(model, row, input_name)
    through_ms, rate = _measure_endpoint(bench, endpoint, body)
    direct, through = spread_of(direct_ms), spread_of(through_ms)
    bench.samples(
        f"{model.name}, concurrency 1",
        through_ms,
        "ms",
        baseline=direct.p50,
        baseline_name="framework called directly",
        note=f"direct p99 {direct.p99:.3f}; echo {echo_p50_ms:.3f}; ours: "
        f"{through.p50 - direct.p50 - echo_p50_ms:+.3f}",
    )
    bench.figure(
        f"{model.name}, {IN_FLIGHT} in flight", rate, "1/s", baseline=echo_rate, baseline_name="echo, same transport"
    )


def _body(model: BenchModel, row: Any, input_name: str) -> bytes:
    return infer(model.name, {input_name: row}, (), "", "").body


def _measure_endpoint(bench: Reporter, endpoint: str, body: bytes) -> tuple[list[float], float]:
    import grpc

    with grpc.insecure_channel(endpoint) as channel:
        call = channel.unary_unary(messages.MODEL_INFER.path)
        call(body, timeout=120)  # cold: loads the model
        one_by_one_ms = _timed(lambda: call(body, timeout=60), bench.choose(2000, 300))
    rate = asyncio.run(_rate(endpoint, body, bench.choose(3000, 600)))
    return one_by_one_ms, rate


async def _rate(endpoint: str, body: bytes, requests: int) -> float:
    import grpc.aio

    async with grpc.aio.insecure_channel(endpoint) as channel:
        call = channel.unary_unary(messages.MODEL_INFER.path)
        left = requests

        async def lane() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                await call(body, timeout=60)

        await asyncio.gather(*(call(body, timeout=60) for _ in range(IN_FLIGHT)))
        began = time.perf_counter()
        await asyncio.gather(*(lane() for _ in range(IN_FLIGHT)))
        return requests / (time.perf_counter() - began)


def _timed(work: Callable[[], Any], runs: int) -> list[float]:
    for _ in range(min(_WARM_UP, runs)):
        work()
    samples_ms = []
    for _ in range(runs):
        began = time.perf_counter()
        work()
        samples_ms.append((time.perf_counter() - began) * 1e3)
    return samples_ms


def _measure_handover(bench: Reporter) -> None:
    import uvloop

    async def hand_over() -> list[float]:
        loop = asyncio.get_running_loop()
        samples_us = []
        with ThreadPoolExecutor(2) as pool:
            for _ in range(bench.choose(5000, 1000)):
                began = time.perf_counter()
                await loop.run_in_executor(pool, _nothing)
                samples_us.append((time.perf_counter() - began) * 1e6)
        return samples_us

    bench.samples(
        "hand-over, loop to thread and back",
        uvloop.run(hand_over()),
        "µs",
        baseline=HANDOVER_S * 1e6,
        baseline_name="run_place.HANDOVER_S",
    )


def _nothing() -> None:
    return None


# The same prediction, as the framework's own users make it ---------------------------------------------------------


def _direct_onnx(model: BenchModel, row: Any) -> Callable[[], Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(model.artifact), providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": row})


def _direct_xgboost(model: BenchModel, row: Any) -> Callable[[], Any]:
    import xgboost

    classifier = xgboost.XGBClassifier(n_jobs=1)
    classifier.load_model(model.artifact)
    return lambda: classifier.predict(row)


def _direct_sklearn(model: BenchModel, row: Any) -> Callable[[], Any]:
    import skops.io

    pipeline = skops.io.load(model.artifact, trusted=skops.io.get_untrusted_types(file=model.artifact))
    return lambda: pipeline.predict(row)


def _direct_torch(model: BenchModel, row: Any) -> Callable[[], Any]:
    import torch

    torch.set_num_threads(1)
    network = torch.export.load(model.artifact).module()

    def call() -> Any:
        with torch.inference_mode():
            return network(torch.from_numpy(row)).numpy()

    return call


def _direct_python(model: BenchModel, row: Any) -> Callable[[], Any]:
    weights = np.load(model.artifact / "weights.npy")
    return lambda: row @ weights[:4]


_DIRECT_CALLS: dict[str, Callable[[BenchModel, Any], Callable[[], Any]]] = {
    "onnx": _direct_onnx,
    "xgboost": _direct_xgboost,
    "sklearn": _direct_sklearn,
    "torch": _direct_torch,
    "python": _direct_python,
}
