"""All models and aliases as one immutable picture, and the next picture after some events.

The request path asks this picture and nothing else: a name is resolved with two dictionary look-ups, without the
store, a lock or a task. A batch of events makes a new picture that shares all but what changed with the one before
(`placement.layered_map`), and whoever holds the old one goes on reading it undisturbed, threads included.

Events may be seen twice or older than what is known (a list that was read in pages while the world moved), so each
name remembers the revision it was last changed at and ignores what is not newer. Deleted names need no memory: the
watch that follows a list begins at the revision of the list's first page, so it brings every later delete itself.

A record that cannot be read (written by a newer version) takes its name with it, and only its name: resolving it
raises the reason, its neighbours serve.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from placement.errors import NotFound, UnsupportedRecord
from placement.layered_map import LayeredMap
from placement.records import AliasRecord, ModelRecord


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a name stands for: the model that serves, and the alias that led to it (None: the model's own id)."""

    record: ModelRecord
    alias: AliasRecord | None = None


@dataclass(frozen=True, slots=True)
class ModelChange:
    """A model appeared (`before` is None), changed, or went (`after` is None)."""

    tenant: str
    id: str
    before: ModelRecord | None
    after: ModelRecord | None


@dataclass(frozen=True, slots=True)
class AliasChange:
    """An alias appeared, changed, or went."""

    tenant: str
    id: str
    before: AliasRecord | None
    after: AliasRecord | None


@dataclass(frozen=True, slots=True)
class Changes:
    """All that one batch changed; listeners see it after the view has moved on to it."""

    revision: int
    models: tuple[ModelChange, ...] = ()
    aliases: tuple[AliasChange, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.models or self.aliases)


@dataclass(frozen=True, slots=True)
class ModelPage:
    """Models in the order of their ids. `next_after` goes into the next call; None: this was the last page."""

    records: tuple[ModelRecord, ...]
    next_after: str | None


@dataclass(slots=True)
class _Sorted:
    """Names in order, computed on the first listing of a picture and kept with it."""

    models: list[str] | None = None
    aliases: list[str] | None = None


@dataclass(frozen=True, slots=True)
class TenantView:
    """The names of one tenant."""

    models: Mapping[str, ModelRecord] = field(default_factory=dict)
    aliases: Mapping[str, AliasRecord] = field(default_factory=dict)
    aliases_of: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Model id -> the aliases that point at it, as active, target or by weight."""
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """Name -> why its record cannot be read."""
    _sorted: _Sorted = field(default_factory=_Sorted, compare=False, repr=False)

    def sorted_ids(self) -> list[str]:
        """All model ids in order."""
        if self._sorted.models is None:
            self._sorted.models = sorted(self.models)
        return self._sorted.models

    def sorted_aliases(self) -> list[str]:
        """All alias ids in order."""
        if self._sorted.aliases is None:
            self._sorted.aliases = sorted(self.aliases)
        return self._sorted.aliases


_NO_TENANT = TenantView()


@dataclass(frozen=True, slots=True)
class RegistryView:
    """Everything that is registered, as of one revision of the store."""

    revision: int = 0
    tenants: Mapping[str, TenantView] = field(default_factory=dict)

    def tenant(self, tenant: str) -> TenantView:
        """The tenant's names; an empty view for a tenant that has none."""
        return self.tenants.get(tenant, _NO_TENANT)

    def model_count(self) -> int:
        """Registered models of all tenants."""
        return sum(len(view.models) for view in self.tenants.values())

    def resolve(self, tenant: str, name: str, draw: float = 0.0) -> Resolved:
        """Model or alias -> the model that serves; `draw` in [0, 1) decides among an alias's weights.

        Raises NotFound, UnsupportedRecord.
        """
        names = self.tenants.get(tenant, _NO_TENANT)
        record = names.models.get(name)
        if record is not None:
            return Resolved(record)
        alias = names.aliases.get(name)
        if alias is None:
            if name in names.unreadable:
                raise UnsupportedRecord(names.unreadable[name])
            raise NotFound(f"model {name!r} is not registered (tenant {tenant!r}); register it first")
        chosen = alias.choose(draw)
        record = names.models.get(chosen)
        if record is None:
            if chosen in names.unreadable:
                raise UnsupportedRecord(names.unreadable[chosen])
            raise NotFound(
                f"alias {name!r} (tenant {tenant!r}) points at model {chosen!r}, which is not registered; "
                "register it or set the alias to another model"
            )
        return Resolved(record, alias)

    def page(self, tenant: str, *, limit: int, after: str = "", id_prefix: str = "") -> ModelPage:
        """Up to `limit` models whose ids begin with `id_prefix` and come after `after`."""
        names = self.tenant(tenant)
        ids = names.sorted_ids()
        start = max(bisect_right(ids, after), bisect_left(ids, id_prefix))
        picked: list[ModelRecord] = []
        for index in range(start, len(ids)):
            if not ids[index].startswith(id_prefix):
                break
            if len(picked) == limit:
                return ModelPage(tuple(picked), picked[-1].id)
            picked.append(names.models[ids[index]])
        return ModelPage(tuple(picked), None)

    def every_model(self) -> Iterator[ModelRecord]:
        """The models of all tenants, in no order."""
        for names in self.tenants.values():
            yield from names.models.values()


