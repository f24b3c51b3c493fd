"""Which copies leave when the pod may hold less than it does.

Memory that the kernel takes back, or that a framework did not find, makes a capacity smaller than it was thought to
be. Then idle copies leave in the order of any eviction, as many as are needed and no more; if all that may go is not
enough, all that may go leaves, and the rest follows when it is given back. Minimum residency protects nobody here:
it guards against churn, and this is want. Copies in use and pinned ones stay.

Pure: the answer is a value.
"""

from __future__ import annotations

from cache.eviction import CannotFit, Victim, plan_eviction
from cache.state import PodState
from cache.types import Bytes, CopyState


def plan_shrinking(state: PodState) -> tuple[Victim, ...]:
    """The copies to unload now, so that what is held fits the capacity that is wanted."""
    coming = Bytes.sum(copy.charged for copy in state.by_state[CopyState.UNLOADING].values())
    excess = (state.ledger.used - coming).missing_from(state.capacity_wanted)
    if not excess:
        return ()
    views = [copy.view() for copy in state.by_state[CopyState.SERVABLE].values()]
    plan = plan_eviction(views, excess, state.now_s, state.score_of(), override_residency=True)
    if isinstance(plan, CannotFit):
        attainable = excess.at_most(plan.evictable)
        if not attainable.shortage():
            return ()
        plan = plan_eviction(views, attainable.shortage(), state.now_s, state.score_of(), override_residency=True)
    return () if isinstance(plan, CannotFit) else plan.victims
