"""Carrying out what the cache decides: fetch, prepare, load, warm up, measure, park, unload.

The cache machine (`cache.machine`) decides and never acts; this package acts and never decides. It belongs to the event
loop: events go into the machine on the loop only, and the commands that come back are started at once, in order. The
slow work runs beside the loop: fetches as tasks, preparation, loads and unloads on threads of their own, so that a
framework that hangs in a load holds up nobody else.

Here is the ring around the machine: who waits, which command goes to whom (`fetches`, `loads`, `tier_moves`,
`unloads`), and the one event that each of them answers with.

Deliberately absent: who may ask, names, aliases, protobuf.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any

from cache.commands import (
    CancelLoad,
    Command,
    Prefetch,
    Refuse,
    Serve,
    StartFetch,
    StartLoad,
    StartPark,
    StartReturn,
    StartUnload,
    WakeAt,
)
from cache.copies import Copy
from cache.events import Cancel, Crashed, Event, Tick, Want
from cache.failures import FailureRecord
from cache.machine import CacheMachine
from cache.types import CopyState, ModelKey, Refusal, WantedModel
from mesh.loading.failures import LoadFailures
from mesh.loading.fetches import Fetches
from mesh.loading.heap import HeapTrimmer
from mesh.loading.host_tier import HostTier
from mesh.loading.loads import Loads
from mesh.loading.pool_hooks import PoolHooks
from mesh.loading.residents import Residents
from mesh.loading.running_out import RanOut, RunningOut, nobody_hears
from mesh.loading.tier_moves import TierMoves
from mesh.loading.timed_load import TimedLoads
from mesh.loading.unloads import Unloads
from mesh.resident import Resident
from mesh.room import ReadMemory
from mesh.settings import Settings
from mesh.staging import Staged, Stages
from mesh.telemetry import Telemetry
from mesh.threads import InThread, in_thread
from placement.records import ModelRecord
from runtime_adapters.base import Device, ModelMetadata, Size

log = logging.getLogger("hexcomb.loading")


class Refused(Exception):
    """The cache gave this request no copy; `refusal` says why and when to come back."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


@dataclass(frozen=True, slots=True)
class Counts:
    """What this pod has done since it started."""

    loads: int
    load_failures: int
    unloads: int


