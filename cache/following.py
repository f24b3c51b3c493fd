"""What this pod holds follows what it may hold: its capacity, its tenants' limits, and copies that took more than was
reserved for them.

Each is followed as far as it goes now, and again whenever anything changes: idle copies leave (`cache.shrinking` says
which), those in use when they are given back, and debts are paid from bytes that come free before anything new is
loaded.
"""

from __future__ import annotations

from cache.events import CapacityChanged
from cache.leaving import evict
from cache.serving import begin_serving
from cache.sharing import check_size
from cache.shrinking import plan_returns, plan_shrinking
from cache.state import PodState
from cache.transitions import Cause
from cache.types import CopyState


def on_capacity_changed(state: PodState, event: CapacityChanged) -> None:
    """The pod may hold less, or more again."""
    check_size(event.capacity)
    state.capacity_wanted = event.capacity.at_most(state.limits.capacity)
    state.why_smaller = event.why
    state.loads_paused = event.loads_paused
    state.replan = True


def follow_capacity(state: PodState) -> None:
    """The ledger's capacity goes up at once, and down as bytes come free; idle copies leave for that."""
    if state.ledger.capacity == state.capacity_wanted:
        return
    state.ledger.resize(state.capacity_wanted.at_least(state.ledger.used))
    for victim in plan_shrinking(state):
        copy = state.copies[victim.copy_id]
        why = f"a smaller capacity of {state.capacity_wanted}: {state.why_smaller or 'resized'}"
        evict(state, copy, victim, why)


def follow_limits(state: PodState) -> None:
    """Idle copies of a tenant that holds more than it may leave; those in use follow when they are given back."""
    for victim in plan_returns(state):
        copy = state.copies[victim.copy_id]
        limit = state.limits.tenants[copy.key.tenant].limit
        evict(state, copy, victim, f"the limit of tenant {copy.key.tenant}, {limit}")


def pay_debts(state: PodState) -> None:
    """The oldest debtor first; one that owes nothing any more serves."""
    for copy in sorted(state.debtors.values(), key=lambda each: each.copy_id):
        state.pay_debt(copy)
    for copy in list(state.by_state[CopyState.SETTLING].values()):
        if not copy.debt:
            begin_serving(state, copy, Cause.SETTLED)
