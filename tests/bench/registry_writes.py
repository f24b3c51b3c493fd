"""What a registration costs: `python -m tests.bench.registry_writes [--models 10000]`.

Printed for `synchronous=FULL`, which ships, and for `NORMAL` as the baseline: what surviving a power cut costs, on
this disk. The data directory is a temporary one; set TMPDIR to choose the disk (a RAM disk has no sync to measure).
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path

from placement.records import ModelRecord, ModelSpec, model_from_json, model_to_json
from placement.registration import Registration
from placement.registry import Registry
from placement.store import sqlite_file
from placement.store.embedded import EmbeddedStore


def spec(i: int) -> ModelSpec:
    return ModelSpec(f"file:///models/{i}", format="onnx", labels={"team": "a"}, capacity_hint_bytes=1000 + i)


async def measure(synchronous: str, models: int) -> list[tuple[str, float, str]]:
    sqlite_file.SYNCHRONOUS = synchronous
    with tempfile.TemporaryDirectory() as directory:
        store = await EmbeddedStore.open(Path(directory))
        registry = Registry(store)
        await registry.start()
        entries = [Registration(f"m{i}", spec(i)) for i in range(models)]
        rows = []

        began_s = time.perf_counter()
        await registry.register_many("t", entries)
        rows.append(("registered in one bulk call", models / (time.perf_counter() - began_s), "per s"))
        began_s = time.perf_counter()
        await registry.register_many("t", entries)
        rows.append(("the same again (idempotent)", models / (time.perf_counter() - began_s), "per s"))

        began_s = time.perf_counter()
        await asyncio.gather(*(registry.register("t", f"s{i}", spec(i)) for i in range(3000)))
        rows.append(("3,000 single calls at once", 3000 / (time.perf_counter() - began_s), "per s"))

        took_s = []
        for i in range(200):
            began_s = time.perf_counter()
            await registry.register("t", f"q{i}", spec(i))
            took_s.append(time.perf_counter() - began_s)
        rows.append(("one call alone, p50", statistics.median(took_s) * 1e3, "ms"))
        rows.append(("one call alone, p99", sorted(took_s)[197] * 1e3, "ms"))

        began_s = time.perf_counter()
        for _ in range(100_000):
            registry.resolve("t", "m7")
        rows.append(("resolve a name", (time.perf_counter() - began_s) * 10, "us"))

        began_s = time.perf_counter()
        await registry.unregister_many("t", [entry.id for entry in entries])
        rows.append(("unregistered in one bulk call", models / (time.perf_counter() - began_s), "per s"))
        await registry.close()
        await store.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=10_000)
    models = parser.parse_args().models
    full = asyncio.run(measure("FULL", models))
    normal = asyncio.run(measure("NORMAL", models))
    print(f"{'':32}{'FULL':>12}{'NORMAL':>12}")
    for (name, value, unit), (_, baseline, _) in zip(full, normal, strict=True):
        print(f"{name:32}{value:12,.2f}{baseline:12,.2f}  {unit}")
    value_json = model_to_json(ModelRecord("t", "m", spec(1), 1, 0, 0))
    began_s = time.perf_counter()
    for _ in range(20_000):
        model_from_json("t", "m", value_json)
    print(f"{'records read from JSON':32}{20_000 / (time.perf_counter() - began_s):12,.0f}{'':12}  per s")


if __name__ == "__main__":
    main()
