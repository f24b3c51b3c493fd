"""The core of a request, whatever protocol it came in: name -> model -> copy -> run.

Every front (gRPC now) hands in a tenant, a name and a way to decode the tensors once the model is known, and gets
named arrays back. The path of a hit: two dictionary look-ups for the name, one for the copy, a pin, the run, an unpin;
it touches no store, takes no lock and waits for nothing but the run.

A run whose copy dies, or that finds no memory, is `completing.py`'s.

Deliberately absent: protobuf, HTTP, roles.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from math import inf

from cache.types import ModelKey, RefusalKind
from mesh.access_log import AccessLog
from mesh.batching.joining import Request
from mesh.completing import Completing
from mesh.generations import Generations, key_of, wanted
from mesh.loading.loading import Loading, Refused
from mesh.outcomes import Outcomes
from mesh.request import Answer, Tensors, checked_inputs
from mesh.resident import SMALL_REQUEST_BYTES, Resident
from mesh.running import Runs
from mesh.streaming import answers_of
from mesh.telemetry import Telemetry
from mesh.threads import in_thread
from mesh.wire.request_options import RequestOptions
from placement.errors import NotFound
from placement.records import ModelRecord
from placement.registry import Registry
from runtime_adapters.base import Array, ModelMetadata
from runtime_adapters.errors import BadInput, ModelCrashed, OutOfMemory
from runtime_adapters.external import ExternalModel

RELAYS_MAX = 64
"""Calls of runtimes' own methods at a time; each has a thread that waits for it."""
_TRIES_WHEN_GONE = 2
"""A name is resolved again once when its model was replaced while the request waited."""


class UnknownModel(Exception):
    """No model or alias has this name, or the model has no such version. Clients see NOT_FOUND."""


