"""From a registration to an artifact on this disk that is ready to be loaded: fetch, detect, prepare, estimate.

A generation is one content: what its first fetch found is what it is loaded from after every eviction, as long as this
disk has it. A file that was changed under its URI shows when the model is registered anew, not at some eviction in
between.

What is staged holds the artifact; whoever gets it gives it back to the artifact store. Owned by the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from cachetools import LRUCache

from cache.types import ModelKey
from mesh.generations import key_of
from mesh.known_sizes import NOTHING, Known, KnownSizes, Loadable, runtime_of
from mesh.model_packages import ModelPackages
from mesh.parking import DiskListener, Unheard
from mesh.reading_ahead import ReadingAhead
from mesh.room import ReadMemory, check_room
from mesh.settings import Settings
from mesh.telemetry import Telemetry
from mesh.threads import in_thread
from placement.records import ModelRecord
from runtime_adapters.artifacts.fetch import Artifact, ArtifactStore, FetchRequest
from runtime_adapters.artifacts.locations import parse_location
from runtime_adapters.base import (
    CPU,
    Device,
    LoadOptions,
    LoadsAsFetched,
    Reading,
    ReadsWhileFetched,
    RuntimeAdapter,
    Size,
    Trust,
)
from runtime_adapters.errors import BadArtifact, NoRoom, OutOfMemory, UntrustedArtifact
from runtime_adapters.external import ExternalAdapter
from runtime_adapters.isolation import estimate_isolated
from runtime_adapters.layouts import find_model
from runtime_adapters.registry import adapter_for, detect_format

log = logging.getLogger("hexcomb.staging")

ALWAYS_ISOLATED = frozenset({"python"})
"""Formats whose models are somebody's Python code: they never run inside the pod."""
REMEMBERED_MAX = 100_000
"""Models whose artifact, format and measured size are remembered after their copy left."""

PREPARING_FACTOR = 3
"""Of an artifact's bytes, while it is prepared: the file, what the framework makes of it, and what is written."""
FORMS_AT_ONCE = 2
"""While a prepared form takes the place of what was fetched."""
AS_FETCHED = "as-fetched"
ROOM_PAUSES_S = (0.1, 0.5, 1.0)
"""For copies to leave, before another look."""

_NO_SIZE = Size(0)


@dataclass(frozen=True, slots=True)
class Staged:
    """An artifact on disk, ready to be loaded, and what was found out about it."""

    record: ModelRecord
    artifact: Artifact
    path: Path
    variant: str
    """Which prepared form `path` may be, or will be followed by; empty: none was made."""
    adapter: RuntimeAdapter
    options: LoadOptions
    isolated: bool
    estimate: Size = _NO_SIZE
    run_s: float | None = None
    """What a run took when this content was loaded here before; None: it was not."""
    loadable: Loadable = NOTHING
    """By which its sizes are known."""
    measured: bool = False
    """This pod has measured them."""
    workspace_bytes: int = 0
    request_bytes: int = 0
    """What runs are known to take beside the copy, and for how large requests."""
    peak_bytes: int = 0
    """What its load takes at its highest; 0: not known."""
    fetch_s: float = 0.0
    """From its storage to being prepared; 0: it was here."""


class Stages(Protocol):
    """What brings artifacts to this pod: `Staging`, or a simulated one."""

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


def never(key: ModelKey) -> bool:
    """No model must be isolated: of a pod that has no pool to have learned it from."""
    return False


