"""Who gets bytes next: the queue of claims against what is free, what is coming free, and what can be evicted.

The idea is a line of claims with one rule: nobody takes bytes that someone before him in the line is owed. Copies
that are loaded already but grew come first (their bytes are gone, only the books are late), then the loads in the
order of `load_order`. A claim that does not fit yet keeps its place and its share of all bytes that come free; one
behind it may start only from what is left over. So a large model cannot be starved by small ones; how long it may
hold the line while everything is in use is bounded by the machine, which then refuses it.

Tenants may have shares (`cache.tenancy`): then a claim is met first by its tenant's own copies, as far as its limit
asks for it, and what others are guaranteed to keep does not go for it.

Pure: the plan is a value. The machine may throw it away, and does so when a blocked claim is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import inf

from cache.eviction import CannotFit, Evict, Victim, plan_eviction
from cache.policies.base import Score
from cache.sharing import NOBODY, Holders
from cache.tenancy import TenantTally
from cache.types import Bytes, ModelKey, Shared
from cache.views import CopyView


@dataclass(frozen=True, slots=True)
class Claim:
    """One copy that needs bytes."""

    copy_id: int
    key: ModelKey
    needed: Bytes
    takes_slot: bool = True
    """A load takes a load slot; a loaded copy that grew does not."""
    may_evict: bool = True
    override_residency: bool = False
    worth_below: float = inf
    """It evicts only what the policy finds worth less than this."""
    shared: Shared = ()
    """The parts of `needed` that other copies may hold already: then they cost nothing more."""
    held_back: bool = False
    """It may start from what is free, but waits for its turn to have others evicted (`cache.thrash`); until then it
    holds no place."""


@dataclass(frozen=True, slots=True)
class SpacePlan:
    """What to do now."""

    start: tuple[int, ...]
    """Claims whose bytes are free now, in order."""
    unload: tuple[tuple[Victim, Claim], ...]
    """Victims, each with the claim that it makes room for."""
    blocked: tuple[tuple[Claim, CannotFit], ...]
    """Claims that cannot be satisfied by what is free, coming and evictable."""


def load_order(
    *, foreground: bool, priority: int, urgent_s: float, wanted_s: float, copy_id: int
) -> tuple[bool, int, float, float, int]:
    """The order of loads (and of fetches)."""
    # 1. those that requests wait for; 2. the higher priority; 3. the more urgent (earliest deadline, where patience
    # bounds how far away a deadline may count as); 4. who was wanted first; 5. the id of the copy.
    return (not foreground, -priority, urgent_s, wanted_s, copy_id)


def plan_space(
    claims: Sequence[Claim],
    residents: Iterable[CopyView],
    *,
    free: Bytes,
    coming: Bytes,
    slots: int,
    now_s: float,
    score_of: Score,
    tally: TenantTally | None = None,
    holders: Holders = NOBODY,
) -> SpacePlan:
    """Go down the line of `claims`. `residents` is looked at only when something must be evicted.

    `coming`: bytes of copies that are being unloaded. `slots`: loads that may start or hold a claim now. `tally`: of
    the tenants, where they have shares; changed. `holders`: of shared parts, by copies that are not being unloaded.
    """
    start: list[int] = []
    unload: list[tuple[Victim, Claim]] = []
    blocked: list[tuple[Claim, CannotFit]] = []
    owed_to_nobody = free + coming
    here, promised = holders.copy(), holders.copy()  # parts that are held now; and those that will be, as planned
    evictable: dict[int, CopyView] | None = None

    def copies_for(claim: Claim) -> dict[int, CopyView]:
        nonlocal evictable
        if evictable is None:
            evictable = {copy.copy_id: copy for copy in residents}
        if not claim.may_evict:
            return {}  # the plan is still made, over nothing, so that the answer says what is missing
        if claim.copy_id in evictable:  # a servable copy that grew does not make room for itself
            return {copy_id: copy for copy_id, copy in evictable.items() if copy_id != claim.copy_id}
        return evictable

    def planned(claim: Claim, copies: Iterable[CopyView], missing: Bytes) -> Evict | CannotFit:
        return plan_eviction(
            copies,
            missing,
            now_s,
            score_of,
            override_residency=claim.override_residency,
            worth_below=claim.worth_below,
            claimant=None if tally is None else tally.claimant(claim.key.tenant, claim.needed),
            holders=promised,
            kept=claim.shared,
        )

    for claim in claims:
        if claim.takes_slot and slots == 0:
            break
        tenant = claim.key.tenant
        needed_now = here.needed(claim.needed, claim.shared)
        needed = promised.needed(claim.needed, claim.shared)
        tenants = claim.needed if tally is None else tally.lacking(tenant, claim.needed, claim.shared)
        if claim.held_back and (
            needed_now.missing_from(free)
            or needed.missing_from(owed_to_nobody)
            or (tally is not None and tally.must_wait(tenant, tenants))
        ):
            continue
        victims: tuple[Victim, ...] = ()
        # First the tenant's own limit. What that blocks takes no slot, and holds no bytes back. A loaded copy that
        # grew has its bytes already.
        if tally is not None and claim.takes_slot and (over := tally.beyond_limit(tenant, tenants)):
            own = [copy for copy in copies_for(claim).values() if copy.key.tenant == tenant]
            plan = planned(claim, own, over)
            if isinstance(plan, CannotFit):
                blocked.append((claim, replace(plan, limited_tenant=tenant)))
                tally.claimed(tenant, tenants, starts=False)
                continue
            victims = plan.victims
        slots -= claim.takes_slot
        freed = Bytes.sum(victim.freed for victim in victims)
        if missing := needed.missing_from(owed_to_nobody + freed):
            gone = {victim.copy_id for victim in victims}
            others = [copy for copy in copies_for(claim).values() if copy.copy_id not in gone]
            plan = planned(claim, others, missing)
            if isinstance(plan, CannotFit):
                blocked.append((claim, plan))
                victims = ()
            else:
                victims += plan.victims
        starts = not victims and (not missing) and not needed_now.missing_from(free)
        if tally is not None:
            starts = starts and not tally.must_wait(tenant, tenants)
            tally.claimed(tenant, tenants, starts=starts)
        if starts:
            start.append(claim.copy_id)
            free -= needed_now
            here.joins(claim.shared)
        for victim in victims:
            assert evictable is not None
            promised.leaves(evictable[victim.copy_id].shared)
            unload.append((victim, claim))
            owed_to_nobody += victim.freed
            del evictable[victim.copy_id]
            if tally is not None:
                tally.leaves(victim.key.tenant, victim.freed)
        promised.joins(claim.shared)
        owed_to_nobody -= needed
    return SpacePlan(tuple(start), tuple(unload), tuple(blocked))