class Serving:
    """Runs requests on this pod's copies."""

    def __init__(
        self,
        registry: Registry,
        generations: Generations,
        loading: Loading,
        runner: Runs,
        telemetry: Telemetry,
        code_of: Callable[[Exception], str],
        *,
        has_chance: Callable[[ModelRecord], bool],
        draw: Callable[[], float] = random.random,
        access_log: AccessLog | None = None,
        large_came: Callable[[], None] = lambda: None,
    ) -> None:
        """`has_chance`: nothing speaks for good against a model. `draw`, in [0, 1), is for aliases with weights.
        `large_came` hears of requests of `LARGE_BYTES` and more."""
        self._registry = registry
        self._generations = generations
        self._loading = loading
        self._runner = runner
        self._telemetry = telemetry
        self._has_chance = has_chance
        self._draw = draw
        self._outcomes = Outcomes(code_of, access_log, large_came)
        self._completing = Completing(loading, runner, self._outcomes)
        self._relays = asyncio.Semaphore(RELAYS_MAX)
        self.hits = 0
        self.misses = 0

    def resolve(self, tenant: str, name: str, version: str = "") -> ModelRecord:
        """The model behind a name: an alias's active model, else the model, in the generation that serves now.

        Raises UnknownModel.
        """
        try:
            resolved = self._registry.resolve(tenant, name, self._draw())
        except NotFound as error:
            if self._registry.alias(tenant, name) is not None:
                raise UnknownModel(str(error)) from None
            raise UnknownModel(_unknown(tenant, name)) from None
        record = self._generations.serving(resolved.record)
        if version and version != str(record.generation):
            raise UnknownModel(
                f"model '{name[:200]}' has no version {version[:40]!r}: its current version is {record.generation}"
            )
        return record

    async def lease(
        self, record: ModelRecord, deadline_s: float | None, *, background: bool = False, space_wait_s: float = inf
    ) -> Resident:
        """A pinned copy of the model, loaded if need be; give it back with `let_go`. Raises Refused."""
        resident = self._loading.servable(key_of(record))
        if resident is not None:
            return resident
        return await self._loading.wait_servable(
            wanted(record), deadline_s, background=background, space_wait_s=space_wait_s
        )

    def knows(self, tenant: str, name: str) -> bool:
        """Whether this pod has heard of a model or alias of this name."""
        return self._registry.model(tenant, name) is not None or self._registry.alias(tenant, name) is not None

    def registered(self, record: ModelRecord) -> ModelRecord | None:
        """The generation that is registered now of a model that was resolved; None: it has gone."""
        return self._registry.model(record.tenant, record.id)

    def current(self, registered: ModelRecord) -> ModelRecord:
        """The generation that answers here now: the registered one, or the one before it while that comes in."""
        return self._generations.serving(registered)

    def superseded(self, record: ModelRecord) -> None:
        """Another pod serves this generation, and this one cannot load it: the one before it ends here."""
        self._generations.superseded(record)

    def hit(self, record: ModelRecord, key: ModelKey | None = None) -> Resident | None:
        """The pinned copy of this generation, for `infer`; None when there is none here. `key`: the record's, for who
        has it at hand."""
        return self._loading.servable(key or key_of(record))

    async def infer(
        self,
        record: ModelRecord,
        resident: Resident | None,
        deadline_s: float | None,
        decode: Callable[[], Awaitable[Tensors]],
        space_wait_s: float = inf,
    ) -> Answer:
        """Run one request on a copy that `hit` gave, or on one that has to be waited for: for room at most
        `space_wait_s`, if that is less than the cache's limit. `decode` is called once; what it raises is the caller's
        business.

        Raises UnknownModel, Refused, TooLate, BadInput, ModelRaised, OutOfMemory, ModelCrashed.
        """
        began = time.perf_counter()
        cold = resident is None
        wait_s = 0.0
        if resident is None:
            # A malformed request must not cost a load: read it first.
            tensors = await decode()
            deadline_s = _sooner(deadline_s, tensors.options)
            self.misses += 1
            record, resident = await self._wait(record, deadline_s, space_wait_s)
            wait_s = time.perf_counter() - began
            self._telemetry.queue_wait_seconds.observe(wait_s)
        else:
            self.hits += 1
        try:
            if not cold:
                tensors = await decode()
                deadline_s = _sooner(deadline_s, tensors.options)
            outputs = await self._completing.run_to_its_end(record, resident, tensors, deadline_s)
        except Exception as error:
            self._outcomes.failed(resident, error, time.perf_counter(), began)
            raise
        finally:
            resident.let_go()
        self._outcomes.answered(record, resident, time.perf_counter(), began, wait_s if cold else None)
        return Answer(outputs, tensors.outputs, record, cold)

    async def infer_here(
        self, record: ModelRecord, resident: Resident, tensors: Tensors, deadline_s: float | None
    ) -> dict[str, Array]:
        """As `infer`, on a copy that `hit` gave, with tensors that were read.

        Raises TooLate, BadInput, ModelRaised, OutOfMemory, ModelCrashed, Refused.
        """
        began = time.perf_counter()
        self.hits += 1
        try:
            outputs = await self._completing.run_to_its_end(record, resident, tensors, deadline_s)
        except Exception as error:
            self._outcomes.failed(resident, error, time.perf_counter(), began)
            raise
        finally:
            resident.let_go()
        self._outcomes.answered(record, resident, time.perf_counter(), began, None)
        return outputs

    def infer_now(
        self,
        record: ModelRecord,
        resident: Resident,
        inputs: dict[str, Array],
        outputs: tuple[str, ...],
        size_bytes: int,
    ) -> dict[str, Array] | None:
        """As `infer`, on a copy that `hit` gave and with inputs that were checked, without waiting for anything; None
        when that cannot be, and then nothing has happened that `infer` would count again.

        Raises BadInput, ModelRaised.
        """
        if not self._runner.runs_inline(resident, size_bytes):
            return None
        if size_bytes > SMALL_REQUEST_BYTES:
            self._outcomes.notice_size(resident, inputs, size_bytes)
        began = time.perf_counter()
        try:
            answer = self._runner.run_inline(resident, inputs, outputs, size_bytes)
        except (OutOfMemory, MemoryError, ModelCrashed):
            return None  # `infer` tries again, and knows what to do then
        except Exception as error:
            self.hits += 1
            self._outcomes.failed(resident, error, time.perf_counter(), began)
            raise
        self.hits += 1
        self._outcomes.answered(record, resident, time.perf_counter(), began, None)
        return answer

    def runs_now(self, resident: Resident, size_bytes: int) -> bool:
        """Whether `infer_now` and `infer_together_now` take a request of this size for this copy."""
        return self._runner.runs_inline(resident, size_bytes)

    def gathers(self, resident: Resident) -> bool:
        """Whether requests for this copy that arrive together are better answered by `infer_together_now`."""
        return self._runner.gathers(resident)

    def infer_together_now(
        self, record: ModelRecord, resident: Resident, requests: Sequence[Request]
    ) -> list[dict[str, Array] | Exception | None]:
        """As `infer_now`, for requests that arrived together: for each its answer, what `infer_now` would raise, or
        None."""
        for request in requests:
            if request.size_bytes > SMALL_REQUEST_BYTES:
                self._outcomes.notice_size(resident, request.inputs, request.size_bytes)
        began = time.perf_counter()
        answers = self._runner.run_inline_together(resident, requests)
        ended = time.perf_counter()
        told: list[dict[str, Array] | Exception | None] = []
        for answer in answers:
            if isinstance(answer, OutOfMemory | MemoryError | ModelCrashed):
                told.append(None)  # `infer` tries again, and knows what to do then
                continue
            self.hits += 1
            told.append(answer)
            if isinstance(answer, Exception):
                self._outcomes.failed(resident, answer, ended, began)
            else:
                self._outcomes.answered(record, resident, ended, began, None)
        return told

    async def _wait(
        self, record: ModelRecord, deadline_s: float | None, space_wait_s: float
    ) -> tuple[ModelRecord, Resident]:
        for attempt in range(_TRIES_WHEN_GONE):
            try:
                waiting = self._loading.wait_servable(wanted(record), deadline_s, space_wait_s=space_wait_s)
                return record, await waiting
            except Refused as refused:
                self._telemetry.refused.labels(refused.refusal.kind.name.lower()).inc()
                if refused.refusal.kind is not RefusalKind.GONE or attempt + 1 == _TRIES_WHEN_GONE:
                    raise
                now = self.registered(record)
                if now is None:
                    raise UnknownModel(_unknown(record.tenant, record.id)) from refused
                record = self.current(now)  # replaced while it waited: perhaps by a newer generation
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def relay(
        self,
        record: ModelRecord,
        resident: Resident | None,
        deadline_s: float | None,
        ask: Callable[[ExternalModel, float | None], bytes],
        space_wait_s: float = inf,
    ) -> bytes:
        """Have a model asked by a method of its runtime's own, on a copy that `hit` gave or one that is waited for.
        `ask` blocks; it is given the seconds that are left, and called once more where the runtime has lost its models.

        Raises as `infer`, and BadInput for a model that no runtime beside the pod runs.
        """
        began = time.perf_counter()
        wait_s: float | None = None
        for last in (False, True):
            if resident is None:
                self.misses += 1
                record, resident = await self._wait(record, deadline_s, space_wait_s)
                wait_s = time.perf_counter() - began
            else:
                self.hits += 1
            model = resident.model
            try:
                if not isinstance(model, ExternalModel):
                    raise BadInput(f"model {record.id!r} is run by the pod itself, which is asked by V2")
                async with self._relays:
                    left_s = None if deadline_s is None else max(0.001, deadline_s - time.monotonic())
                    answer = await in_thread("relay", ask, model, left_s)
                self._outcomes.answered(record, resident, time.perf_counter(), began, wait_s)
                return answer
            except Exception as error:
                self._outcomes.failed(resident, error, time.perf_counter(), began)
                if not isinstance(error, ModelCrashed):
                    raise
                self._completing.crashed(resident, error)
                if last:
                    raise
            finally:
                resident.let_go()
            resident = None
        raise AssertionError("unreachable: the last try returns or raises")

    async def stream(
        self, record: ModelRecord, deadline_s: float | None, tensors: Tensors, space_wait_s: float = inf
    ) -> AsyncGenerator[dict[str, Array], None]:
        """The answers of a model that is decoupled, as they come. The copy is held until its run has ended, which is
        after the next answer if nobody waits for more.

        Raises as `infer`.
        """
        began = time.perf_counter()
        resident = await self.lease(record, deadline_s, space_wait_s=space_wait_s)
        try:
            inputs, outputs = checked_inputs(resident, tensors)
        except Exception:
            resident.let_go()
            raise
        self.hits += 1
        try:
            async with aclosing(answers_of(resident, inputs, outputs)) as answers:
                async for answer in answers:
                    yield answer
        except Exception as error:
            if isinstance(error, ModelCrashed):
                self._completing.crashed(resident, error)
            self._outcomes.failed(resident, error, time.perf_counter(), began)
            raise
        ended = time.perf_counter()
        resident.tally.ran(0.0, ended - began, 1, 1)
        self._outcomes.answered(record, resident, ended, began, None)

    def knows_metadata(self, record: ModelRecord) -> bool:
        """Whether `metadata` answers at once."""
        return self._loading.metadata(key_of(record)) is not None

    async def metadata(self, record: ModelRecord, deadline_s: float | None, space_wait_s: float = inf) -> ModelMetadata:
        """What a client may know of a model; loads it if it was never loaded here, since only a load tells."""
        known = self._loading.metadata(key_of(record))
        if known is not None:
            return known
        self.misses += 1  # the client waits for a load, though for no prediction yet
        resident = await self.lease(record, deadline_s, space_wait_s=space_wait_s)
        try:
            return resident.model.metadata
        finally:
            resident.let_go()

    def ready(self, tenant: str, name: str, version: str) -> bool:
        """Whether a request for this model has a chance: it is registered and has not failed for good."""
        try:
            return self._has_chance(self.resolve(tenant, name, version))
        except UnknownModel:
            return False


def _sooner(deadline_s: float | None, options: RequestOptions) -> float | None:
    """The client's deadline, or the request's own timeout where that ends before it."""
    if not options.timeout_s:
        return deadline_s
    ends_s = time.monotonic() + options.timeout_s
    return ends_s if deadline_s is None else min(deadline_s, ends_s)


def _unknown(tenant: str, name: str) -> str:
    # Triton's wording first, because clients match on it.
    return f"Request for unknown model: '{name[:200]}' is not found (tenant {tenant!r}); register it first"
