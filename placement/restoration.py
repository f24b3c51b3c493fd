"""Registrations that the store lost, written back from what the pods last knew.

Each pod keeps its last view of the names when it finds that the store was replaced (`placement.registry`). The leader
asks all of them and writes back the union: of a model the highest generation, of an alias the latest change. Only what
is absent is written: whatever was registered or unregistered since then was acknowledged, and stays. So it may be
done again after an interruption, and by two leaders at once.

What comes back that should not: a model that was unregistered shortly before the loss, if some pod had not heard of
it. Its tombstone is lost with the store. A model too many is a smaller harm than one too few.

An alias comes back only with its active model; a target or a weight that is lost leaves the alias without it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from placement import keys
from placement.errors import LimitExceeded
from placement.model_writes import CHUNK_ENTRIES_MAX, CHUNKS_AT_ONCE_MAX, NAME_FREE, write_model
from placement.records import AliasRecord, ModelRecord, alias_to_json, model_to_json
from placement.store.base import Condition, KeyValueStore, Operation, Put, absent, present

ALIASES_AT_ONCE_MAX = 64

Name = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Names:
    """What is to be registered, in the order of names. Every alias points at models among these."""

    models: tuple[ModelRecord, ...]
    aliases: tuple[AliasRecord, ...]


@dataclass(frozen=True, slots=True)
class Restored:
    """What came of writing names back."""

    models: int
    aliases: int
    kept: int
    """Names that the store had, or had a tombstone of: left as they are."""

    def __str__(self) -> str:
        return f"{self.models} models and {self.aliases} aliases were written back, {self.kept} names were there"


def merge_names(exports: Iterable[tuple[Sequence[ModelRecord], Sequence[AliasRecord]]]) -> Names:
    """The union of the pods' views; the order of the pods does not matter."""
    models: dict[Name, ModelRecord] = {}
    aliases: dict[Name, AliasRecord] = {}
    for exported_models, exported_aliases in exports:
        for model in exported_models:
            known = models.get((model.tenant, model.id))
            if known is None or _model_order(model) > _model_order(known):
                models[model.tenant, model.id] = model
        for alias in exported_aliases:
            known_alias = aliases.get((alias.tenant, alias.id))
            if known_alias is None or _alias_order(alias) > _alias_order(known_alias):
                aliases[alias.tenant, alias.id] = alias
    whole = (_with_known_models(alias, models) for name, alias in sorted(aliases.items()) if name not in models)
    return Names(tuple(models[name] for name in sorted(models)), tuple(alias for alias in whole if alias is not None))


def _model_order(record: ModelRecord) -> tuple[int, float, bytes]:
    # 1. the highest generation; 2. the latest of its writes; 3. the record's text, so that the order is total.
    return record.generation, record.generation_at_s, model_to_json(record)


def _alias_order(record: AliasRecord) -> tuple[float, bytes]:
    # 1. the latest change; 2. the record's text, so that the order is total.
    return record.changed_at_s, alias_to_json(record)


def _with_known_models(alias: AliasRecord, models: dict[Name, ModelRecord]) -> AliasRecord | None:
    lost = {model_id for model_id in alias.referenced if (alias.tenant, model_id) not in models}
    if not lost:
        return alias
    if alias.active in lost:
        return None
    weights = {model_id: share for model_id, share in alias.weights.items() if model_id not in lost}
    return replace(
        alias,
        target=alias.active if alias.target in lost else alias.target,
        weights=weights if any(weights.values()) else {},
    )


async def restore_names(store: KeyValueStore, names: Names) -> Restored:
    """Write what is absent. Raises StoreUnavailable; then part of it is written, and it may be done again."""
    gate = asyncio.Semaphore(CHUNKS_AT_ONCE_MAX)

    async def restore(chunk: Sequence[ModelRecord]) -> int:
        async with gate:
            return await _restore_models(store, chunk)

    models = names.models
    chunks = (models[start : start + CHUNK_ENTRIES_MAX] for start in range(0, len(models), CHUNK_ENTRIES_MAX))
    written_models = sum(await asyncio.gather(*map(restore, chunks)))
    written_aliases = 0
    for start in range(0, len(names.aliases), ALIASES_AT_ONCE_MAX):
        some = names.aliases[start : start + ALIASES_AT_ONCE_MAX]
        written_aliases += sum(await asyncio.gather(*(_restore_alias(store, alias) for alias in some)))
    kept = len(names.models) + len(names.aliases) - written_models - written_aliases
    return Restored(written_models, written_aliases, kept)


async def _restore_models(store: KeyValueStore, records: Sequence[ModelRecord]) -> int:
    """How many were absent. All together, or, when one of them is there, each alone."""
    compares: list[Condition] = []
    operations: list[Operation] = []
    for record in records:
        more_compares, more_operations = write_model(record, NAME_FREE)
        compares += more_compares
        operations += more_operations
    try:
        if (await store.txn(compares, operations)).succeeded:
            return len(records)
    except LimitExceeded:
        if len(records) == 1:
            raise
    if len(records) == 1:
        return 0
    return sum([await _restore_models(store, [record]) for record in records])


async def _restore_alias(store: KeyValueStore, alias: AliasRecord) -> int:
    """Whether it was absent, and its models there; as a number."""
    tenant, referenced = alias.tenant, sorted(alias.referenced)
    compares: list[Condition] = [
        absent(keys.alias_key(tenant, alias.id)),
        absent(keys.model_key(tenant, alias.id)),
        *(present(keys.model_key(tenant, model_id)) for model_id in referenced),
    ]
    operations: list[Operation] = [
        Put(keys.alias_key(tenant, alias.id), alias_to_json(alias)),
        *(Put(keys.reference_key(tenant, model_id, alias.id), b"") for model_id in referenced),
    ]
    return int((await store.txn(compares, operations)).succeeded)
