"""What is so, as nobody in the pool can know it: what the store holds at this instant, and who serves what.

Checkers compare what pods believe and answer with this. The store is followed at the server itself, without delay;
copies are reported by each pod's cache as they change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from cache.types import ModelKey
from mesh.simulation.store import StoreServer
from placement import keys
from placement.errors import Compacted
from placement.policy.snapshot import ModelName
from placement.records import AliasRecord, ModelRecord, alias_from_json, model_from_json
from placement.store.base import Event

_PREFIXES = (keys.MODELS, keys.ALIASES, keys.COPIES, keys.PARKED, keys.SUSPICIONS)


@dataclass(slots=True)
class Story:
    """All that a name ever was."""

    changed_s: float = 0.0
    """When its record was last put or deleted."""
    uris: dict[str, None] = field(default_factory=dict)
    """Of a model, in every generation that was stored."""
    models: dict[str, None] = field(default_factory=dict)
    """Of an alias: ids that it pointed at, as active or by weight."""


class StoreTruth:
    """The records in the store, now. Belongs to the world."""

    def __init__(self, server: StoreServer, clock: Callable[[], float]) -> None:
        self.models: dict[ModelName, ModelRecord] = {}
        self.aliases: dict[ModelName, AliasRecord] = {}
        self.copy_keys: dict[ModelName, dict[str, bytes]] = {}
        """Name -> pod -> the record as it lies in the store."""
        self.parked_keys: dict[ModelName, dict[str, bytes]] = {}
        """The same, of what is parked."""
        self.suspicions: dict[ModelName, bytes] = {}
        self.stories: dict[ModelName, Story] = {}
        self.wiped_s: list[float] = []
        self.on_alias: list[Callable[[AliasRecord | None, AliasRecord | None], None]] = []
        """Called with an alias before and after each change."""
        self._server = server
        self._clock = clock
        self._cluster = server.cluster
        self._position = 1
        server.on_write(self._follow)

    def story(self, name: ModelName) -> Story:
        """What the name has been so far."""
        return self.stories.get(name) or Story()

    def _follow(self) -> None:
        if self._server.cluster != self._cluster:
            self._cluster = self._server.cluster
            self._position = 1
            self.wiped_s.append(self._clock())
            for records in (self.models, self.aliases):
                for name in records:
                    self._story(name).changed_s = self._clock()
            self.models.clear()
            self.aliases.clear()
            self.copy_keys.clear()
            self.parked_keys.clear()
            self.suspicions.clear()
        try:
            batch = self._server.memory.batch_from(_PREFIXES, self._position)
        except Compacted:
            self._position = self._server.memory.revision + 1  # nothing was missed: each write is followed at once
            return
        self._position = batch.revision + 1
        for event in batch.events:
            self._apply(event)

    def _apply(self, event: Event) -> None:
        key, value = event.kv.key, event.kv.value
        if key.startswith((keys.COPIES, keys.PARKED)):
            tenant, model_id, pod = keys.split_key(key, 3)
            held = self.copy_keys if key.startswith(keys.COPIES) else self.parked_keys
            holders = held.setdefault(ModelName(tenant, model_id), {})
            if event.kind == "put":
                holders[pod] = value
            else:
                holders.pop(pod, None)
            return
        name = ModelName(*keys.split_name_key(key))
        if key.startswith(keys.SUSPICIONS):
            if event.kind == "put":
                self.suspicions[name] = value
            else:
                self.suspicions.pop(name, None)
            return
        story = self._story(name)
        story.changed_s = self._clock()
        if key.startswith(keys.MODELS):
            if event.kind == "delete":
                self.models.pop(name, None)
                return
            record = model_from_json(name.tenant, name.id, value, event.kv.mod_revision)
            self.models[name] = record
            story.uris[record.spec.uri] = None
            return
        before = self.aliases.pop(name, None)
        after = None
        if event.kind == "put":
            after = self.aliases[name] = alias_from_json(name.tenant, name.id, value, event.kv.mod_revision)
            story.models.update(dict.fromkeys((after.active, *after.weights)))
        for listener in self.on_alias:
            listener(before, after)

    def _story(self, name: ModelName) -> Story:
        return self.stories.setdefault(name, Story())


@dataclass(slots=True)
class Serving:
    """One copy that answers."""

    key: ModelKey
    since_s: float


class ServingTruth:
    """Who serves which model, and since when. Belongs to the world; the pods' caches report to it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._copies: dict[ModelName, dict[str, dict[ModelKey, Serving]]] = {}
        self._ended_s: dict[tuple[ModelName, str], float] = {}
        self._loading: dict[ModelName, dict[str, dict[ModelKey, None]]] = {}

    def is_loading(self, machine: str, key: ModelKey) -> bool:
        """A copy there is on its way in; whether this is news."""
        held = self._loading.setdefault(ModelName(key.tenant, key.model_id), {}).setdefault(machine, {})
        if key in held:
            return False
        held[key] = None
        return True

    def is_serving(self, machine: str, key: ModelKey) -> None:
        """A copy there answers from now on, or still does."""
        name = ModelName(key.tenant, key.model_id)
        self._loading.get(name, {}).get(machine, {}).pop(key, None)
        self._copies.setdefault(name, {}).setdefault(machine, {}).setdefault(key, Serving(key, self._clock()))

    def stopped(self, machine: str, key: ModelKey) -> None:
        """It does not, or did not."""
        name = ModelName(key.tenant, key.model_id)
        self._loading.get(name, {}).get(machine, {}).pop(key, None)
        held = self._copies.get(name, {}).get(machine)
        if held is not None and held.pop(key, None) is not None:
            self._ended_s[(name, machine)] = self._clock()

    def process_ended(self, machine: str) -> None:
        """Nothing there answers any more."""
        for name, holders in self._copies.items():
            if holders.pop(machine, None):
                self._ended_s[(name, machine)] = self._clock()
        for loading in self._loading.values():
            loading.pop(machine, None)

    def present(self, name: ModelName) -> list[str]:
        """Machines that serve the model, or load it."""
        held = (self._copies.get(name, {}), self._loading.get(name, {}))
        return list(dict.fromkeys(machine for by_machine in held for machine, keys in by_machine.items() if keys))

    def holders(self, name: ModelName) -> dict[str, dict[ModelKey, Serving]]:
        """Machines that serve the model, with what they serve of it."""
        return {machine: held for machine, held in self._copies.get(name, {}).items() if held}

    def served_within(self, name: ModelName, since_s: float) -> bool:
        """Whether the model had a copy that answers at any moment since then."""
        if self.holders(name):
            return True
        return any(ended_s >= since_s for (model, _), ended_s in self._ended_s.items() if model == name)
