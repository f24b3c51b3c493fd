"""From what was fetched to its prepared form, under a copy that serves already.

A model that comes from afar answers first from the artifact as it was fetched, where its adapter can do that
(`runtime_adapters.base.LoadsAsFetched`) and both forms fit beside each other (`mesh.staging`). Then, one model at a
time:

1. its prepared form is made, by a thread that gives way to others;
2. there must be free bytes for it: nobody is evicted for this, so it waits until there are;
3. both forms are charged to the copy, and the prepared one is loaded and run once beside the one that serves;
4. it takes the other's place in one assignment; runs that have begun end on the old form, which is then freed, and the
   copy is charged what it takes now.

The copy may leave at any time but during 3 and 4, when it is held. What was made of it by then is on the disk, and its
next load takes that. A failure leaves the copy as it is.

Deliberately absent: which form is the faster one, and promotion (`mesh.promoting`), which begins where this ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from cache.machine import CacheMachine
from cache.types import CopyState, ModelKey
from mesh.loading.loading import Loading
from mesh.loading.measured_load import MeasuredLoad, load_and_measure
from mesh.loading.places import HOST_MEMORY
from mesh.resident import Resident
from mesh.room import ReadMemory
from mesh.staging import Staged
from mesh.threads import InThread, in_thread
from runtime_adapters.base import LoadedModel, Replaceable, Size
from runtime_adapters.errors import AdapterError, NoRoom

log = logging.getLogger("hexcomb.renewing")

ROOM_AGAIN_S = 5.0
"""Until the next look whether there are free bytes: a copy that serves is in no hurry."""


class Preparing(Protocol):
    """What makes prepared forms: `mesh.staging.Staging`."""

    async def stage_prepared(self, staged: Staged) -> Staged:
        """The prepared form of what was loaded as it was fetched. Raises AdapterError."""

    def now_prepared(self, key: ModelKey, staged: Staged) -> None:
        """A copy goes on as this: the next load of this generation takes it."""

    def measured(self, staged: Staged, size: Size, load_s: float, run_s: float, peak_bytes: int) -> None:
        """What a copy was measured to take."""


class Renewals:
    """The changes that are under way. Owned by the event loop."""

    def __init__(
        self,
        cache: CacheMachine,
        loading: Loading,
        staging: Preparing,
        *,
        read_memory: ReadMemory | None = None,
        under_pressure: Callable[[], bool] = lambda: False,
        in_thread: InThread = in_thread,
    ) -> None:
        """`under_pressure`: this box has no memory to spare, whatever the ledger says."""
        self._cache = cache
        self._loading = loading
        self._staging = staging
        self._read_memory = read_memory
        self._under_pressure = under_pressure
        self._in_thread = in_thread
        self._one_at_a_time = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def begin(self, resident: Resident, staged: Staged) -> None:
        """This copy was loaded as it was fetched: it goes on as its prepared form when that is there."""
        if self._closed:
            return
        task = asyncio.get_running_loop().create_task(self._renew(resident, staged))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """No more changes; one whose form is being loaded ends."""
        self._closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _renew(self, resident: Resident, staged: Staged) -> None:
        key = resident.copy.key
        try:
            prepared: Staged | None = None
            while self._loading.resident(resident.copy.copy_id) is resident:
                prepared = prepared or await self._prepared(staged)
                if prepared is not None and await self._try_to_go_on_as(resident, prepared):
                    return
                await asyncio.sleep(ROOM_AGAIN_S)
        except (AdapterError, MemoryError) as error:
            # A copy that has left took its artifact with it, and that is no fault.
            here = self._loading.resident(resident.copy.copy_id) is resident
            log.log(logging.WARNING if here else logging.DEBUG, "%s stays as it was fetched: %s", key, error)
        except Exception:
            log.exception("changing %s to its prepared form failed", key)

    async def _prepared(self, staged: Staged) -> Staged | None:
        """None: the box has no room to make it now."""
        try:
            return await self._staging.stage_prepared(staged)
        except NoRoom as short:
            log.debug("%s stays as it was fetched for now: %s", staged.record.id, short)
            return None

    async def _try_to_go_on_as(self, resident: Resident, prepared: Staged) -> bool:
        """Whether it does; else there was no room."""
        async with self._one_at_a_time:
            if resident.copy.state is not CopyState.SERVABLE or not self._has_room_for(prepared):
                return False
            try:
                await self._go_on_as(resident, prepared)
            except NoRoom as short:  # the box has less than the ledger counts
                log.debug("%s stays as it was fetched for now: %s", resident.copy.key, short)
                return False
        return True

    def _has_room_for(self, prepared: Staged) -> bool:
        if prepared.estimate.total_bytes > self._cache.free[HOST_MEMORY]:  # many may ask this, for long
            return False
        usage = self._cache.usage()
        waiting = usage.copies_by_state.get(CopyState.WAITING_FOR_SPACE, 0) > 0
        wanted = waiting or bool(usage.overdraft) or self._under_pressure()
        return not wanted

    async def _go_on_as(self, resident: Resident, prepared: Staged) -> None:
        before, more_bytes = resident.size, prepared.estimate.total_bytes
        self._loading.resized(resident, size=replace(before, host_bytes=before.host_bytes + more_bytes))
        resident.hold()
        try:
            thread = self._in_thread("renew", _load_and_go_on, resident.model, prepared, self._read_memory)
        except BaseException:
            self._stays(resident, before)
            raise
        # However often this task is cancelled: the thread ends once, and the copy is let go then.
        thread.add_done_callback(lambda done: self._ended(resident, prepared, before, done))
        try:
            await asyncio.wait({thread})
        except asyncio.CancelledError:
            await asyncio.wait({thread})
            raise
        thread.result()

    def _stays(self, resident: Resident, before: Size) -> None:
        try:
            self._loading.resized(resident, size=before)
        finally:
            resident.let_go()

    def _ended(self, resident: Resident, prepared: Staged, before: Size, thread: asyncio.Future[MeasuredLoad]) -> None:
        if thread.cancelled() or thread.exception() is not None:
            self._stays(resident, before)
            return
        try:
            self._goes_on(resident, prepared, thread.result())
        finally:
            resident.let_go()

    def _goes_on(self, resident: Resident, prepared: Staged, loaded: MeasuredLoad) -> None:
        key = resident.copy.key
        resident.as_fetched = False
        resident.renewed(prepared.loadable, loaded.run_s)
        if resident.hot_size() is not None:
            self._loading.residents.two_forms[resident.copy.copy_id] = resident
        self._loading.resized(resident, size=loaded.size)
        self._staging.now_prepared(key, prepared)
        self._staging.measured(prepared, loaded.size, loaded.load_s + loaded.warm_up_s, loaded.run_s, loaded.peak_bytes)
        log.debug("%s goes on as its prepared form", key)


def _load_and_go_on(model: LoadedModel, prepared: Staged, read_memory: ReadMemory | None) -> MeasuredLoad:
    """Raises AdapterError; the model is as it was then."""
    assert isinstance(model, Replaceable)
    loaded = load_and_measure(prepared, read_memory)
    try:
        model.go_on_as(loaded.model)
    except BaseException:
        loaded.model.unload()
        raise
    return loaded
