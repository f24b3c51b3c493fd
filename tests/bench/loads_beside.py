"""How long callers of resident models wait while others load beside them: 4 loads a second of 25 MB each.

A pod on one core serves a resident model to callers that begin at random moments (`peers/load.py`, paced, on another
core), by turns alone and with somebody who asks for 25 MB models, of which its memory holds two of eight. Each load is
of a model that was here before: an eviction, a load from the pod's own disk, and its first run. The bar is on the p99
of the resident model's callers, who are not to notice; what the loads themselves take is shown beside it.

A resident model is asked for far less than the pod could answer, since a queue that is about to overflow would make
everything else invisible.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from statistics import median

import numpy as np

from mesh.client.client import Client
from mesh.client.operations import infer
from mesh.demo.server import DemoServer
from mesh.wire import messages
from tests.bench.figures import Reporter
from tests.bench.loads_asker import FEATURES, OTHERS, Asked, asking, other_name
from tests.bench.models import BenchModel, read_models, sample_inputs
from tests.bench.peers.load import Load, LoadResult, pin_to, run_load
from tests.bench.pods import pin_process, running_pod, wait_prepared
from tests.bench.transport import ask_once

BAR = 2.0
"""Times the quiet p99: issue 5's."""
_OTHERS_RESIDENT = 2
_OTHER_BYTES, _RESIDENT_BYTES = 27_000_000, 16_000_000
_CAPACITY_BYTES = _OTHERS_RESIDENT * _OTHER_BYTES + _RESIDENT_BYTES
_RESIDENT = {"onnx-tiny": 500.0, "sklearn-pipeline": 100.0}
"""Requests a second of the resident models."""
_ROUNDS, _ROUNDS_QUICK = 5, 2
_SECONDS, _SECONDS_QUICK = 8.0, 4.0


def run(bench: Reporter) -> None:
    """Each resident model, by turns alone and with loads beside it."""
    models = read_models(bench.cache_dir)
    server_core, load_core = min(os.sched_getaffinity(0)), max(os.sched_getaffinity(0))
    with (
        tempfile.TemporaryDirectory(prefix="loads-beside-", dir=bench.cache_dir) as directory,
        running_pod(bench, capacity_bytes=_CAPACITY_BYTES, settings=("--no-promotion",)) as pod,
        Client(pod.grpc_endpoint, timeout_s=120.0) as client,
    ):
        pin_process(pod.pid, server_core)
        pin_to((load_core,))
        _register_others(bench, client, models["onnx-25mb"], Path(directory))
        for number, (name, rate_per_s) in enumerate(_RESIDENT.items()):
            bench.progress(number, len(_RESIDENT), name)
            _measure(bench, pod, client, models[name], rate_per_s)
        bench.progress(len(_RESIDENT), len(_RESIDENT))


def _register_others(bench: Reporter, client: Client, original: BenchModel, directory: Path) -> None:
    """Different weights in each, so that none shares a byte with another. Each loads once, to be on the disk."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(original.artifact)
    for number in range(OTHERS):
        bench.progress(number, OTHERS, "25 MB models")
        for weights in model.graph.initializer:
            weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights) * np.float32(0.99), weights.name))
        artifact = directory / f"{number}.onnx"
        artifact.write_bytes(model.SerializeToString())
        name = other_name(number)
        client.register(name, uri=artifact.as_uri(), format="onnx")
        client.infer(name, {"x": np.zeros((1, FEATURES), np.float32)})
        wait_prepared(client, name)


def _measure(bench: Reporter, pod: DemoServer, client: Client, model: BenchModel, rate_per_s: float) -> None:
    loaded = model.load()
    body = infer(model.name, sample_inputs(loaded.metadata), (), "", "").body
    loaded.unload()
    port = int(pod.grpc_endpoint.rpartition(":")[2])
    client.register(model.name, uri=model.artifact.as_uri(), format=model.format, pinned=True)
    ask_once(port, body)
    wait_prepared(client, model.name)
    load = Load(
        address=("127.0.0.1", port),
        grpc_path=messages.MODEL_INFER.path,
        requests=(body,),
        expected=(ask_once(port, body),),
        order=(0,),
        in_flight=1,
        rate_per_s=rate_per_s,
        warm_up_s=0.5,
        duration_s=bench.choose(_SECONDS, _SECONDS_QUICK),
        server_pids=(pod.pid,),
    )
    quiet, beside = list[LoadResult](), list[LoadResult]()
    asked = Asked([], 0, 0.0)
    for _ in range(bench.choose(_ROUNDS, _ROUNDS_QUICK)):
        quiet.append(run_load(load))
        with asking(pod.grpc_endpoint) as asker:
            beside.append(run_load(load))
        asked = asked.with_more(asker.asked)
    _report(bench, model.name, quiet, beside, asked)


def _report(bench: Reporter, name: str, quiet: list[LoadResult], beside: list[LoadResult], asked: Asked) -> None:
    before_ms, after_ms = (
        [median(at) for at in zip(*(each.latencies_ms for each in those), strict=True)] for those in (quiet, beside)
    )
    bench.figure(
        f"{name}, p99 beside loads",
        after_ms[1] / before_ms[1],
        "times the quiet p99",
        bar=BAR,
        note=", ".join(
            f"{percentile} {after:.2f} for {before:.2f} ms"
            for percentile, after, before in zip(("p50", "p99", "p99.9"), after_ms, before_ms, strict=True)
        ),
    )
    bench.samples(
        f"{name}, the loads beside it",
        asked.cold_ms,
        "ms",
        note=f"{len(asked.cold_ms) / asked.seconds:.1f} loads a second, {asked.warm} requests found their model here",
    )
