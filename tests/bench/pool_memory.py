"""What 100,000 models and their copies weigh on each pod, and what the next picture costs after one event.

Both views are built as a pod builds them: from stored JSON, in pages, the pool's names shared with the registry's.
`ordinary` specs say format, storage key and labels that many models have in common; `rich` ones add a label and a
checksum of their own. `parked`: no model has a copy, and each lies on the disks of two pods,
which few other models share.

The bar is on the resident set, so malloc's share is included, and on rich specs, the largest; beside it stands what
the views asked malloc for. A unit
test holds the latter for fewer models (`tests/unit/placement/test_view_memory.py`).
"""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice

import psutil

from placement import keys, registry, view
from placement import pool_view as pool
from placement.policy.snapshot import Copy, ModelName, Parked, PoolView
from placement.pool_reading import PoolReader
from placement.pool_records import copy_to_json, parked_to_json
from placement.pool_view import CopyEvent, ParkedEvent
from placement.records import ModelRecord, ModelSpec, model_to_json
from placement.store.base import KeyValue
from placement.view import NameEvent, RegistryView
from tests.bench.figures import Reporter

MODELS = 100_000
PODS = 100
MEMORY_BAR_MB = 100.0
ADVANCE_BAR_MS = 2.0
_PAGE = 1000
_TENANT = "default"


@dataclass(slots=True)
class Views:
    """A pod's two views."""

    names: RegistryView
    pool: PoolView

    def shared_name(self, name: ModelName) -> ModelName:
        """As `Registry.shared_name`."""
        record = self.names.tenant(name.tenant).models.get(name.id)
        return name if record is None else ModelName(record.tenant, record.id)


def run(bench: Reporter) -> None:
    """The resident set first, while this process is fresh and has nothing freed to use again."""
    count = bench.choose(MODELS, 20_000)
    bench.progress(0, 4, "resident")
    process = psutil.Process()
    gc.collect()
    before_bytes = process.memory_info().rss
    views = build_views(count, rich=True)
    gc.collect()
    bench.figure(
        f"{count:,} rich models and copies, resident",
        (process.memory_info().rss - before_bytes) / 1e6,
        "MB",
        bar=MEMORY_BAR_MB,
    )
    bench.samples("one copy changed", _advance_pool_ms(views), "ms", bar=ADVANCE_BAR_MS)
    bench.samples("one model changed", _advance_names_ms(views), "ms", bar=ADVANCE_BAR_MS)
    del views
    for number, kind in enumerate(("ordinary", "rich", "parked")):
        bench.progress(1 + number, 4, kind)
        held_bytes = traced(count, rich=kind == "rich", parked=kind == "parked")
        bench.figure(f"the same, asked for, {kind}", held_bytes / 1e6, "MB")


def traced(count: int, *, rich: bool, parked: bool = False) -> int:
    """Bytes that the two views of so many models hold."""
    gc.collect()
    tracemalloc.start()
    try:
        views = build_views(count, rich=rich, parked=parked)
        gc.collect()
        held_bytes = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert views.names.model_count() == len(views.pool.parked if parked else views.pool.copies) == count
    return held_bytes


def build_views(count: int, *, rich: bool, parked: bool = False) -> Views:
    """From the stored form, page by page."""
    views = Views(RegistryView(), PoolView())
    for page in _pages(_model(number, rich=rich) for number in range(count)):
        named = [event for kv in page if (event := registry._name_event(kv, deleted=False)) is not None]
        views.names, _ = view.advance(views.names, named, page[-1].mod_revision)
    reader = PoolReader(views.shared_name)
    held = (_parked(number, disk) for number in range(count) for disk in (0, 1))
    for page in _pages(held if parked else (_copy(number) for number in range(count))):
        events = [reader.read(kv, kv.mod_revision, deleted=False) for kv in page]
        shown = [event for event in events if isinstance(event, CopyEvent | ParkedEvent)]
        views.pool, _ = pool.advance(views.pool, shown, page[-1].mod_revision)
    return views


def _pages(items: Iterator[KeyValue]) -> Iterator[list[KeyValue]]:
    while page := list(islice(items, _PAGE)):
        yield page


def _id(number: int) -> str:
    return f"fraud-scoring-eu-{number:06}"


def _model(number: int, *, rich: bool) -> KeyValue:
    labels = {"team": f"team-{number % 40}", "env": "prod"}
    if rich:
        labels["customer"] = f"customer-{number:06}"
    spec = ModelSpec(
        f"s3://models-prod-eu/fraud-scoring/eu/{number:06}/v3/model.onnx",
        format="onnx",
        storage_key="prod-eu",
        labels=labels,
        checksum=f"sha256:{sha256(str(number).encode()).hexdigest()}" if rich else None,
    )
    at_s = 1.79e9 + number * 0.37
    record = ModelRecord(_TENANT, _id(number), spec, 1 + number % 3, at_s, at_s + number % 3)
    return KeyValue(keys.model_key(_TENANT, _id(number)), model_to_json(record), 1, 1_000_000 + number, 1)


def _copy(number: int) -> KeyValue:
    pod = f"hexcomb-7d9f8c6b5-{number % PODS:05x}"
    copy = Copy(pod, 1 + number % 3, 0, 1_500_000 + number * 37, 1.79e9 + number * 0.71)
    return KeyValue(keys.copy_key(_TENANT, _id(number), pod), copy_to_json(copy), 1, 2_000_000 + number, 1)


def _parked(number: int, disk: int) -> KeyValue:
    pod = f"hexcomb-7d9f8c6b5-{(number + disk * (1 + number // PODS * 37)) % PODS:05x}"
    parked = Parked(pod, 1 + number % 3, (1 + number % 9) / (10 if number % 2 else 100))
    key = keys.parked_key(_TENANT, _id(number), pod)
    return KeyValue(key, parked_to_json(parked), 1, 2_000_000 + 2 * number + disk, 1)


def _advance_pool_ms(views: Views) -> list[float]:
    def change(number: int) -> None:
        name = views.shared_name(ModelName(_TENANT, _id(number * 7)))
        event = CopyEvent(3_000_000 + number, name, "p", Copy("p", 1, 0, 5, 1.0))
        views.pool, _ = pool.advance(views.pool, [event], event.revision)

    return _times_ms(change)


def _advance_names_ms(views: Views) -> list[float]:
    def change(number: int) -> None:
        revision = 3_000_000 + number
        record = ModelRecord(_TENANT, _id(number * 7), ModelSpec("file:///m"), 9, 1.0, 1.0, revision=revision)
        event = NameEvent(False, _TENANT, record.id, revision, record)
        views.names, _ = view.advance(views.names, [event], revision)

    return _times_ms(change)


def _times_ms(change: Callable[[int], None]) -> list[float]:
    """Enough changes that some of them have to merge the layers of the map."""
    times_ms = []
    for number in range(2_000):
        began_s = time.perf_counter()
        change(number)
        times_ms.append((time.perf_counter() - began_s) * 1e3)
    return times_ms