class Staging:
    """Stages artifacts, and remembers what was found out about them."""

    def __init__(
        self,
        artifacts: ArtifactStore,
        settings: Settings,
        telemetry: Telemetry,
        device: Device,
        clock: Callable[[], float] = time.monotonic,
        must_isolate: Callable[[ModelKey], bool] = never,
        disk_listener: DiskListener | None = None,
        known_sizes: KnownSizes | None = None,
        read_memory: ReadMemory | None = None,
        make_room: Callable[[int, str, bool], None] = lambda missing_bytes, why, counted: None,
        free_bytes: Callable[[], int] = lambda: 0,
        adapter_of: Callable[[str], RuntimeAdapter] | None = None,
    ) -> None:
        """`must_isolate`: whether a model may only run in a process of its own, whatever its spec says.

        `disk_listener` hears of each artifact that is on the disk, but not when it leaves: the artifact store tells.
        `read_memory`: asked before an artifact is prepared whether the box has room; `make_room` hears when it has not.
        `free_bytes`: what the ledger has left; where that is enough for two forms of a model, it may be loaded as it
        was fetched. `adapter_of`: what loads a format; raises BadArtifact.
        """
        self._artifacts = artifacts
        self._settings = settings
        self._telemetry = telemetry
        self._device = device
        self._clock = clock
        self._must_isolate = must_isolate
        self._disk_listener = disk_listener or Unheard()
        self._known_sizes = known_sizes or KnownSizes()
        self._read_memory = read_memory
        self._make_room = make_room
        self._free_bytes = free_bytes
        self._adapter_of = adapter_of or (lambda format_name: adapter_for(format_name))
        self._promised_bytes: dict[int, int] = {}
        """By lease: of free bytes, for models that are to be loaded as they were fetched and have not reserved any."""
        self._packages = ModelPackages(artifacts, settings)
        self._preparing = asyncio.Semaphore(settings.loads_concurrent_max)
        self._found: LRUCache[ModelKey, Staged] = LRUCache(maxsize=REMEMBERED_MAX)
        self._formats: LRUCache[ModelKey, str] = LRUCache(maxsize=REMEMBERED_MAX)

    async def stage(self, key: ModelKey, record: ModelRecord) -> Staged:
        """Fetch and prepare. Raises BadArtifact (for good) or LoadFailed (for now); nothing is held then."""
        format_name = record.spec.format or ""
        if format_name:
            self._formats[key] = format_name
        began = self._clock()
        request = replace(_request_for(record), deadline_s=self._clock() + self._settings.fetch_timeout_s)
        ahead = self._reading_ahead(record, format_name)
        artifact = await self._artifacts.fetch(request, None if ahead is None else ahead.hear)
        try:
            format_name = format_name or artifact.form.split("-", 1)[0]  # as `_variant` begins
            if artifact.form and not await self._form_will_do(record, artifact, format_name):
                self._artifacts.release(artifact)
                artifact = await self._artifacts.fetch(replace(request, original=True))
            self._telemetry.load_stage(format_name or "unknown", "fetch", self._clock() - began)
            if not artifact.form and not self._is_external(format_name) and (artifact.is_directory or not format_name):
                inner, format_name = await in_thread("detect", _understand, artifact.path, format_name)
                artifact = artifact.within(inner) if inner else artifact
            self._formats[key] = format_name
            reading = None if ahead is None else ahead.all_of(artifact)
            staged = await self._made_ready(record, artifact, format_name, reading)
            staged = replace(staged, fetch_s=self._clock() - began)
        except BaseException:
            self._artifacts.release(artifact)
            raise
        self._found[key] = staged
        self._disk_listener.on_disk(key, artifact.content_hash)
        return staged

    def release(self, artifact: Artifact) -> None:
        """Let go of what `stage` or `stage_again` holds."""
        self._artifacts.release(artifact)

    def format_of(self, key: ModelKey) -> str:
        """The format that was declared or detected; empty while it is not known."""
        return self._formats.get(key, "")

    def forget(self, key: ModelKey) -> None:
        """This generation is new to the registry (one of the same number may have been here before), or has gone."""
        self._found.pop(key, None)
        self._formats.pop(key, None)

    def measured(self, staged: Staged, size: Size, load_s: float, run_s: float, peak_bytes: int) -> None:
        """What a copy was measured to take: the expectation of the next one of this content."""
        self._known_sizes.measured(
            staged.loadable, size, load_s=load_s, fetch_s=staged.fetch_s, run_s=run_s, peak_bytes=peak_bytes
        )
        self._disk_listener.loaded(key_of(staged.record), load_s)

    def has_loaded(self, staged: Staged) -> bool:
        """Whether this very content was loaded before, as this format and in this place."""
        return self._known_sizes.here(staged.loadable) is not None

    def content_on_disk(self, record: ModelRecord) -> str | None:
        """The content that a fetch of this model would find on this disk, perhaps from before a restart."""
        return self._artifacts.content_on_disk(_request_for(record))

    async def stage_again(self, key: ModelKey) -> Staged | None:
        """What this generation was loaded from last time, if this disk still has it."""
        found = self._found.get(key)
        if found is not None and found.isolated != self._isolates(found.record, found.adapter.format):
            return None  # what kept it apart has come, or gone, since
        artifact = None if found is None else self._artifacts.hold_again(found.artifact)
        if found is None or artifact is None:
            return None
        if artifact.form and not (found.variant and self._artifacts.is_prepared(artifact, found.variant)):
            self._artifacts.release(artifact)
            return None  # it takes the original, which has to be fetched again
        if found.options.as_fetched:
            try:
                return await self._staged_anew(key, found, artifact)
            except BaseException:
                self._artifacts.release(artifact)
                raise
        path, options = artifact.path, found.options
        # Made once more if the disk tier has dropped it: its content is still the one of this generation.
        make = partial(found.adapter.prepare, artifact.path, options=options)
        try:
            if found.variant:
                path = await self._prepared(artifact, found.variant, make) or artifact.path
            if found.adapter.format in ALWAYS_ISOLATED:
                options = replace(options, packages=await self._packages.of(artifact))
        except BaseException:
            self._artifacts.release(artifact)
            raise
        self._disk_listener.on_disk(key, artifact.content_hash)
        again = replace(found, artifact=artifact, path=path, options=options, fetch_s=0.0)
        known = self._known_sizes.here(found.loadable)
        return again if known is None else _with_known(again, known, measured=True)

    async def stage_prepared(self, staged: Staged) -> Staged:
        """What a load that was in no haste would take, of what was loaded as it was fetched: the prepared form, made
        beside all else if it is not there yet, or the artifact where there is none better, or no room for one on the
        disk. Raises AdapterError. It is held with what is staged already.
        """
        adapter, artifact = staged.adapter, staged.artifact
        options = replace(staged.options, as_fetched=False)
        began = self._clock()

        def make(into: Path) -> bool:
            try:
                return adapter.prepare(artifact.path, into, options)
            except BadArtifact as error:  # it serves, so it is not bad altogether
                log.warning("%s stays as it was fetched: %s", staged.record.id, error)
                return False

        if not self._artifacts.is_prepared(artifact, staged.variant):
            await in_thread("room", check_room, PREPARING_FACTOR * artifact.size_bytes, self._read_memory)
        path = await self._artifacts.prepare(artifact, staged.variant, make, patiently=True)
        path = path or artifact.path
        prepared = self._staged(staged.record, artifact, path, staged.variant, adapter, options, isolated=False)
        took_s = self._clock() - began
        self._telemetry.load_stage(adapter.format, "prepare_later", took_s)
        return replace(await self._with_expected_size(prepared), fetch_s=staged.fetch_s + took_s)

    def now_prepared(self, key: ModelKey, staged: Staged) -> None:
        """A copy goes on as this: the next load of this generation takes it."""
        if key in self._found:
            self._found[key] = staged

    async def _staged_anew(self, key: ModelKey, found: Staged, artifact: Artifact) -> Staged:
        """The same content, of which no copy has become its prepared form yet: perhaps that is there by now."""
        staged = self._found[key] = await self._made_ready(found.record, artifact, found.adapter.format)
        self._disk_listener.on_disk(key, artifact.content_hash)
        return staged

    def _isolates(self, record: ModelRecord, format_name: str) -> bool:
        if self._is_external(format_name):
            return False  # it runs apart as it is
        if record.spec.isolation == "process" or format_name in ALWAYS_ISOLATED:
            return True
        return self._must_isolate(ModelKey(record.tenant, record.id, record.generation))

    def _reading_ahead(self, record: ModelRecord, format_name: str) -> ReadingAhead | None:
        if not format_name or self._isolates(record, format_name):
            return None
        adapter = self._adapter_of(format_name)
        return ReadingAhead(adapter.reading()) if isinstance(adapter, ReadsWhileFetched) else None

    async def _made_ready(
        self, record: ModelRecord, artifact: Artifact, format_name: str, reading: Reading | None = None
    ) -> Staged:
        """`reading`: has read the artifact already."""
        try:
            return await self._with_expected_size(await self._prepare(record, artifact, format_name, reading))
        finally:
            # Whoever gets it reserves its bytes in this turn of the loop.
            self._promised_bytes.pop(artifact.lease, None)

    async def _prepare(
        self, record: ModelRecord, artifact: Artifact, format_name: str, reading: Reading | None
    ) -> Staged:
        adapter = self._adapter_of(format_name)
        options = LoadOptions(
            model_id=record.id,
            device=self._device_of(adapter),
            threads=self._settings.model_threads,
            trusted=artifact.trusted,
            parameters=record.spec.parameters,
        )
        if format_name in ALWAYS_ISOLATED:
            options = replace(options, packages=await self._packages.of(artifact))
        isolated = self._isolates(record, format_name)
        if adapter.trust is Trust.RUNS_CODE and not isolated and not artifact.trusted:
            shown = parse_location(record.spec.uri).shown  # a signed URL's query is a secret
            raise UntrustedArtifact(
                f"format {format_name!r} can run code when it loads, and {shown!r} is under no "
                "trusted prefix: mark its prefix with --trusted-prefixes, register it with isolation=process, or "
                "convert it to ONNX"
            )
        path, variant = artifact.path, ""
        estimate: Size | None = None
        if not isolated:
            began = self._clock()
            variant = await self._variant(adapter, options.device)
            estimate = await self._size_as_fetched(artifact, variant, adapter, options)
            if estimate is not None:
                options = replace(options, as_fetched=True)
            else:
                make = partial(adapter.prepare, artifact.path, options=options)
                if reading is not None:
                    make = partial(reading.prepare, options=options)
                path = await self._prepared(artifact, variant, make) or artifact.path
                estimate = None if reading is None else reading.size()
            self._telemetry.load_stage(format_name, "prepare", self._clock() - began)
        staged = self._staged(record, artifact, path, variant, adapter, options, isolated=isolated)
        return staged if estimate is None else replace(staged, estimate=estimate)

    def _staged(
        self,
        record: ModelRecord,
        artifact: Artifact,
        path: Path,
        variant: str,
        adapter: RuntimeAdapter,
        options: LoadOptions,
        *,
        isolated: bool,
    ) -> Staged:
        runtime = runtime_of(adapter.format, variant, adapter.extra, options.device.kind, options.parameters)
        loadable = Loadable(artifact.content_hash, runtime)
        if options.as_fetched:  # known here, and no pod's business: it is gone in a moment
            loadable = Loadable("", f"{AS_FETCHED}-{artifact.content_hash}-{runtime}")
        return Staged(record, artifact, path, variant, adapter, options, isolated, loadable=loadable)

    async def _size_as_fetched(
        self, artifact: Artifact, variant: str, adapter: RuntimeAdapter, options: LoadOptions
    ) -> Size | None:
        """What a model takes that answers before it is prepared; None where it does not: where it is prepared already,
        or both forms do not fit beside each other, since nobody is evicted for a first answer."""
        if not (self._settings.answer_as_fetched and isinstance(adapter, LoadsAsFetched)):
            return None
        if artifact.form or self._artifacts.tried_to_prepare(artifact, variant):
            return None
        size = await in_thread("estimate", adapter.size_as_fetched, artifact.path, options)
        if size is None:
            return None
        both_bytes = FORMS_AT_ONCE * size.total_bytes
        if both_bytes > self._free_bytes() - sum(self._promised_bytes.values()):
            return None
        self._promised_bytes[artifact.lease] = both_bytes
        return size

    async def _prepared(self, artifact: Artifact, variant: str, make: Callable[[Path], bool]) -> Path | None:
        """Prepare, unless it was done; as few at a time as loads, since each holds its model in memory, too."""
        if self._artifacts.is_prepared(artifact, variant):
            return await self._artifacts.prepare(artifact, variant, make)
        needed_bytes = PREPARING_FACTOR * artifact.size_bytes
        async with self._preparing:
            await self._wait_room(needed_bytes)
            try:
                return await self._artifacts.prepare(artifact, variant, make)
            except OutOfMemory as error:  # seen by the framework only: a limit that is none of the box's
                self._make_room(needed_bytes, f"no memory to prepare an artifact: {error}", False)
            await asyncio.sleep(ROOM_PAUSES_S[-1])
            return await self._artifacts.prepare(artifact, variant, make)

    async def _wait_room(self, needed_bytes: int) -> None:
        """Raises NoRoom when idle copies have left, and the box is still too full."""
        for pause_s in (*ROOM_PAUSES_S, None):
            try:
                await in_thread("room", check_room, needed_bytes, self._read_memory)
            except NoRoom as short:
                if pause_s is None:
                    raise
                self._make_room(short.missing_bytes, f"no memory to prepare an artifact: {short}", True)
            else:
                return
            await asyncio.sleep(pause_s)

    async def _variant(self, adapter: RuntimeAdapter, device: Device) -> str:
        """Names a prepared form: what made it, for where. Begins with the format."""
        version = await in_thread("version", adapter.runtime_version)
        variant = f"{adapter.format}-{version}"
        return variant if device.kind == CPU.kind else f"{variant}-{device.kind}"

    async def _form_will_do(self, record: ModelRecord, artifact: Artifact, format_name: str) -> bool:
        """Whether the form that stands for an artifact is the one that a load here takes."""
        if self._isolates(record, format_name):
            return False
        adapter = self._adapter_of(format_name)
        return self._artifacts.is_prepared(artifact, await self._variant(adapter, self._device_of(adapter)))

    def _is_external(self, format_name: str) -> bool:
        """Whether a server beside the pod loads it, which knows its own layouts."""
        return bool(format_name) and isinstance(self._adapter_of(format_name), ExternalAdapter)

    def _device_of(self, adapter: RuntimeAdapter) -> Device:
        if isinstance(adapter, ExternalAdapter):
            return adapter.device
        return self._device if self._device.kind in adapter.device_kinds else CPU

    async def _with_expected_size(self, staged: Staged) -> Staged:
        if (known := self._known_sizes.here(staged.loadable)) is not None:
            return _with_known(staged, known, measured=True)
        estimate = staged.estimate
        if estimate is _NO_SIZE:
            estimate = await in_thread("estimate", staged.adapter.estimate, staged.path, staged.options)
        if staged.isolated:
            estimate = estimate_isolated(staged.adapter.format, estimate)
        return _with_known(staged, await self._known_sizes.expected(staged.loadable, estimate), measured=False)


def _understand(path: Path, declared: str) -> tuple[str, str]:
    """Where in what was fetched the model is, and its format. Raises BadArtifact."""
    found = find_model(path, declared)
    format_name = found.formats[0] if found.formats else detect_format(path / found.inner if found.inner else path)
    return found.inner, format_name


def _with_known(staged: Staged, known: Known, *, measured: bool) -> Staged:
    return replace(
        staged,
        measured=measured,
        estimate=known.size,
        workspace_bytes=known.workspace_bytes,
        request_bytes=known.request_bytes,
        peak_bytes=known.peak_bytes,
    )


def _request_for(record: ModelRecord) -> FetchRequest:
    spec = record.spec
    return FetchRequest(spec.uri, spec.storage_key, spec.checksum, tenant=record.tenant)
