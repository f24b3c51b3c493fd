"""What may be done to registered models: register, unregister, pin, load ahead, alias. One core for every front.

A registration is checked as far as can be known without fetching: the format exists, a format that runs code has a
trusted prefix or a process of its own, a file lies where files may be read. What only the artifact can tell shows at
the first load, in the model's status. A registration is acknowledged when the store has it on disk.

Aliases move without a gap: while the active model serves, the target is loaded; then the alias switches. A target that
does not load leaves the active one serving, and the alias says why.

What nobody's request asks for is nobody's to ask again: pinned models, new generations and targets of aliases are tried
again here after a failure that may pass, for as long as they are wanted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Sequence
from math import isinf
from typing import Any, Protocol

from cache.events import EvictRequest, Forgive, SetPinned
from cache.types import ModelKey, Refusal, RefusalKind
from mesh.generations import key_of, wanted
from mesh.loading.loading import Loading, Refused
from mesh.pipelines.errors import BrokenPipeline
from mesh.pipelines.registered import Pipelines
from mesh.pipelines.spec import graph_of
from mesh.serving import Serving
from mesh.staging import ALWAYS_ISOLATED
from placement.errors import InvalidSpec, NotFound, PlacementError
from placement.records import AliasRecord, AliasState, ModelRecord, ModelSpec
from placement.registration import Registered, Registration
from placement.registry import Registry
from runtime_adapters.artifacts.locations import parse_location
from runtime_adapters.artifacts.source_policy import SourcePolicy
from runtime_adapters.base import RuntimeAdapter, Trust
from runtime_adapters.errors import AdapterError
from runtime_adapters.external import ExternalAdapter
from runtime_adapters.registry import adapter_for

log = logging.getLogger("hexcomb.models")

RETRY_FIRST_S = 1.0
RETRY_MAX_S = 60.0
"""Between tries of a load that nobody's request waits for, unless the cache asks for a longer pause."""
SYNC_WAIT_MAX_S = 240.0
"""ModelMesh's own limit on a synchronous call that waits for a load."""


class PoolLoads(Protocol):
    """Loading where the pool wants it, for a pod that is not alone."""

    async def load_somewhere(self, record: ModelRecord, deadline_s: float | None, *, wait: bool) -> None:
        """Have the model loaded by the pod that placement chooses, unless one serves or loads it already.

        `wait`: until it is servable. Raises Refused.
        """

    async def unload_everywhere(self, record: ModelRecord) -> list[str]:
        """Have every pod let go of its copy of the model; what stood against it."""


