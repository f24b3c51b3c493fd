"""Prepared forms: making them, once for all who ask, and what becomes of the original that a form stands for.

A form is made by threads apart from those that fetch. Nobody waits for some of them: those stand in a line and are made
one at a time, by a thread that gives way to others. Until its turn has come, such a form holds no room on the disk; and
when somebody comes who does wait for it, it is made at once.

Beside the forms of artifacts lies what several of them need alike (`beside`): made once, too, and counted with them.

**Originals.** A large original is deleted once a form of it is on the platter and nobody may be reading its files: each
who holds the content then holds a form of it, too.

Owned by the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from runtime_adapters.artifacts.disk_records import prepared_key
from runtime_adapters.artifacts.disk_tier import DiskTier
from runtime_adapters.artifacts.download import FetchStopped, Stop, disk_errors
from runtime_adapters.artifacts.errand import digest_of
from runtime_adapters.artifacts.errors import ArtifactTooLarge, DiskFull
from runtime_adapters.artifacts.leases import Leases
from runtime_adapters.artifacts.ledger import Reservation, disk_bytes
from runtime_adapters.artifacts.single_flight import SingleFlight, in_thread
from runtime_adapters.errors import LoadFailed
from runtime_adapters.malloc import returning_freed_memory

log = logging.getLogger("hexcomb.artifacts")

_VARIANT = re.compile(r"[^A-Za-z0-9._-]+")
_ROOM_FACTOR = 3
"""A prepared form holds the weights about once; while it is made, an exporter may hold them twice."""
_ROOM_EXTRA_BYTES = 256 * 1024
_NICENESS = 5
"""Of the thread for which nobody waits: a third of an ordinary thread's share of a core, when both want it. Not more,
because it holds Python's lock now and then, and while it has to wait for a core meanwhile, all others wait for it."""


