"""A load with its time limit, inside this process or in one of its own.

A load that outlives its limit cannot be stopped when it runs inside this process: no thread can be killed. Its waiters
get their error then, its bytes stay counted until the thread comes back, and what it produced is freed on arrival. A
load in a process of its own is simply killed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from cachetools import LRUCache

from cache.copies import Copy
from cache.events import LoadOverdue
from cache.types import Failure, ModelKey
from mesh.loading.failures import LoadFailures
from mesh.loading.measured_load import MeasuredLoad, load_and_measure, load_isolated_and_measure
from mesh.room import ReadMemory
from mesh.settings import Settings
from mesh.staging import REMEMBERED_MAX, Staged
from mesh.threads import InThread
from runtime_adapters.base import LoadedModel
from runtime_adapters.errors import LoadCrashed, LoadFailed, ModelCrashed
from runtime_adapters.isolation import Cancellation

log = logging.getLogger("hexcomb.loading")


class Overdue(Exception):
    """A load came back after its time limit, and was freed. The cache has heard of the failure already."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class TimedLoads:
    """Runs loads, each on a thread of its own. Owned by the event loop."""

    def __init__(
        self,
        *,
        settings: Settings,
        failures: LoadFailures,
        overdue: Callable[[LoadOverdue], None],
        crashed: Callable[[ModelKey], None],
        read_memory: ReadMemory | None,
        clock: Callable[[], float],
        in_thread: InThread,
    ) -> None:
        """`overdue` hears of a load at its time limit, `crashed` of a model whose process died."""
        self._settings = settings
        self._failures = failures
        self._overdue = overdue
        self._crashed = crashed
        self._read_memory = read_memory
        self._clock = clock
        self._in_thread = in_thread
        self._run_times_s: LRUCache[tuple[str, str], float] = LRUCache(maxsize=REMEMBERED_MAX)
        """By content and kind of device: what one run took."""

    async def load(self, copy: Copy, staged: Staged, timeout_s: float) -> MeasuredLoad:
        """Raises what the adapter raises, Overdue, or CancelledError when nobody waits any more; nothing of the model
        remains then."""
        if staged.isolated:
            loaded = await self._load_isolated(copy.key, staged, timeout_s)
        else:
            loaded = await self._load_here(copy, staged, timeout_s)
        if not staged.options.as_fetched:
            self._run_times_s[_ran_as(staged)] = loaded.run_s
        return loaded

    async def free(self, model: LoadedModel) -> None:
        """Unload what never came to serve."""
        try:
            await self._in_thread("unload-late", model.unload)
        except Exception:
            log.exception("freeing what a load has made in vain failed")

    async def _load_here(self, copy: Copy, staged: Staged, timeout_s: float) -> MeasuredLoad:
        ends_s = self._clock() + timeout_s
        staged = replace(staged, run_s=self._run_times_s.get(_ran_as(staged)))
        somebody_waits = copy.foreground_waiters > 0
        thread = self._in_thread("load", load_and_measure, staged, self._read_memory, somebody_waits)
        cancelled = False
        try:
            done, _ = await asyncio.wait([thread], timeout=timeout_s)
        except asyncio.CancelledError:
            # Nobody waits any more, but a thread cannot be stopped: its bytes stay counted until it is done.
            cancelled = True
            done, _ = await asyncio.wait([thread], timeout=max(0.0, ends_s - self._clock()))
        if done and not cancelled:
            return thread.result()
        error: BaseException = asyncio.CancelledError()
        if not done:
            failure = self._failures.told(copy.key, "load", staged.adapter.format, _took_too_long(staged, timeout_s))
            error = Overdue(failure)
            self._overdue(LoadOverdue(copy.copy_id, failure))
            await asyncio.wait([thread])
        await self._free_late_result(thread)
        raise error

    async def _load_isolated(self, key: ModelKey, staged: Staged, timeout_s: float) -> MeasuredLoad:
        cancellation = Cancellation()
        thread = self._in_thread(
            "load", load_isolated_and_measure, staged, timeout_s, self._settings, cancellation, self._read_memory
        )
        try:
            return await asyncio.shield(thread)
        except (LoadCrashed, ModelCrashed):  # the latter: in its warm-up
            self._crashed(key)
            raise
        except asyncio.CancelledError:
            cancellation.cancel()
            await asyncio.wait([thread])
            await self._free_late_result(thread)
            raise

    async def _free_late_result(self, thread: asyncio.Future[MeasuredLoad]) -> None:
        """A load that nobody waits for has ended: free what it made."""
        if thread.cancelled() or thread.exception() is not None:
            return
        await self.free(thread.result().model)


def _ran_as(staged: Staged) -> tuple[str, str]:
    return staged.artifact.content_hash, staged.options.device.kind


def _took_too_long(staged: Staged, timeout_s: float) -> LoadFailed:
    return LoadFailed(
        f"model {staged.options.model_id!r} did not load within {timeout_s:g} s (load_timeout_s); it runs inside the "
        "pod and cannot be killed: register it with isolation=process, or raise load_timeout_s"
    )
