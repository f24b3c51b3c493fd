"""The registry: every write of a model or an alias, and the view that requests read.

Reading never leaves the process: `resolve` and its like ask the present view (`placement.view`), which follows the
store through a watch. Writing goes to the store, and returns once the view has it too, so whoever registers a model
can use it at once on this pod.

The store may be away: reading goes on from the last view, writing raises StoreUnavailable, and following resumes
where it stopped; if that place is forgotten by then, everything is listed anew and the difference applied.

When it is another store that comes back (wiped, or put back from a backup), what is missing there was lost and not
unregistered. Then the registry is *detached*: it keeps its last view, which is what registrations can be restored
from (`placement.restoration`), refuses writes, and follows nothing, until it is told to `adopt` what the store has.

Listeners hear of each batch on the loop, after the view has moved, in the order of revisions. One that raises is
logged and does not keep the others from hearing.

Deliberately absent: what a pod does with a change (retire the copies of an old generation, begin a transition's
load); the mesh listens and decides.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import logging
import time
from collections.abc import Callable, Mapping, Sequence

from placement import keys
from placement.alias_rules import AliasRequest
from placement.alias_writes import AliasWriter
from placement.errors import (
    Compacted,
    InvalidName,
    PlacementError,
    StoreClosed,
    StoreError,
    StoreReplaced,
    StoreUnavailable,
    UnsupportedRecord,
)
from placement.model_writes import ModelWriter
from placement.policy.snapshot import ModelName
from placement.records import AliasRecord, ModelRecord, ModelSpec, alias_from_json, model_from_json
from placement.registration import Registered, Registration
from placement.shared_values import shared_text
from placement.store.base import KeyValue, KeyValueStore, WatchBatch
from placement.tombstones import TombstoneLease
from placement.view import Changes, ModelPage, NameEvent, RegistryView, Resolved, advance, changes_between

log = logging.getLogger(__name__)

LIST_PAGE = 1000
"""Keys in one page at the start: what the loop can parse in about 20 ms."""
PAGE_MAX = 10_000
"""Most models in one answer of `list_models`."""
RETRY_FIRST_S = 0.1
RETRY_MAX_S = 5.0
"""Between tries to follow a store that is away."""
VIEW_WAIT_S = 10.0
"""How long a write that is done waits for this pod's view, when following the store is disturbed."""

_WATCHED = (keys.MODELS, keys.ALIASES)


