"""Replacing a model's spec without a gap: the old generation serves until the new one can.

When a registered model gets a new spec, its generation goes up by one and clients keep calling the same name. If a copy
of the old generation is servable here, it stays the one that answers while the new one is fetched and loaded; the
switch is one assignment on the event loop, and the old copy is retired after it. Without a servable copy there is
nothing to keep, and the next request loads the new generation. A new generation that does not load leaves the old one
serving; the failure shows in the model's status, and a further spec or a successful retry ends the state.

Deliberately absent: waiting. This module is told what happened (`changed`, `loaded`) and answers what serves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cache.types import Bytes, ModelKey, WantedModel
from mesh.loading.places import HOST_MEMORY
from placement.records import ModelRecord


@dataclass(frozen=True, slots=True)
class Replacement:
    """An old generation that goes on serving, and the one that is to take over."""

    serving: ModelRecord
    incoming: ModelRecord


class Generations:
    """Which generation of each model serves on this pod. Owned by the event loop."""

    def __init__(self, is_servable: Callable[[ModelKey], bool], retire: Callable[[ModelKey], None]) -> None:
        self._is_servable = is_servable
        self._retire = retire
        self._replacements: dict[tuple[str, str], Replacement] = {}

    def serving(self, registered: ModelRecord) -> ModelRecord:
        """The record whose copy answers now: the registered one, or the one before it while that is being replaced."""
        if not self._replacements:
            return registered
        replacement = self._replacements.get((registered.tenant, registered.id))
        if replacement is None:
            return registered
        if self._is_servable(key_of(replacement.serving)) and not self._is_servable(key_of(replacement.incoming)):
            return replacement.serving
        # The new copy serves, or the old one was evicted meanwhile: there is no gap left to avoid.
        self._finish(registered.tenant, registered.id)
        return registered

    def record_of(self, key: ModelKey, registered: ModelRecord | None) -> ModelRecord | None:
        """The record of exactly this generation, if it is still of interest."""
        if registered is not None and registered.generation == key.generation:
            return registered
        replacement = self._replacements.get((key.tenant, key.model_id))
        if replacement is not None and replacement.serving.generation == key.generation:
            return replacement.serving
        return None

    def changed(self, before: ModelRecord, after: ModelRecord | None) -> ModelRecord | None:
        """A registration changed or went (None). Returns the record to load now, so that it can take over."""
        name = (before.tenant, before.id)
        replacement = self._replacements.pop(name, None)
        serving = replacement.serving if replacement is not None else before
        if after is None:
            self._retire(key_of(serving))
            if serving.generation != before.generation:
                self._retire(key_of(before))
            return None
        if after.generation == before.generation:
            if replacement is not None:
                self._replacements[name] = replacement
            return None
        if replacement is not None:
            self._retire(key_of(before))  # it never served, and never will
        if not self._is_servable(key_of(serving)):
            self._retire(key_of(serving))
            return None
        self._replacements[name] = Replacement(serving, after)
        return after

    def loaded(self, key: ModelKey) -> None:
        """A copy was loaded: if it was to take over, it does so now, or once it serves: others may have to make room
        for it first, if it came out larger than was reserved."""
        replacement = self._replacements.get((key.tenant, key.model_id))
        if replacement is not None and replacement.incoming.generation == key.generation and self._is_servable(key):
            self._finish(key.tenant, key.model_id)

    def superseded(self, incoming: ModelRecord) -> None:
        """Another pod serves this generation, which this one cannot load: the old one has nothing to wait for."""
        replacement = self._replacements.get((incoming.tenant, incoming.id))
        if replacement is not None and replacement.incoming.generation == incoming.generation:
            self._finish(incoming.tenant, incoming.id)

    def _finish(self, tenant: str, model_id: str) -> None:
        replacement = self._replacements.pop((tenant, model_id))
        self._retire(key_of(replacement.serving))


def key_of(record: ModelRecord) -> ModelKey:
    """The cache's key of one generation of a model."""
    return ModelKey(record.tenant, record.id, record.generation)


def wanted(record: ModelRecord) -> WantedModel:
    """What the cache must know to load a model."""
    spec = record.spec
    return WantedModel(
        key=key_of(record),
        priority=spec.priority,
        pinned=spec.pinned,
        size_hint=None if spec.capacity_hint_bytes is None else Bytes.of(HOST_MEMORY, spec.capacity_hint_bytes),
        # What is to be there always does not leave for want of use.
        ttl_s=0.0 if spec.copies_min else spec.ttl_s,
        comes_back=spec.copies_min > 0,
    )
