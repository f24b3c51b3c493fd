"""The embedded store's own promises: the file, the lock, the format, the disk, restarts."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from placement.errors import (
    Compacted,
    LeaseNotFound,
    StoreBusy,
    StoreCorrupt,
    StoreIncompatible,
    StoreUnavailable,
)
from placement.store import embedded
from placement.store.base import Delete, Put, absent
from placement.store.embedded import EmbeddedStore
from placement.store.sqlite_file import FILE_NAME
from placement.store.sqlite_space import SqliteSpace


async def open_store(directory: Path, now_s: list[float] | None = None) -> EmbeddedStore:
    clock = [0.0] if now_s is None else now_s
    return await EmbeddedStore.open(directory, clock=lambda: clock[0], lease_check_s=None)


def edit(directory: Path, statement: str) -> None:
    connection = sqlite3.connect(directory / FILE_NAME)
    connection.execute(statement)
    connection.commit()
    connection.close()


def start(script: str, directory: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, str(directory)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


async def filled(directory: Path, keys: int = 500) -> None:
    store = await open_store(directory)
    for start in range(0, keys, 100):
        await store.txn([], [Put(f"k/{i:05}", b"value" * 20) for i in range(start, start + 100)])
    await store.close()


async def test_everything_is_there_after_a_restart_and_revisions_go_on(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    await store.txn([], [Put("a", b"1"), Put("b", b"2")])
    last = (await store.txn([], [Put("a", b"3"), Delete("b")])).revision
    before = await store.get("a")
    await store.close()

    store = await open_store(tmp_path)
    assert await store.get("a") == before
    assert await store.get("b") is None
    assert (await store.txn([], [Put("c", b"")])).revision == last + 1
    await store.close()


async def test_a_restart_forgets_history_and_says_so(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    revision = (await store.txn([], [Put("a", b"1")])).revision
    await store.close()
    store = await open_store(tmp_path)
    with pytest.raises(Compacted):
        await anext(store.watch(["a"], revision))
    await store.close()


async def test_a_lease_begins_its_time_anew_after_a_restart(tmp_path: Path) -> None:
    now_s = [100.0]
    store = await open_store(tmp_path, now_s)
    lease = await store.grant_lease(10)
    await store.txn([], [Put("k", b"", lease)])
    now_s[0] += 9
    await store.close()

    store = await open_store(tmp_path, now_s)
    now_s[0] += 9
    await store.expire_leases()
    assert await store.get("k") is not None
    await store.keep_lease_alive(lease)
    now_s[0] += 10
    await store.expire_leases()
    assert await store.get("k") is None
    with pytest.raises(LeaseNotFound):
        await store.keep_lease_alive(lease)
    assert await store.grant_lease(10) > lease
    await store.close()


async def test_leases_run_out_without_anybody_calling(tmp_path: Path) -> None:
    store = await EmbeddedStore.open(tmp_path, lease_check_s=0.01)
    lease = await store.grant_lease(0.02)
    revision = (await store.txn([], [Put("k", b"", lease)])).revision
    async with asyncio.timeout(20):
        batch = await anext(store.watch(["k"], revision + 1))
    assert batch.events[0].kind == "delete"
    await store.close()


async def test_a_second_process_is_told_who_holds_the_directory(tmp_path: Path) -> None:
    script = (
        "import asyncio, sys, pathlib\n"
        "from placement.store.embedded import EmbeddedStore\n"
        "async def main():\n"
        "    store = await EmbeddedStore.open(pathlib.Path(sys.argv[1]))\n"
        "    print('open', flush=True)\n"
        "    sys.stdin.readline()\n"
        "    await store.close()\n"
        "asyncio.run(main())\n"
    )
    with start(script, tmp_path) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(StoreBusy, match=rf"pid {holder.pid}\); stop that one") as caught:
            await open_store(tmp_path)
        assert str(tmp_path) in str(caught.value)
        holder.communicate("done\n")
    store = await open_store(tmp_path)
    await store.close()


async def test_the_lock_of_a_killed_process_does_not_stay(tmp_path: Path) -> None:
    script = (
        "import asyncio, os, sys, pathlib\n"
        "from placement.store.base import Put\n"
        "from placement.store.embedded import EmbeddedStore\n"
        "async def main():\n"
        "    store = await EmbeddedStore.open(pathlib.Path(sys.argv[1]))\n"
        "    await store.txn([], [Put('k', b'v')])\n"
        "    os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )
    with start(script, tmp_path) as killed:
        killed.communicate()
    assert killed.returncode == -9
    store = await open_store(tmp_path)
    assert await store.get("k") is not None
    await store.close()


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("PRAGMA user_version = 2", "has format 2, and this hexcomb reads format 1"),
        ("PRAGMA application_id = 7", "not a hexcomb store"),
    ],
)
async def test_a_file_of_another_kind_is_refused_and_left_alone(tmp_path: Path, statement: str, message: str) -> None:
    await filled(tmp_path, 100)
    edit(tmp_path, statement)
    before = (tmp_path / FILE_NAME).read_bytes()
    with pytest.raises(StoreIncompatible, match=message):
        await open_store(tmp_path)
    assert (tmp_path / FILE_NAME).read_bytes() == before


async def test_somebody_elses_database_is_refused(tmp_path: Path) -> None:
    edit(tmp_path, "CREATE TABLE theirs (x)")
    with pytest.raises(StoreIncompatible, match="not a hexcomb store"):
        await open_store(tmp_path)


@pytest.mark.parametrize("damage", ["no database", "cut off", "page overwritten", "header overwritten"])
async def test_a_damaged_file_is_refused_with_the_step_that_helps(tmp_path: Path, damage: str) -> None:
    await filled(tmp_path)
    path = tmp_path / FILE_NAME
    data = bytearray(path.read_bytes())
    if damage == "no database":
        data = bytearray(b"this is not a database, it is a text of some length" * 100)
    elif damage == "cut off":
        del data[len(data) // 2 :]
    elif damage == "page overwritten":
        data[3 * 4096 : 5 * 4096] = b"\x5a" * 8192
    else:
        data[:16] = b"\x00" * 16
    path.write_bytes(data)
    with pytest.raises(StoreCorrupt, match="restore the file from a backup, or move it away") as caught:
        await open_store(tmp_path)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == bytes(data)


async def test_a_refused_file_leaves_no_lock_behind(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"no database at all" * 1000)
    for _ in range(2):
        with pytest.raises(StoreCorrupt):
            await open_store(tmp_path)
    (tmp_path / FILE_NAME).unlink()
    await (await open_store(tmp_path)).close()


async def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match="--data-dir"):
        await open_store(tmp_path / "file" / "data")


async def test_a_full_disk_refuses_writes_keeps_the_rest_and_recovers(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    await store.txn([], [Put("kept", b"x")])
    limit_pages(store, 20)
    big = b"x" * 100_000
    results = await asyncio.gather(
        *(store.txn([absent(f"k{i}")], [Put(f"k{i}", big)]) for i in range(20)), return_exceptions=True
    )
    assert any(isinstance(result, StoreUnavailable) for result in results)
    refused = next(result for result in results if isinstance(result, BaseException))
    assert "full" in str(refused)
    kept = await store.get("kept")
    assert kept is not None
    for i, result in enumerate(results):
        assert (await store.get(f"k{i}") is None) == isinstance(result, BaseException)
    limit_pages(store, 2**30)
    assert (await store.txn([absent("after")], [Put("after", big)])).succeeded
    await store.close()


def limit_pages(store: EmbeddedStore, pages: int) -> None:
    """As a disk of that size would: the writer's own connection is the one that feels it."""
    from placement.store.embedded import _Answer, _Request

    def run(space: SqliteSpace) -> _Answer:
        space._connection.execute(f"PRAGMA max_page_count = {pages}")
        return _Answer(None)

    store._requests.put(_Request(run, asyncio.get_running_loop().create_future()))
    store._pending += 1


