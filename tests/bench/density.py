"""How many tiny models one process holds, and what each costs beyond its weights.

Two views of the same question. The adapter alone: 10,000 prepared ONNX models, each a file of its own, loaded and run
once. The whole pod: 3,000 of them registered over the wire and asked once each, which adds the registry, the cache,
the disk tier's ledger and the meters to every model. Private dirty pages are what a model really takes from the
machine; shared pages and page cache are not counted. Models stay referenced throughout, and threads are counted before
and after, because a framework's default is a pool of threads per model.

The baseline is onnxruntime with its own defaults on the same files.
"""

from __future__ import annotations

import asyncio
import gc
import time
from typing import Any

import numpy as np

from mesh.client.async_client import AsyncClient
from mesh.client.client import Client
from mesh.client.operations import registration
from runtime_adapters.malloc import trim
from runtime_adapters.memory import private_dirty_bytes, resident_bytes
from tests.bench.figures import Reporter
from tests.bench.models import TINY_SIZES, BenchModel, read_tiny, sample_inputs
from tests.bench.pods import private_dirty_bytes_of, running_pod, threads_of

MODELS = 10_000
POD_MODELS = 3_000
"""10,000 take three minutes of first loads and give the same figure per model (see the README)."""
BEYOND_WEIGHTS_BAR_KB = 150.0
_BASELINE_MODELS = 200
_IN_FLIGHT = 32


def run(bench: Reporter) -> None:
    """Both views."""
    _measure_adapter(bench, read_tiny(bench.cache_dir, bench.choose(MODELS, 500)))
    _measure_pod(bench, read_tiny(bench.cache_dir, bench.choose(POD_MODELS, 300)))


def _measure_adapter(bench: Reporter, tiny: list[BenchModel]) -> None:
    warm = tiny[0].load()
    inputs = sample_inputs(warm.metadata)
    warm.infer(inputs)
    warm.unload()
    default_bytes, default_threads = _measure_default(tiny[: bench.choose(_BASELINE_MODELS, 50)], inputs)
    before_bytes, before_threads, before_rss = _settled_bytes(), threads_of("self"), resident_bytes()
    residents, load_ms = [], []
    for number, model in enumerate(tiny):
        began = time.perf_counter()
        loaded = model.load()
        load_ms.append((time.perf_counter() - began) * 1e3)
        loaded.infer(inputs)
        residents.append(loaded)
        if number % 200 == 0:
            bench.progress(number, len(tiny), "adapter")
    grown_bytes = _settled_bytes() - before_bytes
    bar = float(MODELS) if not bench.quick else None
    bench.figure("resident, adapter", len(residents), "models", bar=bar, at_least=True)
    bench.figure(
        "beyond weights, adapter",
        (grown_bytes / len(tiny) - tiny[0].weight_bytes) / 1e3,
        "kB/model",
        bar=BEYOND_WEIGHTS_BAR_KB,
        baseline=(default_bytes - tiny[0].weight_bytes) / 1e3,
        baseline_name="onnxruntime's defaults",
        note=f"RSS {before_rss / 2**20:.0f} -> {resident_bytes() / 2**20:.0f} MiB",
    )
    bench.figure(
        "threads added, adapter",
        threads_of("self") - before_threads,
        "threads",
        bar=0.0,
        baseline=default_threads,
        baseline_name=f"defaults, {bench.choose(_BASELINE_MODELS, 50)} models",
    )
    declared = sum(model.size().total_bytes for model in residents)
    bench.figure(
        "sum of sizes against growth", 100 * abs(declared / grown_bytes - 1), "%", bar=10.0,
        note=f"adapter says {declared / 1e6:.0f} MB, grew {grown_bytes / 1e6:.0f} MB",
    )  # fmt: skip
    bench.samples("load with so many resident", load_ms, "ms", bar=1.0)


def _measure_default(models: list[BenchModel], inputs: dict[str, Any]) -> tuple[float, int]:
    import onnxruntime

    before_bytes, before_threads = _settled_bytes(), threads_of("self")
    sessions = [onnxruntime.InferenceSession(str(m.artifact), providers=["CPUExecutionProvider"]) for m in models]
    for session in sessions:
        session.run(None, inputs)
    return (_settled_bytes() - before_bytes) / len(sessions), threads_of("self") - before_threads


def _settled_bytes() -> int:
    gc.collect()
    trim()
    return private_dirty_bytes()


def _measure_pod(bench: Reporter, tiny: list[BenchModel]) -> None:
    total = len(tiny)
    with running_pod(bench, capacity_bytes=8 << 30) as pod, Client(pod.grpc_endpoint) as client:
        _register(client, tiny[:1], "warm")
        asyncio.run(_ask(pod.grpc_endpoint, ["warm-0"], 1))
        before_bytes, before_threads = private_dirty_bytes_of(pod.pid), threads_of(pod.pid)
        _register(client, tiny, "tiny")
        registered_bytes = private_dirty_bytes_of(pod.pid)
        began = time.perf_counter()
        names = [f"tiny-{number}" for number in range(total)]
        done = 0
        for first in range(0, total, 500):
            asyncio.run(_ask(pod.grpc_endpoint, names[first : first + 500], _IN_FLIGHT))
            done += len(names[first : first + 500])
            bench.progress(done, total, "pod")
        seconds = time.perf_counter() - began
        status = client.pod_status()[0]
        grown_bytes = private_dirty_bytes_of(pod.pid) - before_bytes
        device = next(tier for tier in status.tiers if tier.tier == "device")
        bench.figure("resident, pod", status.models_resident - 1, "models", bar=float(total), at_least=True)
        bench.figure(
            "beyond weights, pod",
            (grown_bytes / total - tiny[0].weight_bytes) / 1e3,
            "kB/model",
            bar=BEYOND_WEIGHTS_BAR_KB,
            note=f"registered only: {(registered_bytes - before_bytes) / total / 1e3:.1f} kB; ledger "
            f"{device.resident_bytes / total / 1e3:.1f} kB",
        )
        bench.figure("threads added, pod", threads_of(pod.pid) - before_threads, "threads", note="of bounded pools")
        bench.figure(
            "first loads in the pod", total / seconds, "1/s", note="fetch, check, prepare, load, warm up, answer"
        )


def _register(client: Client, models: list[BenchModel], prefix: str) -> None:
    entries = (
        registration(f"{prefix}-{number}", uri=model.artifact.as_uri(), format="onnx")
        for number, model in enumerate(models)
    )
    for result in client.register_many(entries):
        if result.status_code:
            raise RuntimeError(f"{result.id}: {result.message}")


async def _ask(endpoint: str, names: list[str], in_flight: int) -> None:
    """Each model once."""
    row = np.ones((1, TINY_SIZES[0]), np.float32)
    gate = asyncio.Semaphore(in_flight)
    async with AsyncClient(endpoint, timeout_s=120.0) as client:

        async def ask(name: str) -> None:
            async with gate:
                await client.infer(name, {"x": row})

        await asyncio.gather(*(ask(name) for name in names))
