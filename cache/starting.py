"""Fetches and loads start, as soon as there are slots and room for them.

`cache.claims` says who stands in the line for space and what each of them would need to leave; here the plan is carried
out, hopeless claims are ended, and turns are given while the pod thrashes (`cache.thrash`).
"""

from __future__ import annotations

from heapq import nsmallest

from cache.answering import fail, refuse_all
from cache.claims import (
    gathering,
    idle_at_s,
    line_of_claims,
    look_again_at_s,
    plan_claims,
    rank,
    serves_by_turns,
    verdict,
)
from cache.commands import StartFetch, StartLoad, StartReturn
from cache.eviction import CannotFit
from cache.leaving import close, drop, evict, unload
from cache.parking import parks_now
from cache.placing import Elsewhere, OnDevice, plan_places
from cache.shrinking import is_over_limit
from cache.space import Claim, SpacePlan
from cache.state import PodState
from cache.thrash import choose_turns
from cache.timers import Alarm
from cache.transitions import ENDING, Cause
from cache.types import CopyState, Refusal

LOOK_AGAIN = Alarm("look again", 0)
"""Rings when time alone may unblock a claim: a minimum residency ends, a wait has lasted long enough."""

TURN = Alarm("turn", 0)
"""Rings when time alone may give the next model its turn, or end the thrashing (`cache.thrash`)."""

TURN_LOOK_MIN_S = 0.001
"""Between two looks at whose turn it is."""


def start_fetches(state: PodState) -> None:
    """The most urgent of the queue, as many as there are slots."""
    by_state = state.by_state
    queued = by_state[CopyState.QUEUED]
    running = len(by_state[CopyState.FETCHING]) + len(by_state[CopyState.CANCELLING_FETCH])
    slots = state.limits.fetches_concurrent_max - running
    if not queued or slots <= 0:
        return
    # A cancelled fetch or load of the same model still runs: two at once would write the same files.
    # And what is being parked will soon be there to return.
    running_states = (*ENDING, CopyState.PARKING)
    busy = {copy.key for copy_state in running_states for copy in by_state[copy_state].values()}
    startable = [copy for copy in queued.values() if copy.key not in busy]
    for copy in nsmallest(slots, startable, key=rank):
        state.move(copy, Cause.FETCH_SLOT)
        state.out.append(StartFetch(copy.key, copy.copy_id))


def start_loads(state: PodState) -> bool:
    """Plan; end the first claim that is hopeless and plan again without it; carry out the plan that remains.

    Whether more space is wanted than is there: then the next copy that becomes idle matters."""
    _give_turns(state)
    for copy, placing in plan_places(state):
        copy.needed, copy.elsewhere = placing.needed, isinstance(placing, Elsewhere)
        if isinstance(placing, OnDevice):
            copy.device_index = placing.index
    plan = _plan(state)
    # One at a time: whoever stood behind it may fit once it is gone.
    while any(_ended(state, claim, why) for claim, why in plan.blocked):
        plan = _plan(state)
    space_wanted = bool(plan.blocked) or state.ledger.capacity != state.capacity_wanted or is_over_limit(state)
    for claim, why in plan.blocked:
        state.timers.set_no_later(LOOK_AGAIN, look_again_at_s(state, claim, why))
    for victim, claim in plan.unload:
        copy = state.copies[victim.copy_id]
        reason = f"{claim.key}, which needs {claim.needed}: idle for {victim.idle_s:.1f} s"
        if victim.young:
            reason += ", loaded a moment ago, but the request has waited too long"
        evict(state, copy, victim, reason, park=parks_now(state, copy))
        state.crossed(copy, victim.freed, claim.key.tenant)
    for copy_id in plan.start:
        copy = state.copies[copy_id]
        state.charge(copy, copy.needed + copy.parked, copy.needed_shared)
        state.move(copy, Cause.RESERVED)
        start = StartReturn if copy.parked else StartLoad
        state.out.append(start(copy.key, copy_id, copy.needed))
    return space_wanted


def _plan(state: PodState) -> SpacePlan:
    """What the line asks of the memory now; each copy in it is told what blocks it."""
    claims = line_of_claims(state)
    plan = plan_claims(state, claims)
    blocked = {claim.copy_id: why for claim, why in plan.blocked}
    for claim in claims:
        copy = state.copies[claim.copy_id]
        copy.blocked = blocked.get(claim.copy_id)
        if copy.blocked is None:
            copy.blocked_since_s = None
        elif copy.blocked_since_s is None:
            copy.blocked_since_s = state.now_s
    return plan


def _give_turns(state: PodState) -> None:
    """While the pod thrashes: say which of those that wait may evict now, and when to look again."""
    thrash, now_s = state.thrash, state.now_s
    thrash.judge(now_s)
    if not thrash.active:
        state.timers.cancel(TURN)
        return
    if not serves_by_turns(state):
        state.timers.set(TURN, thrash.ends_at_s)
        return
    waiting = state.by_state[CopyState.WAITING_FOR_SPACE]
    for copy_id in [copy_id for copy_id in thrash.in_turn if copy_id not in waiting]:
        del thrash.in_turn[copy_id]
    gathered = gathering(state)
    look_again_s = [thrash.ends_at_s]
    if gathered:
        idle_s = idle_at_s(state)
        # One at a time has its turn: while its victims leave and it is loaded, the next ones gather.
        turn = not thrash.in_turn and (now_s >= thrash.next_turn_s or now_s >= idle_s)
        for copy_id in choose_turns(gathered, now_s, turn=turn):
            thrash.give_turn(copy_id, thrash.load_s(waiting[copy_id].key), now_s)
        left = [each.due_s for each in gathered if each.copy_id not in thrash.in_turn]
        if left:
            thrash.held_back(now_s)
            look_again_s = [min(left)]
            if not thrash.in_turn:
                look_again_s += [thrash.next_turn_s, idle_at_s(state)]
    state.timers.set(TURN, max(min(look_again_s), now_s + TURN_LOOK_MIN_S))


def _ended(state: PodState, claim: Claim, why: CannotFit) -> bool:
    """End this blocked claim if it must end."""
    hopeless = verdict(state, claim, why)
    if hopeless is None:
        return False
    copy = state.copies[claim.copy_id]
    if hopeless.remembered:
        fail(state, copy, hopeless.kind, hopeless.message)
    else:
        state.note(copy.key, copy.copy_id, hopeless.message)
        refuse_all(state, copy, Refusal(hopeless.kind, hopeless.message, state.limits.failure_backoff_base_s))
    if copy.state is CopyState.WAITING_FOR_SPACE:
        drop(state, copy)
    elif copy.state is CopyState.SETTLING:
        unload(state, copy, hopeless.message)
    else:
        close(state, copy, hopeless.message)
    return True