async def test_many_writes_at_once_share_few_commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[int] = []
    commit = embedded._commit_group

    def counted(space, group, path):  # type: ignore[no-untyped-def]
        groups.append(len(group))
        return commit(space, group, path)

    monkeypatch.setattr(embedded, "_commit_group", counted)
    store = await open_store(tmp_path)
    await asyncio.gather(*(store.txn([absent(f"k{i}")], [Put(f"k{i}", b"")]) for i in range(2000)))
    assert sum(groups) == 2000
    assert len(groups) < 200
    await store.close()


async def test_writes_are_synced_before_they_are_answered(tmp_path: Path) -> None:
    from placement.store.embedded import _Answer

    store = await open_store(tmp_path)

    def ask(space: SqliteSpace) -> _Answer:
        return _Answer(space._connection.execute("PRAGMA synchronous").fetchone()[0])

    assert await store._write(ask) == 2  # FULL
    await store.close()


async def test_a_write_whose_caller_gave_up_disturbs_no_other(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    tasks = [asyncio.ensure_future(store.txn([], [Put(f"k{i}", b"")])) for i in range(50)]
    await asyncio.sleep(0)
    tasks[7].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(isinstance(result, asyncio.CancelledError) for result in results) == 1
    assert (await store.txn([], [Put("after", b"")])).succeeded
    await store.close()