class Loading:
    """The effects of one pod's cache. All methods are called on the event loop."""

    def __init__(
        self,
        *,
        cache: CacheMachine,
        staging: Stages,
        settings: Settings,
        telemetry: Telemetry,
        devices: Sequence[Device],
        record_of: Callable[[ModelKey], ModelRecord | None],
        on_loaded: Callable[[ModelKey], None],
        hooks: PoolHooks | None = None,
        loaded_as_fetched: Callable[[Resident, Staged], None] = lambda resident, staged: None,
        ran_out: RanOut = nobody_hears,
        read_memory: ReadMemory | None = None,
        clock: Callable[[], float] = time.monotonic,
        in_thread: InThread = in_thread,
    ) -> None:
        """`devices`: those that models may run on, all of one kind. `loaded_as_fetched` hears of copies whose prepared
        form is yet to come. `ran_out` hears where there was no memory, and how much was missing. `read_memory`: asked
        before loads of some size whether the box has room; None: nobody is asked. `clock` is the event loop's;
        `in_thread` runs what blocks."""
        self._cache = cache
        self._staging = staging
        self._settings = settings
        self._record_of = record_of
        self._hooks = hooks = hooks or PoolHooks()
        self._clock = clock

        self._failures = failures = LoadFailures(telemetry)
        self._heap = heap = HeapTrimmer(clock, in_thread)
        host_tier = HostTier(in_thread)
        self.residents = residents = Residents(
            telemetry, hooks, settings.batch_settings, pin=self._pin, unpin=self._unpin
        )
        self._fetches = Fetches(
            staging=staging,
            settings=settings,
            devices=devices,
            failures=failures,
            hooks=hooks,
            record_of=record_of,
            in_thread=in_thread,
        )
        self._running_out = RunningOut(
            cache,
            telemetry,
            ran_out,
            runs_take=lambda resident, workspace_bytes: self.resized(resident, workspace_bytes=workspace_bytes),
            leaving=self._unloads_under_way,
            in_thread=in_thread,
        )
        self._loads = Loads(
            cache=cache,
            staging=staging,
            fetches=self._fetches,
            residents=residents,
            timed_loads=TimedLoads(
                settings=settings,
                failures=failures,
                overdue=self.send,
                crashed=hooks.crashed,
                read_memory=read_memory,
                clock=clock,
                in_thread=in_thread,
            ),
            running_out=self._running_out,
            failures=failures,
            heap=heap,
            settings=settings,
            telemetry=telemetry,
            on_loaded=on_loaded,
            loaded_as_fetched=loaded_as_fetched,
        )
        self._tier_moves = TierMoves(
            host_tier=host_tier,
            residents=residents,
            staging=staging,
            failures=failures,
            settings=settings,
            telemetry=telemetry,
            overdue=self.send,
            clock=clock,
        )
        self._unloads = Unloads(
            residents=residents,
            host_tier=host_tier,
            staging=staging,
            heap=heap,
            telemetry=telemetry,
            clock=clock,
            in_thread=in_thread,
        )

        self._resident_of = residents.by_copy
        self._running: dict[int, asyncio.Task[None]] = {}
        self._waiters: dict[int, asyncio.Future[Resident]] = {}
        self._waiter_ids = iter(range(1, 1 << 62))
        self._tick: asyncio.TimerHandle | None = None
        self._closed = False
        self._thrashing = False

    # The request path ---------------------------------------------------------------------------------------

    def servable(self, key: ModelKey) -> Resident | None:
        """The resident copy of a model, pinned for the caller, who gives it back with `let_go`; None on a miss."""
        copy = self._cache.servable(key)
        if copy is None:
            return None
        copy.pin(self._clock())
        resident = self._resident_of[copy.copy_id]
        resident.recorder[resident.recorder_slot] = 1
        return resident

    async def wait_servable(
        self, wanted: WantedModel, deadline_s: float | None, *, background: bool = False, space_wait_s: float = inf
    ) -> Resident:
        """Wait until the model has a copy here; it comes pinned. Raises Refused.

        `deadline_s` is on the loop's monotonic clock. A cancelled caller leaves the cache's queue at once.
        `space_wait_s`: the longest wait for room, where it is less than the cache's own limit.
        """
        waiter_id = next(self._waiter_ids)
        future: asyncio.Future[Resident] = asyncio.get_running_loop().create_future()
        self._waiters[waiter_id] = future
        self.send(Want(waiter_id, wanted, deadline_s, background, space_wait_s=space_wait_s))
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                future.result().let_go()  # it was served in the same turn of the loop as it was cancelled
            elif self._waiters.pop(waiter_id, None) is not None:
                self.send(Cancel(waiter_id))
            raise

    def _pin(self, copy: Copy) -> None:
        copy.hold(self._clock())

    def _unpin(self, copy: Copy) -> None:
        commands = self._cache.unpin(copy, self._clock())
        if commands:
            self._carry_out(commands)
            self._tell_changed()

    async def make_room(self, resident: Resident, request_bytes: int, why: str) -> None:
        """A run of this copy found no memory. Returns when idle copies have left, or have taken too long."""
        await self._running_out.make_room(resident, request_bytes, why)

    def resized(self, resident: Resident, *, size: Size | None = None, workspace_bytes: int | None = None) -> None:
        """A copy was measured anew, or its runs were. The ledger hears of it where that changes what it counts."""
        if event := self.residents.remeasured(resident, size, workspace_bytes):
            self.send(event)

    def crashed(self, resident: Resident, message: str) -> None:
        """The subprocess of a copy died: it serves nobody else, and the next request loads it again."""
        self.send(Crashed(resident.copy.copy_id, message))
        self._hooks.crashed(resident.copy.key)

    # What is known of models and copies ---------------------------------------------------------------------

    def metadata(self, key: ModelKey) -> ModelMetadata | None:
        """The metadata that the last load of this generation found; None when it was never loaded here."""
        return self._loads.metadata(key)

    def format_of(self, key: ModelKey) -> str:
        """The format that was declared or detected; empty while it is not known."""
        return self._staging.format_of(key)

    def forget(self, key: ModelKey) -> None:
        """This generation is new to the registry, or has gone from it. One of the same number may have been here
        before: a model that was unregistered begins at 1 again, and must not be loaded from its predecessor's files."""
        self._staging.forget(key)
        self._loads.forget(key)

    def failure(self, key: ModelKey) -> FailureRecord | None:
        """What keeps this generation from being loaded, if anything does."""
        return self._cache.failure(key, self._clock())

    def resident(self, copy_id: int) -> Resident | None:
        """The loaded side of a copy."""
        return self._resident_of.get(copy_id)

    def every_resident(self) -> Iterable[Resident]:
        """All loaded copies."""
        return self._resident_of.values()

    @property
    def loads_concurrent_max(self) -> int:
        """Loads at a time."""
        return self._settings.loads_concurrent_max

    @property
    def counts(self) -> Counts:
        """What was done so far."""
        return Counts(self._loads.count, self._failures.count, self._unloads.count)

    @property
    def mean_load_s(self) -> float:
        """Of the last loads here, exponentially weighted."""
        return self._loads.mean_s

    @property
    def waiting(self) -> int:
        """Requests that wait for a load."""
        return len(self._waiters)

    # Events and commands ------------------------------------------------------------------------------------

    def send(self, event: Event) -> None:
        """Tell the cache what happened, and start what it wants done."""
        self._carry_out(self._cache.handle(event, self._clock()))
        if self._cache.is_thrashing is not self._thrashing:
            self._say_thrashing()
        self._fetches.release_dropped(self._cache.is_known)
        self._tell_changed()

    def _tell_changed(self) -> None:
        if changed := self._cache.take_changed():
            self._hooks.copies_changed(changed)

    def _say_thrashing(self) -> None:
        """Once when it begins, once when it ends."""
        thrashing = self._cache.thrashing
        self._thrashing = thrashing is not None
        if thrashing is None:
            log.info("the working set fits again, or is wanted less: no thrashing any more")
        else:
            log.warning("%s: raise --capacity, or add pods", thrashing)

    def _carry_out(self, commands: Iterable[Command]) -> None:
        for command in commands:
            match command:
                case Serve(waiter_id, copy_id):
                    self._serve(waiter_id, copy_id)
                case Refuse(waiter_id, refusal):
                    waiter = self._waiters.pop(waiter_id, None)
                    if waiter is not None and not waiter.done():
                        waiter.set_exception(Refused(refusal))
                case _ if self._closed:
                    pass  # the pod is going: nothing new begins
                case StartFetch(key, copy_id):
                    self._start(copy_id, self._fetches.fetch(key, copy_id))
                case StartLoad(key, copy_id, _):
                    self._start(copy_id, self._loads.load(key, copy_id))
                case StartUnload(key, copy_id, reason):
                    self._start(copy_id, self._unloads.unload(key, copy_id, reason))
                case StartPark(_, copy_id, _):
                    self._start(copy_id, self._tier_moves.park(copy_id))
                case StartReturn(key, copy_id, _):
                    self._start(copy_id, self._tier_moves.bring_back(key, copy_id))
                case CancelLoad(copy_id, _):
                    if (task := self._running.get(copy_id)) is not None:
                        # Not at once: a task that is cancelled before its first step never runs, and never answers.
                        asyncio.get_running_loop().call_soon(task.cancel)
                case Prefetch():
                    asyncio.get_running_loop().call_soon(self._prefetch, command)
                case WakeAt(at_s):
                    self._wake_at(at_s)

    def _serve(self, waiter_id: int, copy_id: int) -> None:
        resident = self._resident_of[copy_id]
        waiter = self._waiters.pop(waiter_id, None)
        if waiter is None or waiter.done():
            # The caller left in this very turn of the loop; its Cancel finds nothing, so the pin is ours to return.
            asyncio.get_running_loop().call_soon(resident.let_go)
        else:
            resident.recorder[resident.recorder_slot] = 1
            waiter.set_result(resident)

    def _prefetch(self, command: Prefetch) -> None:
        """Nobody waits: whoever is served without having waited has its pin given back (`_serve`)."""
        key = command.model.key
        if not self._closed and self._record_of(key) is not None and not self._hooks.is_elsewhere(key):
            want = Want(next(self._waiter_ids), command.model, background=True, expected_at_s=command.expected_at_s)
            self.send(want)

    def _wake_at(self, at_s: float) -> None:
        if self._tick is not None:
            self._tick.cancel()
        loop = asyncio.get_running_loop()
        self._tick = loop.call_later(max(0.0, at_s - self._clock()), partial(self.send, Tick()))

    def _start(self, copy_id: int, work: Coroutine[Any, Any, Event]) -> None:
        async def run() -> None:
            event = await work
            del self._running[copy_id]
            self.send(event)

        self._running[copy_id] = asyncio.get_running_loop().create_task(run())

    def _unloads_under_way(self) -> list[asyncio.Task[None]]:
        return [
            task
            for copy_id, task in self._running.items()
            if (other := self._resident_of.get(copy_id)) is not None and other.copy.state is CopyState.UNLOADING
        ]

    async def close(self, grace_s: float) -> None:
        """Unload everything that can be unloaded, so that no subprocess outlives the pod. Bounded."""
        self._closed = True
        self._heap.close()
        if self._tick is not None:
            self._tick.cancel()
        unloads = self._unloads_under_way()  # go on: what they free would be freed now
        for task in list(self._running.values()):
            if task not in unloads:
                task.cancel()
        await self._unloads.unload_last(self._running, grace_s)
        for task in unloads:
            task.cancel()
