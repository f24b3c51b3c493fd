"""How many models are registered in a second: 10,000 in bulk, over the wire, each on disk before it is acknowledged.

Beside it the registry alone, without the wire, with SQLite's `synchronous=FULL` (what the pod uses: a power cut loses
nothing that was acknowledged) and with `NORMAL` (survives `kill -9` only): what durability costs.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from pathlib import Path

from mesh.client.client import Client
from mesh.client.operations import registration
from placement.records import ModelSpec
from placement.registration import Registration
from placement.registry import Registry
from placement.store import sqlite_file
from placement.store.embedded import EmbeddedStore
from tests.bench.figures import Reporter, spread_of
from tests.bench.models import read_models
from tests.bench.pods import running_pod

MODELS = 10_000
_BATCH = 1_000


def run(bench: Reporter) -> None:
    """The wire, then the registry alone in both modes, in turn."""
    count, rounds = bench.choose(MODELS, 1_000), bench.choose(3, 1)
    uri = read_models(bench.cache_dir)["onnx-tiny"].artifact.as_uri()
    rates: dict[str, list[float]] = {"FULL": [], "NORMAL": []}
    for number in range(rounds):
        for mode, samples in rates.items():
            bench.progress(number, rounds + 1, f"registry alone, {mode}")
            samples.append(_rate_alone(bench, mode, count, uri))
    bench.progress(rounds, rounds + 1, "over the wire")
    with running_pod(bench) as pod, Client(pod.grpc_endpoint, timeout_s=120.0) as client:
        entries = [registration(f"model-{number:05}", uri=uri, format="onnx") for number in range(count)]
        began = time.perf_counter()
        results = client.register_many(entries)
        seconds = time.perf_counter() - began
        refused = sum(1 for result in results if result.status_code)
        bench.figure(
            f"{count:,} over the wire",
            count / seconds,
            "1/s",
            baseline=spread_of(rates["FULL"]).p50,
            baseline_name="the registry alone",
            note=f"{seconds:.2f} s, {refused} refused",
        )
    bench.samples(
        "registry alone, FULL", rates["FULL"], "1/s", baseline=spread_of(rates["NORMAL"]).p50, baseline_name="NORMAL"
    )


def _rate_alone(bench: Reporter, mode: str, count: int, uri: str) -> float:
    directory = Path(tempfile.mkdtemp(prefix="registry-", dir=bench.cache_dir))
    product_mode = sqlite_file.SYNCHRONOUS
    sqlite_file.SYNCHRONOUS = mode
    try:
        return asyncio.run(_register(directory, count, uri))
    finally:
        sqlite_file.SYNCHRONOUS = product_mode
        shutil.rmtree(directory, ignore_errors=True)


async def _register(directory: Path, count: int, uri: str) -> float:
    store = await EmbeddedStore.open(directory)
    registry = Registry(store)
    await registry.start()
    entries = [Registration(f"model-{number:05}", ModelSpec(uri=uri, format="onnx")) for number in range(count)]
    began = time.perf_counter()
    for first in range(0, count, _BATCH):
        for result in await registry.register_many("default", entries[first : first + _BATCH]):
            if isinstance(result, Exception):
                raise result
    seconds = time.perf_counter() - began
    await registry.close()
    await store.close()
    return count / seconds
