"""Carrying out what the cache decides: fetch, prepare, load, warm up, measure, unload.

The cache machine (`cache.machine`) decides and never acts; this module acts and never decides. It belongs to the event
loop: events go into the machine on the loop only, and the commands that come back are started at once, in order. The
slow work runs beside the loop: fetches as tasks, preparation, loads and unloads on threads of their own, so that a
framework that hangs in a load holds up nobody else.

A load that outlives its time limit cannot be stopped when it runs inside this process: no thread can be killed. Its
waiters get their error then, its bytes stay counted until the thread comes back, and what it produced is freed on
arrival. A load in a subprocess is simply killed.

Deliberately absent: who may ask, names, aliases, protobuf.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from typing import Any, Protocol

from cachetools import LRUCache

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
from cache.events import (
    Cancel,
    Crashed,
    Event,
    Fetched,
    FetchFailed,
    Loaded,
    LoadFailed,
    LoadOutOfMemory,
    LoadOverdue,
    Parked,
    ParkFailed,
    Resized,
    Tick,
    Unloaded,
    UnloadFailed,
    Want,
)
from cache.failures import FailureRecord
from cache.machine import EVICTED_FOR, CacheMachine
from cache.types import (
    Bytes,
    CopyState,
    Failure,
    FailureKind,
    ModelKey,
    Place,
    Refusal,
    Shared,
    SharedPart,
    WantedModel,
)
from mesh.heap import HeapTrimmer
from mesh.host_tier import HOST_TIER, HostTier, ReturnsTooLate
from mesh.known_sizes import NOTHING
from mesh.measured_load import MeasuredLoad, load_and_measure, load_isolated_and_measure
from mesh.resident import LARGER_FACTOR, SMALL_REQUEST_BYTES, Resident
from mesh.room import ReadMemory
from mesh.settings import Settings
from mesh.sizing import reserved_after_running_out, workspace_after_running_out, wrong_declaration
from mesh.staging import ALWAYS_ISOLATED, REMEMBERED_MAX, Staged
from mesh.telemetry import Telemetry
from mesh.threads import InThread, in_thread
from placement.records import ModelRecord
from runtime_adapters import errors as adapter_errors
from runtime_adapters.artifacts.fetch import Artifact
from runtime_adapters.base import CPU, Device, LoadedModel, ModelMetadata, Parkable, ParkedModel, Size
from runtime_adapters.errors import (
    AdapterError,
    BadArtifact,
    LoadCrashed,
    MissingRuntime,
    ModelCrashed,
    NoRoom,
    OutOfMemory,
)
from runtime_adapters.isolation import Cancellation, IsolatedModel
from runtime_adapters.memory import trim
from runtime_adapters.validation import InputChecker

log = logging.getLogger("hexcomb.loading")

HOST_MEMORY = Place("device", "cpu")
"""Where a copy's RAM and mapped pages are counted: the device tier of a CPU pod."""


async def _no_wait(key: ModelKey) -> None:
    """Nothing to wait for."""


class RanOut(Protocol):
    """Hears that what the ledger holds in a place is `missing_bytes` more than there is."""

    def __call__(self, place: Place, missing_bytes: int, message: str, *, counted: bool) -> None: ...


def _nobody_hears(place: Place, missing_bytes: int, message: str, *, counted: bool) -> None:
    """For a loader by itself."""


class Refused(Exception):
    """The cache gave this request no copy; `refusal` says why and when to come back."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class _Overdue(Exception):
    """A load came back after its time limit."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


_ROOM_WAIT_S = 2.0
"""Longest wait of a run that found no memory for others to leave; unloads take milliseconds."""
_LOAD_MEAN_WEIGHT = 0.1
"""Of the newest load in the mean."""


