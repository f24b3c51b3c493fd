"""Measuring copies again while they serve: what runs take beside them, and what processes of their own have grown to.

A load measures a copy with one row. Requests bring more, and a run on a thousand rows may take many times the model. So
the first request that is clearly larger than any before leaves its shape with the copy, and here, off its path, a run
on zeros of that shape is measured (`runtime_adapters.workspace`) and counted with the copy. The next larger one is
measured again: that is a few times in a copy's life, and not at all where another pod has done it (profiles).

A copy in a process of its own is simply looked at: what it takes is known at any time.

Measuring takes runs from a core, so all of it together is held to `TIME_SHARE_MAX` of one.

Deliberately absent: devices other than the CPU, whose frameworks keep what runs took, and say so in their own figures.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

from mesh.resident import Resident
from mesh.sizing import MIB, WORKSPACE_SHARE_MAX
from mesh.threads import InThread, in_thread
from runtime_adapters.base import CPU, Size
from runtime_adapters.errors import AdapterError
from runtime_adapters.workspace import measure_workspace

log = logging.getLogger("hexcomb.sizes")
T = TypeVar("T")

LOOK_EVERY_S = 2.0
TIME_SHARE_MAX = 0.02
"""Of one core, for measuring runs."""
GROWN_SHARE = 0.1
GROWN_MIN_BYTES = MIB
"""A process that differs by less is as large as it was."""


class Copies(Protocol):
    """What the watch needs of `mesh.loading.loading.Loading`."""

    def every_resident(self) -> Iterable[Resident]:
        """All loaded copies."""

    def resized(self, resident: Resident, *, size: Size | None = None, workspace_bytes: int | None = None) -> None:
        """A copy was measured anew."""


class SizeWatch:
    """Looks at the copies of one pod now and then. Owned by the event loop."""

    def __init__(
        self,
        copies: Copies,
        capacity_bytes: int,
        *,
        measured: Callable[[Resident], None] = lambda resident: None,
        clock: Callable[[], float] = time.monotonic,
        in_thread: InThread = in_thread,
    ) -> None:
        """`measured` hears of each copy whose figures have changed."""
        self._copies = copies
        self._workspace_bytes_max = int(WORKSPACE_SHARE_MAX * capacity_bytes)
        self._measured = measured
        self._clock = clock
        self._in_thread = in_thread
        self._runs_seen: dict[int, int] = {}
        self._task: asyncio.Task[None] | None = None
        self.workspaces_measured = 0

    def start(self) -> None:
        """Begin to look."""
        self._task = asyncio.get_running_loop().create_task(self._watch())

    async def close(self) -> None:
        """Stop; a measuring run in progress ends by itself."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _watch(self) -> None:
        while True:
            took_s = 0.0
            try:
                took_s = await self.turn()
            except Exception:
                log.exception("measuring a copy failed")
            await asyncio.sleep(max(LOOK_EVERY_S, took_s / TIME_SHARE_MAX))

    async def turn(self) -> float:
        """One look; the seconds that runs took for it."""
        residents = list(self._copies.every_resident())
        for resident in residents:
            if resident.isolated:
                await self._look_at_process(resident)
        here = {resident.copy.copy_id for resident in residents}
        self._runs_seen = {copy_id: runs for copy_id, runs in self._runs_seen.items() if copy_id in here}
        waiting = [resident for resident in residents if resident.unmeasured is not None]
        if not waiting:
            return 0.0
        return await self._measure_run(max(waiting, key=lambda each: each.request_bytes_max))

    async def _look_at_process(self, resident: Resident) -> None:
        copy_id = resident.copy.copy_id
        if self._runs_seen.get(copy_id) == resident.runs:
            return  # nothing has run in it since
        self._runs_seen[copy_id] = resident.runs
        size = await self._held(resident, "size", resident.model.size)
        grown_bytes = abs(size.total_bytes - resident.size.total_bytes)
        if size.total_bytes and grown_bytes > max(GROWN_MIN_BYTES, GROWN_SHARE * resident.size.total_bytes):
            self._copies.resized(resident, size=size)
            self._measured(resident)

    async def _measure_run(self, resident: Resident) -> float:
        shape, resident.unmeasured = resident.unmeasured, None
        if shape is None or resident.isolated or resident.device != CPU:
            return 0.0
        began_s = self._clock()
        try:
            found_bytes = await self._held(resident, "workspace", measure_workspace, resident.model, shape)
        except (AdapterError, MemoryError) as error:
            log.info("what runs of %s take was not measured: %s", resident.copy.key, error)
            return self._clock() - began_s
        if found_bytes is not None:
            self.workspaces_measured += 1
            resident.request_bytes_measured = max(resident.request_bytes_measured, shape.request_bytes)
            workspace_bytes = min(max(resident.workspace_bytes, found_bytes), self._workspace_bytes_max)
            if workspace_bytes != resident.workspace_bytes:
                log.info(
                    "runs of %s on %d bytes take %d MiB: counted with it",
                    resident.copy.key,
                    shape.request_bytes,
                    found_bytes >> 20,
                )
                self._copies.resized(resident, workspace_bytes=workspace_bytes)
            self._measured(resident)
        return self._clock() - began_s

    async def _held(self, resident: Resident, name: str, work: Callable[..., T], *arguments: object) -> T:
        """Run beside the loop, with the copy kept until it is done."""
        resident.hold()
        thread = self._in_thread(name, work, *arguments)
        thread.add_done_callback(lambda done: _seen(resident, done))
        return await asyncio.shield(thread)


def _seen(resident: Resident, done: asyncio.Future[T]) -> None:
    resident.let_go()
    if not done.cancelled():
        done.exception()  # seen, even if nobody waits any more
