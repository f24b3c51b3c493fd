"""What the disk tier keeps, gives up, survives and notices: restarts, reboots, full disks, damaged files."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, cast

import pytest

from runtime_adapters.artifacts import disk_records, download, file_source
from runtime_adapters.artifacts.download import tree_hash
from runtime_adapters.artifacts.errors import ArtifactTooLarge, BadStorageConfig, DiskFull
from runtime_adapters.artifacts.fetch import Artifact, ArtifactStore, FetchRequest
from runtime_adapters.artifacts.fetching import FetchLimits
from runtime_adapters.artifacts.unpack import FileRecord, open_new
from runtime_adapters.errors import BadArtifact, LoadFailed

KIB = 1024
MODEL_BYTES = 100 * KIB
CAPACITY_BYTES = 400 * KIB
"""Room for three models with what their entries take, not for four."""


@pytest.fixture(autouse=True)
def _files_settle_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_source, "_FILE_GRAIN_S", -1.0)


@asynccontextmanager
async def opened(
    root: Path,
    capacity_bytes: int = CAPACITY_BYTES,
    create: Callable[[Path], BinaryIO] = open_new,
    content_gone: Callable[[str], None] = lambda content_hash: None,
) -> AsyncIterator[ArtifactStore]:
    limits = FetchLimits(retry_delay_s=0.01)
    store = ArtifactStore(
        root / "disk", capacity_bytes=capacity_bytes, limits=limits, create_file=create, content_gone=content_gone
    )
    try:
        yield store
        store._disk.ledger.validate()
    finally:
        await store.close()


def a_model(root: Path, name: str, size_bytes: int = MODEL_BYTES) -> FetchRequest:
    path = root / name
    if not path.exists():
        path.write_bytes(os.urandom(size_bytes))
    return FetchRequest(str(path))


async def fetch_and_release(store: ArtifactStore, request: FetchRequest) -> Artifact:
    artifact = await store.fetch(request)
    store.release(artifact)
    return artifact


def left_on_disk(root: Path) -> list[str]:
    return sorted(
        f"{section}/{path.name}"
        for section in ("staging", "trash", "partial")
        for path in (root / "disk" / section).iterdir()
    )


async def test_the_least_recently_used_content_leaves_first(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        paths = [(await fetch_and_release(store, a_model(tmp_path, name))).path for name in "abc"]
        await fetch_and_release(store, a_model(tmp_path, "a"))
        await fetch_and_release(store, a_model(tmp_path, "d"))
        assert [path.exists() for path in paths] == [True, False, True]
        assert left_on_disk(tmp_path) == []


async def test_whoever_asks_hears_which_content_leaves_and_what_is_there_without_a_look_at_its_source(
    tmp_path: Path,
) -> None:
    gone: list[str] = []
    async with opened(tmp_path, content_gone=gone.append) as store:
        requests = [a_model(tmp_path, name) for name in "abcd"]
        assert store.content_on_disk(requests[0]) is None
        fetched = [await fetch_and_release(store, request) for request in requests]
        hashes = [artifact.content_hash for artifact in fetched]
        assert gone == hashes[:1]
        assert [store.content_on_disk(request) for request in requests] == [None, *hashes[1:]]
    (tmp_path / "d").unlink()
    async with opened(tmp_path, content_gone=gone.append) as store:
        assert store.content_on_disk(requests[3]) == hashes[3]
        digest = hashes[3].removeprefix("sha256-")
        assert store.content_on_disk(replace(requests[3], checksum=f"sha256:{digest}")) == hashes[3]
        assert store.content_on_disk(replace(requests[3], checksum=f"sha256:{'0' * 64}")) is None
        assert store.content_on_disk(replace(requests[3], tenant="another")) is None
        assert store.content_on_disk(FetchRequest("no location")) is None
    assert gone == hashes[:1]


async def test_content_in_use_is_never_deleted(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        held = [await store.fetch(a_model(tmp_path, name)) for name in "abc"]
        with pytest.raises(DiskFull, match="in use by loaded models"):
            await store.fetch(a_model(tmp_path, "d"))
        assert all(artifact.path.exists() for artifact in held)
        second = store.hold_again(held[0])
        assert second is not None
        store.release(held[0])
        store.release(held[0])
        with pytest.raises(DiskFull):
            await store.fetch(a_model(tmp_path, "d"))
        store.release(second)
        await store.fetch(a_model(tmp_path, "d"))
        assert not held[0].path.exists()
        assert store.hold_again(held[0]) is None


async def test_content_that_left_and_came_back_under_another_name_is_held_under_the_first(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        first = await fetch_and_release(store, a_model(tmp_path, "a.onnx"))
        for name in "bcd":
            await fetch_and_release(store, a_model(tmp_path, name))
        shutil.copy(tmp_path / "a.onnx", tmp_path / "a.bin")
        await fetch_and_release(store, a_model(tmp_path, "a.bin"))
        again = store.hold_again(first)
        assert again is not None
        assert again.path == first.path
        assert again.path.read_bytes() == (tmp_path / "a.onnx").read_bytes()


async def test_an_artifact_larger_than_the_tier_is_a_permanent_error(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        kept = await fetch_and_release(store, a_model(tmp_path, "a"))
        with pytest.raises(ArtifactTooLarge, match="--disk-capacity"):
            await store.fetch(a_model(tmp_path, "big", CAPACITY_BYTES + 1))
        assert kept.path.exists()


async def test_many_fetches_at_once_never_oversell_the_disk(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:

        async def one(number: int) -> None:
            try:
                artifact = await store.fetch(a_model(tmp_path, f"m{number % 8}"))
            except DiskFull:
                return
            used = sum(path.stat().st_size for path in (tmp_path / "disk").rglob("model"))
            assert used <= CAPACITY_BYTES
            store._disk.ledger.validate()
            assert artifact.path.stat().st_size == MODEL_BYTES
            store.release(artifact)

        await asyncio.gather(*(one(number) for number in range(40)))
        assert store.use().used_bytes <= CAPACITY_BYTES


async def test_a_restart_finds_what_was_there_and_in_which_order_it_was_used(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        paths = [(await fetch_and_release(store, a_model(tmp_path, name))).path for name in "abc"]
        used_bytes = store.use().used_bytes
    for age_s, path in zip((1, 9, 5), paths, strict=True):
        meta = path.parent.parent / "meta.json"
        os.utime(meta, (1_000_000 - age_s, 1_000_000 - age_s))
    async with opened(tmp_path) as store:
        assert store.use().used_bytes == used_bytes
        await fetch_and_release(store, a_model(tmp_path, "d"))
        assert [path.exists() for path in paths] == [True, False, True]


async def test_a_capacity_made_smaller_takes_effect_at_the_start(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        for name in "abc":
            await fetch_and_release(store, a_model(tmp_path, name))
    async with opened(tmp_path, capacity_bytes=150 * KIB) as store:
        assert (store.use().entries, store.use().used_bytes <= 150 * KIB) == (1, True)


@pytest.mark.parametrize("damage", ["shorter", "longer", "gone", "no record", "bad record"])
async def test_damaged_content_is_deleted_at_the_start_and_fetched_again(damage: str, tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        artifact = await fetch_and_release(store, a_model(tmp_path, "a"))
    entry = artifact.path.parent.parent
    match damage:
        case "shorter":
            os.truncate(artifact.path, 10)
        case "longer":
            artifact.path.write_bytes(bytes(MODEL_BYTES + 1))
        case "gone":
            shutil.rmtree(entry / "data")
        case "no record":
            (entry / "meta.json").unlink()
        case _:
            (entry / "meta.json").write_text("[]")
    async with opened(tmp_path) as store:
        assert store.use().entries == 0
        again = await store.fetch(a_model(tmp_path, "a"))
        assert again.path.read_bytes() == (tmp_path / "a").read_bytes()


async def test_after_a_reboot_content_is_hashed_once_before_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as store:
        good = await fetch_and_release(store, a_model(tmp_path, "a"))
        bad = await fetch_and_release(store, a_model(tmp_path, "b"))
    bad.path.write_bytes(bytes(MODEL_BYTES))  # what a power loss leaves: the length without the bytes
    for module in (disk_records, download):
        monkeypatch.setattr(module, "boot_id", lambda: "after-reboot")
    async with opened(tmp_path) as store:
        assert (await store.fetch(a_model(tmp_path, "a"))).fetched_bytes == 0
        again = await store.fetch(a_model(tmp_path, "b"))
        assert again.fetched_bytes == MODEL_BYTES
        assert again.path.read_bytes() == (tmp_path / "b").read_bytes()
        assert not store._disk._unverified
    async with opened(tmp_path) as store:
        assert not store._disk._unverified
        assert (await store.fetch(a_model(tmp_path, "a"))).path == good.path


async def test_what_a_killed_pod_left_half_done_is_swept_at_the_start(tmp_path: Path) -> None:
    async with opened(tmp_path):
        pass
    for section in ("staging", "trash", "partial"):
        (tmp_path / "disk" / section / "1-1").mkdir()
        (tmp_path / "disk" / section / "1-1" / "0").write_bytes(bytes(1000))
    (tmp_path / "disk/partial/old").mkdir()
    (tmp_path / "disk/partial/old/plan.json").write_text("{}")
    os.utime(tmp_path / "disk/partial/old", (1, 1))
    async with opened(tmp_path) as store:
        assert left_on_disk(tmp_path) == []
        assert store.use().used_bytes == 0


def test_two_pods_cannot_share_a_directory(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from runtime_adapters.artifacts.fetch import ArtifactStore;"
        f"store = ArtifactStore(Path({str(tmp_path / 'disk')!r}), capacity_bytes=1000); print('ready', flush=True);"
        "sys.stdin.readline()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"
        with pytest.raises(BadStorageConfig, match="in use by another process"):
            ArtifactStore(tmp_path / "disk", capacity_bytes=1000)
        other.communicate(b"\n")


# A full disk ----------------------------------------------------------------------------------------------------


class _Filling:
    """A file on a disk that has room for so many more bytes."""

    def __init__(self, path: Path, room_bytes: list[int], error: int) -> None:
        self._file = open_new(path)
        self._room_bytes = room_bytes
        self._error = error

    def __enter__(self) -> _Filling:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: memoryview) -> int:
        if self._room_bytes[0] < len(data):
            raise OSError(self._error, os.strerror(self._error))
        self._room_bytes[0] -= len(data)
        return self._file.write(data)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
async def test_a_full_disk_is_a_transient_error_that_leaves_nothing_behind(error: int, tmp_path: Path) -> None:
    room_bytes = [MODEL_BYTES + 10]
    async with opened(tmp_path, create=lambda path: cast(BinaryIO, _Filling(path, room_bytes, error))) as store:
        kept = await store.fetch(a_model(tmp_path, "a"))
        with pytest.raises(DiskFull, match="no room") as caught:
            await store.fetch(a_model(tmp_path, "b"))
        assert isinstance(caught.value, LoadFailed)
        assert (store.use().entries, store._disk.ledger.reserved_bytes, left_on_disk(tmp_path)) == (1, 0, [])
        room_bytes[0] = MODEL_BYTES
        assert (await store.fetch(a_model(tmp_path, "b"))).size_bytes == MODEL_BYTES
        assert kept.path.exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    mount = tmp_path / "small"
    mount.mkdir()
    try:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(mount)], capture_output=True)
        mounted = done.returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a tmpfs needs root and the right to mount; ENOSPC is tried through a seam as well")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


async def test_a_disk_that_is_really_full_is_a_transient_error(small_disk: Path, tmp_path: Path) -> None:
    async with opened(small_disk, capacity_bytes=100 * KIB * KIB) as store:
        kept = await store.fetch(a_model(tmp_path, "a"))
        with pytest.raises(DiskFull, match="no room"):
            await store.fetch(a_model(tmp_path, "big", 2 * KIB * KIB))
        assert kept.path.read_bytes() == (tmp_path / "a").read_bytes()
        assert (await store.fetch(a_model(tmp_path, "b"))).size_bytes == MODEL_BYTES
        assert left_on_disk(small_disk) == []


# Prepared forms -------------------------------------------------------------------------------------------------


def maker(content: bytes, calls: list[Path], made: bool = True) -> Callable[[Path], bool]:
    def make(into: Path) -> bool:
        calls.append(into)
        if made:
            (into / "model.bin").write_bytes(content)
        return made

    return make


async def test_a_form_is_made_once_per_content_and_variant_and_survives_a_restart(tmp_path: Path) -> None:
    calls: list[Path] = []
    async with opened(tmp_path) as store:
        artifact = await store.fetch(a_model(tmp_path, "a", KIB))
        make = maker(b"form", calls)
        paths = await asyncio.gather(*(store.prepare(artifact, "onnx-1.0", make) for _ in range(10)))
        assert len(set(paths)) == len(calls) == 1
        assert paths[0] is not None
        assert (paths[0] / "model.bin").read_bytes() == b"form"
        other = await store.prepare(artifact, "onnx-1.0+cpu/avx512", make)
        assert other not in (None, paths[0])
    async with opened(tmp_path) as store:
        artifact = await store.fetch(a_model(tmp_path, "a"))
        assert await store.prepare(artifact, "onnx-1.0", make) == paths[0]
        assert len(calls) == 2


async def test_that_there_is_no_better_form_is_remembered(tmp_path: Path) -> None:
    calls: list[Path] = []
    async with opened(tmp_path) as store:
        artifact = await store.fetch(a_model(tmp_path, "a", KIB))
        for _ in range(3):
            assert await store.prepare(artifact, "v", maker(b"", calls, made=False)) is None
        assert len(calls) == 1


async def test_a_prepared_form_stays_as_long_as_its_artifact_is_held(tmp_path: Path) -> None:
    async with opened(tmp_path, capacity_bytes=5 * KIB * KIB) as store:
        artifact = await store.fetch(a_model(tmp_path, "a", KIB))
        path = await store.prepare(artifact, "v", maker(bytes(KIB), []))
        assert path is not None
        for number in range(3):
            await fetch_and_release(store, a_model(tmp_path, f"big{number}", 4 * KIB * KIB))
        assert path.exists()
        store.release(artifact)
        await fetch_and_release(store, a_model(tmp_path, "last", 5 * KIB * KIB - 20 * KIB))
        assert not path.exists()


async def test_a_failing_preparation_raises_its_own_error_and_leaves_nothing(tmp_path: Path) -> None:
    def make(into: Path) -> bool:
        (into / "half").write_bytes(b"half")
        raise BadArtifact("no")

    async with opened(tmp_path) as store:
        artifact = await store.fetch(a_model(tmp_path, "a", KIB))
        with pytest.raises(BadArtifact, match="no"):
            await store.prepare(artifact, "v", make)
        assert (left_on_disk(tmp_path), store._disk.ledger.reserved_bytes, store.use().entries) == ([], 0, 1)


async def test_without_room_for_a_form_the_original_is_used(tmp_path: Path) -> None:
    calls: list[Path] = []
    async with opened(tmp_path) as store:
        artifact = await store.fetch(a_model(tmp_path, "a", 300 * KIB))
        assert await store.prepare(artifact, "v", maker(b"form", calls)) is None
        assert calls == []


async def test_a_preparation_that_nobody_waits_for_any_more_still_ends_cleanly(tmp_path: Path) -> None:
    started, go_on = threading.Event(), threading.Event()

    def make(into: Path) -> bool:
        started.set()
        go_on.wait(10)
        (into / "x").write_bytes(b"x")
        return True

    async with opened(tmp_path, capacity_bytes=50 * KIB * KIB) as store:
        artifact = await store.fetch(a_model(tmp_path, "a", KIB))
        task = asyncio.create_task(store.prepare(artifact, "v", make))
        await asyncio.to_thread(started.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        store.release(artifact)
        go_on.set()
    assert left_on_disk(tmp_path) == []


# Hashes ---------------------------------------------------------------------------------------------------------


def test_the_hash_of_a_directory_is_what_sha256sum_says(tmp_path: Path) -> None:
    (tmp_path / "B").mkdir()
    files = {"a": b"1", "B/c": b"2", "\u00fc": b"3"}
    records = []
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        done = subprocess.run(["sha256sum", name], cwd=tmp_path, capture_output=True, check=True)
        records.append(FileRecord(name, len(content), done.stdout.split()[0].decode()))
    command = "find . -type f -printf '%P\\n' | LC_ALL=C sort | tr '\\n' '\\0' | xargs -0 sha256sum | sha256sum"
    printed = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, check=True, text=True).stdout
    assert tree_hash(tuple(records)) == printed.split()[0]


async def test_a_checksum_that_is_none_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        request = a_model(tmp_path, "a", KIB)
        for checksum in ("md5:abc", "sha256:ABC", "sha256:" + "A" * 64):
            with pytest.raises(BadArtifact, match=re.escape("64 lower-case hex digits")):
                await store.fetch(FetchRequest(request.uri, checksum=checksum))