class Registry:
    """Models and aliases of one pool. Belongs to the event loop that starts it; `view` may be read by any thread."""

    def __init__(self, store: KeyValueStore, *, clock: Callable[[], float] = time.time) -> None:
        """`clock` gives Unix time, for the times in records."""
        self._store = store
        tombstones = TombstoneLease(store, clock)
        self._models = ModelWriter(store, clock, tombstones)
        self._aliases = AliasWriter(store, clock, self._models, tombstones)
        self._view = RegistryView()
        self._listeners: dict[int, Callable[[Changes], None]] = {}
        self._listener_ids = itertools.count()
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._waiting_ids = itertools.count()
        self._waiters_left = 0
        """Of those in the heap that wait no more; at most half of them."""
        self._following: asyncio.Task[None] | None = None
        self._detached = False
        self._on_detached: Callable[[], None] = lambda: None
        self._adopting = asyncio.Lock()
        self._adopted = asyncio.Event()

    async def start(self) -> None:
        """List everything, then follow the store. Raises StoreError when the store cannot be read now."""
        await self._list()
        self._following = asyncio.create_task(self._follow())

    async def close(self) -> None:
        """Stop following. The store stays open: it belongs to the caller."""
        if self._following is not None:
            self._following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._following
            self._following = None

    # Reading: from the view, without the store and without waiting --------------------------------------------------

    @property
    def view(self) -> RegistryView:
        """Everything as of now: immutable, so it can be kept and handed to other threads."""
        return self._view

    def resolve(self, tenant: str, name: str, draw: float = 0.0) -> Resolved:
        """Model or alias -> the model that serves. `draw` in [0, 1) decides among an alias's weights.

        Raises NotFound, UnsupportedRecord.
        """
        return self._view.resolve(tenant, name, draw)

    def model(self, tenant: str, model_id: str) -> ModelRecord | None:
        """A model by its id; aliases are not followed."""
        return self._view.tenant(tenant).models.get(model_id)

    def alias(self, tenant: str, alias_id: str) -> AliasRecord | None:
        """An alias by its name."""
        return self._view.tenant(tenant).aliases.get(alias_id)

    def aliases_of(self, tenant: str, model_id: str) -> frozenset[str]:
        """Names of the aliases that point at a model, as active, target or by weight."""
        return self._view.tenant(tenant).aliases_of.get(model_id, frozenset())

    def list_models(self, tenant: str, *, limit: int = 1000, after: str = "", id_prefix: str = "") -> ModelPage:
        """Models in the order of their ids, from the one that follows `after`."""
        return self._view.page(tenant, limit=max(1, min(limit, PAGE_MAX)), after=after, id_prefix=id_prefix)

    async def wait_revision(self, revision: int, limit_s: float) -> bool:
        """Until the view has reached a revision that another pod has seen; False: it has not, within `limit_s`."""
        if self._view.revision >= revision or self._following is None or self._following.done():
            return self._view.revision >= revision
        waiter = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (revision, next(self._waiting_ids), waiter))
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limit_s):
                    await waiter
        finally:
            if waiter.cancelled():
                self._waiter_left()
        return self._view.revision >= revision

    def _waiter_left(self) -> None:
        """One that waits no more lies in the heap still: it may wait for a revision that never comes."""
        self._waiters_left += 1
        if 2 * self._waiters_left > len(self._waiting):
            self._waiting = [waiting for waiting in self._waiting if not waiting[2].done()]
            heapq.heapify(self._waiting)
            self._waiters_left = 0

    def on_change(self, listener: Callable[[Changes], None]) -> Callable[[], None]:
        """Call `listener` on the loop after each change of the view, the first list included; returns its end."""
        listener_id = next(self._listener_ids)
        self._listeners[listener_id] = listener

        def stop() -> None:
            self._listeners.pop(listener_id, None)

        return stop

    def shared_name(self, name: ModelName) -> ModelName:
        """An equal name made of what is in memory anyway, for those who keep very many."""
        record = self._view.tenant(name.tenant).models.get(name.id)
        return name if record is None else ModelName(record.tenant, record.id)

    # Another store --------------------------------------------------------------------------------------------------

    @property
    def detached(self) -> bool:
        """The store has lost what this view shows; see the module's text."""
        return self._detached

    def on_detached(self, listener: Callable[[], None]) -> None:
        """Call `listener` on the loop when that is found; there is one such listener, or none."""
        self._on_detached = listener

    async def adopt(self) -> None:
        """Take what the store has now for what is registered, and follow it again. Raises StoreError.

        Without effect unless detached. Listeners hear what differs from the last view; revisions begin anew.
        """
        async with self._adopting:
            if not self._detached:
                return
            view, _ = await self._read_all(RegistryView())
            self._detached = False
            self._adopted.set()
            changes = changes_between(self._view, view)
            self._view = view
            for _, _, waiter in self._waiting:
                _wake(waiter)
            self._waiting.clear()
            self._tell(changes)

    def _check_attached(self) -> None:
        if self._detached:
            raise StoreUnavailable(
                "the store has lost its registrations, and they are being restored from the pods' last view; try again"
            )

    # Models ---------------------------------------------------------------------------------------------------------

    async def register(
        self, tenant: str, model_id: str, spec: ModelSpec, *, if_generation: int | None = None
    ) -> Registered:
        """Register a model; the same spec again changes nothing, another needs `if_generation` (0: only create).

        Raises InvalidName, AlreadyExists, GenerationMismatch, UnsupportedRecord, Contended.
        """
        (result,) = await self.register_many(tenant, [Registration(model_id, spec, if_generation)])
        if isinstance(result, PlacementError):
            raise result
        return result

    async def register_many(self, tenant: str, entries: Sequence[Registration]) -> list[Registered | PlacementError]:
        """One result for each entry, in their order; what is wrong with one does not touch its neighbours."""
        keys.check_tenant(tenant)
        self._check_attached()
        results = await self._models.register_many(tenant, entries)
        await self._wait_view(max((r.record.revision for r in results if isinstance(r, Registered)), default=0))
        return results

    async def unregister(self, tenant: str, model_id: str) -> bool:
        """Whether there was such a model. Raises StillReferenced while an alias points at it."""
        keys.check_tenant(tenant)
        self._check_attached()
        keys.check_id(model_id)
        revision = await self._models.unregister(tenant, model_id)
        await self._wait_view(revision or 0)
        return revision is not None

    async def unregister_many(self, tenant: str, model_ids: Sequence[str]) -> list[bool | PlacementError]:
        """One result for each id: whether it was there, or why it stays."""
        keys.check_tenant(tenant)
        self._check_attached()
        results = await self._models.unregister_many(tenant, model_ids)
        await self._wait_view(max((r for r in results if isinstance(r, int)), default=0))
        return [result if isinstance(result, PlacementError) else result is not None for result in results]

    async def set_pinned(self, tenant: str, model_id: str, pinned: bool) -> ModelRecord:
        """Pin or unpin; the generation stays, since what is served does not change. Raises NotFound, Contended."""
        keys.check_tenant(tenant)
        self._check_attached()
        keys.check_id(model_id)
        record = await self._models.set_pinned(tenant, model_id, pinned)
        await self._wait_view(record.revision)
        return record

    # Aliases --------------------------------------------------------------------------------------------------------

    async def set_alias(
        self,
        tenant: str,
        alias_id: str,
        target: str,
        *,
        owner: str = "",
        expected_target: str | None = None,
        update_only: bool = False,
        force: bool = False,
        target_spec: ModelSpec | None = None,
        auto_delete_target: bool = False,
        weights: Mapping[str, int] | None = None,
    ) -> AliasRecord:
        """Create an alias or move it; see `placement.alias_rules` for what happens when.

        `force`: switch at once; the mesh also sets it when the active model has no copy that could serve on.
        `target_spec`: register the target in the same transaction. `weights`: split the traffic, at once.
        Raises InvalidName, InvalidSpec, NotFound, AlreadyExists, TargetMismatch, UnsupportedRecord, Contended.
        """
        keys.check_tenant(tenant)
        self._check_attached()
        keys.check_id(alias_id)
        keys.check_id(target)
        request = AliasRequest(
            tenant, alias_id, target, owner, expected_target or None, update_only, force, dict(weights or {})
        )
        record = await self._aliases.set(request, target_spec, auto_delete_target=auto_delete_target)
        await self._wait_view(record.revision)
        return record

    async def finish_transition(self, tenant: str, alias_id: str, target: str) -> AliasRecord | None:
        """The target is ready: it becomes active. None: the alias has gone, or has another target by now."""
        self._check_attached()
        record = await self._aliases.finish(tenant, alias_id, target)
        await self._wait_view(record.revision if record is not None else 0)
        return record

    async def fail_transition(self, tenant: str, alias_id: str, target: str, reason: str) -> AliasRecord | None:
        """The target could not be loaded; the active model serves on. None: as for `finish_transition`."""
        self._check_attached()
        record = await self._aliases.fail(tenant, alias_id, target, reason)
        await self._wait_view(record.revision if record is not None else 0)
        return record

    async def delete_alias(self, tenant: str, alias_id: str, *, owner: str = "") -> bool:
        """Whether there was such an alias, of that owner if one is given."""
        keys.check_tenant(tenant)
        self._check_attached()
        keys.check_id(alias_id)
        revision = await self._aliases.delete(tenant, alias_id, owner)
        await self._wait_view(revision or 0)
        return revision is not None

    # Following the store --------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        retry_s = RETRY_FIRST_S
        while True:
            try:
                async with contextlib.aclosing(self._store.watch(_WATCHED, self._view.revision + 1)) as batches:
                    async for batch in batches:
                        self._apply(batch)
                        retry_s = RETRY_FIRST_S
            except StoreReplaced as error:
                await self._be_detached(error)
                continue
            except Compacted:
                log.info("the registry's view fell behind the store's history; listing everything again")
                if await self._list_or_say_why():
                    continue
            except StoreClosed:
                return
            except StoreError as error:
                log.warning("the registry goes on from its last view: %s", error)
            await asyncio.sleep(retry_s)
            retry_s = min(2 * retry_s, RETRY_MAX_S)

    async def _be_detached(self, error: StoreReplaced) -> None:
        """Until somebody calls `adopt`."""
        log.error("the registrations are gone from the store; this pod keeps its last view of them: %s", error)
        self._detached = True
        self._adopted.clear()
        try:
            self._on_detached()
        except Exception:
            log.exception("the listener for a replaced store failed")
        await self._adopted.wait()

    async def _list_or_say_why(self) -> bool:
        try:
            await self._list()
        except StoreClosed:
            return False
        except StoreError as error:
            log.warning("the registry goes on from its last view: %s", error)
            return False
        return True

    async def _list(self) -> None:
        self._move(*await self._read_all(self._view))

    async def _read_all(self, view: RegistryView) -> tuple[RegistryView, Changes]:
        """The picture after `view` that has all that the store has, and nothing else."""
        events: list[NameEvent] = []
        first_revision: int | None = None
        listed: dict[str, set[tuple[str, str]]] = {prefix: set() for prefix in _WATCHED}
        for prefix in _WATCHED:
            from_key: str | None = ""
            while from_key is not None:
                page = await self._store.range(prefix, limit=LIST_PAGE, from_key=from_key)
                first_revision = page.revision if first_revision is None else first_revision
                for kv in page.items:
                    event = _name_event(kv, deleted=False)
                    if event is not None:
                        events.append(event)
                        listed[prefix].add((event.tenant, event.id))
                from_key = page.next_key
        assert first_revision is not None
        for tenant, names in view.tenants.items():
            for is_alias, prefix, known in (
                (False, keys.MODELS, names.models),
                (True, keys.ALIASES, names.aliases),
            ):
                gone = [name for name in known if (tenant, name) not in listed[prefix]]
                events.extend(NameEvent(is_alias, tenant, name, first_revision, None) for name in gone)
        return advance(view, events, first_revision)

    def _apply(self, batch: WatchBatch) -> None:
        """One turn of following: the view and the listeners move on by one batch."""
        events = (_name_event(event.kv, deleted=event.kind == "delete") for event in batch.events)
        self._move(*advance(self._view, [event for event in events if event is not None], batch.revision))

    def _move(self, view: RegistryView, changes: Changes) -> None:
        self._view = view
        while self._waiting and self._waiting[0][0] <= view.revision:
            _wake(heapq.heappop(self._waiting)[2])
        self._tell(changes)

    def _tell(self, changes: Changes) -> None:
        if not changes:
            return
        for listener in tuple(self._listeners.values()):
            try:
                listener(changes)
            except Exception:
                log.exception("a listener of the registry failed on revision %d", changes.revision)

    async def _wait_view(self, revision: int) -> None:
        """Until this pod's view has what it wrote."""
        if not await self.wait_revision(revision, VIEW_WAIT_S):
            log.warning(
                "revision %d is in the store, but this pod's view is still at %d", revision, self._view.revision
            )


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _name_event(kv: KeyValue, *, deleted: bool) -> NameEvent | None:
    """What a change of a key means for the names; None for a key that no version of hexcomb writes."""
    try:
        tenant, name = keys.split_name_key(kv.key)
        tenant = shared_text(tenant)
    except (InvalidName, UnicodeDecodeError):
        log.warning("key %r in the store is nobody's; it is left alone", kv.key[:200])
        return None
    is_alias = kv.key.startswith(keys.ALIASES)
    if deleted:
        return NameEvent(is_alias, tenant, name, kv.mod_revision, None)
    parse = alias_from_json if is_alias else model_from_json
    try:
        return NameEvent(is_alias, tenant, name, kv.mod_revision, parse(tenant, name, kv.value, kv.mod_revision))
    except UnsupportedRecord as error:
        log.warning("%s", error)
        return NameEvent(is_alias, tenant, name, kv.mod_revision, error)
