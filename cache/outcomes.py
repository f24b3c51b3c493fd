"""What the loader reports of fetches, loads and loaded copies, and what the machine makes of it.

A fetch tells what the model is expected to take, a load what it takes; from then on only what was measured counts. A
failure is told to all who wait and is remembered, unless nobody wanted the load any more: then it says nothing.
"""

from __future__ import annotations

from cache.admission import first_reservation, too_big_message, where_measured
from cache.answering import fail
from cache.commands import StartUnload
from cache.copies import Copy
from cache.events import (
    Crashed,
    Fetched,
    FetchFailed,
    Loaded,
    LoadFailed,
    LoadOutOfMemory,
    LoadOverdue,
    Resized,
)
from cache.leaving import close, unload
from cache.parking import can_park
from cache.placing import expected_on
from cache.serving import begin_serving, grant_pin
from cache.sharing import bytes_of, check_size
from cache.state import PodState
from cache.transitions import Cause
from cache.types import NO_BYTES, CopyState, Failure, FailureKind, RefusalKind

_REFUSALS = {
    FailureKind.PERMANENT: RefusalKind.LOAD_FAILED_PERMANENT,
    FailureKind.TRANSIENT: RefusalKind.LOAD_FAILED_TRANSIENT,
    FailureKind.NO_ROOM: RefusalKind.FULL,
}


def on_fetched(state: PodState, event: Fetched) -> None:
    """Its artifact is on the disk: now it is known what to reserve."""
    copy = state.required(event.copy_id, event, CopyState.FETCHING, CopyState.CANCELLING_FETCH)
    check_size(event.size, event.shared)
    copy.fetch_time_s = state.now_s - copy.since_s
    state.move(copy, Cause.FETCHED)
    if copy.state is CopyState.GONE:
        return
    measured = state.profiles.size(copy.key)
    sizes = (event.size, *event.peers)
    known = (measured,) if len(sizes) == 1 and event.otherwise is None else expected_on(measured, sizes)
    if event.otherwise is not None:
        check_size(event.otherwise)
        copy.otherwise = where_measured(measured, event.otherwise) or event.otherwise
    for size in event.peers:
        check_size(size)
    copy.on_devices = tuple(
        known_size
        or first_reservation(size, copy.model.size_hint, state.limits.capacity, estimate_knows=event.estimate_knows)
        for size, known_size in zip(sizes, known, strict=True)
    )
    capacity = state.limits.capacity
    large_enough = [index for index, needed in enumerate(copy.on_devices) if not needed.missing_from(capacity)]
    copy.device_index = large_enough[0] if large_enough else 0
    copy.needed = copy.on_devices[copy.device_index]
    surely_shared = event.otherwise is None and bytes_of(event.shared) <= copy.needed
    copy.needed_shared = event.shared if surely_shared else ()
    copy.size = copy.needed
    copy.changed()
    if not large_enough and (copy.otherwise is None or copy.otherwise.missing_from(capacity)):
        what = f"is estimated to take {copy.needed}"
        fail(state, copy, RefusalKind.TOO_BIG, too_big_message(copy.key, what, capacity))
        state.move(copy, Cause.DROPPED)


def on_fetch_failed(state: PodState, event: FetchFailed) -> None:
    """Nothing of it is here."""
    copy = state.required(event.copy_id, event, CopyState.FETCHING, CopyState.CANCELLING_FETCH)
    _on_failure(state, copy, Cause.FETCH_FAILED, event.failure)


