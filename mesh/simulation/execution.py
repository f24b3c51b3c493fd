"""What blocks in a real pod, in virtual time: fetches, loads, unloads, runs.

`mesh.loading.loading.Loading` is real; it is given a `SimulatedStaging` in place of the disk tier, and
`SimulatedThreads` in place of threads. Models are `runtime_adapters.fake`'s: each multiplies by a factor of its own, so
an answer tells which artifact computed it, and a request that reached the wrong copy shows.

A model that kills takes the process with it, in the middle of its load or of its run, unless it runs isolated.
"""

from __future__ import annotations

import asyncio
import zlib
from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from random import Random
from typing import Any, TypeVar, cast

from cache.types import ModelKey
from mesh.batching.joining import Answer, Request
from mesh.batching.lane import Learned
from mesh.generations import key_of
from mesh.loading.measured_load import MeasuredLoad
from mesh.parking import DiskListener
from mesh.resident import Resident
from mesh.simulation.contents import Content, Contents
from mesh.simulation.machine import Machine
from mesh.staging import Staged
from placement.records import ModelRecord
from runtime_adapters.artifacts.fetch import Artifact
from runtime_adapters.base import Array, LoadOptions, RuntimeAdapter, Size, Tensors
from runtime_adapters.errors import AdapterError, BadArtifact, LoadCrashed, LoadFailed, ModelCrashed
from runtime_adapters.fake import FakeAdapter, FakeModel, FakeSpec

T = TypeVar("T")

DISK_READ_S = 0.002
"""Staging an artifact that is on the disk."""
TRIM_S = 0.001
_ADAPTER = cast(RuntimeAdapter, FakeAdapter())


def factor_of(uri: str) -> float:
    """What the model of this artifact multiplies by: exact in FP32, and almost certainly no other artifact's."""
    return float(zlib.crc32(uri.encode()) % 1_000_003 + 1)


class SimulatedModel(FakeModel):
    """A loaded copy that knows the truth about itself."""

    def __init__(self, content: Content, uri: str, model_id: str) -> None:
        super().__init__(FakeSpec(factor_of(uri), 1, content.size_bytes), model_id, lambda point, who: None)
        self.content = content
        self.uri = uri


class SimulatedStaging:
    """`mesh.staging.Stages` on one machine's disk."""

    def __init__(
        self,
        machine: Machine,
        contents: Contents,
        random: Random,
        must_isolate: Callable[[ModelKey], bool],
        disk_listener: DiskListener,
    ) -> None:
        self._machine = machine
        self._contents = contents
        self._random = random
        self._must_isolate = must_isolate
        self._disk_listener = disk_listener
        self._found: dict[ModelKey, Staged] = {}
        self._loaded: dict[str, Size] = {}
        self._held: Counter[str] = Counter()
        """Artifacts that were staged and not released."""

    async def stage(self, key: ModelKey, record: ModelRecord) -> Staged:
        """See `Stages`."""
        uri = record.spec.uri
        content = self._contents.at(uri)
        if content is None:
            raise BadArtifact(f"nothing lies at {uri}")
        if uri not in self._machine.disk:
            await asyncio.sleep(content.fetch_s * (0.5 + self._random.random()))
            if self._random.random() < content.transient_share / 2:
                raise LoadFailed(f"fetching {uri} failed for now")
        else:
            await asyncio.sleep(DISK_READ_S)
        self._keep_on_disk(uri)
        artifact = Artifact(Path(PurePosixPath("/disk") / uri.rpartition("/")[2]), uri, 0, 0, 0.0, False, 0)
        isolated = record.spec.isolation == "process" or self._must_isolate(key)
        estimate = self._loaded.get(uri) or Size(content.estimate_bytes)
        staged = Staged(record, artifact, artifact.path, "", _ADAPTER, LoadOptions(record.id), isolated, estimate)
        self._found[key] = staged
        self._held[uri] += 1
        self._disk_listener.on_disk(key, uri)
        return staged

    def _keep_on_disk(self, uri: str) -> None:
        disk = self._machine.disk
        disk.pop(uri, None)
        disk[uri] = None
        if len(disk) > self._machine.disk_artifacts_max:
            unused = next((each for each in disk if not self._held[each] and each != uri), None)
            if unused is not None:
                del disk[unused]
                self._disk_listener.gone(unused)

    async def stage_again(self, key: ModelKey) -> Staged | None:
        """See `Stages`."""
        found = self._found.get(key)
        if found is None or found.artifact.content_hash not in self._machine.disk:
            return None
        return await self.stage(key, found.record)

    def release(self, artifact: Artifact) -> None:
        """See `Stages`."""
        self._held[artifact.content_hash] -= 1

    def format_of(self, key: ModelKey) -> str:
        """See `Stages`."""
        return _ADAPTER.format if key in self._found else ""

    def forget(self, key: ModelKey) -> None:
        """See `Stages`."""
        self._found.pop(key, None)

    def content_on_disk(self, record: ModelRecord) -> str | None:
        """See `Stages`."""
        return record.spec.uri if record.spec.uri in self._machine.disk else None

    def measured(self, staged: Staged, size: Size, load_s: float, run_s: float, peak_bytes: int) -> None:
        """See `Stages`."""
        self._loaded[staged.artifact.content_hash] = size
        self._disk_listener.loaded(key_of(staged.record), load_s)

    def has_loaded(self, staged: Staged) -> bool:
        """See `Stages`."""
        return staged.artifact.content_hash in self._loaded