class Stages(Protocol):
    """What brings artifacts to this pod: `mesh.staging.Staging`, or a simulated one."""

    async def stage(self, key: ModelKey, record: ModelRecord) -> Staged:
        """Fetch and prepare. Raises AdapterError; nothing is held then."""

    async def stage_again(self, key: ModelKey) -> Staged | None:
        """What this generation was loaded from last time, if it is still here."""

    def release(self, artifact: Artifact) -> None:
        """Let go of what `stage` or `stage_again` holds."""

    def format_of(self, key: ModelKey) -> str:
        """The format that was declared or detected; empty while it is not known."""

    def forget(self, key: ModelKey) -> None:
        """Another model of this name may have been here before."""

    def content_on_disk(self, record: ModelRecord) -> str | None:
        """The content that a fetch of this model would find on this disk, perhaps from before a restart."""

    def measured(self, staged: Staged, size: Size, load_s: float, run_s: float, peak_bytes: int) -> None:
        """What a copy was measured to take; how long its load took once the artifact was on the disk, and a run; what
        the load took at its highest, or 0."""

    def has_loaded(self, staged: Staged) -> bool:
        """Whether this very content was loaded before."""


@dataclass(frozen=True, slots=True)
class PoolHooks:
    """What a pool wants to hear of, and to say about, the loads of this pod. Each does nothing for a pod alone."""

    copies_changed: Callable[[Sequence[ModelKey]], None] = lambda keys: None
    """Copies of these models have changed their states."""
    before_load: Callable[[ModelKey], Awaitable[None]] = _no_wait
    """Awaited before a model is fetched; bounded by whoever implements it."""
    resident_changed: Callable[[Resident, bool], None] = lambda resident, here: None
    """A copy was loaded (True), or has left (False)."""
    is_elsewhere: Callable[[ModelKey], bool] = lambda key: False
    """Another pod serves or loads the model, so that it need not be brought in here before it is asked for."""
    crashed: Callable[[ModelKey], None] = lambda key: None
    """The process of a model's own died while it loaded the model or ran a request."""


@dataclass(slots=True)
class Counts:
    """What this pod has done since it started."""

    loads: int = 0
    load_failures: int = 0
    unloads: int = 0


