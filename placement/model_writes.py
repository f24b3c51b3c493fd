"""Carries out registrations and unregistrations: reads, plans, and one transaction that says what it believed.

**Bulk.** Entries go in chunks, one transaction each, several chunks at a time. The first try assumes what is true of
nearly every entry, that its name is free; if that fails for any entry of the chunk, the failed transaction brings the
truth about all of them, each is planned anew (`placement.registration`), and what is left to write goes into the next
try. A chunk that keeps losing is taken apart, so that one contended name does not hold up its neighbours.

**One name space.** Registering a model compares that no alias has its name, in the same transaction; setting an alias
compares the same of models.

**Tombstones.** Unregistering leaves one for an hour; a model registered again goes on from its generation, so a copy
or a cached answer of the old one is never taken for the new.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from placement import keys
from placement.errors import (
    Contended,
    LeaseNotFound,
    LimitExceeded,
    NotFound,
    PlacementError,
    StillReferenced,
    UnsupportedRecord,
)
from placement.records import (
    ModelRecord,
    Tombstone,
    model_from_json,
    model_to_json,
    tombstone_from_json,
    tombstone_to_json,
    with_pinned,
)
from placement.registration import NameState, Outcome, Refused, Registered, Registration, plan_registration
from placement.store.base import (
    Condition,
    Delete,
    Get,
    KeyValue,
    KeyValueStore,
    NoneUnder,
    Operation,
    Put,
    absent,
    unchanged,
)
from placement.tombstones import TombstoneLease

CHUNK_ENTRIES_MAX = 42
"""Three compares each, and etcd takes 128 in a transaction."""
CHUNKS_AT_ONCE_MAX = 16
TRIES_MAX = 10
"""Each lost try means that somebody else's write of the same name succeeded."""
TRIES_TOGETHER_MAX = 3
UNREGISTER_AT_ONCE_MAX = 256


@dataclass(frozen=True, slots=True)
class SeenName:
    """What the store holds under a name, with the revisions that a transaction compares."""

    state: NameState
    model_revision: int = 0
    tombstone_revision: int = 0


NAME_FREE = SeenName(NameState())


def name_reads(tenant: str, name: str) -> tuple[Get, Get, Get]:
    """The operations whose answers `seen_name` takes."""
    return (
        Get(keys.model_key(tenant, name)),
        Get(keys.alias_key(tenant, name)),
        Get(keys.tombstone_key(tenant, name)),
    )


def seen_name(tenant: str, name: str, reads: Sequence[KeyValue | None]) -> SeenName:
    """The state of a name from the answers to `name_reads`."""
    model_kv, alias_kv, tombstone_kv = reads
    try:
        state = NameState(
            model=model_from_json(tenant, name, model_kv.value, model_kv.mod_revision) if model_kv else None,
            tombstone=tombstone_from_json(tenant, name, tombstone_kv.value) if tombstone_kv else None,
            is_alias=alias_kv is not None,
        )
    except UnsupportedRecord as error:
        state = NameState(unreadable=error)
    return SeenName(
        state,
        model_kv.mod_revision if model_kv else 0,
        tombstone_kv.mod_revision if tombstone_kv else 0,
    )


def write_model(record: ModelRecord, seen: SeenName) -> tuple[list[Condition], list[Operation]]:
    """Writes the record if the name is still as it was seen, and no alias has it."""
    tenant, name = record.tenant, record.id
    model_key, tombstone_key = keys.model_key(tenant, name), keys.tombstone_key(tenant, name)
    compares: list[Condition] = [
        unchanged(model_key, seen.model_revision),
        absent(keys.alias_key(tenant, name)),
        unchanged(tombstone_key, seen.tombstone_revision),
    ]
    operations: list[Operation] = [Put(model_key, model_to_json(record))]
    if seen.tombstone_revision:
        operations.append(Delete(tombstone_key))
    return compares, operations


