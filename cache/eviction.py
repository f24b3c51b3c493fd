"""Which copies leave so that another fits.

All victims are chosen before the first unload starts: a plan that frees too little would have cost warm models for
nothing. A policy (`cache.policies`) is only a number per copy, how much it is worth to keep; what may go at all is
decided here, once for every policy: servable, held by nobody, not pinned, and past its minimum residency unless that
is overridden. Nor does a copy that its tenant's guarantee holds go for another tenant (`cache.tenancy`).

Scoring every copy is O(N) with a heap on top. Evictions are rare beside requests, and each costs milliseconds, so
the cleverness of constant-time schemes is not needed. Victims that a later, larger one made needless stay: they are the
next to go, but until then they serve, and the bytes that they would free are not missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop
from math import inf

from cache.policies.base import Score
from cache.sharing import NOBODY, Holders
from cache.tenancy import Claimant
from cache.types import NO_BYTES, Bytes, CopyState, ModelKey, Shared
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
    guaranteed: Bytes = NO_BYTES
    """Idle, but other tenants are guaranteed to keep them."""
    dearer: Bytes = NO_BYTES
    """Idle, but worth more than what a prefetch would bring in."""
    limited_tenant: str = ""
    """The tenant whose own limit is in the way: only its copies were looked at."""

    def __str__(self) -> str:
        whose = f" of tenant {self.limited_tenant}, which is at its limit" if self.limited_tenant else ""
        guaranteed = f", guaranteed to other tenants: {self.guaranteed}" if self.guaranteed else ""
        dearer = f", worth more than a prefetch: {self.dearer}" if self.dearer else ""
        return (
            f"{self.missing} more are needed{whose}; evictable: {self.evictable}, in use: {self.in_use}, "
            f"pinned: {self.pinned}, loaded a moment ago: {self.young}{guaranteed}{dearer}"
        )


def plan_eviction(
    copies: Iterable[CopyView],
    missing: Bytes,
    now_s: float,
    score_of: Score,
    *,
    override_residency: bool,
    worth_below: float = inf,
    claimant: Claimant | None = None,
    holders: Holders = NOBODY,
    kept: Shared = (),
    among: CopyState = CopyState.SERVABLE,
) -> Evict | CannotFit:
    """Choose all victims that free `missing`, or say why that is impossible now. `score_of`: what a policy finds;
    what is worth `worth_below` or more stays.

    `claimant`: for which tenant, where tenants have guarantees; None: they have none, or it is for no tenant.
    `holders`: of the parts that copies share; `kept`: those that whoever this is for will hold, so nobody frees them.
    `among`: copies in other states stay.
    """
    # The cheap part of the order; `_leaving_order` settles the rest among equals.
    evictable: list[_Scored] = []
    last_of = claimant.tenant if claimant is not None and claimant.within_guarantee else None
    views: list[CopyView] = []
    in_use: list[Bytes] = []
    pinned: list[Bytes] = []
    young: list[CopyView] = []
    dearer: list[Bytes] = []
    for copy in copies:
        if copy.state is not among:
            continue
        if copy.pins:
            in_use.append(copy.charged)
        elif copy.pinned:
            pinned.append(copy.charged)
        elif (is_young := now_s < copy.protected_until_s) and not override_residency:
            young.append(copy)
        elif (score := score_of(copy)) >= worth_below:
            dearer.append(copy.charged)
        else:
            rank = 4 * (copy.key.tenant == last_of) + 2 * copy.comes_back + is_young
            evictable.append((rank, copy.priority, score, len(views)))
            views.append(copy)

    choice = _choose(_leaving_order(evictable, views), missing, now_s, claimant, holders, kept)
    if choice.missing and choice.guaranteed:
        # What a guarantee leaves over may go in one large copy where in this order only a small one could.
        largest_first = sorted(choice.leaving_order, key=lambda leaving: -leaving[2].charged.total_bytes)
        second = _choose(largest_first, missing, now_s, claimant, holders, kept)
        choice = choice if second.missing else second
    if not choice.missing:
        return Evict(_needed(choice.victims, missing) if holders is NOBODY else tuple(choice.victims))
    return CannotFit(
        missing=missing,
        evictable=Bytes.sum([*(victim.freed for victim in choice.victims), *choice.passed_over]),
        in_use=Bytes.sum(in_use),
        pinned=Bytes.sum(pinned),
        young=Bytes.sum(copy.charged for copy in young),
        retry_at_s=min((copy.protected_until_s for copy in young), default=None),
        guaranteed=Bytes.sum(choice.guaranteed),
        dearer=Bytes.sum(dearer),
    )


def _needed(victims: list[Victim], missing: Bytes) -> tuple[Victim, ...]:
    """Those without which it does not fit. The last of them may have been large enough to spare some before it: the
    one that would have left last is spared first."""
    if len(victims) < 2:
        return tuple(victims)
    spare = Bytes.sum(victim.freed for victim in victims) - missing
    needed = [victims[-1]]
    for victim in reversed(victims[:-1]):
        if victim.freed <= spare:
            spare -= victim.freed
        else:
            needed.append(victim)
    return tuple(reversed(needed))


_Scored = tuple[int, int, float, int]
"""(rank, priority, score, position). The rank is three flags in one number, since a heap compares often."""

_Leaving = tuple[bool, float, CopyView]
"""(young, score, copy)"""


@dataclass(slots=True)
class _Choice:
    missing: Bytes
    """Still."""
    victims: list[Victim] = field(default_factory=list)
    passed_over: list[Bytes] = field(default_factory=list)
    guaranteed: list[Bytes] = field(default_factory=list)
    leaving_order: list[_Leaving] = field(default_factory=list)
    """All that were looked at, where there is a claimant."""


def _choose(
    order: Iterable[_Leaving],
    missing: Bytes,
    now_s: float,
    claimant: Claimant | None,
    holders: Holders,
    kept: Shared,
) -> _Choice:
    """Take copies in this order until nothing is missing. One that was passed over stays so: what its tenant may
    spare only shrinks."""
    choice = _Choice(missing)
    spare = {} if claimant is None else dict(claimant.spare)
    holders = holders.copy()
    chosen: list[tuple[Victim, CopyView]] = []
    for leaving in order:
        if not choice.missing:
            break
        is_young, score, copy = leaving
        if claimant is not None:
            choice.leaving_order.append(leaving)
        if not any(copy.charged[place] > 0 for place, _ in choice.missing):
            choice.passed_over.append(copy.charged)  # it would free nothing where bytes are missing
            continue
        if claimant is not None and not claimant.may_take(copy, spare):
            choice.guaranteed.append(copy.charged)
            continue
        if copy.key.tenant in spare:
            spare[copy.key.tenant] -= copy.charged
        # One of several holders of a part may free little now, and let a later one free all of it.
        freed = holders.freed_by(copy, kept)
        holders.leaves(copy.shared)
        chosen.append((Victim(copy.copy_id, copy.key, freed, score, now_s - copy.last_used_s, is_young), copy))
        choice.missing = choice.missing.missing_from(freed)
    for victim, copy in chosen:
        if any(victim.freed[place] > 0 for place, _ in missing) or holders.frees_any(copy.shared, kept):
            choice.victims.append(victim)
        else:
            choice.passed_over.append(victim.freed)  # others still hold all that it could have freed
    return choice


def _leaving_order(scored: list[_Scored], views: list[CopyView]) -> Iterator[_Leaving]:
    # 1. others' copies before those of a claimant that is within its guarantee; 2. what would be loaded again at once
    # last; 3. copies past their minimum residency before young ones; 4. the lowest priority; 5. the lowest score; 6. of
    # equal scores the largest, to unload fewer; 7. the key; 8. the id of the copy: equal views give equal plans.
    heapify(scored)  # usually a few leave of many, so a heap and not a sort
    while scored:
        rank, priority, score, position = heappop(scored)
        equals = [views[position]]
        while scored and scored[0][:3] == (rank, priority, score):
            equals.append(views[heappop(scored)[3]])
        if len(equals) > 1:
            equals.sort(key=lambda copy: (-copy.charged.total_bytes, copy.key, copy.copy_id))
        for copy in equals:
            yield bool(rank & 1), score, copy
