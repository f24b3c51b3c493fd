"""Equal files of prepared forms are on disk once, whatever comes, goes, dies in between or is not supported; and an
original that a form stands for is deleted, and fetched again when it is needed."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from runtime_adapters.artifacts import disk_records, file_source
from runtime_adapters.artifacts.disk_tier import ORIGINAL_DROP_MIN_BYTES
from runtime_adapters.artifacts.errors import ArtifactNotFound
from runtime_adapters.artifacts.fetch import Artifact, ArtifactStore, FetchRequest
from runtime_adapters.artifacts.fetching import FetchLimits
from runtime_adapters.base import SHARED_FORM
from runtime_adapters.errors import LoadFailed

MIB = 1 << 20
VARIANT = "fake-1"
BACKBONE = os.urandom(2 * MIB)
HEAD_BYTES = 8192
ORIGINAL_BYTES = ORIGINAL_DROP_MIN_BYTES
LONG_S = 10.0


@pytest.fixture(autouse=True)
def _files_settle_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_source, "_FILE_GRAIN_S", -1.0)


@asynccontextmanager
async def opened(
    root: Path,
    capacity_bytes: int = 100 * MIB,
    *,
    keep_originals: bool = False,
    content_gone: Callable[[str], None] = lambda content_hash: None,
) -> AsyncIterator[ArtifactStore]:
    store = ArtifactStore(
        root / "disk",
        capacity_bytes=capacity_bytes,
        limits=FetchLimits(retry_delay_s=0.01),
        keep_originals=keep_originals,
        content_gone=content_gone,
    )
    try:
        yield store
        await settled(store)
        store._disk.ledger.validate()
        assert bytes_on_disk(root) <= store.use().used_bytes
    finally:
        await store.close()


async def settled(store: ArtifactStore) -> None:
    await store._forms.wait_dropped()


def bytes_on_disk(root: Path) -> int:
    """Of files, each inode once, as the file system counts them."""
    found = {}
    for directory, _, names in os.walk(root / "disk"):
        for name in names:
            stat = os.lstat(Path(directory) / name)
            found[stat.st_ino] = stat.st_blocks * 512
    return sum(found.values())


def in_the_pool(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "disk" / "shared").iterdir())


def a_model(root: Path, name: str, size_bytes: int = ORIGINAL_BYTES) -> FetchRequest:
    path = root / name
    if not path.exists():
        path.write_bytes(os.urandom(size_bytes))
    return FetchRequest(str(path))


def make_form(backbone: bytes = BACKBONE, head: bytes = b"") -> Callable[[Path], bool]:
    def make(into: Path) -> bool:
        (into / SHARED_FORM).mkdir()
        (into / SHARED_FORM / hashlib.sha256(backbone).hexdigest()).write_bytes(backbone)
        (into / "head").write_bytes(head or os.urandom(HEAD_BYTES))
        return True

    return make


async def prepared(store: ArtifactStore, request: FetchRequest, backbone: bytes = BACKBONE) -> tuple[Artifact, Path]:
    artifact = await store.fetch(request)
    form = await store.prepare(artifact, VARIANT, make_form(backbone))
    assert form is not None
    return artifact, form


def backbone_of(form: Path) -> os.stat_result:
    (file,) = (form / SHARED_FORM).iterdir()
    assert hashlib.sha256(file.read_bytes()).hexdigest() == file.name
    return file.stat()


async def test_equal_weights_of_twenty_models_are_on_disk_once(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        forms = [(await prepared(store, a_model(tmp_path, f"m{number}")))[1] for number in range(20)]
        await settled(store)
        assert len({backbone_of(form).st_ino for form in forms}) == 1
        assert store.use().saved_bytes == 19 * len(BACKBONE)
        assert store.use().dropped_bytes == 20 * ORIGINAL_BYTES
        assert store.use().used_bytes < 1.5 * (len(BACKBONE) + ORIGINAL_BYTES)


async def test_shared_weights_leave_with_the_last_form_that_has_them(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        held = [await prepared(store, a_model(tmp_path, name)) for name in "ab"]
        await settled(store)
        keys = [store._disk.form_of(f"content/{artifact.content_hash}") for artifact, _ in held]
        for (artifact, form), key in zip(held, keys, strict=True):
            assert key is not None
            assert backbone_of(form)
            store.release(artifact)
            await store._disk.evict((key,))
        assert in_the_pool(tmp_path) == []
        assert store.use().used_bytes < 10 * 4096 + len(BACKBONE) // 10


async def test_room_is_planned_with_what_shared_weights_free(tmp_path: Path) -> None:
    async with opened(tmp_path, 12 * MIB) as store:
        for name in "ab":
            store.release((await prepared(store, a_model(tmp_path, name)))[0])
        await settled(store)
        big = await store.fetch(a_model(tmp_path, "big", 11 * MIB))
        assert big.path.exists()
        assert in_the_pool(tmp_path) == []


@pytest.mark.parametrize("rounds", range(3))
async def test_forms_that_come_while_others_leave_never_lose_their_weights(tmp_path: Path, rounds: int) -> None:
    async with opened(tmp_path, 30 * MIB) as store:

        async def come_and_go(number: int) -> None:
            for turn in range(6):
                artifact, form = await prepared(store, a_model(tmp_path, f"m{number}-{turn}"))
                assert backbone_of(form).st_size == len(BACKBONE)
                key = store._disk.form_of(f"content/{artifact.content_hash}")
                assert key is not None
                store.release(artifact)
                if store._disk.ledger.references(key) == 0 and key in store._disk.ledger:
                    await store._disk.evict((key,))
                store._disk.ledger.validate()

        await asyncio.gather(*map(come_and_go, range(4)))
        await settled(store)
        assert set(in_the_pool(tmp_path)) <= {hashlib.sha256(BACKBONE).hexdigest()}


async def test_a_restart_finds_shared_weights_again(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        for name in "abc":
            await prepared(store, a_model(tmp_path, name))
        await settled(store)
        before = store.use()
    async with opened(tmp_path) as store:
        assert (store.use().used_bytes, store.use().saved_bytes) == (before.used_bytes, before.saved_bytes)
        assert store.use().dropped_bytes == before.dropped_bytes


async def test_a_start_after_a_crash_deletes_what_no_form_has_and_links_what_is_missing(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        forms = [(await prepared(store, a_model(tmp_path, name)))[1] for name in "ab"]
    pool = tmp_path / "disk" / "shared"
    (pool / ("0" * 64)).write_bytes(BACKBONE)  # linked, and then the pod died before the form was there
    (pool / backbone_name()).unlink()  # deleted, and then it died before …
    shutil.rmtree(forms[0].parent)  # … the last form was
    async with opened(tmp_path) as store:
        assert in_the_pool(tmp_path) == [backbone_name()]
        third = (await prepared(store, a_model(tmp_path, "c")))[1]
        assert backbone_of(third).st_ino == backbone_of(forms[1]).st_ino


def backbone_name() -> str:
    return hashlib.sha256(BACKBONE).hexdigest()


async def test_a_form_that_fails_leaves_nothing_shared_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(tmp_path) as store:

        def refuse(*arguments: object) -> int:
            raise OSError(errno.EIO, "the disk says no")

        monkeypatch.setattr(store._disk, "_write_prepared", refuse)
        artifact = await store.fetch(a_model(tmp_path, "a"))
        with pytest.raises(OSError, match="the disk says no"):
            await store.prepare(artifact, VARIANT, make_form())
        assert in_the_pool(tmp_path) == []


async def test_without_hard_links_each_form_has_its_own_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*arguments: object, **options: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    async with opened(tmp_path) as store:
        requests = [a_model(tmp_path, name) for name in "ab"]
        monkeypatch.setattr(os, "link", no_links)
        forms = [(await prepared(store, request))[1] for request in requests]
        await settled(store)
        assert len({backbone_of(form).st_ino for form in forms}) == 2
        assert store.use().saved_bytes == 0
        assert store.use().used_bytes >= 2 * len(BACKBONE)
    async with opened(tmp_path) as store:
        assert store.use().saved_bytes == 0


async def test_an_original_is_deleted_once_its_form_is_all_that_anybody_reads(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        request = a_model(tmp_path, "a")
        reader = await store.fetch(request)  # say, a copy in a process of its own
        artifact, _ = await prepared(store, request)
        await settled(store)
        assert reader.path.exists()
        store.release(reader)
        await settled(store)
        assert not reader.path.exists()
        again = store.hold_again(artifact)
        assert again is not None
        assert again.form == VARIANT
        assert again.path == (await store.prepare(again, VARIANT, lambda into: False))


async def test_an_original_stays_until_its_form_is_on_the_platter_and_an_unsynced_form_is_made_anew_after_a_reboot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as store:

        def fail(key: str) -> None:
            raise LoadFailed("the disk does not answer")

        monkeypatch.setattr(store._disk, "sync_prepared", fail)
        artifact, form = await prepared(store, a_model(tmp_path, "a"))
        await settled(store)
        assert artifact.path.exists()
    monkeypatch.setattr(disk_records, "boot_id", lambda: "after the reboot")
    async with opened(tmp_path) as store:
        assert not form.exists()
        assert in_the_pool(tmp_path) == []
        artifact, form = await prepared(store, a_model(tmp_path, "a"))
        await settled(store)
        assert not artifact.path.exists()
        assert backbone_of(form)


async def test_a_small_original_stays(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        artifact, _ = await prepared(store, a_model(tmp_path, "a", ORIGINAL_DROP_MIN_BYTES - 1))
        await settled(store)
        assert artifact.path.exists()


async def test_an_operator_may_keep_originals(tmp_path: Path) -> None:
    async with opened(tmp_path, keep_originals=True) as store:
        artifact, _ = await prepared(store, a_model(tmp_path, "a"))
        store.release(artifact)
        await settled(store)
        assert artifact.path.exists()


async def test_a_fetch_of_what_only_a_form_stands_for_transfers_nothing_unless_the_original_is_asked_for(
    tmp_path: Path,
) -> None:
    request = a_model(tmp_path, "a")
    content = (tmp_path / "a").read_bytes()
    async with opened(tmp_path) as store:
        store.release((await prepared(store, request))[0])
    async with opened(tmp_path) as store:
        artifact = await store.fetch(request)
        assert (artifact.form, artifact.fetched_bytes) == (VARIANT, 0)
        original, same = await asyncio.gather(
            store.fetch(FetchRequest(request.uri, original=True)), store.fetch(FetchRequest(request.uri, original=True))
        )
        assert original.form == same.form == ""
        assert original.path.read_bytes() == content
        assert original.content_hash == artifact.content_hash
        for each in (artifact, original, same):
            store.release(each)
        await settled(store)
        assert store.use().dropped_bytes == ORIGINAL_BYTES
        (tmp_path / "a").unlink()
        with pytest.raises(ArtifactNotFound):
            await store.fetch(FetchRequest(request.uri, original=True))


async def test_content_is_on_the_disk_as_long_as_a_form_stands_for_it(tmp_path: Path) -> None:
    gone: list[str] = []
    request = a_model(tmp_path, "a")
    async with opened(tmp_path, content_gone=gone.append) as store:
        artifact, _ = await prepared(store, request)
        store.release(artifact)
        await settled(store)
        content_key = f"content/{artifact.content_hash}"
        assert store._disk.is_hollow(content_key)
        assert (store.content_on_disk(request), gone) == (artifact.content_hash, [])
        form = store._disk.form_of(content_key)
        assert form is not None
        await store._disk.evict((form,))
        assert (store.content_on_disk(request), gone) == (None, [artifact.content_hash])
        store.release(await store.fetch(request))
        assert store.content_on_disk(request) == artifact.content_hash


async def test_content_whose_form_was_evicted_too_is_fetched_again(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        request = a_model(tmp_path, "a")
        artifact, _ = await prepared(store, request)
        await settled(store)
        store.release(artifact)
        key = store._disk.form_of(f"content/{artifact.content_hash}")
        assert key is not None
        await store._disk.evict((key,))
        assert store.hold_again(artifact) is None
        fetched = await store.fetch(request)
        assert (fetched.form, fetched.fetched_bytes) == ("", ORIGINAL_BYTES)
        assert fetched.path.exists()


async def test_a_crash_while_an_original_is_deleted_leaves_the_form(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        artifact, _ = await prepared(store, a_model(tmp_path, "a"))
        await settled(store)
    entry = tmp_path / "disk" / "content" / artifact.content_hash
    assert json.loads((entry / "meta.json").read_text())["hollow"]
    (entry / "data").mkdir()
    (entry / "data" / "model").write_bytes(b"the record says hollow, the files are not gone yet")
    async with opened(tmp_path) as store:
        assert not (entry / "data").exists()
        again = store.hold_again(artifact)
        assert again is not None
        assert again.form == VARIANT


class Held:
    """Makes a form once the test lets it; counts how often it was asked to."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.count = 0

    def __call__(self, into: Path) -> bool:
        self.count += 1
        self.begun.set()
        assert self.go_on.wait(LONG_S), "the test never let it go on"
        return make_form()(into)