class Models:
    """Management of models. All methods run on the event loop.

    In a pool (`pool`), loads go where placement wants them, and its leader keeps pinned models loaded and ends
    transitions of aliases; a pod alone does all that here.
    """

    def __init__(
        self,
        registry: Registry,
        policy: SourcePolicy,
        loading: Loading,
        serving: Serving,
        pool: PoolLoads | None = None,
        adapter_of: Callable[[str], RuntimeAdapter] | None = None,
        is_loaded_elsewhere: Callable[[str], bool] = lambda format_name: False,
        pipelines: Pipelines | None = None,
    ) -> None:
        """`is_loaded_elsewhere`: whether another pod loads a format that this one does not know."""
        self._pipelines = pipelines or Pipelines(registry)
        self._pool = pool
        self._adapter_of = adapter_of or (lambda format_name: adapter_for(format_name))
        self._is_loaded_elsewhere = is_loaded_elsewhere
        self._registry = registry
        self._policy = policy
        self._loading = loading
        self._serving = serving
        self._background: dict[asyncio.Task[Any], None] = {}
        self._trying_again: set[tuple[str, str]] = set()
        """Aliases whose failed transition has its next try before it."""
        self._patient: set[ModelKey] = set()
        """Models that are loaded, and tried again, although no request waits for them."""

    def check(self, spec: ModelSpec) -> None:
        """What can be known of a spec before its artifact is fetched. Raises InvalidSpec."""
        if not spec.has_copies:
            graph_of(spec)
            return
        try:
            location = parse_location(spec.uri)
            self._policy.check(location)
            trusted = self._policy.trusts(location)
            adapter = self._adapter(spec.format)
        except AdapterError as error:
            raise InvalidSpec(str(error)) from error
        isolated = spec.isolation == "process" or spec.format in ALWAYS_ISOLATED
        if isinstance(adapter, ExternalAdapter) and adapter.trust is Trust.RUNS_CODE and not trusted:
            raise InvalidSpec(
                f"format {spec.format!r} is loaded by the runtime {adapter.link.name!r}, where it may run code, and "
                f"{location.shown!r} is under no trusted prefix: start the server with --trusted-prefixes, or say in "
                "the file of --runtimes that this runtime is `confined`"
            )
        if adapter is not None and adapter.trust is Trust.RUNS_CODE and not trusted and not isolated:
            raise InvalidSpec(
                f"format {spec.format!r} can run code when it loads, and {location.shown!r} is under no trusted "
                "prefix: start the server with --trusted-prefixes, register with isolation=process, or convert it to "
                "ONNX"
            )

    def _adapter(self, format_name: str | None) -> RuntimeAdapter | None:
        """None: the artifact will tell, or the pod that loads it. Raises AdapterError."""
        if not format_name:
            return None
        try:
            return self._adapter_of(format_name)
        except AdapterError:
            if self._is_loaded_elsewhere(format_name):
                return None
            raise

    async def register(self, tenant: str, entries: Sequence[Registration]) -> list[Registered | PlacementError]:
        """One result per entry, in order; one entry's error never touches its neighbours."""
        results: list[Registered | PlacementError | None] = [None] * len(entries)
        result: Registered | PlacementError | None
        for index, entry in enumerate(entries):
            try:
                self.check(entry.spec)
            except InvalidSpec as error:
                results[index] = error
        accepted = self._refuse_pipelines(tenant, entries, results)
        written = await self._registry.register_many(tenant, [entry for _, entry in accepted])
        for (index, _), result in zip(accepted, written, strict=True):
            results[index] = result
        for result in results:
            if isinstance(result, Registered):
                failure = self._loading.failure(key_of(result.record))
                if failure is not None and isinf(failure.retry_at_s):
                    # Said again by somebody who may have mended what was wrong: worth another try. What is tried again
                    # by itself keeps its pause, so that a controller's loop cannot shorten it.
                    self._loading.send(Forgive(key_of(result.record)))
                if result.record.spec.pinned:
                    self.keep_loaded(result.record)
        return [result for result in results if result is not None]

    def _refuse_pipelines(
        self, tenant: str, entries: Sequence[Registration], results: list[Registered | PlacementError | None]
    ) -> list[tuple[int, Registration]]:
        """The entries that stay when those are refused that ask what is not there, nor comes with them."""
        while True:
            accepted = [(index, entry) for index, entry in enumerate(entries) if results[index] is None]
            together = {entry.id: entry.spec for _, entry in accepted}
            refused = False
            for index, entry in accepted:
                try:
                    self._pipelines.check(tenant, entry.id, entry.spec, together)
                except InvalidSpec as error:
                    results[index], refused = error, True
            if not refused:
                return accepted

    async def unregister(self, tenant: str, model_ids: Sequence[str]) -> list[bool | PlacementError]:
        """Whether each existed, or why it cannot go."""
        kept: dict[str, PlacementError] = {}
        leaving = list(model_ids)
        while True:  # what is kept keeps what it asks, in turn
            told = {name: self._pipelines.why_kept(tenant, name, leaving) for name in leaving}
            if not any(told.values()):
                break
            kept |= {name: why for name, why in told.items() if why is not None}
            leaving = [name for name in leaving if name not in kept]
        gone = iter(await self._registry.unregister_many(tenant, leaving))
        return [kept[name] if name in kept else next(gone) for name in model_ids]

    async def set_pinned(self, tenant: str, model_id: str, pinned: bool) -> ModelRecord:
        """Pin: load now and never evict. Raises NotFound, InvalidSpec."""
        if self._pipelines.is_pipeline(tenant, model_id):
            raise InvalidSpec(f"{model_id!r} is a pipeline, which has no copies to keep; pin the models that it asks")
        record = await self._registry.set_pinned(tenant, model_id, pinned)
        if pinned:
            self.keep_loaded(record)
        return record

    def heed_pin(self, before: ModelRecord, after: ModelRecord | None) -> None:
        """A registration changed, whichever pod was asked to: the copy here is pinned, or not any more."""
        if after is not None and after.generation == before.generation and after.spec.pinned != before.spec.pinned:
            self._loading.send(SetPinned(key_of(after), after.spec.pinned))

    def load_ahead(self, record: ModelRecord, *, background: bool = True) -> None:
        """Begin to load; nobody waits. In the background it takes free room only, and evicts nothing. Of a pipeline:
        the models that it asks."""
        if not record.spec.has_copies:
            for model in self._pipelines.parts(record).models:
                self.load_ahead(model, background=background)
            return
        if self._pool is not None:
            self._spawn(self._load_in_pool(self._pool, record))
            return
        self._spawn(self._load_quietly(record, background))

    async def _load_in_pool(self, pool: PoolLoads, record: ModelRecord) -> None:
        try:
            await pool.load_somewhere(record, None, wait=False)
        except Refused as refused:
            log.info("model %s/%s is not loaded ahead: %s", record.tenant, record.id, refused)

    async def load(
        self, record: ModelRecord, deadline_s: float | None, *, wait: bool, background: bool = False
    ) -> None:
        """Begin to load, and with `wait` return when it is over. What came of it is in the model's status."""
        if not wait:
            self.load_ahead(record, background=background)
            return
        with contextlib.suppress(Refused):
            await self.ensure_loaded(record, deadline_s)

    async def ensure_loaded(self, record: ModelRecord, deadline_s: float | None) -> None:
        """Wait until the model is servable; of a pipeline, those that it asks. Raises Refused, BrokenPipeline."""
        if not record.spec.has_copies:
            parts = self._pipelines.parts(record)
            if parts.problem:
                raise BrokenPipeline(parts.problem)
            await asyncio.gather(*(self.ensure_loaded(model, deadline_s) for model in parts.models))
            return
        if self._pool is not None:
            await self._pool.load_somewhere(record, deadline_s, wait=True)
            return
        resident = await self._serving.lease(record, deadline_s)
        resident.let_go()

    async def unload(self, record: ModelRecord) -> list[str]:
        """Have every copy leave; it comes back when a request asks for it. What stood against it; empty: nothing. A
        pipeline has none, and the models that it asks stay: others may ask them, too."""
        if not record.spec.has_copies:
            return []
        if self._pool is not None:
            return await self._pool.unload_everywhere(record)
        self._loading.send(EvictRequest(key_of(record)))
        return []

    def keep_loaded(self, record: ModelRecord) -> None:
        """Load a pinned model; try again for as long as it is pinned."""
        if self._pool is not None:
            return  # the leader's to see to

        def still_pinned() -> bool:
            now = self._registry.model(record.tenant, record.id)
            return now is not None and now.generation == record.generation and now.spec.pinned

        self._spawn(self._load_patiently(record, still_pinned, background=True))

    def take_over(self, record: ModelRecord) -> None:
        """Load a new generation while an older one serves; try again for as long as it does."""

        def still_waited_for() -> bool:
            now = self._registry.model(record.tenant, record.id)
            if now is None or now.generation != record.generation:
                return False
            return self._serving.resolve(record.tenant, record.id).generation != record.generation

        self._spawn(self._take_over(record, still_waited_for))

    async def _take_over(self, record: ModelRecord, still_waited_for: Callable[[], bool]) -> None:
        pause_s = RETRY_FIRST_S
        while still_waited_for() and await self._load_patiently(record, still_waited_for, background=False):
            # It is there. If it had to leave again at once, being larger than was reserved, it has not taken over.
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, RETRY_MAX_S)

    async def _load_quietly(self, record: ModelRecord, background: bool) -> Refusal | None:
        """Load; why it was not loaded, if it was not."""
        try:
            resident = await self._loading.wait_servable(wanted(record), None, background=background)
        except Refused as refused:
            log.info("model %s/%s is not loaded ahead: %s", record.tenant, record.id, refused)
            return refused.refusal
        resident.let_go()
        return None

    async def _load_patiently(self, record: ModelRecord, still_wanted: Callable[[], bool], *, background: bool) -> bool:
        """Whether it was loaded here, and is wanted still."""
        key = key_of(record)
        if key in self._patient:  # registered or pinned once more
            return False
        self._patient.add(key)
        try:
            pause_s = RETRY_FIRST_S
            while still_wanted():
                refusal = await self._load_quietly(record, background)
                if refusal is None:
                    return True
                if self._pool is not None and await self._take_over_elsewhere(self._pool, record):
                    return False
                if refusal.retry_after_s is None:
                    return False
                await asyncio.sleep(max(refusal.retry_after_s, pause_s))
                pause_s = min(2 * pause_s, RETRY_MAX_S)
            return False
        finally:
            self._patient.discard(key)

    async def _take_over_elsewhere(self, pool: PoolLoads, record: ModelRecord) -> bool:
        """A new generation that has no room here may have it on another pod; then that one serves it."""
        try:
            await pool.load_somewhere(record, None, wait=True)
        except Refused as refused:
            log.info("model %s/%s is not loaded elsewhere, either: %s", record.tenant, record.id, refused)
            return False
        self._serving.superseded(record)
        return True

    # Aliases ------------------------------------------------------------------------------------------------

    def begin_transition(self, alias: AliasRecord) -> asyncio.Task[None]:
        """Load an alias's target, then switch; the returned task ends with the transition, successful or not."""
        return self._spawn(self._transition(alias) if self._pool is None else self._see_transition(alias))

    async def _see_transition(self, alias: AliasRecord) -> None:
        """The leader carries it out; wait for the end of it."""
        moved = asyncio.Event()
        stop = self._registry.on_change(lambda changes: moved.set())
        try:
            while True:
                now = self._registry.alias(alias.tenant, alias.id)
                if now is None or now.target != alias.target or now.state is not AliasState.TRANSITIONING:
                    return
                await moved.wait()
                moved.clear()
        finally:
            stop()

    async def _transition(self, alias: AliasRecord, pause_s: float = RETRY_FIRST_S) -> None:
        record = self._registry.model(alias.tenant, alias.target)
        if record is None:
            await self._registry.fail_transition(
                alias.tenant, alias.id, alias.target, f"model {alias.target!r} is not registered any more"
            )
            return
        try:
            await self.ensure_loaded(record, None)
        except Refused as refused:
            now = self._registry.model(alias.tenant, alias.target)
            if refused.refusal.kind is RefusalKind.GONE and now is not None and now.generation != record.generation:
                await self._transition(alias, pause_s)  # the target has another spec by now
                return
            log.warning("alias %s/%s stays on %s: %s", alias.tenant, alias.id, alias.active, refused)
            failed = await self._registry.fail_transition(alias.tenant, alias.id, alias.target, str(refused))
            name = (alias.tenant, alias.id)
            if failed is not None and refused.refusal.retry_after_s is not None and name not in self._trying_again:
                self._trying_again.add(name)
                self._spawn(self._transition_again(failed, max(refused.refusal.retry_after_s, pause_s), pause_s))
        else:
            await self._registry.finish_transition(alias.tenant, alias.id, alias.target)

    async def _transition_again(self, alias: AliasRecord, after_s: float, pause_s: float) -> None:
        await asyncio.sleep(after_s)
        self._trying_again.discard((alias.tenant, alias.id))
        now = self._registry.alias(alias.tenant, alias.id)
        if now is not None and now.target == alias.target and now.changed_at_s == alias.changed_at_s:
            await self._transition(now, min(2 * pause_s, RETRY_MAX_S))

    def resume_transitions(self) -> None:
        """After a restart: aliases that were on their way, or had failed on it, go on."""
        if self._pool is not None:
            return
        for tenant in self._registry.view.tenants.values():
            for alias in tenant.aliases.values():
                if alias.state is not AliasState.DEFINED:
                    self.begin_transition(alias)

    def load_pinned(self) -> None:
        """After a restart: pinned models are loaded without being asked for."""
        for record in self._registry.view.every_model():
            if record.spec.pinned:
                self.keep_loaded(record)

    def required(self, tenant: str, name: str) -> ModelRecord:
        """The model of this id. Raises NotFound."""
        record = self._registry.model(tenant, name)
        if record is None:
            raise NotFound(f"model {name[:200]!r} is not registered (tenant {tenant!r}); register it first")
        return record

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._background[task] = None
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._background.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("work in the background failed", exc_info=error)

    async def close(self) -> None:
        """Stop loading ahead."""
        for task in list(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
