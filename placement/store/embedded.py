"""The default store: one SQLite file in the data directory, for a pod that is alone.

**Durable.** A write is answered only once SQLite has committed it with `synchronous=FULL`, which syncs the write-ahead
log: neither `kill -9` nor a power cut loses an acknowledged registration. (`NORMAL` would survive the first only;
what FULL costs is in the package's README.)

**Group commit.** One thread owns the writing connection. It takes whatever transactions wait, up to a bound, runs them
one after the other inside one SQLite transaction, commits once, and hands all answers to the loop together. A sync
costs milliseconds, and a thousand registrations at once share a few. If the commit fails they all fail.

**One process.** A lock on a file beside the database; the second process is told who holds it. The lock dies with its
holder, so there is never a stale one to remove.

**Checked at the door.** The file says that it is ours and in which format; opening it runs SQLite's own consistency
check. What is damaged or newer is refused with the step that helps, and never overwritten.

Reads run on a second thread with its own connection, and see commits only. Leases are stored with their time to
live; after a restart each begins its time anew, as in etcd after a change of its leader.

Deliberately absent: history on disk (`placement.store.history`), and any use over a network file system.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import queue
import sqlite3
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from placement.errors import (
    PlacementError,
    StoreBusy,
    StoreClosed,
    StoreCorrupt,
    StoreError,
    StoreIncompatible,
    StoreUnavailable,
)
from placement.store.base import (
    Condition,
    Event,
    KeyValue,
    Operation,
    Page,
    StoreLimits,
    TxnResult,
    WatchBatch,
    check_key,
    check_txn,
    prefix_end,
)
from placement.store.history import History
from placement.store.leases import LeaseTable, check_ttl
from placement.store.transaction import run_revoke, run_txn

log = logging.getLogger(__name__)

T = TypeVar("T")

FILE_NAME = "registry.sqlite"
LOCK_NAME = "registry.lock"
APPLICATION_ID = 0x48584342  # "HXCB"
FORMAT_VERSION = 1
SYNCHRONOUS = "FULL"

GROUP_MAX = 128
"""Transactions in one commit. More would only make the first of them wait: the sync is already shared."""
PENDING_MAX = 20_000
"""Transactions that may wait for the writer; beyond it the store says that it is overloaded."""
BUSY_TIMEOUT_S = 5.0
"""How long to wait while a person has the file open in the sqlite3 shell."""
LEASE_CHECK_S = 1.0
"""How often leases are looked at: the most by which a key outlives its lease."""

_SCHEMA = """
CREATE TABLE kv (
    key TEXT PRIMARY KEY, value BLOB NOT NULL, create_revision INTEGER NOT NULL, mod_revision INTEGER NOT NULL,
    version INTEGER NOT NULL, lease INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX kv_of_lease ON kv (lease) WHERE lease != 0;
CREATE TABLE leases (id INTEGER PRIMARY KEY AUTOINCREMENT, ttl_s REAL NOT NULL);
CREATE TABLE state (revision INTEGER NOT NULL);
INSERT INTO state VALUES (1);
"""
_COLUMNS = "key, value, create_revision, mod_revision, version, lease"


@dataclass(slots=True)
class _Request:
    """One call for the writer's thread, and the future on the loop that its answer goes to."""

    run: Callable[[_SqliteSpace], _Answer]
    future: asyncio.Future[Any]


@dataclass(slots=True)
class _Answer:
    value: object
    events: tuple[Event, ...] = ()


@dataclass(slots=True)
class _Opened:
    lock: int
    writer: sqlite3.Connection
    reader: sqlite3.Connection
    revision: int
    leases: list[tuple[int, float]]


class EmbeddedStore:
    """A KeyValueStore on one SQLite file. Open it with `open`; it belongs to the loop that opened it."""

    def __init__(self, directory: Path, opened: _Opened, limits: StoreLimits, clock: Callable[[], float]) -> None:
        self.limits = limits
        self._path = directory / FILE_NAME
        self._clock = clock
        self._lock = opened.lock
        self._reader = opened.reader
        self._loop = asyncio.get_running_loop()
        self._history = History(limits, opened.revision)
        self._leases = LeaseTable()
        for lease, ttl_s in opened.leases:
            self._leases.add(lease, ttl_s, clock())
        self._requests: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._pending = 0
        self._closing: asyncio.Task[None] | None = None
        self._reads = ThreadPoolExecutor(1, "hexcomb-store-read")
        self._writer = threading.Thread(
            target=self._write_until_told, args=(opened.writer,), name="hexcomb-store-write", daemon=True
        )
        self._writer.start()
        self._expiry: asyncio.Task[None] | None = None

    @classmethod
    async def open(
        cls,
        directory: Path,
        *,
        limits: StoreLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
        lease_check_s: float | None = LEASE_CHECK_S,
    ) -> EmbeddedStore:
        """Open, or make, the store in a directory. `lease_check_s` None: the caller calls `expire_leases`.

        Raises StoreBusy, StoreCorrupt, StoreIncompatible, StoreUnavailable.
        """
        opened = await asyncio.to_thread(_open, directory)
        store = cls(directory, opened, limits or StoreLimits(), clock)
        if lease_check_s is not None:
            store._expiry = asyncio.create_task(store._expire_leases_every(lease_check_s))
        return store

    # Reading --------------------------------------------------------------------------------------------------------

    async def get(self, key: str) -> KeyValue | None:
        """See KeyValueStore."""
        check_key(key, self.limits)
        return await self._read(lambda connection: _get(connection, key))

    async def range(self, prefix: str, *, limit: int = 1000, from_key: str = "") -> Page:
        """See KeyValueStore."""
        return await self._read(lambda connection: _range(connection, prefix, limit, from_key))

    def watch(self, prefixes: Sequence[str], from_revision: int) -> AsyncGenerator[WatchBatch, None]:
        """See KeyValueStore."""
        self._check_open()
        return self._history.watch(prefixes, from_revision)

    # Writing --------------------------------------------------------------------------------------------------------

    async def txn(
        self, compares: Sequence[Condition], success: Sequence[Operation], failure: Sequence[Operation] = ()
    ) -> TxnResult:
        """See KeyValueStore."""
        check_txn(compares, success, failure, self.limits)

        def run(space: _SqliteSpace) -> _Answer:
            result, events = run_txn(space, space.revision, compares, success, failure)
            return _Answer(result, events)

        result = await self._write(run)
        assert isinstance(result, TxnResult)
        return result

    async def compact(self, revision: int) -> None:
        """See KeyValueStore."""
        self._check_open()
        self._history.compact(revision)

    async def grant_lease(self, ttl_s: float) -> int:
        """See KeyValueStore."""
        check_ttl(ttl_s)
        lease = await self._write(lambda space: _Answer(space.add_lease(ttl_s)))
        assert isinstance(lease, int)
        self._leases.add(lease, ttl_s, self._clock())
        return lease

    async def keep_lease_alive(self, lease: int) -> None:
        """See KeyValueStore."""
        self._check_open()
        self._leases.renew(lease, self._clock())

    async def revoke_lease(self, lease: int) -> None:
        """See KeyValueStore."""

        def run(space: _SqliteSpace) -> _Answer:
            events = run_revoke(space, space.revision, lease)
            space.remove_lease(lease)
            return _Answer(None, events)

        await self._write(run)
        self._leases.remove(lease)

    async def expire_leases(self) -> None:
        """Let go of every lease whose time is up by the clock."""
        for lease in self._leases.expired(self._clock()):
            await self.revoke_lease(lease)

    async def close(self) -> None:
        """See KeyValueStore. Everything accepted before is committed and answered."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    # Inside ---------------------------------------------------------------------------------------------------------

    async def _expire_leases_every(self, interval_s: float) -> None:
        while True:
            await asyncio.sleep(interval_s)
            try:
                await self.expire_leases()
            except StoreError as error:
                log.warning("leases that ran out keep their keys for now: %s", error)

    async def _close(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
        self._requests.put(None)
        await asyncio.to_thread(self._writer.join)
        await asyncio.to_thread(self._reads.shutdown)
        # The writer's last answers were scheduled before its thread ended, so they are delivered by now.
        self._reader.close()
        os.close(self._lock)
        self._history.close()

    def _check_open(self) -> None:
        if self._closing is not None:
            raise StoreClosed("the store is closed: this process is stopping")

    async def _read(self, run: Callable[[sqlite3.Connection], T]) -> T:
        self._check_open()

        def read() -> T:
            with _errors_named(self._path):
                return run(self._reader)

        return await self._loop.run_in_executor(self._reads, read)

    async def _write(self, run: Callable[[_SqliteSpace], _Answer]) -> object:
        self._check_open()
        if self._pending >= PENDING_MAX:
            raise StoreUnavailable(f"{self._pending} writes wait for the registry's disk; try again in a moment")
        request = _Request(run, self._loop.create_future())
        self._pending += 1
        self._requests.put(request)
        return await request.future

    def _write_until_told(self, connection: sqlite3.Connection) -> None:
        # The writer's thread.
        space = _SqliteSpace(connection)
        going = True
        while going:
            group: list[_Request] = []
            item = self._requests.get()
            while item is not None and len(group) < GROUP_MAX:
                group.append(item)
                if len(group) == GROUP_MAX:
                    break
                try:
                    item = self._requests.get_nowait()
                except queue.Empty:
                    break
            going = item is not None
            if group:
                outcomes, history = _commit_group(space, group, self._path)
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                    self._loop.call_soon_threadsafe(self._deliver, group, outcomes, history)
        with contextlib.suppress(sqlite3.Error):  # a log that is not folded in now is at the next opening
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()

    def _deliver(
        self,
        group: list[_Request],
        outcomes: list[object],
        history: list[tuple[int, tuple[Event, ...]]],
    ) -> None:
        # On the loop: first the history, so that whoever is answered finds its own write in it.
        self._pending -= len(group)
        for revision, events in history:
            self._history.append(revision, events)
        for request, outcome in zip(group, outcomes, strict=True):
            if request.future.done():
                continue
            if isinstance(outcome, BaseException):
                request.future.set_exception(outcome)
            else:
                request.future.set_result(outcome)


def _commit_group(
    space: _SqliteSpace, group: list[_Request], path: Path
) -> tuple[list[object], list[tuple[int, tuple[Event, ...]]]]:
    """Run and commit a group: an outcome (value or exception) for each, and what changed, by revision."""
    outcomes: list[object] = []
    history: list[tuple[int, tuple[Event, ...]]] = []
    try:
        with _errors_named(path):
            space.begin()
            for request in group:
                try:
                    answer = request.run(space)
                except PlacementError as error:
                    outcomes.append(error)
                    continue
                if answer.events:
                    space.revision += 1
                    history.append((space.revision, answer.events))
                outcomes.append(answer.value)
            space.commit()
    except Exception as error:
        space.rollback()
        if not isinstance(error, PlacementError):
            log.exception("a write of %d transactions failed", len(group))
            error = StoreUnavailable(f"writing {path} failed: {error}")
        return [error] * len(group), []
    return outcomes, history


class _SqliteSpace:
    """The present keys, within the writer's open transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._committed_revision = 0
        self.revision = 0

    def begin(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        (self.revision,) = self._connection.execute("SELECT revision FROM state").fetchone()
        self._committed_revision = self.revision

    def commit(self) -> None:
        if self.revision != self._committed_revision:
            self._connection.execute("UPDATE state SET revision = ?", (self.revision,))
        self._connection.execute("COMMIT")

    def rollback(self) -> None:
        with contextlib.suppress(sqlite3.Error):  # SQLite may have rolled back by itself
            self._connection.execute("ROLLBACK")

    def get(self, key: str) -> KeyValue | None:
        return _get(self._connection, key)

    def put(self, kv: KeyValue) -> None:
        self._connection.execute(
            f"INSERT OR REPLACE INTO kv ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)",
            (kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease),
        )

    def delete(self, key: str) -> None:
        self._connection.execute("DELETE FROM kv WHERE key = ?", (key,))

    def keys_under(self, prefix: str) -> list[str]:
        rows = self._connection.execute(
            "SELECT key FROM kv WHERE key >= ? AND key < ? ORDER BY key", (prefix, prefix_end(prefix))
        )
        return [key for (key,) in rows]

    def has_newer(self, prefix: str, newer_than: int) -> bool:
        row = self._connection.execute(
            "SELECT 1 FROM kv WHERE key >= ? AND key < ? AND mod_revision > ? LIMIT 1",
            (prefix, prefix_end(prefix), newer_than),
        ).fetchone()
        return row is not None

    def has_lease(self, lease: int) -> bool:
        return self._connection.execute("SELECT 1 FROM leases WHERE id = ?", (lease,)).fetchone() is not None

    def keys_of_lease(self, lease: int) -> list[str]:
        rows = self._connection.execute("SELECT key FROM kv WHERE lease = ? AND lease != 0 ORDER BY key", (lease,))
        return [key for (key,) in rows]

    def add_lease(self, ttl_s: float) -> int:
        lease = self._connection.execute("INSERT INTO leases (ttl_s) VALUES (?)", (ttl_s,)).lastrowid
        assert lease is not None
        return lease

    def remove_lease(self, lease: int) -> None:
        self._connection.execute("DELETE FROM leases WHERE id = ?", (lease,))


def _get(connection: sqlite3.Connection, key: str) -> KeyValue | None:
    row = connection.execute(f"SELECT {_COLUMNS} FROM kv WHERE key = ?", (key,)).fetchone()
    return KeyValue(*row) if row is not None else None


def _range(connection: sqlite3.Connection, prefix: str, limit: int, from_key: str) -> Page:
    connection.execute("BEGIN")  # one snapshot for the keys and the revision
    try:
        (revision,) = connection.execute("SELECT revision FROM state").fetchone()
        rows = connection.execute(
            f"SELECT {_COLUMNS} FROM kv WHERE key >= ? AND key < ? ORDER BY key LIMIT ?",
            (max(prefix, from_key), prefix_end(prefix), limit + 1),
        ).fetchall()
    finally:
        connection.execute("COMMIT")
    items = tuple(KeyValue(*row) for row in rows[:limit])
    return Page(items, revision, rows[limit][0] if len(rows) > limit else None)


# Opening ------------------------------------------------------------------------------------------------------------


def _open(directory: Path) -> _Opened:
    path = directory / FILE_NAME
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = _take_lock(directory / LOCK_NAME)
    except OSError as error:
        raise StoreUnavailable(
            f"the data directory {directory} cannot be used: {error.strerror or error}; give one that this user may "
            "write, with --data-dir"
        ) from error
    connections: list[sqlite3.Connection] = []
    try:
        with _errors_named(path):
            writer = _connect(path)
            connections.append(writer)
            _check_or_make(writer, path)
            _use_write_ahead_log(writer, path)
            _sync_directory(directory)
            reader = _connect(path)
            connections.append(reader)
            reader.execute("PRAGMA query_only = 1")
            (revision,) = writer.execute("SELECT revision FROM state").fetchone()
            leases = writer.execute("SELECT id, ttl_s FROM leases").fetchall()
        return _Opened(lock, writer, reader, revision, leases)
    except BaseException:
        for connection in connections:
            connection.close()
        os.close(lock)
        raise


def _take_lock(path: Path) -> int:
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(lock, 32, 0).decode(errors="replace").strip()
        os.close(lock)
        raise StoreBusy(
            f"the data directory {path.parent} is in use by another hexcomb process"
            f"{f' (pid {holder})' if holder else ''}; stop that one, or give this one its own --data-dir"
        ) from error
    except BaseException:
        os.close(lock)
        raise
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock


def _connect(path: Path) -> sqlite3.Connection:
    # Each connection is used by one thread, but not by the thread that opens it here.
    return sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)


def _check_or_make(connection: sqlite3.Connection, path: Path) -> None:
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (format_version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application_id == 0 and tables == 0:
        connection.executescript(
            f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA application_id = {APPLICATION_ID}; "
            f"PRAGMA user_version = {FORMAT_VERSION}; COMMIT;"
        )
        return
    if application_id != APPLICATION_ID:
        raise StoreIncompatible(
            f"{path} is an SQLite database, but not a hexcomb store; move it away, or give another --data-dir"
        )
    if format_version != FORMAT_VERSION:
        raise StoreIncompatible(
            f"{path} has format {format_version}, and this hexcomb reads format {FORMAT_VERSION}; run the version of "
            "hexcomb that wrote it, or give another --data-dir"
        )
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise StoreCorrupt(_corrupt_message(path, str(verdict)))


def _use_write_ahead_log(connection: sqlite3.Connection, path: Path) -> None:
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise StoreUnavailable(
            f"{path} lies on a file system where SQLite cannot keep a write-ahead log (mode {mode!r}); give a "
            "--data-dir on a local disk"
        )
    connection.execute(f"PRAGMA synchronous = {SYNCHRONOUS}")
    connection.execute(f"PRAGMA journal_size_limit = {64 * 1024 * 1024}")


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _errors_named(path: Path) -> Iterator[None]:
    """SQLite's errors become ours, in this one place."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", None)
        primary = code & 0xFF if isinstance(code, int) else None
        if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or (
            # A damaged schema shows as a missing table.
            primary == sqlite3.SQLITE_ERROR and "no such table" in str(error)
        ):
            raise StoreCorrupt(_corrupt_message(path, str(error))) from error
        if primary == sqlite3.SQLITE_FULL:
            raise StoreUnavailable(
                f"the disk of {path} is full, so the registry takes no writes; free some space and try again. What "
                "was acknowledged before is safe"
            ) from error
        if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise StoreUnavailable(
                f"{path} is locked by another program (an open sqlite3 shell?); close it and try again"
            ) from error
        if primary == sqlite3.SQLITE_CANTOPEN:
            raise StoreUnavailable(
                f"{path} cannot be opened: {error}; check that this user may write there, or give another --data-dir"
            ) from error
        raise StoreUnavailable(f"{path} cannot be used now: {error}; check the disk, and try again") from error


def _corrupt_message(path: Path, found: str) -> str:
    return (
        f"{path} is damaged ({found}); stop hexcomb, then restore the file from a backup, or move it away together "
        f"with {path.name}-wal and {path.name}-shm and register the models again"
    )
