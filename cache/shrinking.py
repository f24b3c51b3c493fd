"""Which copies leave when the pod, or one of its tenants, may hold less than it does.

Memory that the kernel takes back, or that a framework did not find, makes a capacity smaller than it was thought to
be. Then idle copies leave in the order of any eviction, as many as are needed and no more; if all that may go is not
enough, all that may go leaves, and the rest follows when it is given back. Minimum residency protects nobody here:
it guards against churn, and this is want. Copies in use and pinned ones stay.

Pure: the answer is a value.
"""

from __future__ import annotations

from cache.claims import coming, holders_staying, tally_of
from cache.eviction import CannotFit, Evict, Victim, plan_eviction
from cache.state import PodState
from cache.types import NO_BYTES, Bytes, CopyState
from cache.views import CopyView


def plan_shrinking(state: PodState) -> tuple[Victim, ...]:
    """The copies to unload now, so that what is held fits the capacity that is wanted."""
    excess = (state.ledger.used - coming(state)).missing_from(state.capacity_wanted)
    if not excess:
        return ()
    views = [copy.view() for copy in state.by_state[CopyState.SERVABLE].values()]
    if state.limits.tenants:
        sparing = tally_of(state).claimant("", NO_BYTES)  # no tenant's doing: what is guaranteed goes last
        plan = plan_eviction(
            views,
            excess,
            state.now_s,
            state.score_of(),
            override_residency=True,
            claimant=sparing,
            holders=holders_staying(state),
        )
        if isinstance(plan, Evict):
            return plan.victims
    parked = [copy.view() for copy in state.by_state[CopyState.PARKED].values()]
    return (*_as_many_as_may(state, views, excess), *_as_many_as_may(state, parked, excess, CopyState.PARKED))


def plan_returns(state: PodState) -> tuple[Victim, ...]:
    """The copies to unload now, so that tenants are within their limits again: copies grew, or were measured larger
    than they were declared."""
    if not state.limits.tenants:
        return ()
    tally = tally_of(state)
    victims: list[Victim] = []
    for tenant in sorted(state.limits.tenants):
        if excess := tally.beyond_limit(tenant, NO_BYTES):
            for among in (CopyState.SERVABLE, CopyState.PARKED):
                own = [copy.view() for copy in state.by_state[among].values() if copy.key.tenant == tenant]
                victims += _as_many_as_may(state, own, excess, among)
    return tuple(victims)


def is_over_limit(state: PodState) -> bool:
    """Whether a tenant still holds more than it may, and nothing can leave now."""
    tenants = state.limits.tenants
    return bool(tenants) and any(bool(tally_of(state).beyond_limit(tenant, NO_BYTES)) for tenant in tenants)


def _as_many_as_may(
    state: PodState, views: list[CopyView], excess: Bytes, among: CopyState = CopyState.SERVABLE
) -> tuple[Victim, ...]:
    if not views:
        return ()

    def planned(missing: Bytes) -> Evict | CannotFit:
        return plan_eviction(
            views,
            missing,
            state.now_s,
            state.score_of(),
            override_residency=True,
            holders=holders_staying(state),
            among=among,
        )

    plan = planned(excess)
    if isinstance(plan, CannotFit):
        attainable = excess.at_most(plan.evictable).shortage()
        plan = planned(attainable) if attainable else plan
    return () if isinstance(plan, CannotFit) else plan.victims
