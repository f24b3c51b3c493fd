"""From `StartLoad` to its one event: `Loaded`, `LoadFailed`, or `LoadOutOfMemory`.

What was staged is loaded, warmed up and measured (`timed_load`), and what that found out is noted: sizes and times for
the next copy of this content, metadata for requests that ask while no copy is here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from cachetools import LRUCache

from cache.copies import Copy
from cache.events import Loaded, LoadFailed, LoadOutOfMemory
from cache.machine import CacheMachine
from cache.types import ModelKey
from mesh.loading.failures import CANCELLED, LoadFailures
from mesh.loading.fetches import Fetches
from mesh.loading.heap import HeapTrimmer
from mesh.loading.measured_load import MeasuredLoad
from mesh.loading.residents import Residents
from mesh.loading.running_out import RunningOut
from mesh.loading.timed_load import Overdue, TimedLoads
from mesh.resident import Resident
from mesh.settings import Settings
from mesh.sizing import wrong_declaration
from mesh.staging import REMEMBERED_MAX, Staged, Stages
from mesh.telemetry import Telemetry
from placement.records import ModelSpec
from runtime_adapters.base import ModelMetadata
from runtime_adapters.errors import AdapterError, BadArtifact, OutOfMemory

log = logging.getLogger("hexcomb.loading")

LOAD_MEAN_WEIGHT = 0.1
"""Of the newest load in the mean."""


class Loads:
    """Owned by the event loop."""

    def __init__(
        self,
        *,
        cache: CacheMachine,
        staging: Stages,
        fetches: Fetches,
        residents: Residents,
        timed_loads: TimedLoads,
        running_out: RunningOut,
        failures: LoadFailures,
        heap: HeapTrimmer,
        settings: Settings,
        telemetry: Telemetry,
        on_loaded: Callable[[ModelKey], None],
        loaded_as_fetched: Callable[[Resident, Staged], None],
    ) -> None:
        """`loaded_as_fetched` hears of copies whose prepared form is yet to come, in the turn after their load."""
        self._cache = cache
        self._staging = staging
        self._fetches = fetches
        self._residents = residents
        self._timed_loads = timed_loads
        self._running_out = running_out
        self._failures = failures
        self._heap = heap
        self._settings = settings
        self._telemetry = telemetry
        self._on_loaded = on_loaded
        self._loaded_as_fetched = loaded_as_fetched
        self._metadata: LRUCache[ModelKey, ModelMetadata] = LRUCache(maxsize=REMEMBERED_MAX)
        self.count = 0
        """Loads that succeeded since the pod started."""
        self.mean_s = 0.0
        """Of the last loads here, exponentially weighted."""

    def metadata(self, key: ModelKey) -> ModelMetadata | None:
        """What the last load of this generation found; None when it was never loaded here."""
        return self._metadata.get(key)

    def forget(self, key: ModelKey) -> None:
        """Another model of this name may have been here before."""
        self._metadata.pop(key, None)

    async def load(self, key: ModelKey, copy_id: int) -> Loaded | LoadFailed | LoadOutOfMemory:
        """Carry out StartLoad."""
        copy = self._cache.copy(copy_id)
        fetched = self._fetches.take(copy_id)
        staged = self._fetches.placed(fetched, copy)
        try:
            loaded = await self._load_twice_at_most(copy, staged)
            try:
                if self._settings.is_pooled:
                    check_one_copy(staged.record.spec, loaded.model.metadata)
                resident = self._residents.made(copy, staged, loaded)
            except Exception:
                await self._timed_loads.free(loaded.model)
                raise
        except Overdue as late:  # the cache has heard of it; now the thread has come back
            self._staging.release(staged.artifact)
            return LoadFailed(copy_id, late.failure)
        except asyncio.CancelledError:
            self._staging.release(staged.artifact)
            return LoadFailed(copy_id, CANCELLED)
        except OutOfMemory as error:
            self._fetches.put_back(copy_id, fetched)  # held: the cache makes room, and has it loaded once more
            return self._running_out.load_ran_out(key, copy_id, staged, error)
        except Exception as error:  # every failure of a load becomes the cache's event
            self._staging.release(staged.artifact)
            return LoadFailed(copy_id, self._failures.told(key, "load", staged.adapter.format, error))
        return self._loaded(staged, resident, loaded)

    async def _load_twice_at_most(self, copy: Copy, staged: Staged) -> MeasuredLoad:
        timeout_s = staged.record.spec.load_timeout_s or self._settings.load_timeout_s
        try:
            return await self._timed_loads.load(copy, staged, timeout_s)
        except AdapterError as error:
            if isinstance(error, OutOfMemory) or not self._staging.has_loaded(staged):
                raise
            # The same bytes have loaded before, so the fault is not theirs: frameworks have races of their own.
            log.warning("load of %s is tried once more: %s", copy.key, error)
        return await self._timed_loads.load(copy, staged, timeout_s)

    def _loaded(self, staged: Staged, resident: Resident, loaded: MeasuredLoad) -> Loaded:
        """Note what the load found out."""
        key, took_s = resident.copy.key, loaded.load_s + loaded.warm_up_s
        self._telemetry.load_stage(resident.format, "load", loaded.load_s)
        self._telemetry.load_stage(resident.format, "warm_up", loaded.warm_up_s)
        self._staging.measured(staged, loaded.size, took_s, loaded.run_s, loaded.peak_bytes)
        self._heap.freed(staged.artifact.size_bytes)  # what a load leaves in the heap is of the size of its file
        self._metadata[key] = loaded.model.metadata
        self.count += 1
        self.mean_s += LOAD_MEAN_WEIGHT * (took_s - self.mean_s)
        asyncio.get_running_loop().call_soon(self._on_loaded, key)
        if resident.as_fetched:
            asyncio.get_running_loop().call_soon(self._loaded_as_fetched, resident, staged)
        remark = wrong_declaration(resident.declared_bytes, loaded.size.total_bytes)
        if remark:
            log.info("%s: %s", key, remark)
        return self._residents.enter(resident, remark)


def check_one_copy(spec: ModelSpec, metadata: ModelMetadata) -> None:
    """In a pool, a model that keeps sequences has one copy: with two, a sequence's requests would go to either. Only a
    load tells that a model is one. Raises BadArtifact."""
    if metadata.sequences and spec.copies_max != 1:
        allowed = spec.copies_max or "not set"
        raise BadArtifact(
            f"the model keeps sequences, so in a pool it may have one copy; copies_max is {allowed}: register it with "
            "copies_max 1"
        )
