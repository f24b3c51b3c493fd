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
import logging
import os
import queue
import sqlite3
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from placement.errors import PlacementError, StoreClosed, StoreError, StoreUnavailable
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
)
from placement.store.history import History
from placement.store.leases import LeaseTable, check_ttl
from placement.store.sqlite_file import FILE_NAME, OpenedFile, errors_named, open_file
from placement.store.sqlite_space import SqliteSpace, get_key, get_range
from placement.store.transaction import run_revoke, run_txn

log = logging.getLogger(__name__)

T = TypeVar("T")

GROUP_MAX = 128
"""Transactions in one commit. More would only make the first of them wait: the sync is already shared."""
PENDING_MAX = 20_000
"""Transactions that may wait for the writer; beyond it the store says that it is overloaded."""
LEASE_CHECK_S = 1.0
"""How often leases are looked at: the most by which a key outlives its lease."""


@dataclass(slots=True)
class _Request:
    """One call for the writer's thread, and the future on the loop that its answer goes to."""

    run: Callable[[SqliteSpace], _Answer]
    future: asyncio.Future[Any]


@dataclass(slots=True)
class _Answer:
    value: object
    events: tuple[Event, ...] = ()


class EmbeddedStore:
    """A KeyValueStore on one SQLite file. Open it with `open`; it belongs to the loop that opened it."""

    def __init__(self, directory: Path, opened: OpenedFile, limits: StoreLimits, clock: Callable[[], float]) -> None:
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
        opened = await asyncio.to_thread(open_file, directory)
        store = cls(directory, opened, limits or StoreLimits(), clock)
        if lease_check_s is not None:
            store._expiry = asyncio.create_task(store._expire_leases_every(lease_check_s))
        return store

    # Reading --------------------------------------------------------------------------------------------------------

    async def get(self, key: str) -> KeyValue | None:
        """See KeyValueStore."""
        check_key(key, self.limits)
        return await self._read(lambda connection: get_key(connection, key))

    async def range(self, prefix: str, *, limit: int = 1000, from_key: str = "") -> Page:
        """See KeyValueStore."""
        return await self._read(lambda connection: get_range(connection, prefix, limit, from_key))

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

        def run(space: SqliteSpace) -> _Answer:
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

        def run(space: SqliteSpace) -> _Answer:
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
            with errors_named(self._path):
                return run(self._reader)

        return await self._loop.run_in_executor(self._reads, read)

    async def _write(self, run: Callable[[SqliteSpace], _Answer]) -> object:
        self._check_open()
        if self._pending >= PENDING_MAX:
            raise StoreUnavailable(f"{self._pending} writes wait for the registry's disk; try again in a moment")
        request = _Request(run, self._loop.create_future())
        self._pending += 1
        self._requests.put(request)
        return await request.future

    def _write_until_told(self, connection: sqlite3.Connection) -> None:
        # The writer's thread.
        space = SqliteSpace(connection)
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
    space: SqliteSpace, group: list[_Request], path: Path
) -> tuple[list[object], list[tuple[int, tuple[Event, ...]]]]:
    """Run and commit a group: an outcome (value or exception) for each, and what changed, by revision."""
    outcomes: list[object] = []
    history: list[tuple[int, tuple[Event, ...]]] = []
    try:
        with errors_named(path):
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
