"""Which copies leave so that another fits.

All victims are chosen before the first unload starts: a plan that frees too little would have cost warm models for
nothing. A policy (`cache.policies`) is only a number per copy, how much it is worth to keep; what may go at all is
decided here, once for every policy: servable, held by nobody, not pinned, and past its minimum residency unless that
is overridden.

Scoring every copy is O(N) with a heap on top. Evictions are rare beside requests, and each costs milliseconds, so
the cleverness of constant-time schemes is not needed. The greedy choice is deliberately not pruned afterwards (a
later, larger victim might make an earlier, smaller one needless): pruning would keep the worst-scored copies.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from heapq import heapify, heappop

from cache.policies.base import Score
from cache.types import Bytes, CopyState, ModelKey
from cache.views import CopyView


@dataclass(frozen=True, slots=True)
class Victim:
    """One copy that will go, and what made it the one."""

    copy_id: int
    key: ModelKey
    freed: Bytes
    score: float
    idle_s: float
    young: bool
    """It was within its minimum residency; the requester had waited long enough to override that."""


@dataclass(frozen=True, slots=True)
class Evict:
    """Unload these, in this order; together they free what was missing."""

    victims: tuple[Victim, ...]


@dataclass(frozen=True, slots=True)
class CannotFit:
    """Even with everything evictable gone it would not fit; nothing is evicted. The fields say what is in the way."""

    missing: Bytes
    evictable: Bytes
    in_use: Bytes
    pinned: Bytes
    young: Bytes
    """Protected by minimum residency only."""
    retry_at_s: float | None
    """When the first of the young copies loses its protection."""

    def __str__(self) -> str:
        return (
            f"{self.missing} more are needed; evictable: {self.evictable}, in use: {self.in_use}, "
            f"pinned: {self.pinned}, loaded a moment ago: {self.young}"
        )


def plan_eviction(
    copies: Iterable[CopyView], missing: Bytes, now_s: float, score_of: Score, *, override_residency: bool
) -> Evict | CannotFit:
    """Choose all victims that free `missing`, or say why that is impossible now. `score_of`: what a policy finds."""
    # (young, priority, score, position): the cheap part of the order; `_leaving_order` settles the rest among equals.
    evictable: list[tuple[bool, int, float, int]] = []
    views: list[CopyView] = []
    in_use: list[Bytes] = []
    pinned: list[Bytes] = []
    young: list[CopyView] = []
    servable = CopyState.SERVABLE
    for copy in copies:
        if copy.state is not servable:
            continue
        if copy.pins:
            in_use.append(copy.charged)
        elif copy.pinned:
            pinned.append(copy.charged)
        elif (is_young := now_s < copy.protected_until_s) and not override_residency:
            young.append(copy)
        else:
            evictable.append((is_young, copy.priority, score_of(copy), len(views)))
            views.append(copy)

    still_missing = missing
    passed_over: list[Bytes] = []
    victims: list[Victim] = []
    for is_young, score, copy in _leaving_order(evictable, views):
        if not still_missing:
            break
        if not any(copy.charged[place] > 0 for place, _ in still_missing):
            passed_over.append(copy.charged)  # it would free nothing where bytes are missing
            continue
        victims.append(Victim(copy.copy_id, copy.key, copy.charged, score, now_s - copy.last_used_s, is_young))
        still_missing = still_missing.missing_from(copy.charged)
    if not still_missing:
        return Evict(tuple(victims))
    return CannotFit(
        missing=missing,
        evictable=Bytes.sum([*(victim.freed for victim in victims), *passed_over]),
        in_use=Bytes.sum(in_use),
        pinned=Bytes.sum(pinned),
        young=Bytes.sum(copy.charged for copy in young),
        retry_at_s=min((copy.protected_until_s for copy in young), default=None),
    )


def _leaving_order(
    scored: list[tuple[bool, int, float, int]], views: list[CopyView]
) -> Iterator[tuple[bool, float, CopyView]]:
    # 1. copies past their minimum residency before young ones; 2. the lowest priority; 3. the lowest score; 4. of equal
    # scores the largest, to unload fewer; 5. the key; 6. the id of the copy, so that equal views give equal plans.
    heapify(scored)  # usually a few leave of many, so a heap and not a sort
    while scored:
        young, priority, score, position = heappop(scored)
        equals = [views[position]]
        while scored and scored[0][:3] == (young, priority, score):
            equals.append(views[heappop(scored)[3]])
        if len(equals) > 1:
            equals.sort(key=lambda copy: (-copy.charged.total_bytes, copy.key, copy.copy_id))
        for copy in equals:
            yield young, score, copy
