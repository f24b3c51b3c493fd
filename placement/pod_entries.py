"""What pods have of models, of one kind (copies, say), while the next picture of the pool is made.

Each kind is a mapping from a model to what pods have of it, in the order of pods. The mapping is copied on its first
change. Some kinds outlast their pod's lease for a while (fading, in `placement.pool_view`): they are kept, and known to
be unconfirmed until the pod has published them again or is given up.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from collections.abc import Set as AbstractSet
from operator import attrgetter
from typing import Generic, TypeVar

from placement.layered_map import LayeredMap, MapEdit
from placement.policy.snapshot import Copy, LoadFailure, ModelName, Parked

OfPod = TypeVar("OfPod", Copy, Parked, LoadFailure)


def _as_it_is(entries: tuple[OfPod, ...]) -> tuple[OfPod, ...]:
    return entries


class PodEntries(Generic[OfPod]):
    """One kind; made for one batch of events."""

    def __init__(
        self,
        before: Mapping[ModelName, tuple[OfPod, ...]],
        unconfirmed: Mapping[str, frozenset[ModelName]] | None = None,
        share: Callable[[tuple[OfPod, ...]], tuple[OfPod, ...]] = _as_it_is,
    ) -> None:
        """`unconfirmed`: by pod that fades. `share` gives an equal value that is in memory anyway."""
        self._before: Mapping[ModelName, tuple[OfPod, ...]] = before
        self._edit: MapEdit[ModelName, tuple[OfPod, ...]] | None = None
        self._touched: dict[ModelName, None] = {}
        self._unconfirmed_before = unconfirmed or {}
        self._unconfirmed: dict[str, set[ModelName]] = {}
        """Of the fading pods that this batch touches."""
        self._share: Callable[[tuple[OfPod, ...]], tuple[OfPod, ...]] = share

    def put(self, name: ModelName, pod: str, entry: OfPod | None) -> None:
        """Replace what one pod has of a model; None: nothing."""
        self._touched[name] = None
        known = self._get(name)
        if entry is not None and entry in known:
            return
        if self._edit is None:
            self._edit = LayeredMap.of(self._before).edit()
        left = [other for other in known if other.pod != pod]
        if entry is not None:
            left.append(entry)
            left.sort(key=_pod_of)
        if left:
            self._edit.set(name, self._share(tuple(left)))
        elif known:
            self._edit.discard(name)

    def vanished(self, name: ModelName, pod: str) -> None:
        """It went with its pod's lease: kept, until the pod says otherwise."""
        if any(entry.pod == pod for entry in self._get(name)):
            self._unconfirmed_of(pod).add(name)

    def confirmed(self, name: ModelName, pod: str) -> None:
        """A fading pod has said again how this is."""
        self._unconfirmed_of(pod).discard(name)

    def all_confirmed(self, pod: str) -> None:
        """A fading pod is certain again, with all that it had."""
        self._unconfirmed_of(pod).clear()

    def doubt(self, pods: Collection[str]) -> None:
        """Of these pods nothing is certain."""
        if not pods:
            return
        for name, entries in self._before.items():
            for entry in entries:
                if entry.pod in pods:
                    self._unconfirmed_of(entry.pod).add(name)

    def drop_unconfirmed(self, pod: str) -> None:
        """What a pod has not published again is gone."""
        names = self._unconfirmed_of(pod)
        for name in sorted(names):
            self.put(name, pod, None)
        names.clear()

    def finish(self) -> Mapping[ModelName, tuple[OfPod, ...]]:
        """The mapping as it is now."""
        if self._edit is not None:
            self._before, self._edit = self._edit.finish(), None
        return self._before

    def unconfirmed(self, fading: AbstractSet[str]) -> Mapping[str, frozenset[ModelName]]:
        """Of the pods that fade now."""
        if not self._unconfirmed and self._unconfirmed_before.keys() <= fading:
            return self._unconfirmed_before
        after = {**self._unconfirmed_before, **{pod: frozenset(names) for pod, names in self._unconfirmed.items()}}
        return {pod: names for pod, names in after.items() if names and pod in fading}

    @property
    def touched(self) -> Collection[ModelName]:
        """Models that events were about; not all of them differ."""
        return self._touched

    def _get(self, name: ModelName) -> tuple[OfPod, ...]:
        return (self._before.get(name) if self._edit is None else self._edit.get(name)) or ()

    def _unconfirmed_of(self, pod: str) -> set[ModelName]:
        if pod not in self._unconfirmed:
            self._unconfirmed[pod] = set(self._unconfirmed_before.get(pod, ()))
        return self._unconfirmed[pod]


_pod_of = attrgetter("pod")