class PreparedForms:
    """The forms of one disk tier."""

    def __init__(
        self, disk: DiskTier, leases: Leases, *, concurrent_max: int, timeout_s: float, keep_originals: bool
    ) -> None:
        self._disk = disk
        self._leases = leases
        self._keep_originals = keep_originals
        self._preparers = ThreadPoolExecutor(concurrent_max, "artifact-prepare")
        self._patient_preparer = ThreadPoolExecutor(1, "artifact-prepare-later", _give_way)
        self._syncer = ThreadPoolExecutor(1, "artifact-sync")
        self._fillers = ThreadPoolExecutor(concurrent_max, "artifact-beside")
        self._beside: SingleFlight[str, str] = SingleFlight(timeout_s, self._let_go)
        self._preparations: SingleFlight[str, str | None] = SingleFlight(timeout_s, self._let_go)
        self._dropping: set[asyncio.Task[None]] = set()
        self._syncing: set[str] = set()
        self._making_patiently = False
        self._line: dict[str, asyncio.Future[bool]] = {}
        """Forms that nobody waits for, until their turn has come (True) or somebody does (False)."""
        self._hurried: set[str] = set()
        """Those that somebody waits for, until they are made."""

    async def prepare(
        self,
        lease: int,
        content_key: str,
        variant: str,
        content_bytes: int,
        make: Callable[[Path], bool],
        *,
        patiently: bool,
    ) -> Path | None:
        """What `make` writes, made once per content and variant; it stays as long as the lease, which holds the content
        already. None: there is none better than the original, or no room for one. Raises what `make` does."""
        key = form_key(content_key, variant)

        def take(made: str | None) -> Path | None:
            if lease not in self._leases:
                raise LoadFailed("artifact was released while it was being prepared; fetch it again")
            if made is None:
                return None
            self._leases.add(lease, made)
            if not self._disk.prepared(made):
                return None
            self.drop_original(content_key)
            return self._disk.prepared_path(made)

        if self._disk.prepared(key) is not None:
            return take(key)
        if not patiently:
            self._hurried.add(key)
            self._end_wait(key, its_turn=False)
            work = partial(self._prepare, self._preparers, content_key, key, content_bytes, make)
        else:
            work = partial(self._prepare_in_turn, content_key, key, content_bytes, make)
        return await self._preparations.join(key, work, take)

    async def beside(self, lease: int, name: str, room_bytes: int, fill: Callable[[Path, Stop], None]) -> Path:
        """What `fill` writes, made once for all who name the same; it stays as long as the lease. Nothing of it stands
        for the content that the lease holds. `room_bytes` are kept free until it is known what it takes. Raises what
        `fill` does, DiskFull, ArtifactTooLarge."""
        key = prepared_key(f"beside-{name}", "")

        def take(made: str) -> Path:
            if lease not in self._leases:
                raise LoadFailed("artifact was released while something was made for it; fetch it again")
            self._leases.add(lease, made)
            return self._disk.prepared_path(made)

        if self._disk.prepared(key):
            return take(key)
        return await self._beside.join(key, partial(self._make_beside, key, room_bytes, fill), take)

    async def _make_beside(self, key: str, room_bytes: int, fill: Callable[[Path, Stop], None], stop: Stop) -> str:
        reservation = await self._disk.reserve(room_bytes)
        staged = self._disk.stage()
        try:
            await in_thread(self._fillers, stop, _fill_form, fill, staged, stop)
            await self._disk.add_prepared(reservation, staged, key, True, partial(in_thread, self._fillers, stop))
        except BaseException:
            await self._disk.drop(staged)
            self._disk.ledger.cancel(reservation)
            raise
        return key

    async def close(self) -> None:
        """Tell what is being made to stop, and wait until threads have let go of files."""
        await self._preparations.stop_all()
        await self._beside.stop_all()
        await self.wait_dropped()
        for executor in (self._preparers, self._patient_preparer, self._syncer, self._fillers):
            await asyncio.to_thread(executor.shutdown)

    async def wait_dropped(self) -> None:
        """Until the originals that are being deleted have left."""
        while self._dropping:
            await asyncio.wait(self._dropping)

    async def _prepare_in_turn(
        self, content_key: str, key: str, content_bytes: int, make: Callable[[Path], bool], stop: Stop
    ) -> str | None:
        """`_prepare` what nobody waits for."""
        self._disk.acquire(content_key)  # so that it is here still when its turn has come
        try:
            its_turn = not self._making_patiently
            if not (its_turn or key in self._hurried):
                turn = self._line[key] = asyncio.get_running_loop().create_future()
                its_turn = await turn
            if not its_turn:
                return await self._prepare(self._preparers, content_key, key, content_bytes, make, stop)
            self._making_patiently = True
            try:
                return await self._prepare(self._patient_preparer, content_key, key, content_bytes, make, stop)
            finally:
                self._making_patiently = bool(self._line)  # whoever comes meanwhile stands behind
                if self._line:
                    self._end_wait(next(iter(self._line)), its_turn=True)
        finally:
            self._disk.release(content_key)

    def _end_wait(self, key: str, *, its_turn: bool) -> None:
        turn = self._line.pop(key, None)
        if turn is not None:
            turn.set_result(its_turn)

    async def _prepare(
        self,
        preparer: Executor,
        content_key: str,
        key: str,
        content_bytes: int,
        make: Callable[[Path], bool],
        stop: Stop,
    ) -> str | None:
        self._disk.acquire(content_key)
        reservation: Reservation | None = None
        staged: Path | None = None
        try:
            _check_wanted(stop)
            room_bytes = _ROOM_FACTOR * content_bytes + _ROOM_EXTRA_BYTES
            reservation = await self._disk.reserve(disk_bytes([room_bytes]))
            staged = self._disk.stage()
            made = await in_thread(preparer, stop, _make_form, make, staged, stop)
            await self._disk.add_prepared(reservation, staged, key, made, partial(in_thread, preparer, stop))
            reservation = staged = None
            return key
        except (DiskFull, ArtifactTooLarge) as error:
            log.info("no room for %s, the fetched form is loaded: %s", key, error)
            return None
        finally:
            self._hurried.discard(key)
            if staged is not None:
                await self._disk.drop(staged)
            if reservation is not None:
                self._disk.ledger.cancel(reservation)
            self._disk.release(content_key)

    def drop_original(self, content_key: str) -> None:
        """Delete the files of this content if a form stands for them and nobody may be reading them."""
        disk = self._disk
        if self._keep_originals or not disk.may_hollow_out(content_key):
            return
        form = disk.form_of(content_key)
        if form is None or disk.ledger.references(content_key) != self._leases.count_with_form(content_key):
            return
        if disk.needs_sync(form):
            if form not in self._syncing:
                self._syncing.add(form)
                disk.acquire(form)
                self._in_background(self._sync(form, content_key))
            return
        try:
            self._in_background(disk.hollow_out(content_key))
        except LoadFailed as error:
            log.warning("an original that a prepared form stands for stays: %s", error)

    async def _sync(self, form: str, content_key: str) -> None:
        """A form is brought to the platter before what it was made of goes."""
        try:
            await asyncio.get_running_loop().run_in_executor(self._syncer, self._disk.sync_prepared, form)
            self._disk.synced(form)
        finally:
            self._syncing.discard(form)
            self._disk.release(form)
        self.drop_original(content_key)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._dropping.add(task)
        task.add_done_callback(self._dropped)

    def _dropped(self, task: asyncio.Task[None]) -> None:
        self._dropping.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("an original that a prepared form stands for could not be deleted: %s", error)

    def _let_go(self, made: str | None) -> None:
        if made is not None:
            self._disk.release(made)


def form_key(content_key: str, variant: str) -> str:
    """The entry of a form; `variant` names format and runtime version, in any characters."""
    plain = _VARIANT.sub("_", variant)[:80]
    # Two variants that look alike once cleaned must not share a form.
    mark = "" if plain == variant else f"-{digest_of([variant])[:16]}"
    return prepared_key(content_key.removeprefix("content/"), f"{plain}{mark}")


def _make_form(make: Callable[[Path], bool], staged: Path, stop: Stop) -> bool:
    _check_wanted(stop)
    with disk_errors():
        form = staged / "form"
        form.mkdir()
        with returning_freed_memory():
            return make(form)


def _fill_form(fill: Callable[[Path, Stop], None], staged: Path, stop: Stop) -> None:
    _check_wanted(stop)
    with disk_errors():
        form = staged / "form"
        form.mkdir()
        fill(form, stop)


def _check_wanted(stop: Stop) -> None:
    if stop.wanted.is_set():
        raise FetchStopped("preparation stopped before it began: nobody waits for it any more")


def _give_way() -> None:
    """This thread gives way to others from now on. Linux keeps a priority for each thread; elsewhere it has none."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
