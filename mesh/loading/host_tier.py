"""Moving copies between their device and RAM, as the cache orders it (`cache.parking` decides).

A copy keeps its `Resident` on its way down and up; only the model in it changes. While it is parked nobody can reach
it. Each move runs on a thread of its own, like a load: copying weights off a device blocks.

A return cannot be stopped once it runs, so what nobody waits for any more is freed when it arrives.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass

from mesh.resident import Resident
from mesh.threads import InThread
from runtime_adapters.base import LoadedModel, Parkable, ParkedModel, Size

log = logging.getLogger("hexcomb.host_tier")


class ReturnsTooLate(Exception):
    """A return has taken longer than it may; `thread` still runs, from `parked`."""

    def __init__(self, thread: asyncio.Future[LoadedModel], parked: ParkedModel) -> None:
        super().__init__("the return takes too long")
        self.thread = thread
        self.parked = parked


@dataclass(frozen=True, slots=True)
class _Parked:
    resident: Resident
    model: ParkedModel


class HostTier:
    """The parked copies of one pod. Owned by the event loop."""

    def __init__(self, in_thread: InThread) -> None:
        self._in_thread = in_thread
        self._parked: dict[int, _Parked] = {}

    def __contains__(self, copy_id: int) -> bool:
        return copy_id in self._parked

    def resident(self, copy_id: int) -> Resident:
        """The parked copy."""
        return self._parked[copy_id].resident

    async def park(self, resident: Resident) -> Size:
        """Move a copy that nobody holds into RAM; what it takes there. Raises what its adapter raises; then it is
        where it was."""
        model = resident.model
        assert isinstance(model, Parkable), f"{resident.copy.key} was ordered to park and cannot"
        parked = await self._in_thread("park", model.park)
        self._parked[resident.copy.copy_id] = _Parked(resident, parked)
        return parked.size()

    async def bring_back(self, copy_id: int, timeout_s: float) -> Resident:
        """The copy, on its device again. Raises what its adapter raises, ReturnsTooLate, or CancelledError when nobody
        waits any more; then nothing of it remains, in the case of ReturnsTooLate once `free_late` has ended."""
        parked = self._parked.pop(copy_id)
        resident = parked.resident
        thread = self._in_thread("return", parked.model.unpark, resident.device)
        try:
            done, _ = await asyncio.wait([thread], timeout=timeout_s)
        except asyncio.CancelledError:
            await self.free_late(ReturnsTooLate(thread, parked.model))
            raise
        if not done:
            raise ReturnsTooLate(thread, parked.model)
        try:
            resident.model = thread.result()
        except Exception:
            await self._free(parked.model)
            raise
        resident.size = resident.model.size()
        resident.cold_size = None
        return resident

    async def free_late(self, late: ReturnsTooLate) -> None:
        """Wait for a return that nobody waits for, and free what it made, or what it left."""
        await asyncio.wait([late.thread])
        failed = late.thread.cancelled() or late.thread.exception() is not None
        await self._free(late.parked if failed else late.thread.result())

    async def unload(self, copy_id: int) -> Resident:
        """Free a parked copy. Raises what its adapter raises; then it is still parked."""
        parked = self._parked[copy_id]
        await self._in_thread("unload", parked.model.unload)
        del self._parked[copy_id]
        return parked.resident

    def every_model(self) -> Iterable[ParkedModel]:
        """All parked models."""
        return [parked.model for parked in self._parked.values()]

    async def _free(self, model: LoadedModel | ParkedModel) -> None:
        try:
            await self._in_thread("unload-late", model.unload)
        except Exception:
            log.exception("freeing what came back in vain failed")
