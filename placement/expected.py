"""The pool as it will be once the orders that were given show: what the next decision must look at.

Between an order and its copy in the view lie some milliseconds; a decision that looks at the view alone would order
the same load again, or send ten models to the one pod that has room for one. So decisions of a turn look at the view
with the orders laid over it, and each decision is laid over it in turn: the plan is made as a whole.

A load that is expected counts as loading, and as promised: bytes and seconds that its pod does not show yet. A copy
that is expected to go is gone, but its bytes are not free before the pod says so.

Laying over costs what is laid over, never a copy of 100,000 entries.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from placement.policy.obstacles import NOTHING, Promised
from placement.policy.snapshot import Copy, ModelName, PoolView

K = TypeVar("K")
V = TypeVar("V")


class Overlaid(Mapping[K, V]):
    """A mapping with some entries replaced (`lay`) or taken away (`hide`); what lies below never changes."""

    def __init__(self, below: Mapping[K, V]) -> None:
        self._below = below
        self._over: dict[K, V | None] = {}

    def lay(self, key: K, value: V) -> None:
        """From now on `key` has this value."""
        self._over[key] = value

    def hide(self, key: K) -> None:
        """From now on there is no `key`."""
        self._over[key] = None

    def __getitem__(self, key: K) -> V:
        if key in self._over:
            value = self._over[key]
            if value is None:
                raise KeyError(key)
            return value
        return self._below[key]

    def get(self, key: K, default: Any = None) -> Any:
        """As for any mapping; written out because every decision calls it."""
        if self._over and key in self._over:
            value = self._over[key]
            return default if value is None else value
        return self._below.get(key, default)

    def __contains__(self, key: object) -> bool:
        return self._over[key] is not None if key in self._over else key in self._below

    def __iter__(self) -> Iterator[K]:
        yield from (key for key in self._below if key not in self._over or self._over[key] is not None)
        yield from (key for key, value in self._over.items() if value is not None and key not in self._below)

    def __len__(self) -> int:
        hidden = sum(1 for key, value in self._over.items() if value is None and key in self._below)
        added = sum(1 for key, value in self._over.items() if value is not None and key not in self._below)
        return len(self._below) - hidden + added


class ExpectedPool:
    """A view with orders laid over it. `view` and `promised` show each at once; for the planning turn only."""

    def __init__(self, view: PoolView) -> None:
        self._copies: Overlaid[ModelName, tuple[Copy, ...]] = Overlaid(view.copies)
        self._promised: dict[str, Promised] = {}
        self.view = replace(view, copies=self._copies)
        self.promised: Mapping[str, Promised] = self._promised

    def load(self, pod_id: str, name: ModelName, generation: int, size_bytes: int, load_s: float) -> None:
        """The pod will load this. What it has or does already stays as it is."""
        copies: tuple[Copy, ...] = self._copies.get(name, ())
        mine = next((copy for copy in copies if copy.pod == pod_id), None)
        if mine is not None and generation in (mine.servable, mine.loading):
            return
        expected = (
            replace(mine, loading=generation)
            if mine is not None
            else Copy(pod_id, servable=0, loading=generation, size_bytes=size_bytes, since_at_s=0.0)
        )
        others = (copy for copy in copies if copy.pod != pod_id)
        self._copies.lay(name, tuple(sorted((*others, expected), key=lambda copy: copy.pod)))
        before = self._promised.get(pod_id, NOTHING)
        self._promised[pod_id] = Promised(before.bytes + size_bytes, before.loads + 1, before.load_s + load_s)

    def unload(self, pod_id: str, name: ModelName) -> None:
        """The pod will let go of its copy."""
        left = tuple(copy for copy in self._copies.get(name, ()) if copy.pod != pod_id)
        if left:
            self._copies.lay(name, left)
        else:
            self._copies.hide(name)
