"""What a pod does when what is registered changes, here or on another pod: every part that must hear of it, in order.

The registry tells of models that came, changed their generation or their pin, or went. What a copy, a failure, a file
on disk or a count belongs to is a generation, so each part is told of the one before and of the one after.
"""

from __future__ import annotations

from cache.events import Forgive
from mesh.generations import Generations, key_of
from mesh.loading.loading import Loading
from mesh.models import Models
from mesh.parking import Parking
from mesh.telemetry import Telemetry
from placement.policy.snapshot import ModelName
from placement.registry import Registry
from placement.view import Changes, ModelChange


class Registrations:
    """Hears of changes; on the event loop."""

    def __init__(
        self,
        registry: Registry,
        models: Models,
        generations: Generations,
        loading: Loading,
        parking: Parking,
        telemetry: Telemetry,
    ) -> None:
        self._registry = registry
        self._models = models
        self._generations = generations
        self._loading = loading
        self._parking = parking
        self._telemetry = telemetry

    def heed(self, changes: Changes) -> None:
        """Have every part follow these changes."""
        for change in changes.models:
            self._heed_model(change)

    def _heed_model(self, change: ModelChange) -> None:
        before, after = change.before, change.after
        if after is None or before is None or before.generation != after.generation:
            if after is not None:
                self._loading.forget(key_of(after))
            self._parking.registered(ModelName(change.tenant, change.id), after)
        if before is None:
            assert after is not None
            self._loading.send(Forgive(key_of(after)))
            return
        self._models.heed_pin(before, after)
        incoming = self._generations.changed(before, after)
        if after is None or after.generation != before.generation:
            self._telemetry.tallies.forget(key_of(before))
        if after is None:
            self._telemetry.forget(
                before.spec.format or self._loading.format_of(key_of(before)), change.tenant, change.id
            )
            self._loading.forget(key_of(before))
        if incoming is not None:
            self._models.take_over(incoming)

    def runtime_back(self, formats: frozenset[str]) -> None:
        """A server beside the pod answers again: what could not be loaded meanwhile may be tried again at once."""
        for record in self._registry.view.every_model():
            if record.spec.format in formats and self._loading.failure(key_of(record)) is not None:
                self._loading.send(Forgive(key_of(record)))
