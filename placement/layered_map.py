"""A large immutable mapping whose next version costs microseconds, and which shares almost everything with it.

Copying a dictionary of 100,000 keys for each event takes a millisecond of the loop that also answers requests, and
several hundred events a second come when a large pool is busy. So a version is two dictionaries: a large `base`,
shared by many versions, and a small `over` with what changed since, which is all that the next version copies. When
`over` has grown to the square root of `base`, the two are merged; an event costs some microseconds on average, a merge
0.7 ms at 100,000 keys. A look-up asks `over`, then `base`.

A hash trie (`immutables.Map`) does the same without merges and was measured (placement/README.md): 12 bytes a key
smaller, iteration four times slower, and its order changes with every process's hash seed, so that a simulation could
not be replayed from its seed. Here the order is a function of the changes alone.

Deliberately absent: any order that a caller may rely on.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, Mapping, ValuesView
from math import isqrt
from typing import Any, Final, Generic, TypeVar, cast, overload

K = TypeVar("K")
V = TypeVar("V")
D = TypeVar("D")

OVER_MIN = 64
"""Changes that are kept beside even a small base."""

_GONE: Final[Any] = object()
"""In `over`: the base's key is deleted."""


class LayeredMap(Mapping[K, V]):
    """Never changes; `edit` makes the next one."""

    __slots__ = ("_base", "_length", "_over")

    def __init__(self, base: dict[K, V] | None = None) -> None:
        """Takes `base` over: the caller must not change it any more."""
        self._base: dict[K, V] = {} if base is None else base
        self._over: dict[K, V] = {}
        self._length = len(self._base)

    @staticmethod
    def of(mapping: Mapping[K, V]) -> LayeredMap[K, V]:
        """The mapping as one of these, copied if it is another."""
        return mapping if isinstance(mapping, LayeredMap) else LayeredMap(dict(mapping))

    def edit(self) -> MapEdit[K, V]:
        """Begin the next version."""
        return MapEdit(self._base, self._over, self._length)

    def __getitem__(self, key: K) -> V:
        value = self._over.get(key, None) if self._over else None
        if value is None:
            return self._base[key]
        if value is _GONE:
            raise KeyError(key)
        return value

    @overload
    def get(self, key: K, /) -> V | None: ...
    @overload
    def get(self, key: K, /, default: V | D) -> V | D: ...
    def get(self, key: K, /, default: Any = None) -> Any:
        """The value, or `default`."""
        if self._over:
            value = self._over.get(key)
            if value is not None:
                return default if value is _GONE else value
        return self._base.get(key, default)

    def __contains__(self, key: object) -> bool:
        return self.get(cast("K", key), _GONE) is not _GONE

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[K]:
        over = self._over
        for key in self._base:
            if over.get(key) is not _GONE:
                yield key
        for key in over:
            if key not in self._base:
                yield key

    def items(self) -> ItemsView[K, V]:
        """As of a dictionary, without a look-up for each key."""
        return _Items(self)

    def values(self) -> ValuesView[V]:
        """As of a dictionary, without a look-up for each key."""
        return _Values(self)

    def pairs(self) -> Iterator[tuple[K, V]]:
        """Keys and values."""
        base, over = self._base, self._over
        if not over:
            yield from base.items()
            return
        for key, value in base.items():
            changed = over.get(key)
            if changed is None:
                yield key, value
            elif changed is not _GONE:
                yield key, changed
        for key, value in over.items():
            if key not in base:
                yield key, value

    def __repr__(self) -> str:
        return f"LayeredMap({dict(self.pairs())!r})"


class MapEdit(Generic[K, V]):
    """The next version of a LayeredMap while it is made. Values are never None."""

    __slots__ = ("_base", "_before", "_length", "_over")

    def __init__(self, base: dict[K, V], over: dict[K, V], length: int) -> None:
        self._base = base
        self._before: dict[K, V] | None = over
        self._over = over
        self._length = length

    def get(self, key: K) -> V | None:
        """As it stands in this edit."""
        value = self._over.get(key)
        if value is None:
            return self._base.get(key)
        return None if value is _GONE else value

    def set(self, key: K, value: V) -> None:
        """Put the key."""
        if self.get(key) is None:
            self._length += 1
        self._own()[key] = value

    def discard(self, key: K) -> None:
        """Delete the key if it is there."""
        if self.get(key) is None:
            return
        self._length -= 1
        over = self._own()
        if key in self._base:
            over[key] = _GONE
        else:
            del over[key]

    def finish(self) -> LayeredMap[K, V]:
        """The next version. The edit is over then."""
        result: LayeredMap[K, V] = LayeredMap.__new__(LayeredMap)
        if len(self._over) > max(OVER_MIN, isqrt(len(self._base))):
            self._base, self._over = _merged(self._base, self._over), {}
        result._base, result._over, result._length = self._base, self._over, self._length
        return result

    def _own(self) -> dict[K, V]:
        if self._over is self._before:
            self._over, self._before = dict(self._over), None
        return self._over


def _merged(base: dict[K, V], over: dict[K, V]) -> dict[K, V]:
    merged = dict(base)
    for key, value in over.items():
        if value is _GONE:
            del merged[key]
        else:
            merged[key] = value
    return merged


class _Items(ItemsView[K, V]):
    _mapping: LayeredMap[K, V]

    def __iter__(self) -> Iterator[tuple[K, V]]:
        return self._mapping.pairs()


class _Values(ValuesView[V]):
    _mapping: LayeredMap[Any, V]

    def __iter__(self) -> Iterator[V]:
        return (value for _, value in self._mapping.pairs())