async def has_begun(held: Held) -> None:
    assert await asyncio.to_thread(held.begun.wait, LONG_S)


async def stand_in_line(store: ArtifactStore, count: int) -> None:
    until_s = time.monotonic() + LONG_S
    while len(store._forms._line) < count:
        assert time.monotonic() < until_s, f"{count} forms do not stand in line"
        await asyncio.sleep(0)


async def test_a_form_that_stands_in_line_is_made_at_once_when_somebody_waits_for_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        first, second = [await store.fetch(a_model(tmp_path, name)) for name in ("a", "b")]
        held = Held()
        patient = asyncio.create_task(store.prepare(first, VARIANT, held, patiently=True))
        await has_begun(held)
        in_line = asyncio.create_task(store.prepare(second, VARIANT, make_form(), patiently=True))
        await stand_in_line(store, 1)
        form = await asyncio.wait_for(store.prepare(second, VARIANT, make_form()), LONG_S)
        assert form is not None
        assert await in_line == form
        assert not patient.done()
        held.go_on.set()
        assert await asyncio.wait_for(patient, LONG_S) is not None


async def test_forms_that_stand_in_line_hold_no_room_and_are_made_one_after_the_other(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        artifacts = [await store.fetch(a_model(tmp_path, f"m{number}")) for number in range(4)]
        held = Held()
        patient = [asyncio.create_task(store.prepare(artifacts[0], VARIANT, held, patiently=True))]
        await has_begun(held)
        used_bytes = store.use().used_bytes
        patient += [
            asyncio.create_task(store.prepare(each, VARIANT, make_form(), patiently=True)) for each in artifacts[1:]
        ]
        await stand_in_line(store, 3)
        assert store.use().used_bytes == used_bytes
        held.go_on.set()
        assert None not in await asyncio.wait_for(asyncio.gather(*patient), LONG_S)


async def test_forms_that_stand_in_line_are_not_made_by_a_pod_that_stops(tmp_path: Path) -> None:
    held, never = Held(), Held()
    async with opened(tmp_path) as store:
        first, second = [await store.fetch(a_model(tmp_path, name)) for name in ("a", "b")]
        patient = [asyncio.create_task(store.prepare(first, VARIANT, held, patiently=True))]
        await has_begun(held)
        patient.append(asyncio.create_task(store.prepare(second, VARIANT, never, patiently=True)))
        await stand_in_line(store, 1)
        for task in patient:
            task.cancel()
        await asyncio.wait(patient)
        held.go_on.set()
        await store._forms.close()
    assert (held.count, never.count) == (1, 0)