def on_loaded(state: PodState, event: Loaded) -> None:
    """It is on its device, and was measured there."""
    copy = state.required(event.copy_id, event, CopyState.LOADING, CopyState.CANCELLING_LOAD, CopyState.OVERDUE)
    check_size(event.size, event.shared)
    took_s = state.now_s - copy.since_s
    copy.parks = event.parks if can_park(state, event.parks) else None
    if copy.parked:
        if copy.key not in state.retired:
            state.profiles.climbed(copy.key, took_s)
            copy.return_time_s = took_s
    elif copy.key not in state.retired:  # what is retired was forgotten, and stays so
        copy.load_time_s = copy.fetch_time_s + took_s
        state.profiles.loaded(copy.key, copy.fetch_time_s, state.now_s - copy.since_s)
        copy.return_time_s = state.profiles.return_time_s(copy.key)
        state.profiles.measured(copy.key, event.size)
        state.thrash.loaded(copy.key, copy.wanted_s, state.now_s - copy.since_s, state.now_s)
    if event.remark:
        state.note(copy.key, copy.copy_id, event.remark)
    if copy.state is not CopyState.OVERDUE:  # what loads too late goes on backing off
        state.failures.forget(copy.key)
    copy.parked = NO_BYTES
    state.resize(copy, event.size, event.shared)
    if copy.state in (CopyState.CANCELLING_LOAD, CopyState.OVERDUE):
        why = "was cancelled" if copy.state is CopyState.CANCELLING_LOAD else "took too long"
        state.move(copy, Cause.LOADED)
        state.out.append(StartUnload(copy.key, copy.copy_id, f"its load {why}"))
    elif copy.debt:
        state.note(copy.key, copy.copy_id, f"loaded; takes {event.size}, reserved were {copy.needed}")
        state.move(copy, Cause.LOADED_LARGER)
    else:
        begin_serving(state, copy, Cause.LOADED)


def on_load_failed(state: PodState, event: LoadFailed) -> None:
    """Nothing of it is in memory."""
    copy = state.required(event.copy_id, event, CopyState.LOADING, CopyState.CANCELLING_LOAD, CopyState.OVERDUE)
    _on_failure(state, copy, Cause.LOAD_FAILED, event.failure)


def on_load_out_of_memory(state: PodState, event: LoadOutOfMemory) -> None:
    """The first time it is tried again with more reserved; a second time is a failure."""
    copy = state.required(event.copy_id, event, CopyState.LOADING, CopyState.CANCELLING_LOAD, CopyState.OVERDUE)
    check_size(event.needed)
    if copy.state is not CopyState.LOADING or copy.ran_out or copy.parked:
        if copy.state is CopyState.LOADING:
            fail(state, copy, RefusalKind.FULL, event.message)
        state.move(copy, Cause.LOAD_FAILED)
        return
    copy.ran_out = True
    # No more than the pod may hold now: want of memory does not make a model too big.
    copy.needed = copy.size = event.needed.at_most(state.capacity_wanted).at_least(copy.needed)
    if copy.elsewhere:
        copy.otherwise = copy.needed
    else:
        before, after = copy.on_devices[: copy.device_index], copy.on_devices[copy.device_index + 1 :]
        copy.on_devices = (*before, copy.needed, *after)
    state.profiles.measured(copy.key, copy.needed)
    state.move(copy, Cause.OUT_OF_MEMORY)
    state.note(copy.key, copy.copy_id, f"{event.message}; tried once more with {copy.needed} reserved")


def on_load_overdue(state: PodState, event: LoadOverdue) -> None:
    """Its waiters are answered; what still runs holds its bytes."""
    copy = state.required(event.copy_id, event, CopyState.LOADING, CopyState.CANCELLING_LOAD)
    _on_failure(state, copy, Cause.TIMED_OUT, event.failure)


def _on_failure(state: PodState, copy: Copy, cause: Cause, failure: Failure) -> None:
    if copy.state in (CopyState.FETCHING, CopyState.LOADING):  # the failure of what was cancelled says nothing
        fail(state, copy, _REFUSALS[failure.kind], failure.message)
    state.move(copy, cause)


def on_resized(state: PodState, event: Resized) -> None:
    """A loaded copy was measured anew."""
    copy = state.copies.get(event.copy_id)
    check_size(event.size, event.shared)
    # A measurement may be late: the copy was measured, and its unload began before the event arrived.
    if copy is None or copy.state not in (CopyState.SERVABLE, CopyState.RETIRING, CopyState.SETTLING):
        return
    if copy.key not in state.retired:
        state.profiles.measured(copy.key, event.size)
    state.resize(copy, event.size, event.shared)
    if copy.pinned:
        grant_pin(state, copy)


def on_crashed(state: PodState, event: Crashed) -> None:
    """The process of a loaded copy is gone."""
    copy = state.copies.get(event.copy_id)
    if copy is None or copy.state not in (CopyState.SERVABLE, CopyState.SETTLING):
        return  # it is leaving already
    reason = f"it crashed: {event.message}"
    state.note(copy.key, copy.copy_id, reason)
    if copy.state is CopyState.SERVABLE:
        close(state, copy, reason)
    else:
        fail(state, copy, RefusalKind.LOAD_FAILED_TRANSIENT, f"Model {copy.key} was loaded, then {reason}")
        unload(state, copy, reason)
