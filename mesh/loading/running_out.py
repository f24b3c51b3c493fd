"""A load or a run that found no memory: what is reserved for it from now on, and who hears of it.

That a framework found none says either that its model takes more than was thought (then more is reserved, and idle
copies leave for that), or that the box has less than the ledger counts (`NoRoom`: then the capacity is what is wrong).
Either way whoever watches the memory is told, so that the pod does not run into the same wall again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from typing import Protocol

from cache.events import LoadOutOfMemory
from cache.machine import CacheMachine
from cache.types import ModelKey, Place
from mesh.loading.places import place_of
from mesh.resident import Resident
from mesh.sizing import reserved_after_running_out, workspace_after_running_out
from mesh.staging import Staged
from mesh.telemetry import Telemetry
from mesh.threads import InThread
from runtime_adapters.errors import NoRoom, OutOfMemory
from runtime_adapters.malloc import trim

log = logging.getLogger("hexcomb.loading")

ROOM_WAIT_S = 2.0
"""Longest wait of a run that found no memory for others to leave; unloads take milliseconds."""


class RanOut(Protocol):
    """Hears that what the ledger holds in a place is `missing_bytes` more than there is."""

    def __call__(self, place: Place, missing_bytes: int, message: str, *, counted: bool) -> None: ...


def nobody_hears(place: Place, missing_bytes: int, message: str, *, counted: bool) -> None:
    """For a loader by itself."""


class RunningOut:
    """Owned by the event loop."""

    def __init__(
        self,
        cache: CacheMachine,
        telemetry: Telemetry,
        ran_out: RanOut,
        *,
        runs_take: Callable[[Resident, int], None],
        leaving: Callable[[], Collection[asyncio.Task[None]]],
        in_thread: InThread,
    ) -> None:
        """`runs_take` has a copy's runs counted with so many bytes; `leaving`: the unloads that are under way."""
        self._cache = cache
        self._telemetry = telemetry
        self._ran_out = ran_out
        self._runs_take = runs_take
        self._leaving = leaving
        self._in_thread = in_thread

    def load_ran_out(self, key: ModelKey, copy_id: int, staged: Staged, error: OutOfMemory) -> LoadOutOfMemory:
        """What the cache is told, so that it makes room and orders the load once more."""
        reserved = self._cache.copy(copy_id).needed
        message = f"no memory for a load of {key} with {reserved} reserved: {error}"
        log.warning("%s", message)
        self._telemetry.out_of_memory.labels(staged.adapter.format, "load").inc()
        place = place_of(staged.options.device)
        if isinstance(error, NoRoom):  # its size is right, the capacity is not
            if error.missing_bytes <= self._cache.usage().used[place] - reserved[place]:
                self._ran_out(place, error.missing_bytes, message, counted=True)
            return LoadOutOfMemory(copy_id, reserved, message)
        self._ran_out(place, 0, message, counted=False)
        return LoadOutOfMemory(copy_id, reserved_after_running_out(reserved), message)

    async def make_room(self, resident: Resident, request_bytes: int, why: str) -> None:
        """A run of this copy found no memory: it counts for more from now on, and idle copies leave. Returns when those
        have left, or have taken too long."""
        place = place_of(resident.device)
        message = f"no memory for a run of {resident.copy.key} on {request_bytes:,} bytes: {why}"
        log.warning("%s", message)
        self._telemetry.out_of_memory.labels(resident.format, "run").inc()
        workspace_bytes = workspace_after_running_out(
            resident.size.total_bytes, request_bytes, self._cache.usage().capacity[place]
        )
        self._runs_take(resident, max(resident.workspace_bytes, workspace_bytes))
        self._ran_out(place, workspace_bytes, message, counted=False)
        if leaving := self._leaving():
            await asyncio.wait(leaving, timeout=ROOM_WAIT_S)
        await self._in_thread("trim", trim)
