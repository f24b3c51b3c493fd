"""What loads have taught: the measured size and the usual load time of each model on this pod.

The measured size is what the next load of the same generation reserves; the load time decides whether a request's
deadline can be met. Bounded, least recently used first out: forgetting costs an estimate in place of a measurement.
"""

from __future__ import annotations

from cachetools import LRUCache

from cache.limits import CacheLimits
from cache.types import Bytes, ModelKey


class Profiles:
    """Sizes and load times by model."""

    def __init__(self, limits: CacheLimits) -> None:
        self._limits = limits
        self._sizes: LRUCache[ModelKey, Bytes] = LRUCache(maxsize=limits.models_remembered_max)
        self._load_times_s: LRUCache[ModelKey, float] = LRUCache(maxsize=limits.models_remembered_max)
        self._climb_times_s: LRUCache[ModelKey, float] = LRUCache(maxsize=limits.models_remembered_max)
        self._return_times_s: LRUCache[ModelKey, float] = LRUCache(maxsize=limits.models_remembered_max)

    def size(self, key: ModelKey) -> Bytes | None:
        """Last measured size."""
        return self._sizes.get(key)

    def load_time_s(self, key: ModelKey) -> float:
        """Predicted seconds of fetch and load together; the default for a model never loaded here."""
        return self._load_times_s.get(key, self._limits.load_time_default_s)

    def measured(self, key: ModelKey, size: Bytes) -> None:
        """A loaded copy was measured."""
        self._sizes[key] = size

    def return_time_s(self, key: ModelKey) -> float:
        """Predicted seconds that bringing the model back takes, from the tier below; 0 while nothing is known.

        The first fetch of a model comes from its storage and does not count: later ones find it on this pod's disk,
        and where they do not, they teach it.
        """
        return self._return_times_s.get(key, 0.0)

    def climb_time_s(self, key: ModelKey) -> float:
        """Predicted seconds of a return from the host tier to the device; 0 while nothing is known."""
        return self._climb_times_s.get(key, 0.0)

    def climbed(self, key: ModelKey, climb_time_s: float) -> None:
        """A parked copy was brought back onto its device."""
        self._learn(self._climb_times_s, key, climb_time_s)

    def loaded(self, key: ModelKey, fetch_time_s: float, load_time_s: float) -> None:
        """A fetch and a load took this long, waiting for slots and space not included."""
        again_s = load_time_s if key not in self._load_times_s else fetch_time_s + load_time_s
        self._learn(self._load_times_s, key, fetch_time_s + load_time_s)
        self._learn(self._return_times_s, key, again_s)

    def _learn(self, times_s: LRUCache[ModelKey, float], key: ModelKey, newest_s: float) -> None:
        before_s = times_s.get(key)
        times_s[key] = (
            newest_s if before_s is None else before_s + self._limits.load_time_weight * (newest_s - before_s)
        )

    def forget(self, key: ModelKey) -> None:
        """The model was retired."""
        self._sizes.pop(key, None)
        self._load_times_s.pop(key, None)
        self._return_times_s.pop(key, None)
        self._climb_times_s.pop(key, None)