class SimulatedThreads:
    """`mesh.threads.in_thread`: the work is done at the end of its time, or fails as its content says."""

    def __init__(self, machine: Machine, contents: Contents, random: Random) -> None:
        self._machine = machine
        self._contents = contents
        self._random = random

    def __call__(self, name: str, work: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
        """Begin; `name` says what it is."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        if name == "load":
            self._load(future, arguments[0])
        elif name in ("unload", "unload-late"):
            model = getattr(work, "__self__", None)
            content = model.content if isinstance(model, SimulatedModel) else None
            self._later(content.unload_s if content is not None else 0.0, _finish, future, work, arguments)
        elif name == "trim":
            self._later(TRIM_S, _settle, future, None)
        else:
            raise NotImplementedError(f"thread {name!r} has no stand-in")
        return future

    def _load(self, future: asyncio.Future[Any], staged: Staged) -> None:
        uri = staged.record.spec.uri
        content = self._contents.at(uri)
        assert content is not None
        took_s = content.load_s * (0.5 + self._random.random())
        luck = self._random.random()
        if content.kills_loads:
            if staged.isolated:
                self._later(took_s, _settle, future, LoadCrashed(f"{uri}: its process died in the load"))
            else:
                self._later(took_s * luck, self._machine.crash, f"loading {uri}")
        elif content.broken:
            self._later(took_s, _settle, future, BadArtifact(f"{uri} is broken"))
        elif luck < content.transient_share / 2:
            self._later(took_s, _settle, future, LoadFailed(f"{uri} failed for now"))
        else:
            model = SimulatedModel(content, uri, staged.record.id)
            loaded = MeasuredLoad(model, Size(content.size_bytes), content.run_s, took_s, 0.0)
            self._later(took_s, _settle, future, loaded)

    def _later(self, idle_s: float, callback: Callable[..., None], *arguments: Any) -> None:
        asyncio.get_running_loop().call_later(idle_s * self._machine.slowness, callback, *arguments)


def _settle(future: asyncio.Future[Any], outcome: object) -> None:
    if future.done():
        return
    if isinstance(outcome, AdapterError):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def _finish(future: asyncio.Future[Any], work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    _settle(future, work(*arguments))


class SimulatedRunner:
    """`mesh.running.Runner` in virtual time: so many runs at once, the others wait their turn."""

    def __init__(
        self, threads: int, machine: Machine, random: Random, observe_queue_s: Callable[[float], None]
    ) -> None:
        self._threads = threads
        self._machine = machine
        self._random = random
        self._observe_queue_s = observe_queue_s
        self._running = 0
        self._queue: deque[asyncio.Future[None]] = deque()
        self._turns: dict[int, asyncio.Semaphore] = {}
        """By copy, of those in processes of their own."""

    def runs_inline(self, resident: Resident, request_bytes: int) -> bool:
        """Never: a run takes time, and the loop's time stands still."""
        return False

    def run_inline(
        self, resident: Resident, inputs: Tensors, outputs: Sequence[str], request_bytes: int
    ) -> dict[str, Array]:
        """See `runs_inline`."""
        raise NotImplementedError

    def gathers(self, resident: Resident) -> bool:
        """Never: each request runs by itself."""
        return False

    def run_inline_together(self, resident: Resident, requests: Sequence[Request]) -> list[Answer]:
        """See `gathers`."""
        raise NotImplementedError

    def learned_of(self, resident: Resident) -> Learned | None:
        """Nothing: requests run one by one."""
        return None

    async def run_in_thread(self, resident: Resident, request: Request) -> dict[str, Array]:
        """See `Runner`: a run that has begun keeps its pin until it ends, whoever leaves."""
        loop = asyncio.get_running_loop()
        queued_s, turn = loop.time(), self._turn(resident)
        resident.hold()
        holder: Resident | None = resident
        try:
            if turn is not None:
                await turn.acquire()
            try:
                if turn is None:
                    await self._slot()
                began_s = loop.time()
                ended: asyncio.Future[dict[str, Array]] = loop.create_future()
                ended.add_done_callback(_seen)
                holder = None  # from here on the run lets go, not the caller
                loop.call_later(*self._run(resident, request.inputs, request.outputs, ended, turn))
            except BaseException:
                if turn is not None:
                    turn.release()
                raise
        finally:
            if holder is not None:
                holder.let_go()
        result = await asyncio.shield(ended)
        self._observe_queue_s(began_s - queued_s)
        resident.ran(began_s - queued_s, loop.time() - began_s)
        return result

    def _run(
        self,
        resident: Resident,
        inputs: Tensors,
        outputs: Sequence[str],
        ended: asyncio.Future[dict[str, Array]],
        turn: asyncio.Semaphore | None,
    ) -> tuple[Any, ...]:
        model = resident.model
        assert isinstance(model, SimulatedModel)
        took_s = model.content.run_s * (0.5 + self._random.random()) * self._machine.slowness
        if model.content.kills_runs and turn is None:
            return (took_s * self._random.random(), self._machine.crash, f"running {model.uri}")

        def finish() -> None:
            resident.let_go()
            if turn is not None:
                turn.release()
            else:
                self._give_slot()
            if model.content.kills_runs:
                ended.set_exception(ModelCrashed("its process died in the run"))
            else:
                ended.set_result(model.infer(inputs, outputs))

        return (took_s, finish)

    def _turn(self, resident: Resident) -> asyncio.Semaphore | None:
        """Of a copy in a process of its own: whose run it is."""
        if not resident.isolated:
            return None
        return self._turns.setdefault(resident.copy.copy_id, asyncio.Semaphore(1))

    async def _slot(self) -> None:
        if self._running < self._threads:
            self._running += 1
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self._give_slot()
            raise

    def _give_slot(self) -> None:
        self._running -= 1
        while self._queue:
            waiter = self._queue.popleft()
            if not waiter.done():
                self._running += 1
                waiter.set_result(None)
                return

    def close(self) -> None:
        """Nothing to stop."""


def _seen(ended: asyncio.Future[Any]) -> None:
    if not ended.cancelled():
        ended.exception()