class Loading:
    """The effects of one pod's cache. All methods are called on the event loop."""

    def __init__(
        self,
        *,
        cache: CacheMachine,
        staging: Stages,
        settings: Settings,
        telemetry: Telemetry,
        device: Device,
        record_of: Callable[[ModelKey], ModelRecord | None],
        on_loaded: Callable[[ModelKey], None],
        hooks: PoolHooks | None = None,
        ran_out: RanOut = _nobody_hears,
        read_memory: ReadMemory | None = None,
        clock: Callable[[], float] = time.monotonic,
        in_thread: InThread = in_thread,
    ) -> None:
        """`ran_out` hears where there was no memory, and how much was missing. `read_memory`: asked before loads of
        some size whether the box has room; None: nobody is asked. `clock` is the event loop's; `in_thread` runs what
        blocks."""
        self._cache = cache
        self._staging = staging
        self._settings = settings
        self._telemetry = telemetry
        self._device = device
        self._record_of = record_of
        self._on_loaded = on_loaded
        self._hooks = hooks or PoolHooks()
        self._ran_out = ran_out
        self._read_memory = read_memory
        self._clock = clock
        self._in_thread = in_thread
        self._residents: dict[int, Resident] = {}
        self.two_forms: dict[int, Resident] = {}
        """Those that `mesh.promoting` may change, by copy."""
        self._staged: dict[int, Staged] = {}
        self._running: dict[int, asyncio.Task[None]] = {}
        self._waiters: dict[int, asyncio.Future[Resident]] = {}
        self._waiter_ids = iter(range(1, 1 << 62))
        self._metadata: LRUCache[ModelKey, ModelMetadata] = LRUCache(maxsize=REMEMBERED_MAX)
        self._run_times_s: LRUCache[str, float] = LRUCache(maxsize=REMEMBERED_MAX)
        """By content: what one run took."""
        self._host_tier = HostTier(in_thread)
        self._heap = HeapTrimmer(clock, in_thread)
        self._tick: asyncio.TimerHandle | None = None
        self._closed = False
        self._thrashing = False
        self.counts = Counts()
        self.mean_load_s = 0.0
        """Of the last loads here, exponentially weighted."""

    # The request path ---------------------------------------------------------------------------------------

    def servable(self, key: ModelKey) -> Resident | None:
        """The resident copy of a model, pinned for the caller, who gives it back with `let_go`; None on a miss."""
        copy = self._cache.servable(key)
        if copy is None:
            return None
        copy.pin(self._clock())
        resident = self._residents[copy.copy_id]
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

    def metadata(self, key: ModelKey) -> ModelMetadata | None:
        """The metadata that the last load of this generation found; None when it was never loaded here."""
        return self._metadata.get(key)

    def format_of(self, key: ModelKey) -> str:
        """The format that was declared or detected; empty while it is not known."""
        return self._staging.format_of(key)

    def forget(self, key: ModelKey) -> None:
        """This generation is new to the registry. One of the same number may have been here before: a model that was
        unregistered long ago begins at 1 again, and must not be loaded from its predecessor's files."""
        self._staging.forget(key)
        self._metadata.pop(key, None)

    def failure(self, key: ModelKey) -> FailureRecord | None:
        """What keeps this generation from being loaded, if anything does."""
        return self._cache.failure(key, self._clock())

    def resident(self, copy_id: int) -> Resident | None:
        """The loaded side of a copy."""
        return self._residents.get(copy_id)

    def every_resident(self) -> Iterable[Resident]:
        """All loaded copies."""
        return self._residents.values()

    @property
    def loads_concurrent_max(self) -> int:
        """Loads at a time."""
        return self._settings.loads_concurrent_max

    def size_totals(self) -> tuple[int, int, int]:
        """Bytes of all residents: declared by specs that do, estimated before their loads, measured after."""
        residents = self._residents.values()
        return (
            sum(resident.declared_bytes or 0 for resident in residents),
            sum(resident.estimated_bytes for resident in residents),
            sum(resident.size.total_bytes for resident in residents),
        )

    def copies_by_form(self) -> dict[str, int]:
        """Copies of models that have two forms, by the one that they are in."""
        forms = {"cold": 0, "hot": 0}
        for resident in self.two_forms.values():
            forms["hot" if resident.is_hot else "cold"] += 1
        return forms

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
        if self._staged:
            self._release_dropped()
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

    def _release_dropped(self) -> None:
        """Let go of artifacts whose load the cache has given up before it began: no command says so."""
        for copy_id in list(self._staged):
            if not self._cache.is_known(copy_id):
                self._staging.release(self._staged.pop(copy_id).artifact)

    def _pin(self, copy: Copy) -> None:
        copy.hold(self._clock())

    def _unpin(self, copy: Copy) -> None:
        commands = self._cache.unpin(copy, self._clock())
        if commands:
            self._carry_out(commands)
            if changed := self._cache.take_changed():
                self._hooks.copies_changed(changed)

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
                    self._start(copy_id, self._fetch(key, copy_id))
                case StartLoad(key, copy_id, _):
                    self._start(copy_id, self._load(key, copy_id))
                case StartUnload(key, copy_id, reason):
                    self._start(copy_id, self._unload(key, copy_id, reason))
                case StartPark(_, copy_id, _):
                    self._start(copy_id, self._park(copy_id))
                case StartReturn(key, copy_id, _):
                    self._start(copy_id, self._return(key, copy_id))
                case CancelLoad(copy_id, _):
                    if (task := self._running.get(copy_id)) is not None:
                        # Not at once: a task that is cancelled before its first step never runs, and never answers.
                        asyncio.get_running_loop().call_soon(task.cancel)
                case Prefetch():
                    asyncio.get_running_loop().call_soon(self._prefetch, command)
                case WakeAt(at_s):
                    self._wake_at(at_s)

    def _serve(self, waiter_id: int, copy_id: int) -> None:
        resident = self._residents[copy_id]
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

    # Fetch --------------------------------------------------------------------------------------------------

    async def _fetch(self, key: ModelKey, copy_id: int) -> Event:
        try:
            await self._hooks.before_load(key)
            staged = await self._staging.stage_again(key)
            if staged is None:
                record = self._record_of(key)
                if record is None:
                    gone = f"model {key.model_id!r} is not registered"
                    return FetchFailed(copy_id, Failure(FailureKind.PERMANENT, gone))
                staged = await self._staging.stage(key, record)
        except asyncio.CancelledError:
            return FetchFailed(copy_id, Failure(FailureKind.TRANSIENT, "cancelled: nobody waits for it any more"))
        except Exception as error:  # every failure of a fetch becomes the cache's event
            return FetchFailed(copy_id, self._failure(key, "fetch", self.format_of(key), error))
        self._staged[copy_id] = staged
        expected = self._bytes(staged.estimate) + self._runs_bytes(staged.options.device, staged.workspace_bytes)
        knows = staged.adapter.format not in ALWAYS_ISOLATED
        return Fetched(copy_id, expected, knows, _shared_parts(staged.estimate), await self._otherwise(staged))

    async def _otherwise(self, staged: Staged) -> Bytes | None:
        """What a model of a GPU would take on the CPU, where it may run there."""
        if self._settings.device_full != "run_on_cpu" or staged.options.device.kind == "cpu":
            return None
        on_cpu = _on_cpu(staged)
        try:
            return self._bytes(await self._in_thread("estimate", on_cpu.adapter.estimate, on_cpu.path, on_cpu.options))
        except AdapterError:
            return None  # it needs the device

    # Load ---------------------------------------------------------------------------------------------------

    async def _load(self, key: ModelKey, copy_id: int) -> Event:
        staged = fetched = self._staged.pop(copy_id)
        if self._cache.copy(copy_id).elsewhere:
            staged = _on_cpu(fetched)
        format_name = staged.adapter.format
        timeout_s = staged.record.spec.load_timeout_s or self._settings.load_timeout_s
        try:
            try:
                loaded = await self._load_once(key, copy_id, staged, timeout_s)
            except AdapterError as error:
                if isinstance(error, OutOfMemory) or not self._staging.has_loaded(staged):
                    raise
                # The same bytes have loaded before, so the fault is not theirs: frameworks have races of their own.
                log.warning("load of %s is tried once more: %s", key, error)
                loaded = await self._load_once(key, copy_id, staged, timeout_s)
            try:
                resident = self._resident(key, copy_id, staged, loaded)
            except Exception:
                await self._free(loaded.model)
                raise
        except _Overdue as late:  # the cache has heard of it; now the thread has come back
            self._staging.release(staged.artifact)
            return LoadFailed(copy_id, late.failure)
        except asyncio.CancelledError:
            self._staging.release(staged.artifact)
            return LoadFailed(copy_id, Failure(FailureKind.TRANSIENT, "cancelled: nobody waits for it any more"))
        except OutOfMemory as error:
            self._staged[copy_id] = fetched  # held: the cache makes room, and has it loaded once more
            return self._load_ran_out(key, copy_id, staged, error)
        except Exception as error:  # every failure of a load becomes the cache's event
            self._staging.release(staged.artifact)
            failure = self._failure(key, "load", format_name, error)
            return LoadFailed(copy_id, failure)
        self._telemetry.load_stage(format_name, "load", loaded.load_s)
        self._telemetry.load_stage(format_name, "warm_up", loaded.warm_up_s)
        self._staging.measured(staged, loaded.size, loaded.load_s + loaded.warm_up_s, loaded.run_s, loaded.peak_bytes)
        self._run_times_s[staged.artifact.content_hash] = loaded.run_s
        self._heap.freed(staged.artifact.size_bytes)  # what a load leaves in the heap is of the size of its file
        self._metadata[key] = loaded.model.metadata
        self._residents[copy_id] = resident
        if resident.hot_size() is not None:
            self.two_forms[copy_id] = resident
        self._hooks.resident_changed(resident, True)
        self.counts.loads += 1
        self.mean_load_s += _LOAD_MEAN_WEIGHT * (loaded.load_s + loaded.warm_up_s - self.mean_load_s)
        asyncio.get_running_loop().call_soon(self._on_loaded, key)
        remark = wrong_declaration(resident.declared_bytes, loaded.size.total_bytes)
        if remark:
            log.info("%s: %s", key, remark)
        return self._loaded(resident, remark)

    def _loaded(self, resident: Resident, remark: str = "") -> Loaded:
        parked = resident.model.parked_size() if isinstance(resident.model, Parkable) else None
        return Loaded(
            resident.copy.copy_id,
            self._bytes_with_runs(resident),
            remark,
            _shared_parts(resident.size),
            parks=None if parked is None else Bytes.of(HOST_TIER, parked.host_bytes),
        )

    def _load_ran_out(self, key: ModelKey, copy_id: int, staged: Staged, error: OutOfMemory) -> LoadOutOfMemory:
        reserved = self._cache.copy(copy_id).needed
        message = f"no memory for a load of {key} with {reserved} reserved: {error}"
        log.warning("%s", message)
        self._telemetry.out_of_memory.labels(staged.adapter.format, "load").inc()
        place = self._place_of(staged.options.device)
        if isinstance(error, NoRoom):  # its size is right, the capacity is not
            if error.missing_bytes <= self._cache.usage().used[place] - reserved[place]:
                self._ran_out(place, error.missing_bytes, message, counted=True)
            return LoadOutOfMemory(copy_id, reserved, message)
        self._ran_out(place, 0, message, counted=False)
        return LoadOutOfMemory(copy_id, reserved_after_running_out(reserved), message)

    async def make_room(self, resident: Resident, request_bytes: int, why: str) -> None:
        """A run of this copy found no memory: it counts for more from now on, and idle copies leave. Returns when those
        have left, or have taken too long."""
        place = self._place_of(resident.device)
        message = f"no memory for a run of {resident.copy.key} on {request_bytes:,} bytes: {why}"
        log.warning("%s", message)
        self._telemetry.out_of_memory.labels(resident.format, "run").inc()
        workspace_bytes = workspace_after_running_out(
            resident.size.total_bytes, request_bytes, self._cache.usage().capacity[place]
        )
        self.resized(resident, workspace_bytes=max(resident.workspace_bytes, workspace_bytes))
        self._ran_out(place, workspace_bytes, message, counted=False)
        leaving = [
            task
            for copy_id, task in self._running.items()
            if (other := self._residents.get(copy_id)) is not None and other.copy.state is CopyState.UNLOADING
        ]
        if leaving:
            await asyncio.wait(leaving, timeout=_ROOM_WAIT_S)
        await self._in_thread("trim", trim)

    def resized(self, resident: Resident, *, size: Size | None = None, workspace_bytes: int | None = None) -> None:
        """A copy was measured anew, or its runs were. The ledger hears of it where that changes what it counts."""
        before = self._bytes_with_runs(resident), resident.size.shared
        if size is not None:
            resident.size = size
        if workspace_bytes is not None:
            resident.workspace_bytes = workspace_bytes
        after = self._bytes_with_runs(resident), resident.size.shared
        if after != before and resident.copy.copy_id in self._residents:
            self.send(Resized(resident.copy.copy_id, after[0], _shared_parts(resident.size)))

    async def _load_once(self, key: ModelKey, copy_id: int, staged: Staged, timeout_s: float) -> MeasuredLoad:
        if staged.isolated:
            return await self._load_isolated(key, staged, timeout_s)
        return await self._load_here(key, copy_id, staged, timeout_s)

    def _resident(self, key: ModelKey, copy_id: int, staged: Staged, loaded: MeasuredLoad) -> Resident:
        format_name = staged.adapter.format
        return Resident(
            copy=self._cache.copy(copy_id),
            model=loaded.model,
            format=format_name,
            checker=InputChecker(loaded.model.metadata),
            meter=self._telemetry.meter(format_name, key.tenant, key.model_id),
            artifact=staged.artifact,
            device=staged.options.device,
            size=loaded.size,
            estimated_bytes=staged.estimate.total_bytes,
            declared_bytes=staged.record.spec.capacity_hint_bytes,
            run_s=loaded.run_s,
            load_s=loaded.load_s,
            turn=asyncio.Semaphore(1) if staged.isolated else None,
            pin=self._pin,
            unpin=self._unpin,
            loadable=staged.loadable,
            workspace_bytes=staged.workspace_bytes,
            request_bytes_measured=staged.request_bytes,
            request_bytes_max=max(SMALL_REQUEST_BYTES, int(LARGER_FACTOR * staged.request_bytes)),
        )

    async def _load_here(self, key: ModelKey, copy_id: int, staged: Staged, timeout_s: float) -> MeasuredLoad:
        ends_s = self._clock() + timeout_s
        staged = replace(staged, run_s=self._run_times_s.get(staged.artifact.content_hash))
        thread = self._in_thread("load", load_and_measure, staged, self._read_memory)
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
            failure = self._failure(key, "load", staged.adapter.format, _took_too_long(staged, timeout_s))
            error = _Overdue(failure)
            self.send(LoadOverdue(copy_id, failure))
            await asyncio.wait([thread])
        await self._free_late_result(thread)
        raise error

    async def _load_isolated(self, key: ModelKey, staged: Staged, timeout_s: float) -> MeasuredLoad:
        cancellation = Cancellation()
        thread = self._in_thread(
            "load",
            load_isolated_and_measure,
            staged,
            timeout_s,
            self._settings,
            cancellation,
            self._read_memory,
        )
        try:
            return await asyncio.shield(thread)
        except (LoadCrashed, ModelCrashed):  # the latter: in its warm-up
            self._hooks.crashed(key)
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
        await self._free(thread.result().model)

    async def _free(self, model: LoadedModel) -> None:
        """Unload what never came to serve."""
        try:
            await self._in_thread("unload-late", model.unload)
        except Exception:
            log.exception("freeing what a load has made in vain failed")

    # Host tier ----------------------------------------------------------------------------------------------

    async def _park(self, copy_id: int) -> Event:
        resident = self._residents[copy_id]
        try:
            size = await self._host_tier.park(resident)
        except Exception as error:  # the cache has it unloaded instead
            log.warning("parking %s failed: %s: %s", resident.copy.key, type(error).__name__, error)
            return ParkFailed(copy_id, f"{type(error).__name__}: {error}")
        del self._residents[copy_id]
        self.two_forms.pop(copy_id, None)
        self._hooks.resident_changed(resident, False)
        return Parked(copy_id, Bytes.of(HOST_TIER, size.host_bytes))

    async def _return(self, key: ModelKey, copy_id: int) -> Event:
        resident, began = self._host_tier.resident(copy_id), self._clock()
        timeout_s = self._settings.load_timeout_s
        failure = Failure(FailureKind.TRANSIENT, "cancelled: nobody waits for it any more")
        try:
            await self._host_tier.bring_back(copy_id, timeout_s)
        except ReturnsTooLate as late:
            message = f"the return of {key} to {resident.device} takes longer than {timeout_s:g} s (load_timeout_s)"
            failure = self._failure(key, "return", resident.format, adapter_errors.LoadFailed(message))
            self.send(LoadOverdue(copy_id, failure))
            await self._host_tier.free_late(late.thread)
        except asyncio.CancelledError:
            pass
        except Exception as error:  # every failure of a return becomes the cache's event
            failure = self._failure(key, "return", resident.format, error)
        else:
            self._telemetry.load_stage(resident.format, "return", self._clock() - began)
            self._residents[copy_id] = resident
            if resident.hot_size() is not None:
                self.two_forms[copy_id] = resident
            self._hooks.resident_changed(resident, True)
            return self._loaded(resident)
        self._staging.release(resident.artifact)
        return LoadFailed(copy_id, failure)

    # Unload -------------------------------------------------------------------------------------------------

    async def _unload(self, key: ModelKey, copy_id: int, reason: str) -> Event:
        was_parked = copy_id in self._host_tier
        resident = self._host_tier.resident(copy_id) if was_parked else self._residents[copy_id]
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
            del self._residents[copy_id]
            self.two_forms.pop(copy_id, None)
            self._hooks.resident_changed(resident, False)
        self._staging.release(resident.artifact)
        self._heap.freed(resident.size.host_bytes)
        self._telemetry.unloaded(resident.format, self._clock() - began)
        if reason.startswith(EVICTED_FOR):
            self._telemetry.evicted(resident.format, began - resident.copy.last_used_s)
        self.counts.unloads += 1
        log.debug("unloaded %s: %s", key, reason)
        return Unloaded(copy_id)

    def crashed(self, resident: Resident, message: str) -> None:
        """The subprocess of a copy died: it serves nobody else, and the next request loads it again."""
        self.send(Crashed(resident.copy.copy_id, message))
        self._hooks.crashed(resident.copy.key)

    async def close(self, grace_s: float) -> None:
        """Unload everything that can be unloaded, so that no subprocess outlives the pod. Bounded."""
        self._closed = True
        self._heap.close()
        if self._tick is not None:
            self._tick.cancel()
        for task in list(self._running.values()):
            task.cancel()
        leaving = [resident for copy_id, resident in self._residents.items() if copy_id not in self._running]
        # Each process may take its time to end, unless a run has outlived the grace: then it is killed. Within this
        # process such a run may still use its model; the others go one by one: there can be thousands.
        for resident in leaving:
            if resident.copy.pins and isinstance(resident.model, IsolatedModel):
                resident.model.kill("the pod stops")
        isolated = [resident.model for resident in leaving if resident.turn is not None]
        idle = [resident.model for resident in leaving if resident.turn is None and not resident.copy.pins]
        unloads = [self._in_thread("unload", model.unload) for model in isolated]
        unloads.append(self._in_thread("unload", _unload_all, [*idle, *self._host_tier.every_model()]))
        waits = [*unloads, *self._running.values()]
        await asyncio.wait(waits, timeout=grace_s)
        for unload in unloads:
            if unload.done() and not unload.cancelled() and (error := unload.exception()) is not None:
                log.error("the last unload of a copy failed", exc_info=error)

    # What things mean ---------------------------------------------------------------------------------------

    def _place_of(self, device: Device) -> Place:
        return HOST_MEMORY if device.kind == "cpu" else Place("device", str(device))

    def _bytes_with_runs(self, resident: Resident) -> Bytes:
        return self._bytes(resident.size) + self._runs_bytes(resident.device, resident.workspace_bytes)

    def _runs_bytes(self, device: Device, workspace_bytes: int) -> Bytes:
        return Bytes.of(self._place_of(device), workspace_bytes)

    def _bytes(self, size: Size) -> Bytes:
        components = {HOST_MEMORY: size.host_bytes + size.mapped_bytes}
        if self._device.kind != "cpu":
            components[Place("device", str(self._device))] = size.device_bytes
        else:
            components[HOST_MEMORY] += size.device_bytes
        return Bytes.from_mapping(components)

    def _failure(self, key: ModelKey, stage: str, format_name: str, error: Exception) -> Failure:
        permanent = isinstance(error, BadArtifact)
        if not isinstance(error, AdapterError):
            log.error("%s of %s failed", stage, key, exc_info=error)
        message = str(error) if isinstance(error, AdapterError) else f"{type(error).__name__} during the {stage}"
        kind = FailureKind.PERMANENT if permanent else FailureKind.TRANSIENT
        if isinstance(error, MissingRuntime):
            kind = FailureKind.TRANSIENT  # installed later, or there on another pod
        if isinstance(error, OutOfMemory):
            kind = FailureKind.NO_ROOM
        self._telemetry.load_failed(format_name or "unknown", stage, kind.value)
        self.counts.load_failures += 1
        log.warning("%s of %s failed (%s): %s", stage, key, kind.value, message)
        return Failure(kind, message)


def _on_cpu(staged: Staged) -> Staged:
    """The same model for the CPU; it is not known how long a run takes there."""
    return replace(staged, options=replace(staged.options, device=CPU), run_s=None, loadable=NOTHING)


def _shared_parts(size: Size) -> Shared:
    return tuple(SharedPart(content, HOST_MEMORY, count_bytes) for content, count_bytes in size.shared)


def _unload_all(models: Iterable[LoadedModel | ParkedModel]) -> None:
    for model in models:
        try:
            model.unload()
        except Exception:
            log.exception("the last unload of a copy failed")


def _took_too_long(staged: Staged, timeout_s: float) -> adapter_errors.LoadFailed:
    return adapter_errors.LoadFailed(
        f"model {staged.options.model_id!r} did not load within {timeout_s:g} s (load_timeout_s); it runs inside the "
        "pod and cannot be killed: register it with isolation=process, or raise load_timeout_s"
    )
