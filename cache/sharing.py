"""Bytes that several copies share: mapped weights of equal content, counted once.

The problem: twenty fine-tunes of one backbone map the same pages of the same file. Each takes all of it, together they
take it once. So a copy's size names the parts that it may share, by content. The ledger charges a part while anyone
holds it; a claim needs only the parts that nobody holds; and evicting one of several holders frees only what is its
own. Who is the last holder of a part may change with each victim of a plan, so plans count along (`Holders`).

A part is known by its content, its place and its bytes together: two copies that disagree about the bytes of one
content do not share it. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Protocol

from cache.types import Bytes, Shared, SharedPart


class Holding(Protocol):
    """A copy, or a picture of one."""

    @property
    def charged(self) -> Bytes:
        """All that it holds, shared parts in full."""

    @property
    def shared(self) -> Shared:
        """The parts among it that others may hold, too."""


def bytes_of(parts: Iterable[SharedPart]) -> Bytes:
    """These parts together."""
    return Bytes.sum(Bytes.of(part.place, part.count_bytes) for part in parts)


def counted_once(copies: Iterable[Holding]) -> Bytes:
    """What these copies hold together."""
    amounts: list[Bytes] = []
    parts: set[SharedPart] = set()
    for copy in copies:
        amounts.append(own_bytes(copy))
        parts.update(copy.shared)
    return Bytes.sum([*amounts, bytes_of(parts)])


def own_bytes(copy: Holding) -> Bytes:
    """What it shares with nobody, whoever else there is."""
    return copy.charged - bytes_of(copy.shared) if copy.shared else copy.charged


class Holders:
    """How many hold each part, while a plan is made."""

    __slots__ = ("_count",)

    def __init__(self, count: Mapping[SharedPart, int] | None = None) -> None:
        self._count = Counter(count or {})

    def copy(self) -> Holders:
        """For a plan that may be thrown away."""
        return Holders(self._count)

    def joins(self, parts: Iterable[SharedPart]) -> None:
        """Somebody holds these, or will."""
        self._count.update(parts)

    def leaves(self, parts: Iterable[SharedPart]) -> None:
        """One of those who hold these goes."""
        self._count.subtract(parts)

    def needed(self, needed: Bytes, parts: Iterable[SharedPart]) -> Bytes:
        """What somebody who needs so much, these parts in it, still lacks."""
        held = [part for part in parts if self._count[part] > 0]
        return needed - bytes_of(held) if held else needed

    def freed_by(self, copy: Holding, kept: Collection[SharedPart] = ()) -> Bytes:
        """What comes free when this copy goes; `kept`: parts that will be held by whoever it goes for."""
        if not copy.shared:
            return copy.charged
        stay = [part for part in copy.shared if self._count[part] > 1 or part in kept]
        return copy.charged - bytes_of(stay) if stay else copy.charged

    def frees_any(self, parts: Iterable[SharedPart], kept: Collection[SharedPart] = ()) -> bool:
        """Whether nobody holds one of these any more, nor will."""
        return any(self._count[part] <= 0 and part not in kept for part in parts)


NOBODY = Holders()
"""Where nothing is shared. Plans change copies of it."""


def check_size(size: Bytes, shared: Shared = ()) -> None:
    """Raise ValueError where a size was reported that no copy can have."""
    if any(count < 0 for _, count in size):
        raise ValueError(f"A size of {size} was reported; every component must be zero or more bytes.")
    if any(part.count_bytes <= 0 for part in shared) or len({part.content for part in shared}) < len(shared):
        raise ValueError(
            f"Shared parts {shared} were reported; each content must be named once, with bytes above zero."
        )
    if not bytes_of(shared) <= size:
        raise ValueError(f"Shared parts of {bytes_of(shared)} were reported of a copy that takes {size}.")
