"""From `StartUnload` to `Unloaded`, and the last unloads of a pod that stops."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping

from cache.commands import EVICTED_FOR
from cache.events import Unloaded, UnloadFailed
from cache.types import ModelKey
from mesh.loading.heap import HeapTrimmer
from mesh.loading.host_tier import HostTier
from mesh.loading.residents import Residents
from mesh.staging import Stages
from mesh.telemetry import Telemetry
from mesh.threads import InThread
from runtime_adapters.base import LoadedModel, ParkedModel
from runtime_adapters.isolation import IsolatedModel

log = logging.getLogger("hexcomb.loading")


class Unloads:
    """Owned by the event loop."""

    def __init__(
        self,
        *,
        residents: Residents,
        host_tier: HostTier,
        staging: Stages,
        heap: HeapTrimmer,
        telemetry: Telemetry,
        clock: Callable[[], float],
        in_thread: InThread,
    ) -> None:
        self._residents = residents
        self._host_tier = host_tier
        self._staging = staging
        self._heap = heap
        self._telemetry = telemetry
        self._clock = clock
        self._in_thread = in_thread
        self.count = 0
        """Since the pod started."""

    async def unload(self, key: ModelKey, copy_id: int, reason: str) -> Unloaded | UnloadFailed:
        """Carry out StartUnload, of a copy on its device or of a parked one."""
        was_parked = copy_id in self._host_tier
        resident = self._host_tier.resident(copy_id) if was_parked else self._residents.by_copy[copy_id]
        began = self._clock()
        try:
            if was_parked:
                await self._host_tier.unload(copy_id)
            else:
                await self._in_thread("unload", resident.model.unload)
        except Exception as error:  # the cache keeps the bytes counted and asks again
            log.exception("unloading %s failed", key)
            return UnloadFailed(copy_id, f"{type(error).__name__}: {error}")
        if not was_parked:
            self._residents.take_out(copy_id)
        self._staging.release(resident.artifact)
        self._heap.freed(resident.size.host_bytes)
        self._telemetry.unloaded(resident.format, self._clock() - began)
        if reason.startswith(EVICTED_FOR):
            self._telemetry.evicted(resident.format, began - resident.copy.last_used_s)
        self.count += 1
        log.debug("unloaded %s: %s", key, reason)
        return Unloaded(copy_id)

    async def unload_last(self, running: Mapping[int, asyncio.Task[None]], grace_s: float) -> None:
        """The pod stops: unload everything that can be, and wait for what is `running`, by copy. Bounded."""
        leaving = [resident for copy_id, resident in self._residents.by_copy.items() if copy_id not in running]
        # Each process may take its time to end, unless a run has outlived the grace: then it is killed. Within this
        # process such a run may still use its model; the others go one by one: there can be thousands.
        for resident in leaving:
            if resident.copy.pins and isinstance(resident.model, IsolatedModel):
                resident.model.kill("the pod stops")
        isolated = [resident.model for resident in leaving if resident.isolated]
        idle = [resident.model for resident in leaving if not resident.isolated and not resident.copy.pins]
        unloads = [self._in_thread("unload", model.unload) for model in isolated]
        unloads.append(self._in_thread("unload", _unload_all, [*idle, *self._host_tier.every_model()]))
        await asyncio.wait([*unloads, *running.values()], timeout=grace_s)
        for unload in unloads:
            if unload.done() and not unload.cancelled() and (error := unload.exception()) is not None:
                log.error("the last unload of a copy failed", exc_info=error)


def _unload_all(models: Iterable[LoadedModel | ParkedModel]) -> None:
    for model in models:
        try:
            model.unload()
        except Exception:
            log.exception("the last unload of a copy failed")