Record = TypeVar("Record", ModelRecord, AliasRecord)
Entry = ModelRecord | AliasRecord | UnsupportedRecord


@dataclass(frozen=True, slots=True)
class NameEvent:
    """A key under `models/` or `aliases/` was put (`entry`) or deleted (`entry` is None)."""

    is_alias: bool
    tenant: str
    id: str
    revision: int
    entry: Entry | None


def advance(view: RegistryView, events: Iterable[NameEvent], revision: int) -> tuple[RegistryView, Changes]:
    """The picture after these events (in the order they happened), and what differs."""
    drafts: dict[str, _Draft] = {}
    for event in events:
        draft = drafts.get(event.tenant)
        if draft is None:
            draft = drafts[event.tenant] = _Draft(view.tenant(event.tenant))
        draft.apply(event)
    if not drafts:
        return replace(view, revision=max(view.revision, revision)), Changes(revision)
    tenants = dict(view.tenants)
    model_changes: list[ModelChange] = []
    alias_changes: list[AliasChange] = []
    for tenant, draft in drafts.items():
        before, after = view.tenant(tenant), draft.finish()
        for model_id in draft.touched_models:
            old, new = before.models.get(model_id), after.models.get(model_id)
            if old != new:
                model_changes.append(ModelChange(tenant, model_id, old, new))
        for alias_id in draft.touched_aliases:
            old_alias, new_alias = before.aliases.get(alias_id), after.aliases.get(alias_id)
            if old_alias != new_alias:
                alias_changes.append(AliasChange(tenant, alias_id, old_alias, new_alias))
        if after.models or after.aliases or after.unreadable:
            tenants[tenant] = after
        else:
            tenants.pop(tenant, None)
    new_view = RegistryView(max(view.revision, revision), tenants)
    return new_view, Changes(revision, tuple(model_changes), tuple(alias_changes))


def changes_between(before: RegistryView, after: RegistryView) -> Changes:
    """What differs between two pictures of different stores: revisions mean nothing, so they are not compared."""
    model_changes: list[ModelChange] = []
    alias_changes: list[AliasChange] = []
    for tenant in {**before.tenants, **after.tenants}:
        old, new = before.tenant(tenant), after.tenant(tenant)
        for model_id in {**old.models, **new.models}:
            model, new_model = old.models.get(model_id), new.models.get(model_id)
            if _unlike(model, new_model):
                model_changes.append(ModelChange(tenant, model_id, model, new_model))
        for alias_id in {**old.aliases, **new.aliases}:
            alias, new_alias = old.aliases.get(alias_id), new.aliases.get(alias_id)
            if _unlike(alias, new_alias):
                alias_changes.append(AliasChange(tenant, alias_id, alias, new_alias))
    return Changes(after.revision, tuple(model_changes), tuple(alias_changes))


def _unlike(before: Record | None, after: Record | None) -> bool:
    if before is None or after is None:
        return before is not after
    return replace(before, revision=0) != replace(after, revision=0)


class _Draft:
    """One tenant's names while a batch is applied to them."""

    def __init__(self, base: TenantView) -> None:
        self._models = LayeredMap.of(base.models).edit()
        self._aliases = LayeredMap.of(base.aliases).edit()
        self._aliases_of = LayeredMap.of(base.aliases_of).edit()
        self._unreadable = dict(base.unreadable)
        self.touched_models: dict[str, None] = {}
        self.touched_aliases: dict[str, None] = {}

    def apply(self, event: NameEvent) -> None:
        if event.is_alias:
            self._apply_alias(event)
        else:
            self._apply_model(event)

    def _apply_model(self, event: NameEvent) -> None:
        known = self._models.get(event.id)
        if known is not None and event.revision <= known.revision:
            return
        self.touched_models[event.id] = None
        self._unreadable.pop(event.id, None)
        if isinstance(event.entry, ModelRecord):
            self._models.set(event.id, event.entry)
        else:
            self._models.discard(event.id)
            if isinstance(event.entry, UnsupportedRecord):
                self._unreadable[event.id] = str(event.entry)

    def _apply_alias(self, event: NameEvent) -> None:
        known = self._aliases.get(event.id)
        if known is not None and event.revision <= known.revision:
            return
        self.touched_aliases[event.id] = None
        self._unreadable.pop(event.id, None)
        if known is not None:
            for model_id in known.referenced:
                left = (self._aliases_of.get(model_id) or frozenset()) - {event.id}
                if left:
                    self._aliases_of.set(model_id, left)
                else:
                    self._aliases_of.discard(model_id)
        if isinstance(event.entry, AliasRecord):
            self._aliases.set(event.id, event.entry)
            for model_id in event.entry.referenced:
                self._aliases_of.set(model_id, (self._aliases_of.get(model_id) or frozenset()) | {event.id})
        else:
            self._aliases.discard(event.id)
            if isinstance(event.entry, UnsupportedRecord):
                self._unreadable[event.id] = str(event.entry)

    def finish(self) -> TenantView:
        return TenantView(self._models.finish(), self._aliases.finish(), self._aliases_of.finish(), self._unreadable)
