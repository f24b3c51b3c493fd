"""Copies leave: evicted, closed, unregistered, given up on their way in, parked in RAM.

A copy in use is closed: it admits nobody, and is unloaded when it is given back. What the loader runs is never
abandoned silently: it is cancelled, answers one way or the other, and holds its bytes until then. An unload that fails
is tried again after growing pauses, and its bytes count until one succeeds.
"""

from __future__ import annotations

from cache.answering import refuse_all
from cache.commands import EVICTED_FOR, CancelLoad, StartPark, StartUnload
from cache.copies import Copy
from cache.events import EvictRequest, Retire, Unloaded, UnloadFailed
from cache.eviction import Victim
from cache.foreseeing import foresee, forget_foreseen
from cache.state import PodState
from cache.timers import Alarm
from cache.transitions import Cause
from cache.types import CopyState, Refusal, RefusalKind

_RETIRED = "the model was unregistered or superseded"
_ASKED_FOR = "an operator asked for it"


def close(state: PodState, copy: Copy, reason: str) -> None:
    """Admit nobody to a servable copy; unload it when nobody holds it."""
    copy.closing_reason = reason
    if copy.pins:
        copy.pinned = False
        state.move(copy, Cause.CLOSED)
    else:
        unload(state, copy, reason)


def unload(state: PodState, copy: Copy, reason: str) -> None:
    """Nobody holds it."""
    copy.pinned = False
    foresee(state, copy)
    state.timers.cancel(Alarm("idle", copy.copy_id))
    state.move(copy, Cause.UNLOAD)
    state.out.append(StartUnload(copy.key, copy.copy_id, reason))


def _park(state: PodState, copy: Copy, reason: str) -> None:
    """Nobody holds it, and there is room for it in RAM."""
    assert copy.parks is not None
    copy.pinned = False
    state.timers.cancel(Alarm("idle", copy.copy_id))
    state.parkings_total += 1
    copy.returns = copy.size
    copy.parked = copy.parks
    state.charge(copy, copy.charged + copy.parked, copy.shared)
    state.move(copy, Cause.PARK)
    state.out.append(StartPark(copy.key, copy.copy_id, reason))


def evict(state: PodState, copy: Copy, victim: Victim, why: str, *, park: bool = False) -> None:
    """This victim makes room, on this device: parked, or gone."""
    reason = EVICTED_FOR + why
    state.evicted(victim.score, victim.idle_s)
    state.thrash.evicted(copy.key, state.now_s - copy.since_s, copy.load_time_s - copy.fetch_time_s, state.now_s)
    state.note(copy.key, copy.copy_id, reason)
    if park:
        _park(state, copy, reason)
    else:
        unload(state, copy, reason)


def drop(state: PodState, copy: Copy) -> None:
    """Nothing has been done for it yet on its device."""
    state.move(copy, Cause.PUT_BACK if copy.parked else Cause.DROPPED)


def abandon(state: PodState, copy: Copy, reason: str, *, and_loading: bool) -> None:
    """Stop bringing this copy in. A load that already holds its bytes is finished unless `and_loading`:
    most of its cost is spent, and the next request finds it."""
    match copy.state:
        case CopyState.QUEUED | CopyState.WAITING_FOR_SPACE:
            drop(state, copy)
        case CopyState.FETCHING:
            state.move(copy, Cause.CANCELLED)
            state.out.append(CancelLoad(copy.copy_id, reason))
        case CopyState.LOADING if and_loading:
            state.move(copy, Cause.CANCELLED)
            state.out.append(CancelLoad(copy.copy_id, reason))
        case CopyState.SETTLING if and_loading:
            unload(state, copy, reason)


def on_unloaded(state: PodState, event: Unloaded) -> None:
    """Nothing of it is left."""
    copy = state.required(event.copy_id, event, CopyState.UNLOADING)
    state.move(copy, Cause.UNLOADED)


def on_unload_failed(state: PodState, event: UnloadFailed) -> None:
    """It is still here, and is tried again later."""
    copy = state.required(event.copy_id, event, CopyState.UNLOADING)
    state.move(copy, Cause.UNLOAD_FAILED)
    pause_s = state.limits.failure_backoff_base_s * 2.0 ** min(copy.unload_failures, 60)
    copy.unload_failures += 1
    retry_at_s = state.now_s + min(pause_s, state.limits.failure_backoff_max_s)
    state.timers.set(Alarm("unload again", copy.copy_id), retry_at_s)
    state.note(copy.key, copy.copy_id, f"the unload failed ({event.message}); its bytes still count")


def on_retire(state: PodState, event: Retire) -> None:
    """This generation is wanted no more: forget it, answer whoever waits, let go of its copies."""
    key = event.key
    state.failures.forget(key)
    state.profiles.forget(key)
    state.thrash.forget(key)
    state.retired[key] = True
    forget_foreseen(state, key)
    copy = state.current.get(key)
    if copy is None:
        if key in state.parked:
            unload(state, state.parked[key], _RETIRED)
        return
    message = f"Model {key} was unregistered or superseded while it was being loaded; resolve its name again."
    refuse_all(state, copy, Refusal(RefusalKind.GONE, message))
    if copy.state is CopyState.SERVABLE:
        close(state, copy, _RETIRED)
    else:
        abandon(state, copy, _RETIRED, and_loading=True)
        if key in state.parked:
            unload(state, state.parked[key], _RETIRED)


def on_evict_request(state: PodState, event: EvictRequest) -> None:
    """An operator wants the model out of memory now."""
    copy = state.servable.get(event.key)
    if copy is not None:
        close(state, copy, _ASKED_FOR)
    elif (copy := state.parked.get(event.key)) is not None:
        unload(state, copy, _ASKED_FOR)
    for copy in state.by_state[CopyState.PARKING].values():
        if copy.key == event.key:
            copy.closing_reason = _ASKED_FOR  # it leaves as soon as it has arrived in RAM


def unload_again(state: PodState, copy: Copy) -> None:
    """The pause after an unload that failed has ended."""
    state.move(copy, Cause.UNLOAD_AGAIN)
    reason = f"attempt {copy.unload_failures + 1} to unload it"
    state.out.append(StartUnload(copy.key, copy.copy_id, reason))
