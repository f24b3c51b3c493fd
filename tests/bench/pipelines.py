"""What a Sequence of two steps costs against two calls by the client, in turns on one pod.

The model is ONNX, y = x * 2 for x of FP32 [-1, 1000]: its runs take next to nothing, so what is left is what asking
costs. One client, one request at a time, of one row (4 kB) and of 150 (600 kB); the pod's processor time beside the
client's wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mesh.client.client import Client
from tests.bench.figures import Reporter
from tests.bench.pods import processor_s_of, running_pod

WAIT_MAX = 1.0
"""A client that makes two calls of what a pipeline does in one must not be the quicker one."""
_COLUMNS = 1000
_WARM_UP = 50


def run(bench: Reporter) -> None:
    """Both sizes."""
    artifact = _doubling(bench.cache_dir)
    step = {"serviceName": "double"}
    graph = {"nodes": {"root": {"routerType": "Sequence", "steps": [step, {**step, "data": "$response"}]}}}
    with running_pod(bench) as pod, Client(pod.grpc_endpoint, timeout_s=60.0) as client:
        client.register("double", uri=artifact.as_uri(), format="onnx")
        client.register_pipeline("twice", graph)
        for number, rows in enumerate((1, 150)):
            bench.progress(number, 2, f"{rows} rows")
            x = np.random.default_rng(1).random((rows, _COLUMNS), np.float32)

            def calls(x: np.ndarray = x) -> np.ndarray:
                return client.infer("double", {"x": client.infer("double", {"x": x}).outputs["y"]}).outputs["y"]

            def pipeline(x: np.ndarray = x) -> np.ndarray:
                return client.infer("twice", {"x": x}).outputs["y"]

            np.testing.assert_array_equal(pipeline(), calls())
            _compare(bench, f"{x.nbytes // 1000} kB", pod.pid, calls, pipeline)
        bench.progress(2, 2)


def _compare(bench: Reporter, size: str, pid: int, calls: Callable[[], object], pipeline: Callable[[], object]) -> None:
    waits: dict[str, list[float]] = {"two calls": [], "pipeline": []}
    processor_s = dict.fromkeys(waits, 0.0)
    turns, each = bench.choose(20, 8), bench.choose(100, 50)
    for _ in range(_WARM_UP):
        calls()
        pipeline()
    for _ in range(turns):
        for name, ask in (("two calls", calls), ("pipeline", pipeline)):
            before_s = processor_s_of(pid)
            for _ in range(each):
                began_s = time.perf_counter()
                ask()
                waits[name].append(time.perf_counter() - began_s)
            processor_s[name] += processor_s_of(pid) - before_s
    for name, seconds in waits.items():
        cost_us = 1e6 * processor_s[name] / (turns * each)
        bench.samples(f"{size}, {name}", [1e3 * each for each in seconds], "ms", note=f"{cost_us:.0f} µs of the pod")
    wait = float(np.median(waits["pipeline"]) / np.median(waits["two calls"]))
    bench.figure(f"{size}, pipeline / two calls, wait", wait, "times", bar=WAIT_MAX)
    bench.figure(f"{size}, pipeline / two calls, pod", processor_s["pipeline"] / processor_s["two calls"], "times")


def _doubling(directory: Path) -> Path:
    from onnx import TensorProto, helper, numpy_helper, save

    path = directory / "pipelines-double.onnx"
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "two"], ["y"])],
        "double",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", _COLUMNS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", _COLUMNS])],
        [numpy_helper.from_array(np.array([2.0], np.float32), "two")],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return path