class ModelWriter:
    """Writes models. Knows no view: every answer comes from the store."""

    def __init__(self, store: KeyValueStore, clock: Callable[[], float], tombstones: TombstoneLease) -> None:
        self._store = store
        self._clock = clock
        self._tombstones = tombstones

    async def register_many(self, tenant: str, entries: Sequence[Registration]) -> list[Registered | PlacementError]:
        """One result for each entry, in their order; entries with the same id act as if they came one by one."""
        results: list[Registered | PlacementError | None] = [None] * len(entries)
        waves: list[list[int]] = []
        wave_of: dict[str, int] = {}
        for index, entry in enumerate(entries):
            try:
                keys.check_id(entry.id)
            except PlacementError as error:
                results[index] = error
                continue
            wave = wave_of.get(entry.id, -1) + 1
            wave_of[entry.id] = wave
            if wave == len(waves):
                waves.append([])
            waves[wave].append(index)
        gate = asyncio.Semaphore(CHUNKS_AT_ONCE_MAX)

        async def settle(indices: Sequence[int]) -> None:
            async with gate:
                settled = await self._settle(tenant, [entries[index] for index in indices])
            for index, result in zip(indices, settled, strict=True):
                results[index] = result

        for indices in waves:
            chunks = (indices[i : i + CHUNK_ENTRIES_MAX] for i in range(0, len(indices), CHUNK_ENTRIES_MAX))
            await asyncio.gather(*(settle(chunk) for chunk in chunks))
        return [result for result in results if result is not None]

    async def unregister(self, tenant: str, model_id: str) -> int | None:
        """The revision at which the model went; None: there was none. Raises StillReferenced, Contended."""
        model_key, references = keys.model_key(tenant, model_id), keys.references_prefix(tenant, model_id)
        for _ in range(TRIES_MAX):
            seen = await self._store.txn([NoneUnder(references)], [Get(model_key)], [Get(model_key)])
            kv = seen.reads[0]
            if kv is None:
                return None
            if not seen.succeeded:
                await self._refuse_referenced(tenant, model_id)
                continue
            operations: list[Operation] = [Delete(model_key), await self.tombstone(tenant, model_id, kv)]
            compares: list[Condition] = [
                unchanged(model_key, kv.mod_revision),
                NoneUnder(references),
            ]
            try:
                result = await self._store.txn(compares, operations)
            except LeaseNotFound:
                self._tombstones.forget()
                continue
            if result.succeeded:
                return result.revision
        raise contended("model", tenant, model_id)

    async def _refuse_referenced(self, tenant: str, model_id: str) -> None:
        """Raise StillReferenced, unless the last alias has let go meanwhile."""
        page = await self._store.range(keys.references_prefix(tenant, model_id), limit=4)
        if not page.items:
            return
        aliases = ", ".join(repr(keys.decode_part(item.key.rsplit("/", 1)[1])) for item in page.items)
        raise StillReferenced(
            f"model {model_id!r} (tenant {tenant!r}) is used by alias {aliases}"
            f"{' and others' if page.next_key else ''}; set the alias to another model or delete it first"
        )

    async def unregister_many(self, tenant: str, model_ids: Sequence[str]) -> list[int | PlacementError | None]:
        """One result for each id, as `unregister` gives or raises it."""
        gate = asyncio.Semaphore(UNREGISTER_AT_ONCE_MAX)
        await self._tombstones.current()

        async def one(model_id: str) -> int | PlacementError | None:
            async with gate:
                try:
                    keys.check_id(model_id)
                    return await self.unregister(tenant, model_id)
                except PlacementError as error:
                    return error

        return await asyncio.gather(*(one(model_id) for model_id in model_ids))

    async def set_pinned(self, tenant: str, model_id: str, pinned: bool) -> ModelRecord:
        """The record after the call; its generation stays. Raises NotFound, UnsupportedRecord, Contended."""
        model_key = keys.model_key(tenant, model_id)
        for _ in range(TRIES_MAX):
            kv = await self._store.get(model_key)
            if kv is None:
                raise NotFound(f"model {model_id!r} is not registered (tenant {tenant!r}); register it first")
            record = model_from_json(tenant, model_id, kv.value, kv.mod_revision)
            if record.spec.pinned == pinned:
                return record
            record = with_pinned(record, pinned)
            result = await self._store.txn(
                [unchanged(model_key, kv.mod_revision)], [Put(model_key, model_to_json(record))]
            )
            if result.succeeded:
                return replace(record, revision=result.revision)
        raise contended("model", tenant, model_id)

    async def tombstone(self, tenant: str, model_id: str, model: KeyValue) -> Put:
        """The operation that leaves a tombstone for the model that lay under `model`."""
        try:
            generation = model_from_json(tenant, model_id, model.value).generation
        except UnsupportedRecord:
            generation = model.version  # not readable: at least as many specs as could have been written
        stone = Tombstone(tenant, model_id, generation, self._clock())
        return Put(keys.tombstone_key(tenant, model_id), tombstone_to_json(stone), await self._tombstones.current())

    async def _settle(self, tenant: str, entries: Sequence[Registration]) -> list[Registered | PlacementError]:
        """Results for entries with different ids."""
        results: dict[str, Registered | PlacementError] = {}
        seen: dict[str, SeenName] = {}
        pending = list(entries)
        tries = TRIES_MAX if len(entries) == 1 else TRIES_TOGETHER_MAX
        # To replace a spec one must know it; to create, assume that the name is free.
        unread = [entry for entry in pending if entry.if_generation]
        if unread:
            reads = [read for entry in unread for read in name_reads(tenant, entry.id)]
            try:
                seen.update(_seen_names(tenant, unread, (await self._store.txn([], reads)).reads))
            except PlacementError as error:
                return [error] * len(entries)
        for _ in range(tries):
            to_write: list[tuple[Registration, Registered]] = []
            now_s = self._clock()
            for entry in pending:
                plan = plan_registration(tenant, entry, seen.get(entry.id, NAME_FREE).state, now_s)
                if isinstance(plan, Refused):
                    results[entry.id] = plan.error
                elif plan.outcome is Outcome.UNCHANGED:
                    results[entry.id] = plan
                else:
                    to_write.append((entry, plan))
            pending = [entry for entry, _ in to_write]
            if not pending:
                break
            compares: list[Condition] = []
            operations: list[Operation] = []
            for entry, plan in to_write:
                more_compares, more_operations = write_model(plan.record, seen.get(entry.id, NAME_FREE))
                compares += more_compares
                operations += more_operations
            try:
                result = await self._store.txn(
                    compares, operations, [read for entry in pending for read in name_reads(tenant, entry.id)]
                )
            except LimitExceeded as error:
                if len(pending) == 1:
                    results[pending[0].id] = error
                    pending = []
                break
            except PlacementError as error:
                results.update((entry.id, error) for entry in pending)
                pending = []
                break
            if result.succeeded:
                for entry, plan in to_write:
                    results[entry.id] = Registered(replace(plan.record, revision=result.revision), plan.outcome)
                pending = []
                break
            seen.update(_seen_names(tenant, pending, result.reads))
        if pending and len(entries) > 1:
            alone = await asyncio.gather(*(self._settle(tenant, [entry]) for entry in pending))
            results.update((entry.id, result) for entry, (result,) in zip(pending, alone, strict=True))
        elif pending:
            results[pending[0].id] = contended("model", tenant, pending[0].id)
        return [results[entry.id] for entry in entries]


def _seen_names(
    tenant: str, entries: Sequence[Registration], reads: Sequence[KeyValue | None]
) -> Iterator[tuple[str, SeenName]]:
    for index, entry in enumerate(entries):
        yield entry.id, seen_name(tenant, entry.id, reads[3 * index : 3 * index + 3])


def contended(kind: str, tenant: str, name: str) -> Contended:
    return Contended(
        f"{kind} {name!r} (tenant {tenant!r}) was changed by others {TRIES_MAX} times while this call tried to; try "
        "again"
    )
