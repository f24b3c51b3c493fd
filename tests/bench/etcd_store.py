"""What the etcd store costs: transactions, listing 100,000 keys, and how soon a change reaches a watch.

One real etcd (Debian's, or $HEXCOMB_TEST_ETCD) on this machine, which shares its cores with the client. Beside each
figure stands the embedded store, measured the same way in the same run.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from contextlib import aclosing
from pathlib import Path

from mesh.demo.etcd_server import EtcdMissing, EtcdServer, find_etcd
from placement.store.base import KeyValueStore, Put, absent
from placement.store.embedded import EmbeddedStore
from placement.store.etcd import EtcdStore
from placement.store.etcd_options import EtcdOptions
from tests.bench.figures import Reporter, spread_of

KEYS = 100_000
VALUE = b'{"v":1,"uri":"s3://models/team-a/iris/3","format":"onnx","capacity_hint_bytes":123456789}' * 3
_AT_ONCE = 64
_PER_TXN = 128


def run(bench: Reporter) -> None:
    """Both stores, one after the other."""
    try:
        binary = find_etcd(os.environ.get("HEXCOMB_TEST_ETCD"))
    except EtcdMissing as error:
        bench.skip("all of it", str(error))
        return
    directory = Path(tempfile.mkdtemp(prefix="etcd-", dir=bench.cache_dir))
    server = EtcdServer(binary, directory / "etcd")
    try:
        server.start()
        asyncio.run(_run(bench, server, directory / "embedded"))
    finally:
        server.kill()
        shutil.rmtree(directory, ignore_errors=True)


async def _run(bench: Reporter, server: EtcdServer, directory: Path) -> None:
    options = EtcdOptions.from_url(f"etcd://{server.endpoint}/bench")
    embedded: dict[str, float] = {}
    for number, kind in enumerate(("embedded", "etcd")):
        bench.progress(number, 2, kind)
        store: KeyValueStore
        store = await EmbeddedStore.open(directory) if kind == "embedded" else await EtcdStore.open(options)
        measured = await _measure(bench, store)
        await store.close()
        for name, (samples, unit) in measured.items():
            middle = spread_of(samples).p50
            if kind == "embedded":
                embedded[name] = middle
            else:
                bench.samples(name, samples, unit, baseline=embedded[name], baseline_name="embedded")


async def _measure(bench: Reporter, store: KeyValueStore) -> dict[str, tuple[list[float], str]]:
    count = bench.choose(KEYS, 10_000)
    return {
        "one transaction alone": (await _alone(store, bench.choose(500, 50)), "ms"),
        f"transactions, {_AT_ONCE} at once": (await _at_once(store, bench.choose(6_000, 600)), "1/s"),
        f"{count:,} keys written, {_PER_TXN} in a transaction": ([await _fill(store, count)], "s"),
        f"{count:,} keys listed, 1,000 in a page": ([await _list(store, count, 1_000) for _ in range(3)], "s"),
        f"{count:,} keys listed, 10,000 in a page": ([await _list(store, count, 10_000) for _ in range(3)], "s"),
        "from a write's call to a watch that has it": (await _delivery(store, bench.choose(500, 50)), "ms"),
    }


async def _alone(store: KeyValueStore, count: int) -> list[float]:
    took_ms = []
    for i in range(count):
        began = time.perf_counter()
        await store.txn([absent(f"alone/{i}")], [Put(f"alone/{i}", VALUE)])
        took_ms.append((time.perf_counter() - began) * 1e3)
    return took_ms


async def _at_once(store: KeyValueStore, count: int) -> list[float]:
    async def lane(first: int) -> None:
        for i in range(first, count, _AT_ONCE):
            await store.txn([absent(f"lanes/{i}")], [Put(f"lanes/{i}", VALUE)])

    began = time.perf_counter()
    await asyncio.gather(*(lane(first) for first in range(_AT_ONCE)))
    return [count / (time.perf_counter() - began)]


async def _fill(store: KeyValueStore, count: int) -> float:
    began = time.perf_counter()
    for first in range(0, count, _PER_TXN):
        last = min(first + _PER_TXN, count)
        await store.txn([], [Put(f"many/{i:07}", VALUE) for i in range(first, last)])
    return time.perf_counter() - began


async def _list(store: KeyValueStore, count: int, page_keys: int) -> float:
    began = time.perf_counter()
    found = 0
    from_key: str | None = ""
    while from_key is not None:
        page = await store.range("many/", limit=page_keys, from_key=from_key)
        found += len(page.items)
        from_key = page.next_key
    assert found == count
    return time.perf_counter() - began


async def _delivery(store: KeyValueStore, count: int) -> list[float]:
    took_ms = []
    revision = (await store.txn([], [Put("watched/first", b"")])).revision
    async with aclosing(store.watch(["watched/"], revision)) as watch:
        await anext(watch)
        for i in range(count):
            began = time.perf_counter()
            write = asyncio.create_task(store.txn([], [Put(f"watched/{i}", VALUE)]))
            await anext(watch)
            took_ms.append((time.perf_counter() - began) * 1e3)
            await write
    return took_ms
