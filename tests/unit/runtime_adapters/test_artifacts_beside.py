"""What several artifacts need alike: made once, counted, kept while somebody holds it, gone when room is short."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from runtime_adapters.artifacts.download import Stop
from runtime_adapters.artifacts.errors import ArtifactTooLarge
from runtime_adapters.artifacts.fetch import Artifact, ArtifactStore, FetchRequest
from runtime_adapters.errors import BadArtifact

KIB = 1024
CAPACITY_BYTES = 600 * KIB
MADE_BYTES = 200 * KIB
ROOM_BYTES = 250 * KIB


@asynccontextmanager
async def opened(root: Path) -> AsyncIterator[ArtifactStore]:
    store = ArtifactStore(root / "disk", capacity_bytes=CAPACITY_BYTES)
    try:
        yield store
        store._disk.ledger.validate()
        assert store._disk.ledger.reserved_bytes == 0
        assert not list((root / "disk/staging").iterdir())
    finally:
        await store.close()


async def fetched(store: ArtifactStore, root: Path, name: str, size_bytes: int = KIB) -> Artifact:
    path = root / name
    path.write_bytes(os.urandom(size_bytes))
    return await store.fetch(FetchRequest(path.as_uri()))


class Maker:
    """Writes a file; waits for `goes_on` first, or until it is told to stop."""

    def __init__(self, goes_on: bool = True) -> None:
        self.times = 0
        self.began, self.goes_on, self.stopped = threading.Event(), threading.Event(), threading.Event()
        if goes_on:
            self.goes_on.set()

    def __call__(self, into: Path, stop: Stop) -> None:
        self.times += 1
        self.began.set()
        while not self.goes_on.wait(0.01):
            if stop.wanted.is_set():
                self.stopped.set()
            stop.check()
        (into / "package.py").write_bytes(bytes(MADE_BYTES))


async def test_it_is_made_once_for_all_who_come_and_counted_once(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        artifacts = [await fetched(store, tmp_path, f"model-{number}") for number in range(4)]
        before_bytes = store.use().used_bytes
        make = Maker(goes_on=False)
        waiting = [asyncio.create_task(store.beside(each, "same", ROOM_BYTES, make)) for each in artifacts[:3]]
        await asyncio.to_thread(make.began.wait)
        make.goes_on.set()
        paths = {await each for each in waiting}
        paths.add(await store.beside(artifacts[3], "same", ROOM_BYTES, make))
        assert (len(paths), make.times) == (1, 1)
        assert MADE_BYTES < store.use().used_bytes - before_bytes < MADE_BYTES + 32 * KIB
        assert await store.beside(artifacts[0], "other", ROOM_BYTES, make) not in paths
        assert make.times == 2


async def test_it_stays_while_somebody_holds_it_and_over_a_restart(tmp_path: Path) -> None:
    make = Maker()
    async with opened(tmp_path) as store:
        first, second = [await fetched(store, tmp_path, name) for name in ("first", "second")]
        path = await store.beside(first, "same", ROOM_BYTES, make)
        assert await store.beside(second, "same", ROOM_BYTES, make) == path
        store.release(first)
        large = await fetched(store, tmp_path, "large", 300 * KIB)
        store.release(large)
        assert (path / "package.py").stat().st_size == MADE_BYTES
        store.release(second)
    async with opened(tmp_path) as store:
        again = await fetched(store, tmp_path, "again")
        assert await store.beside(again, "same", ROOM_BYTES, make) == path
        assert make.times == 1
        store.release(again)
        await fetched(store, tmp_path, "larger", 500 * KIB)  # takes its room
        assert not path.exists()


async def test_what_fails_leaves_nothing_and_is_tried_again(tmp_path: Path) -> None:
    def fail(into: Path, stop: Stop) -> None:
        (into / "half").write_bytes(bytes(10))
        raise BadArtifact("no such package")

    async with opened(tmp_path) as store:
        artifact = await fetched(store, tmp_path, "model")
        with pytest.raises(BadArtifact, match="no such package"):
            await store.beside(artifact, "same", ROOM_BYTES, fail)
        assert (await store.beside(artifact, "same", ROOM_BYTES, Maker()) / "package.py").exists()
        with pytest.raises(ArtifactTooLarge, match="disk-capacity"):
            await store.beside(artifact, "too much", 2 * CAPACITY_BYTES, Maker())


async def test_it_is_stopped_when_nobody_waits_any_more(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        artifact = await fetched(store, tmp_path, "model")
        make = Maker(goes_on=False)
        waiting = asyncio.create_task(store.beside(artifact, "same", ROOM_BYTES, make))
        await asyncio.to_thread(make.began.wait)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert await asyncio.to_thread(make.stopped.wait, 30)
        make.goes_on.set()
        assert (await store.beside(artifact, "same", ROOM_BYTES, make) / "package.py").exists()
