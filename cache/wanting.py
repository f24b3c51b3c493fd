"""Requests want models: a Want is served, refused at the door, or waits with a deadline; a waiter may leave again.

Whoever waits joins the one copy of its model that is on its way in, or begins it. When its last waiter is gone the copy
is given up, unless a request was sent away that is likely to come back for it.
"""

from __future__ import annotations

from cache.admission import late_refusal, load_remaining_s, refusal_at_the_door
from cache.answering import refuse
from cache.claims import rank
from cache.commands import Refuse, Serve
from cache.copies import Copy, Waiter
from cache.events import Cancel, Want
from cache.leaving import abandon
from cache.serving import describe
from cache.state import PodState
from cache.tier_moves import call_up
from cache.timers import Alarm
from cache.types import Refusal, RefusalKind


def on_want(state: PodState, want: Want) -> None:
    """Serve it, refuse it, or let it wait."""
    key = want.model.key
    if want.waiter_id in state.waiters:
        raise ValueError(f"Waiter {want.waiter_id} waits already; every Want needs an id of its own.")
    copy = state.servable.get(key)
    if copy is not None:
        describe(state, copy, want.model)
        if want.background:
            copy.hold(state.now_s)
        else:
            copy.pin(state.now_s)
        state.out.append(Serve(want.waiter_id, copy.copy_id))
        return

    copy = state.current.get(key)
    if refusal := refusal_at_the_door(state, want, copy):
        state.out.append(Refuse(want.waiter_id, refusal))
        return
    deadline_s = state.now_s + state.limits.wait_max_s
    if want.deadline_s is not None:
        deadline_s = min(deadline_s, want.deadline_s)
    remaining_s = load_remaining_s(state, key, copy)
    late = state.now_s + remaining_s > deadline_s
    if late:
        state.out.append(Refuse(want.waiter_id, late_refusal(key, remaining_s, deadline_s - state.now_s)))
        if want.background:
            return

    if copy is None:
        copy = _begin(state, want)
    describe(state, copy, want.model)
    if not want.background and state.now_s >= copy.history_due_s:
        copy.joined(state.now_s)
    rank_before = rank(copy)
    copy.urgent_s = min(copy.urgent_s, deadline_s, state.now_s + state.limits.patience_s)
    copy.space_wait_s = max(copy.space_wait_s, want.space_wait_s)
    if late:
        # Too late for this request; the load goes on, so that its retry finds a copy. If it did not, a load
        # time once learned could turn away every request with a shorter deadline for ever.
        copy.kept = True
    else:
        waiter = Waiter(want.waiter_id, copy.copy_id, deadline_s, state.now_s, want.background)
        state.waiters[waiter.waiter_id] = copy.waiters[waiter.waiter_id] = waiter
        copy.foreground_waiters += not waiter.background
        copy.changed()
        state.timers.set(Alarm("deadline", waiter.waiter_id), deadline_s)
    if rank(copy) != rank_before:
        state.replan = True


def _begin(state: PodState, want: Want) -> Copy:
    """The copy that is brought in for this first Want: up from RAM, or from the disk."""
    copy = state.parked.get(want.model.key)
    if copy is not None:
        call_up(state, copy)
        return copy
    copy = state.add_copy(want.model)
    if want.expected_at_s is not None:
        copy.expected_at_s = want.expected_at_s
        copy.prefetched = True
        state.histories.prefetches.begun += 1
    return copy


def on_cancel(state: PodState, cancel: Cancel) -> None:
    """The caller has gone."""
    waiter = state.waiters.get(cancel.waiter_id)
    if waiter is None:
        return
    copy = state.copies[waiter.copy_id]
    message = f"The caller gave up waiting for {copy.key}."
    refuse(state, waiter, Refusal(RefusalKind.CANCELLED, message))
    _abandon_unwanted(state, copy)


def on_deadline(state: PodState, waiter: Waiter) -> None:
    """It has waited as long as it may."""
    copy = state.copies[waiter.copy_id]
    remaining_s = load_remaining_s(state, copy.key, copy)
    waited_s = state.now_s - waiter.wanted_s
    message = f"Model {copy.key} was not loaded within {waited_s:.3f} s: it is {copy.state.value}"
    if copy.blocked is not None:
        message += f" ({copy.blocked})"
    refuse(state, waiter, Refusal(RefusalKind.DEADLINE, message + ".", remaining_s))
    # The client is likely to retry, and what was fetched or loaded so far is not thrown away.
    copy.kept = copy.kept or not waiter.background
    _abandon_unwanted(state, copy)


def _abandon_unwanted(state: PodState, copy: Copy) -> None:
    if not copy.waiters and not copy.kept:
        abandon(state, copy, "nobody waits for it any more", and_loading=False)
