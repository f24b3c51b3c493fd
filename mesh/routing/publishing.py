"""What this pod tells the pool of its copies: after each change in the cache, the new state of that model here.

A model without a copy may be parked, its artifact on the disk. That is told in place of a copy, so that each model is
told of once: with the copy's end, or within a turn when the artifact comes or goes by itself.

Only states are published, and only the last one counts, so nothing is lost when the store is away for a while, and a
copy that came and went meanwhile costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isinf

from cache.machine import CacheMachine
from cache.transitions import PENDING
from cache.types import CopyState, ModelKey
from mesh.parking import Parking
from placement.membership import Membership
from placement.policy.snapshot import Copy, LoadFailure, ModelName

PARKED_PER_TURN_MAX = 100
"""About a transaction. After a restart thousands of artifacts may be found, on every pod of the pool."""


class Publisher:
    """Publishes copies, what is parked, and failures. Belongs to the event loop."""

    def __init__(
        self,
        own_pod: str,
        cache: CacheMachine,
        membership: Membership,
        parking: Parking,
        *,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self._own_pod = own_pod
        self._cache = cache
        self._membership = membership
        self._parking = parking
        self._clock = clock
        self._wall_clock = wall_clock
        self._generations: dict[ModelName, dict[int, None]] = {}
        """Of each model that has a copy here, the generations that have one."""
        self._published: dict[ModelName, Copy] = {}
        self._failed: dict[ModelName, int] = {}
        """Models with a published failure, and its generation."""

    def changed(self, keys: Sequence[ModelKey]) -> None:
        """Copies of these models have changed their states."""
        for key in keys:
            name = ModelName(key.tenant, key.model_id)
            self._generations.setdefault(name, {})[key.generation] = None
            self._set_failure(name, key)
        for name in dict.fromkeys(ModelName(key.tenant, key.model_id) for key in keys):
            self.publish(name)

    def publish(self, name: ModelName) -> None:
        """Publish what is here of this model now."""
        servable = loading = size_bytes = 0
        generations = self._generations.get(name, {})
        for generation in list(generations):
            view = self._cache.current(ModelKey(*name, generation))
            if view is None:
                del generations[generation]
            elif view.state is CopyState.SERVABLE:
                if generation > servable:
                    servable, size_bytes = generation, view.size.total_bytes
            elif view.state in PENDING:
                loading = max(loading, generation)
                size_bytes = size_bytes or view.size.total_bytes
        if not generations:
            self._generations.pop(name, None)
        self._set_copy(name, servable, loading, size_bytes)
        if not loading:
            self._membership.clear_intent(name)

    def servable_generation(self, name: ModelName) -> int:
        """The generation that answers here; 0: none."""
        generations = self._generations.get(name)
        if not generations:  # most models, of most pods: asked for every request that is sent on
            return 0
        return max((g for g in generations if self._is_servable(name, g)), default=0)

    def _is_servable(self, name: ModelName, generation: int) -> bool:
        return self._cache.servable(ModelKey(*name, generation)) is not None

    def is_loading(self, name: ModelName, generation: int) -> bool:
        """Whether this generation is on its way in."""
        view = self._cache.current(ModelKey(*name, generation))
        return view is not None and view.state in PENDING

    def _set_copy(self, name: ModelName, servable: int, loading: int, size_bytes: int) -> None:
        before = self._published.get(name)
        if not servable and not loading:
            self._published.pop(name, None)
            self._membership.set_copy(name, None)
            self._publish_parked(name)
            return
        if before is not None and (before.servable, before.loading) == (servable, loading):
            return
        copy = Copy(self._own_pod, servable, loading, size_bytes, self._wall_clock())
        self._published[name] = copy
        self._membership.set_copy(name, copy)
        self._publish_parked(name)

    def review_parked(self) -> None:
        """Twice a second: publish what came to the disk, or left it."""
        for name in self._parking.take_changed(PARKED_PER_TURN_MAX):
            self._publish_parked(name)

    def _publish_parked(self, name: ModelName) -> None:
        self._membership.set_parked(name, None if name in self._published else self._parking.parked(name))

    def _set_failure(self, name: ModelName, key: ModelKey) -> None:
        """Publish what keeps this generation from being loaded, or withdraw what does so no more."""
        now_s = self._clock()
        record = None if self._cache.current(key) is not None else self._cache.failure(key, now_s)
        if record is None or record.retry_at_s <= now_s:
            if self._failed.get(name) == key.generation:
                self._withdraw(name)
            return
        permanent = isinf(record.retry_at_s)
        retry_after_s = 0.0 if permanent else record.retry_at_s - now_s
        failed_at_s = self._wall_clock() - (now_s - record.failed_at_s)
        self._failed[name] = key.generation
        self._membership.set_failure(
            name, LoadFailure(self._own_pod, key.generation, permanent, record.message, failed_at_s, retry_after_s)
        )

    def _withdraw(self, name: ModelName) -> None:
        if self._failed.pop(name, None) is not None:
            self._membership.set_failure(name, None)

    def review_failures(self) -> None:
        """Once a second: withdraw what may be tried again, or was forgiven."""
        for name, generation in list(self._failed.items()):
            key = ModelKey(*name, generation)
            record = self._cache.failure(key, self._clock())
            if record is None or record.retry_at_s <= self._clock():
                self._withdraw(name)
