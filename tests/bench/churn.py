"""Memory after 2,000 random loads and unloads over all formats, against the start.

Start is a process that has loaded, run and unloaded one model of each format: frameworks imported, nothing held. Then
two lanes load, run and unload models of every format and size at random, each operation on a fresh thread, as the
pod's loader does it; up to eight models are resident at a time. At the end all are unloaded.

The same is then asked of a whole pod whose capacity holds a part of the models, by 2,000 requests at random: every
miss is a load and, once it is full, an eviction. It adds the registry, the disk tier and the request path.
"""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from mesh.client.async_client import AsyncClient
from mesh.client.client import Client
from mesh.client.operations import registration
from runtime_adapters.malloc import trim
from runtime_adapters.memory import resident_bytes
from tests.bench.figures import Reporter
from tests.bench.models import BenchModel, read_models, sample_inputs
from tests.bench.pods import resident_bytes_of, running_pod

OPERATIONS = 2_000
GROWTH_BAR_PERCENT = 5.0
_LANES = 2
_RESIDENT_PER_LANE = 4
_HEAVY_BYTES = 40_000_000
"""Larger ones would make the bench long and say nothing new."""


def run(bench: Reporter) -> None:
    """The adapters by themselves, then a pod."""
    every = [model for model in read_models(bench.cache_dir).values() if model.file_bytes < _HEAVY_BYTES]
    _churn_adapters(bench, [model for model in every if model.format != "python"])
    _churn_pod(bench, every)


def _churn_adapters(bench: Reporter, models: list[BenchModel]) -> None:
    operations = bench.choose(OPERATIONS, 100)
    first_of = {model.format: model for model in reversed(models)}
    for model in first_of.values():
        _in_thread(partial(_load_run_unload, model))
    start_bytes = _settled_bytes()
    peak_bytes = start_bytes
    choose = random.Random(5)
    held: list[list[Any]] = [[] for _ in range(_LANES)]
    began = time.perf_counter()
    done = 0
    while done < operations:
        lanes: list[tuple[list[Any] | None, Future[Any]]] = []
        for lane in held:
            if len(lane) >= _RESIDENT_PER_LANE or (lane and choose.random() < 0.5):
                lanes.append((None, _begin(lane.pop(choose.randrange(len(lane))).unload)))
            else:
                model = choose.choice(models)
                lanes.append((lane, _begin(partial(_load_and_run, model))))
        for into, outcome in lanes:
            loaded = outcome.result()
            if into is not None:
                into.append(loaded)
            done += 1
        del lanes, loaded, outcome, into
        peak_bytes = max(peak_bytes, resident_bytes())
        bench.progress(done, 2 * operations, "adapters")
    seconds = time.perf_counter() - began
    for lane in held:
        while lane:
            lane.pop().unload()
    untrimmed_bytes = resident_bytes()
    end_bytes = _settled_bytes()
    bench.figure(
        f"RSS after {operations} operations, adapters",
        100 * (end_bytes / start_bytes - 1),
        "%",
        bar=GROWTH_BAR_PERCENT,
        note=f"{start_bytes / 2**20:.0f} -> {end_bytes / 2**20:.0f} MiB (before the last trim "
        f"{untrimmed_bytes / 2**20:.0f}, peak {peak_bytes / 2**20:.0f}); {operations / seconds:.0f} operations/s",
    )


def _churn_pod(bench: Reporter, models: list[BenchModel]) -> None:
    requests = bench.choose(OPERATIONS, 100)
    rows = {model.name: sample_inputs(_metadata(model)) for model in models if model.format != "python"}
    models = [model for model in models if model.name in rows]
    sizes = [model.file_bytes for model in models]
    capacity_bytes = int(max(0.35 * sum(sizes), 2.5 * max(sizes)))
    first_of = {model.format: model for model in reversed(models)}
    with (
        running_pod(bench, capacity_bytes=capacity_bytes, settings=("--residency-min-s", "0")) as pod,
        Client(pod.grpc_endpoint) as client,
    ):
        _register(client, models)
        asyncio.run(_ask(pod.grpc_endpoint, [(model.name, rows[model.name]) for model in models], lambda done: None))
        _unload_all(client, models)
        start_bytes = resident_bytes_of(pod.pid)
        _register(client, models)
        choose = random.Random(6)
        asked = [model.name for model in choose.choices(models, k=requests)]
        before = client.pod_status()[0]
        asyncio.run(
            _ask(
                pod.grpc_endpoint,
                [(name, rows[name]) for name in asked],
                lambda done: bench.progress(requests + done, 2 * requests, "pod"),
            )
        )
        after = client.pod_status()[0]
        _unload_all(client, models)
        end_bytes = resident_bytes_of(pod.pid)
        bench.figure(
            "RSS after churn, pod",
            100 * (end_bytes / start_bytes - 1),
            "%",
            bar=GROWTH_BAR_PERCENT,
            note=f"{start_bytes / 2**20:.0f} -> {end_bytes / 2**20:.0f} MiB; {after.loads - before.loads} loads, "
            f"{after.evictions - before.evictions} evictions by {requests} requests over {len(first_of)} formats",
        )


def _metadata(model: BenchModel) -> Any:
    loaded = model.load()
    try:
        return loaded.metadata
    finally:
        loaded.unload()


def _register(client: Client, models: list[BenchModel]) -> None:
    entries = [registration(model.name, uri=model.artifact.as_uri(), format=model.format) for model in models]
    for result in client.register_many(entries):
        if result.status_code:
            raise RuntimeError(f"{result.id}: {result.message}")


def _unload_all(client: Client, models: list[BenchModel]) -> None:
    client.unregister_many(model.name for model in models)
    until_s = time.monotonic() + 20
    while client.pod_status()[0].models_resident:
        if time.monotonic() > until_s:
            raise RuntimeError("the pod still holds models 20 s after all were unregistered")
        time.sleep(0.05)


async def _ask(endpoint: str, requests: list[tuple[str, Any]], on_progress: Callable[[int], None]) -> None:
    gate = asyncio.Semaphore(4)
    done = 0
    async with AsyncClient(endpoint, timeout_s=120.0) as client:

        async def ask(name: str, inputs: Any) -> None:
            nonlocal done
            async with gate:
                await client.infer(name, inputs)
            done += 1
            on_progress(done)

        await asyncio.gather(*(ask(name, inputs) for name, inputs in requests))


def _load_and_run(model: BenchModel) -> Any:
    loaded = model.load()
    loaded.warm_up()
    return loaded


def _load_run_unload(model: BenchModel) -> None:
    _load_and_run(model).unload()


def _begin(work: Callable[[], Any]) -> Future[Any]:
    outcome: Future[Any] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run).start()
    return outcome


def _in_thread(work: Callable[[], Any]) -> Any:
    return _begin(work).result()


def _settled_bytes() -> int:
    gc.collect()
    trim()
    return resident_bytes()
