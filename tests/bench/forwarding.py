"""What a forwarded request costs more than one that is answered where it comes in.

Two pods, one model with one copy. One client asks the pod that has it, another asks the other pod, in turn, one
request at a time, so that both see the same machine at the same moment. What a client sees of a hop is one more
request and answer over loopback, and the work of one more event loop.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from mesh.client.client import Client
from mesh.client.operations import registration
from mesh.client.retries import RetryPolicy
from mesh.demo.etcd_server import EtcdMissing
from mesh.demo.local_pool import LocalPool
from tests.bench.figures import Reporter
from tests.bench.models import read_models, sample_inputs

_MODELS = ("onnx-tiny", "xgboost-100x6")
_WARM_UP = 200


def run(bench: Reporter) -> None:
    """Pairs of requests, for each of two models."""
    models = read_models(bench.cache_dir)
    pairs = bench.choose(4000, 600)
    with tempfile.TemporaryDirectory(prefix="pool-", dir=bench.cache_dir) as directory:
        try:
            pool = LocalPool(Path(directory), 2, settings={"capacity": "1GiB", "log_level": "error"})
        except EtcdMissing as error:
            bench.skip("forwarded requests", str(error))
            return
        with pool:
            pool.start()
            for name in _MODELS:
                model = models[name]
                loaded = model.load()
                inputs = sample_inputs(loaded.metadata)
                loaded.unload()
                with Client(pool.endpoints) as client:
                    client.register_many(
                        [registration(name, uri=model.artifact.as_uri(), format=model.format, copies_max=1)]
                    )
                    client.infer(name, inputs)
                    holder = client.describe(name).copies[0].pod
                _measure(bench, pool, name, inputs, holder, pairs)


def _measure(
    bench: Reporter, pool: LocalPool, name: str, inputs: dict[str, np.ndarray], holder: str, pairs: int
) -> None:
    once = RetryPolicy(attempts_max=1)
    there = next(pod for pod in pool.pods if pod.name == holder)
    elsewhere = next(pod for pod in pool.pods if pod.name != holder)
    local_ms, forwarded_ms = [], []
    with Client(there.grpc_endpoint, retry=once) as direct, Client(elsewhere.grpc_endpoint, retry=once) as through:
        for number in range(_WARM_UP + pairs):
            began = time.perf_counter()
            direct.infer(name, inputs)
            between = time.perf_counter()
            through.infer(name, inputs)
            ended = time.perf_counter()
            if number >= _WARM_UP:
                local_ms.append((between - began) * 1e3)
                forwarded_ms.append((ended - between) * 1e3)
            if number % 100 == 0:
                bench.progress(number, _WARM_UP + pairs, name)
    local = bench.samples(f"{name}, answered where it came in", local_ms, "ms")
    beside = {"baseline": local.value, "baseline_name": "answered where it came in"}
    bench.samples(f"{name}, forwarded", forwarded_ms, "ms", **beside)
    for percent in (50, 99):
        added_ms = float(np.percentile(forwarded_ms, percent) - np.percentile(local_ms, percent))
        bench.figure(f"{name}, added by a hop, p{percent}", added_ms, "ms", note=f"{pairs} pairs, one at a time")
