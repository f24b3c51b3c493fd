"""500 requests at once for one cold model: exactly one load, no error, everybody answered.

Each round registers a model under a name of its own, so that nobody has loaded it, and sends all requests at once from
one asyncio client that never retries. Rounds run over every format, because what a waiter waits for differs: an ONNX
load takes a millisecond, a Python model starts a process. The pod's own counter says how many loads there were.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from mesh.client.async_client import AsyncClient
from mesh.client.client import Client
from mesh.client.operations import registration
from mesh.client.retries import RetryPolicy
from tests.bench.figures import Reporter
from tests.bench.models import read_models, sample_inputs
from tests.bench.pods import running_pod

REQUESTS = 500
_MODELS = (
    "onnx-tiny",
    "onnx-25mb",
    "xgboost-100x6",
    "lightgbm-100x63",
    "sklearn-pipeline",
    "torch-25mb",
    "python-small",
)


def run(bench: Reporter) -> None:
    """A round per model, twice in thorough mode."""
    models = read_models(bench.cache_dir)
    chosen = [models[name] for name in _MODELS if name in models]
    chosen = chosen[:: bench.choose(1, 3)]
    rounds = bench.choose(2, 1)
    loads_most, errors_total, done = 0, 0, 0
    waits_ms: list[float] = []
    notes = []
    with running_pod(bench) as pod, Client(pod.grpc_endpoint, timeout_s=120.0) as client:
        for model in chosen:
            loaded = model.load()
            inputs = sample_inputs(loaded.metadata)
            loaded.unload()
            for round_number in range(rounds):
                bench.progress(done, rounds * len(chosen), model.name)
                name = f"{model.name}-{round_number}"
                client.register_many([registration(name, uri=model.artifact.as_uri(), format=model.format)])
                before = client.pod_status()[0].loads
                latencies_ms, errors = asyncio.run(_stampede(pod.grpc_endpoint, name, inputs))
                loads = client.pod_status()[0].loads - before
                loads_most = max(loads_most, loads if loads else REQUESTS)
                errors_total += len(errors)
                waits_ms += latencies_ms
                notes += errors[:1]
                done += 1
    bench.figure(
        f"loads for {REQUESTS} requests at once", loads_most, "loads", bar=1.0, note=f"the most of {done} rounds"
    )
    bench.figure("errors", errors_total, "errors", bar=0.0, note="; ".join(notes[:3]))
    bench.samples("time to answer", waits_ms, "ms", note="all 500 waiting, load included, every format")


async def _stampede(endpoint: str, name: str, inputs: Any) -> tuple[list[float], list[str]]:
    latencies_ms: list[float] = []
    errors: list[str] = []
    async with AsyncClient(endpoint, timeout_s=60.0, retry=RetryPolicy(attempts_max=1)) as client:
        await client.server_live()  # the connection stands before the clock starts

        async def ask() -> None:
            began = time.perf_counter()
            try:
                await client.infer(name, inputs)
            except Exception as error:
                errors.append(f"{type(error).__name__}: {error}")
            else:
                latencies_ms.append((time.perf_counter() - began) * 1e3)

        await asyncio.gather(*(ask() for _ in range(REQUESTS)))
    return latencies_ms, errors
