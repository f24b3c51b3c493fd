"""The host tier: copies that left the device and lie in RAM, from where they return without a fetch.

A copy that makes room on its device is parked when its adapter can do that and the host tier has room for it now;
else it is unloaded. To be able to say yes, the host tier keeps headroom for the largest copy that may come down: what
is parked and worth least leaves as soon as the headroom is gone, not when it is needed, so that no claim on the device
waits for it. Who is worth least says the same policy as on the device, with what a return from the disk would take.

A parked copy is one step from serving: when it is wanted it waits for bytes on its device like any other load, and
what it holds in RAM until it is loaded again is counted beside them. When the device has room and nobody waits, the
parked copy that is worth most goes up by itself.

Pure, but for reading the state. A pod without a host tier (each pod without a GPU) never parks.
"""

from __future__ import annotations

from cache.claims import coming, tally_of
from cache.copies import Copy
from cache.eviction import Evict, Victim, plan_eviction
from cache.state import PodState
from cache.types import NO_BYTES, Bytes, CopyState


def can_park(state: PodState, parks: Bytes | None) -> bool:
    """Whether a copy that takes `parks` in RAM (None: its adapter cannot park it) could ever lie there."""
    return parks is not None and bool(parks) and not parks.missing_from(state.limits.capacity)


def parks_now(state: PodState, copy: Copy) -> bool:
    """Whether this copy, about to leave its device, is parked."""
    if copy.parks is None or copy.key in state.retired or copy.closing_reason:
        return False
    share = state.limits.tenants.get(copy.key.tenant)
    if share is not None and share.beyond_limit(tally_of(state).held(copy.key.tenant) + copy.parks):
        return False
    return not copy.parks.missing_from(state.ledger.free)


def plan_headroom(state: PodState) -> tuple[Victim, ...]:
    """The parked copies that leave now, so that the next copy from a device finds room."""
    parked = state.by_state[CopyState.PARKED]
    if not parked:
        return ()
    headroom = _headroom(state)
    missing = headroom.missing_from(state.ledger.free + coming(state))
    if not missing:
        return ()
    plan = plan_eviction(
        [copy.view() for copy in parked.values()],
        missing,
        state.now_s,
        state.score_of(),
        override_residency=True,
        claimant=tally_of(state).claimant("", NO_BYTES) if state.limits.tenants else None,
        among=CopyState.PARKED,
    )
    return plan.victims if isinstance(plan, Evict) else ()


def _headroom(state: PodState) -> Bytes:
    """For the largest copy that may come down, where it is no more than half of the tier: a tier for one is none."""
    largest = NO_BYTES
    half = Bytes.from_mapping({place: count // 2 for place, count in state.capacity_wanted})
    for copy in state.by_state[CopyState.SERVABLE].values():
        if copy.parks is not None and not copy.parks.missing_from(half):
            largest = largest.at_least(copy.parks)
    return largest


def choose_return(state: PodState) -> Copy | None:
    """The parked copy that goes up by itself: the one worth most that fits into what is free. None while anything
    else is on its way in."""
    parked = state.by_state[CopyState.PARKED]
    if not parked or state.draining or state.loads_paused or state.debtors:
        return None
    if any(state.by_state[each] for each in _ON_THE_WAY):
        return None
    fitting = [copy for copy in parked.values() if not copy.returns.missing_from(state.ledger.free)]
    if state.limits.tenants:
        tally = tally_of(state)
        fitting = [copy for copy in fitting if not tally.beyond_limit(copy.key.tenant, copy.returns)]
    score_of = state.score_of()
    return max(fitting, key=lambda copy: (score_of(copy.view()), -copy.copy_id), default=None)


_ON_THE_WAY = (
    CopyState.QUEUED,
    CopyState.FETCHING,
    CopyState.WAITING_FOR_SPACE,
    CopyState.LOADING,
    CopyState.SETTLING,
    CopyState.PARKING,
    CopyState.UNLOADING,
)
