"""Carries out changes of aliases: reads, plans (`placement.alias_rules`), and one transaction.

An alias keeps a `references/` key for each model that it points at. They change in the transaction that changes the
alias, and a model is unregistered only in a transaction that finds none. So no alias ever points at a model that is
not registered, and neither side locks the other out.

**Auto-delete.** A model that was made for an alias goes when the last alias lets go of it, in the transaction that
lets go. Two aliases that let go at the same time must not each leave the other to do it: who keeps the model names
another reference as witness and compares that it still stands; who deletes it compares that no reference was added
since it looked. One of the two then loses its race, looks again, and deletes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from placement import keys
from placement.alias_rules import AliasRequest, Keep, Write, check_owner, plan_alias, plan_fail, plan_finish
from placement.errors import AlreadyExists, InvalidSpec, LeaseNotFound, NotFound, UnsupportedRecord
from placement.model_writes import TRIES_MAX, ModelWriter, contended, name_reads, seen_name, write_model
from placement.records import AliasRecord, ModelSpec, alias_from_json, alias_to_json, model_from_json
from placement.registration import Outcome, Refused, Registration, plan_registration
from placement.store.base import (
    Condition,
    Delete,
    KeyValueStore,
    NoneUnder,
    Operation,
    Put,
    absent,
    present,
    unchanged,
)
from placement.tombstones import TombstoneLease


@dataclass(slots=True)
class _Draft:
    """The transaction in the making. A key is written once, whoever asks for it first."""

    compares: list[Condition] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)


class AliasWriter:
    """Writes aliases, and the models that are made or go with them."""

    def __init__(
        self, store: KeyValueStore, clock: Callable[[], float], models: ModelWriter, tombstones: TombstoneLease
    ) -> None:
        self._store = store
        self._clock = clock
        self._models = models
        self._tombstones = tombstones

    async def set(
        self, request: AliasRequest, target_spec: ModelSpec | None = None, *, auto_delete_target: bool = False
    ) -> AliasRecord:
        """The record after the call.

        `target_spec` registers the target in the same transaction, or must equal what it is registered with;
        `auto_delete_target` is of use only to a target that this call registers.
        Raises NotFound, AlreadyExists, TargetMismatch, InvalidSpec, Contended.
        """
        tenant, alias_id = request.tenant, request.id
        if alias_id == request.target or alias_id in request.weights:
            raise InvalidSpec(f"alias {alias_id!r} (tenant {tenant!r}) would point at itself; give a model's id")
        for _ in range(TRIES_MAX):
            known = await self._read(tenant, alias_id)
            plan = plan_alias(request, known, self._clock())
            if isinstance(plan, Refused):
                raise plan.error
            draft = _Draft()
            await self._demand_target(draft, request, target_spec, auto_delete_target)
            if isinstance(plan, Keep):
                if not draft.operations:
                    return plan.record
                plan = Write(plan.record)
            elif known is None:
                draft.compares.append(absent(keys.model_key(tenant, alias_id)))
            for model_id in sorted(plan.record.referenced - {request.target}):
                if known is None or model_id not in known.referenced:
                    await self._demand_model(draft, tenant, model_id)
            written = await self._write(draft, known, plan.record)
            if written is not None:
                return written
            if known is None and await self._store.get(keys.model_key(tenant, alias_id)) is not None:
                raise AlreadyExists(
                    f"{alias_id!r} (tenant {tenant!r}) is a registered model, and models and aliases share their "
                    "names; choose another name or unregister the model"
                )
        raise contended("alias", tenant, alias_id)

    async def finish(self, tenant: str, alias_id: str, target: str) -> AliasRecord | None:
        """The target is ready: switch. None: the alias has gone, or has another target by now."""
        for _ in range(TRIES_MAX):
            known = await self._read(tenant, alias_id)
            plan = plan_finish(known, target, self._clock())
            if plan is None or isinstance(plan, Keep):
                return plan.record if plan is not None else None
            written = await self._write(_Draft(), known, plan.record)
            if written is not None:
                return written
        raise contended("alias", tenant, alias_id)

    async def fail(self, tenant: str, alias_id: str, target: str, reason: str) -> AliasRecord | None:
        """The target could not be loaded: say so. None: the alias has gone, or has another target by now."""
        for _ in range(TRIES_MAX):
            known = await self._read(tenant, alias_id)
            plan = plan_fail(known, target, reason, self._clock())
            if plan is None or isinstance(plan, Keep):
                return plan.record if plan is not None else None
            written = await self._write(_Draft(), known, plan.record)
            if written is not None:
                return written
        raise contended("alias", tenant, alias_id)

    async def delete(self, tenant: str, alias_id: str, owner: str = "") -> int | None:
        """The revision at which it went; None: there was none, or it is somebody else's (as ModelMesh answers)."""
        alias_key = keys.alias_key(tenant, alias_id)
        for _ in range(TRIES_MAX):
            known = await self._read(tenant, alias_id)
            if known is None or check_owner(known, owner) is not None:
                return None
            draft = _Draft([unchanged(alias_key, known.revision)], [Delete(alias_key)])
            await self._let_go(draft, known, known.referenced)
            revision = await self._commit(draft)
            if revision is not None:
                return revision
        raise contended("alias", tenant, alias_id)

    async def _read(self, tenant: str, alias_id: str) -> AliasRecord | None:
        kv = await self._store.get(keys.alias_key(tenant, alias_id))
        return alias_from_json(tenant, alias_id, kv.value, kv.mod_revision) if kv is not None else None

    async def _demand_target(
        self, draft: _Draft, request: AliasRequest, spec: ModelSpec | None, auto_delete: bool
    ) -> None:
        if spec is None:
            await self._demand_model(draft, request.tenant, request.target)
            return
        reads = (await self._store.txn([], name_reads(request.tenant, request.target))).reads
        seen = seen_name(request.tenant, request.target, reads)
        entry = Registration(request.target, spec)
        plan = plan_registration(request.tenant, entry, seen.state, self._clock(), auto_delete=auto_delete)
        if isinstance(plan, Refused):
            raise plan.error
        if plan.outcome is Outcome.UNCHANGED:
            draft.compares.append(unchanged(keys.model_key(request.tenant, request.target), seen.model_revision))
            return
        compares, operations = write_model(plan.record, seen)
        draft.compares += compares
        draft.operations += operations

    async def _demand_model(self, draft: _Draft, tenant: str, model_id: str) -> None:
        model_key = keys.model_key(tenant, model_id)
        if await self._store.get(model_key) is None:
            raise NotFound(
                f"model {model_id!r} is not registered (tenant {tenant!r}), so no alias can point at it; register it "
                "first"
            )
        draft.compares.append(present(model_key))

    async def _write(self, draft: _Draft, known: AliasRecord | None, record: AliasRecord) -> AliasRecord | None:
        tenant, alias_id = record.tenant, record.id
        alias_key = keys.alias_key(tenant, alias_id)
        draft.compares.append(unchanged(alias_key, known.revision if known is not None else 0))
        draft.operations.append(Put(alias_key, alias_to_json(record)))
        held = known.referenced if known is not None else frozenset()
        for model_id in sorted(record.referenced - held):
            draft.operations.append(Put(keys.reference_key(tenant, model_id, alias_id), b""))
        if known is not None:
            await self._let_go(draft, known, held - record.referenced)
        revision = await self._commit(draft)
        return replace(record, revision=revision) if revision is not None else None

    async def _let_go(self, draft: _Draft, alias: AliasRecord, model_ids: frozenset[str]) -> None:
        """Drop the alias's references, and with the last of them a model that was made for aliases."""
        tenant = alias.tenant
        for model_id in sorted(model_ids):
            own_reference = keys.reference_key(tenant, model_id, alias.id)
            model_key = keys.model_key(tenant, model_id)
            draft.operations.append(Delete(own_reference))
            kv = await self._store.get(model_key)
            if kv is None:
                continue
            try:
                if not model_from_json(tenant, model_id, kv.value).auto_delete:
                    continue
            except UnsupportedRecord:
                continue
            prefix = keys.references_prefix(tenant, model_id)
            page = await self._store.range(prefix, limit=2)
            witness = next((item.key for item in page.items if item.key != own_reference), None)
            if witness is not None:
                draft.compares.append(present(witness))
                continue
            draft.compares.append(NoneUnder(prefix, newer_than=page.revision))
            draft.compares.append(unchanged(model_key, kv.mod_revision))
            draft.operations.append(Delete(model_key))
            draft.operations.append(await self._models.tombstone(tenant, model_id, kv))

    async def _commit(self, draft: _Draft) -> int | None:
        try:
            result = await self._store.txn(draft.compares, draft.operations)
        except LeaseNotFound:
            self._tombstones.forget()
            return None
        return result.revision if result.succeeded else None
