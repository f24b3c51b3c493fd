"""The state machine of one pod: events in, commands out.

A pod has memory for some of its models. This machine decides what is fetched, loaded, unloaded, who is served and
who is refused; it carries out nothing, so that every decision can be replayed in a test with an executor that is
late, unlucky and out of order. The ring around it (the pod's loader) carries out the commands and reports back.

A miss goes: Want -> StartFetch -> Fetched(estimate) -> its bytes are reserved, and if they are not free all victims
are chosen at once -> StartUnload ... -> Unloaded ... -> StartLoad -> Loaded(measured) -> Serve for every waiter.

What holds at every moment is in `cache.invariants`; which moves exist, in `cache.transitions`; who goes, in
`cache.eviction`; who gets the bytes, in `cache.space`. Here is only what an event means and what follows from it.

Deliberately absent: clocks, threads, tasks and locks (everything runs to its end on the caller's one thread), the
loaded models themselves, retries on other pods (the mesh's).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from heapq import nsmallest
from math import inf
from typing import assert_never

from cache import reports
from cache.admission import (
    choose_place,
    first_reservation,
    late_refusal,
    load_remaining_s,
    refusal_at_the_door,
    too_big_message,
    where_measured,
)
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
from cache.commands import (
    CancelLoad,
    Command,
    Refuse,
    Serve,
    StartFetch,
    StartLoad,
    StartPark,
    StartReturn,
    StartUnload,
    WakeAt,
)
from cache.copies import Copy, Waiter
from cache.events import (
    Cancel,
    CapacityChanged,
    Crashed,
    Drain,
    Event,
    EvictRequest,
    Fetched,
    FetchFailed,
    Forgive,
    Loaded,
    LoadFailed,
    LoadOutOfMemory,
    LoadOverdue,
    Parked,
    ParkFailed,
    Resized,
    Retire,
    SetPinned,
    SetPriority,
    Tick,
    Unloaded,
    UnloadFailed,
    Want,
)
from cache.eviction import CannotFit, Victim
from cache.failures import FailureRecord
from cache.foreseeing import foresee, forget_foreseen, prefetch_followers, prefetch_foreseen
from cache.invariants import check_invariants
from cache.limits import CacheLimits
from cache.parking import choose_return, parks_now, plan_headroom
from cache.policies import policy_named
from cache.policies.base import EvictionPolicy
from cache.sharing import bytes_of
from cache.shrinking import is_over_limit, plan_returns, plan_shrinking
from cache.space import Claim
from cache.state import PodState
from cache.thrash import Thrashing, choose_turns
from cache.timers import Alarm
from cache.transitions import ENDING, Cause, InvalidTransition
from cache.types import (
    NO_BYTES,
    Bytes,
    CopyState,
    Failure,
    FailureKind,
    ModelKey,
    Refusal,
    RefusalKind,
    Shared,
    WantedModel,
)
from cache.views import CopyView, Explanation, QueueEntry, Usage

EVICTED_FOR = "evicted for "
"""How the reason of an unload begins when it makes room."""

DEFAULT_POLICY = "lru"

NOTHING: Sequence[Command] = ()
"""What nearly every unpin answers."""

LOOK_AGAIN = Alarm("look again", 0)
"""Rings when time alone may unblock a claim: a minimum residency ends, a wait has lasted long enough."""


TURN = Alarm("turn", 0)
"""Rings when time alone may give the next model its turn, or end the thrashing (`cache.thrash`)."""

TURN_LOOK_MIN_S = 0.001
"""Between two looks at whose turn it is."""


_REFUSALS = {
    FailureKind.PERMANENT: RefusalKind.LOAD_FAILED_PERMANENT,
    FailureKind.TRANSIENT: RefusalKind.LOAD_FAILED_TRANSIENT,
    FailureKind.NO_ROOM: RefusalKind.FULL,
}


class CacheMachine:
    """What this pod holds, and what must happen next. `now_s` comes from one monotonic clock."""

    def __init__(self, limits: CacheLimits, policy: EvictionPolicy | None = None) -> None:
        self._state = PodState(limits, policy or policy_named(DEFAULT_POLICY))
        self._servable = self._state.servable
        self._space_wanted = False
        """A claim is blocked, so the next copy that becomes idle matters."""
        self._wake_at_s: float | None = None
        self._out: list[Command] = []

    # -- the hot path ---------------------------------------------------------------------------------------------

    def servable(self, key: ModelKey) -> Copy | None:
        """The copy that serves this model now; pin it before the next await."""
        return self._servable.get(key)

    def unpin(self, copy: Copy, now_s: float) -> Sequence[Command]:
        """Give a pinned copy back. Nearly always there is nothing to do."""
        pins = copy.pins - 1
        if pins < 0:
            raise InvalidTransition(copy.copy_id, copy.key, "unpinned more often than pinned", copy.story)
        copy.pins = pins
        copy.last_used_s = now_s
        copy.cached_view = None
        if pins or not (self._space_wanted or copy.closing_reason):
            return NOTHING
        return self._after_last_unpin(copy, now_s)

    def copy(self, copy_id: int) -> Copy:
        """The copy that a Serve names. Raises KeyError when it is gone (it cannot be while it is pinned)."""
        return self._state.copies[copy_id]

    def is_known(self, copy_id: int) -> bool:
        """False once nothing of the copy is left here, nor on its way in."""
        return copy_id in self._state.copies

    def take_changed(self) -> Sequence[ModelKey]:
        """Models whose copies changed their states since the last time this was asked; for whoever publishes them."""
        changed = self._state.changed
        if not changed:
            return ()
        self._state.changed = {}
        return tuple(changed)

    # -- events ---------------------------------------------------------------------------------------------------

    def handle(self, event: Event, now_s: float) -> list[Command]:
        """Take in one event; the answer is what must be done now, in this order."""
        self._begin(now_s)
        match event:
            case Want():
                self._on_want(event)
            case Cancel():
                self._on_cancel(event)
            case Fetched():
                self._on_fetched(event)
            case FetchFailed():
                self._on_fetch_failed(event)
            case Loaded():
                self._on_loaded(event)
            case Parked():
                self._on_parked(event)
            case ParkFailed():
                self._on_park_failed(event)
            case LoadFailed():
                self._on_load_failed(event)
            case LoadOutOfMemory():
                self._on_load_out_of_memory(event)
            case LoadOverdue():
                self._on_load_overdue(event)
            case Unloaded():
                self._on_unloaded(event)
            case UnloadFailed():
                self._on_unload_failed(event)
            case Resized():
                self._on_resized(event)
            case Crashed():
                self._on_crashed(event)
            case Retire():
                self._on_retire(event)
            case Forgive():
                self._state.failures.forget(event.key)
                self._state.retired.pop(event.key, None)
            case SetPinned():
                if copy := self._state.current.get(event.key):
                    self._describe(copy, replace(copy.model, pinned=event.pinned))
            case SetPriority():
                if copy := self._state.current.get(event.key):
                    self._describe(copy, replace(copy.model, priority=event.priority))
            case EvictRequest():
                copy = self._servable.get(event.key)
                if copy is not None:
                    self._close(copy, "an operator asked for it")
                elif (copy := self._state.parked.get(event.key)) is not None:
                    self._unload(copy, "an operator asked for it")
            case Tick():
                self._wake_at_s = None  # it has fired, be it a little early
            case CapacityChanged():
                self._on_capacity_changed(event)
            case Drain():
                self._state.draining = True
            case _:
                assert_never(event)
        return self._finish()

    def _begin(self, now_s: float) -> None:
        state = self._state
        state.now_s = max(state.now_s, now_s)
        self._out = []

    def _finish(self) -> list[Command]:
        """Whatever happened: ring what is due, start what can start, and say when to wake next."""
        state = self._state
        for alarm in state.timers.take_due(state.now_s):
            self._on_alarm(alarm)
        if state.histories.expected:
            self._out.extend(prefetch_followers(state))
        while state.replan:
            state.replan = False
            self._follow_capacity()
            self._follow_limits()
            self._pay_debts()
            self._start_fetches()
            self._start_loads()
            self._keep_headroom()
        if (best := choose_return(state)) is not None:
            self._call_up(best)
            state.replan = False
            self._start_loads()
        if self._wake_at_s is not None and self._wake_at_s <= state.now_s:
            self._wake_at_s = None
        next_at_s = state.timers.next_at_s()
        if next_at_s is not None and (self._wake_at_s is None or next_at_s < self._wake_at_s):
            self._wake_at_s = next_at_s
            self._out.append(WakeAt(next_at_s))
        return self._out

    def _after_last_unpin(self, copy: Copy, now_s: float) -> list[Command]:
        self._begin(now_s)
        if copy.state is CopyState.RETIRING:
            self._unload(copy, copy.closing_reason)
        self._state.replan = True
        return self._finish()

    # -- wanting --------------------------------------------------------------------------------------------------

    def _on_want(self, want: Want) -> None:
        state, key = self._state, want.model.key
        if want.waiter_id in state.waiters:
            raise ValueError(f"Waiter {want.waiter_id} waits already; every Want needs an id of its own.")
        copy = self._servable.get(key)
        if copy is not None:
            self._describe(copy, want.model)
            if want.background:
                copy.hold(state.now_s)
            else:
                copy.pin(state.now_s)
            self._out.append(Serve(want.waiter_id, copy.copy_id))
            return

        copy = state.current.get(key)
        if refusal := refusal_at_the_door(state, want, copy):
            self._out.append(Refuse(want.waiter_id, refusal))
            return
        deadline_s = state.now_s + state.limits.wait_max_s
        if want.deadline_s is not None:
            deadline_s = min(deadline_s, want.deadline_s)
        remaining_s = load_remaining_s(state, key, copy)
        late = state.now_s + remaining_s > deadline_s
        if late:
            self._out.append(Refuse(want.waiter_id, late_refusal(key, remaining_s, deadline_s - state.now_s)))
            if want.background:
                return

        if copy is None and (parked := state.parked.get(key)) is not None:
            copy = parked
            self._call_up(copy)
            self._describe(copy, want.model)
        elif copy is None:
            copy = state.add_copy(want.model)
            if want.expected_at_s is not None:
                copy.expected_at_s = want.expected_at_s
                copy.prefetched = True
                state.histories.prefetches.begun += 1
        else:
            self._describe(copy, want.model)
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

    def _describe(self, copy: Copy, model: WantedModel) -> None:
        """The newest word on a model's spec counts."""
        if copy.model == model:
            return
        copy.model = model
        copy.changed()
        self._state.replan = True
        if copy.state is CopyState.SERVABLE:
            self._grant_pin(copy)
            self._watch_idleness(copy)

    def _on_cancel(self, cancel: Cancel) -> None:
        waiter = self._state.waiters.get(cancel.waiter_id)
        if waiter is None:
            return
        copy = self._state.copies[waiter.copy_id]
        message = f"The caller gave up waiting for {copy.key}."
        self._refuse(waiter, Refusal(RefusalKind.CANCELLED, message))
        if not copy.waiters and not copy.kept:
            self._abandon(copy, "nobody waits for it any more", and_loading=False)

    def _abandon(self, copy: Copy, reason: str, *, and_loading: bool) -> None:
        """Stop bringing this copy in. A load that already holds its bytes is finished unless `and_loading`:
        most of its cost is spent, and the next request finds it."""
        match copy.state:
            case CopyState.QUEUED | CopyState.WAITING_FOR_SPACE:
                self._drop(copy)
            case CopyState.FETCHING:
                self._state.move(copy, Cause.CANCELLED)
                self._out.append(CancelLoad(copy.copy_id, reason))
            case CopyState.LOADING if and_loading:
                self._state.move(copy, Cause.CANCELLED)
                self._out.append(CancelLoad(copy.copy_id, reason))
            case CopyState.SETTLING if and_loading:
                self._unload(copy, reason)

    # -- what the loader reports ----------------------------------------------------------------------------------

    def _on_fetched(self, event: Fetched) -> None:
        state = self._state
        copy = state.required(event.copy_id, event, CopyState.FETCHING, CopyState.CANCELLING_FETCH)
        _check_size(event.size, event.shared)
        copy.fetch_time_s = state.now_s - copy.since_s
        state.move(copy, Cause.FETCHED)
        if copy.state is CopyState.GONE:
            return
        measured = state.profiles.size(copy.key)
        if event.otherwise is not None:
            _check_size(event.otherwise)
            copy.otherwise = where_measured(measured, event.otherwise) or event.otherwise
            measured = where_measured(measured, event.size)
        copy.mainly = copy.needed = measured or first_reservation(
            event.size, copy.model.size_hint, state.limits.capacity, estimate_knows=event.estimate_knows
        )
        surely_shared = event.otherwise is None and bytes_of(event.shared) <= copy.needed
        copy.needed_shared = event.shared if surely_shared else ()
        copy.size = copy.needed
        copy.changed()
        if copy.needed.missing_from(state.limits.capacity):
            what = f"is estimated to take {copy.needed}"
            self._fail(copy, RefusalKind.TOO_BIG, too_big_message(copy.key, what, state.limits.capacity))
            state.move(copy, Cause.DROPPED)

    def _on_fetch_failed(self, event: FetchFailed) -> None:
        copy = self._state.required(event.copy_id, event, CopyState.FETCHING, CopyState.CANCELLING_FETCH)
        self._on_failure(copy, Cause.FETCH_FAILED, event.failure)

    def _on_loaded(self, event: Loaded) -> None:
        state = self._state
        copy = state.required(event.copy_id, event, CopyState.LOADING, CopyState.CANCELLING_LOAD, CopyState.OVERDUE)
        _check_size(event.size, event.shared)
        took_s = state.now_s - copy.since_s
        copy.parks = event.parks if self._can_park(event.parks) else None
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
            self._out.append(StartUnload(copy.key, copy.copy_id, f"its load {why}"))
        elif copy.debt:
            state.note(copy.key, copy.copy_id, f"loaded; takes {event.size}, reserved were {copy.needed}")
            state.move(copy, Cause.LOADED_LARGER)
        else:
            self._begin_serving(copy, Cause.LOADED)

    def _on_load_failed(self, event: LoadFailed) -> None:
        copy = self._state.required(
            event.copy_id, event, CopyState.LOADING, CopyState.CANCELLING_LOAD, CopyState.OVERDUE
        )
        self._on_failure(copy, Cause.LOAD_FAILED, event.failure)

    def _on_load_out_of_memory(self, event: LoadOutOfMemory) -> None:
        state = self._state
        copy = state.required(event.copy_id, event, CopyState.LOADING, CopyState.CANCELLING_LOAD, CopyState.OVERDUE)
        _check_size(event.needed)
        if copy.state is not CopyState.LOADING or copy.ran_out or copy.parked:
            if copy.state is CopyState.LOADING:
                self._fail(copy, RefusalKind.FULL, event.message)
            state.move(copy, Cause.LOAD_FAILED)
            return
        copy.ran_out = True
        # No more than the pod may hold now: want of memory does not make a model too big.
        copy.needed = copy.size = event.needed.at_most(state.capacity_wanted).at_least(copy.needed)
        if copy.elsewhere:
            copy.otherwise = copy.needed
        else:
            copy.mainly = copy.needed
        state.profiles.measured(copy.key, copy.needed)
        state.move(copy, Cause.OUT_OF_MEMORY)
        state.note(copy.key, copy.copy_id, f"{event.message}; tried once more with {copy.needed} reserved")

    def _on_capacity_changed(self, event: CapacityChanged) -> None:
        state = self._state
        _check_size(event.capacity)
        state.capacity_wanted = event.capacity.at_most(state.limits.capacity)
        state.why_smaller = event.why
        state.loads_paused = event.loads_paused
        state.replan = True

    def _on_load_overdue(self, event: LoadOverdue) -> None:
        copy = self._state.required(event.copy_id, event, CopyState.LOADING, CopyState.CANCELLING_LOAD)
        self._on_failure(copy, Cause.TIMED_OUT, event.failure)

    def _on_failure(self, copy: Copy, cause: Cause, failure: Failure) -> None:
        if copy.state in (CopyState.FETCHING, CopyState.LOADING):  # the failure of what was cancelled says nothing
            self._fail(copy, _REFUSALS[failure.kind], failure.message)
        self._state.move(copy, cause)

    def _on_unloaded(self, event: Unloaded) -> None:
        copy = self._state.required(event.copy_id, event, CopyState.UNLOADING)
        self._state.move(copy, Cause.UNLOADED)

    def _on_unload_failed(self, event: UnloadFailed) -> None:
        state = self._state
        copy = state.required(event.copy_id, event, CopyState.UNLOADING)
        state.move(copy, Cause.UNLOAD_FAILED)
        pause_s = state.limits.failure_backoff_base_s * 2.0 ** min(copy.unload_failures, 60)
        copy.unload_failures += 1
        retry_at_s = state.now_s + min(pause_s, state.limits.failure_backoff_max_s)
        state.timers.set(Alarm("unload again", copy.copy_id), retry_at_s)
        state.note(copy.key, copy.copy_id, f"the unload failed ({event.message}); its bytes still count")

    def _on_resized(self, event: Resized) -> None:
        state = self._state
        copy = state.copies.get(event.copy_id)
        _check_size(event.size, event.shared)
        # A measurement may be late: the copy was measured, and its unload began before the event arrived.
        if copy is None or copy.state not in (CopyState.SERVABLE, CopyState.RETIRING, CopyState.SETTLING):
            return
        if copy.key not in state.retired:
            state.profiles.measured(copy.key, event.size)
        state.resize(copy, event.size, event.shared)
        if copy.pinned:
            self._grant_pin(copy)

    def _on_crashed(self, event: Crashed) -> None:
        copy = self._state.copies.get(event.copy_id)
        if copy is None or copy.state not in (CopyState.SERVABLE, CopyState.SETTLING):
            return  # it is leaving already
        reason = f"it crashed: {event.message}"
        self._state.note(copy.key, copy.copy_id, reason)
        if copy.state is CopyState.SERVABLE:
            self._close(copy, reason)
        else:
            self._fail(copy, RefusalKind.LOAD_FAILED_TRANSIENT, f"Model {copy.key} was loaded, then {reason}")
            self._unload(copy, reason)

    def _on_retire(self, event: Retire) -> None:
        state, key = self._state, event.key
        state.failures.forget(key)
        state.profiles.forget(key)
        state.thrash.forget(key)
        state.retired[key] = True
        forget_foreseen(state, key)
        copy = state.current.get(key)
        if copy is None:
            if key in state.parked:
                self._unload(state.parked[key], "the model was unregistered or superseded")
            return
        message = f"Model {key} was unregistered or superseded while it was being loaded; resolve its name again."
        self._refuse_all(copy, Refusal(RefusalKind.GONE, message))
        if copy.state is CopyState.SERVABLE:
            self._close(copy, "the model was unregistered or superseded")
        else:
            self._abandon(copy, "the model was unregistered or superseded", and_loading=True)
            if key in state.parked:
                self._unload(state.parked[key], "the model was unregistered or superseded")

    # -- serving and leaving --------------------------------------------------------------------------------------

    def _begin_serving(self, copy: Copy, cause: Cause) -> None:
        state, limits, model = self._state, self._state.limits, copy.model
        state.move(copy, cause)
        residency_s = model.residency_min_s
        if residency_s is None:
            residency_s = min(limits.residency_min_s, limits.residency_load_times * copy.load_time_s)
        copy.last_used_s = state.now_s
        copy.protected_until_s = state.now_s + residency_s
        copy.kept = False
        self._learn_joining(copy)
        for waiter in sorted(copy.waiters.values(), key=lambda each: (each.deadline_s, each.wanted_s, each.waiter_id)):
            self._dismiss(waiter)
            copy.hold(state.now_s)
            self._out.append(Serve(waiter.waiter_id, copy.copy_id))
        self._grant_pin(copy)
        self._watch_idleness(copy)

    def _learn_joining(self, copy: Copy) -> None:
        waits_s = [self._state.now_s - waiter.wanted_s for waiter in copy.waiters.values() if not waiter.background]
        if waits_s:
            copy.history.loaded(sum(waits_s) - max(waits_s))

    def _grant_pin(self, copy: Copy) -> None:
        """Pin or release as the spec says, within what its tenant may pin."""
        state, limit_bytes = self._state, self._state.limits.pinned_bytes_max
        copy.pinned = False
        copy.changed()
        if copy.model.pinned:
            held_bytes = sum(
                other.size.total_bytes
                for other in state.by_state[CopyState.SERVABLE].values()
                if other.pinned and other.key.tenant == copy.key.tenant
            )
            copy.pinned = held_bytes + copy.size.total_bytes <= limit_bytes
            if not copy.pinned:
                text = (
                    f"not pinned: tenant {copy.key.tenant} holds {held_bytes:,} of {limit_bytes:,} bytes that it may "
                    f"pin, and this copy takes {copy.size.total_bytes:,}"
                )
                state.note(copy.key, copy.copy_id, text)
        state.replan = True

    def _watch_idleness(self, copy: Copy) -> None:
        ttl_s = self._ttl_s(copy)
        alarm = Alarm("idle", copy.copy_id)
        if ttl_s is None:
            self._state.timers.cancel(alarm)
        else:
            self._state.timers.set(alarm, copy.last_used_s + ttl_s)

    def _ttl_s(self, copy: Copy) -> float | None:
        ttl_s = self._state.limits.ttl_s if copy.model.ttl_s is None else copy.model.ttl_s
        return ttl_s if ttl_s is not None and ttl_s > 0 else None

    def _close(self, copy: Copy, reason: str) -> None:
        """Admit nobody to a servable copy; unload it when nobody holds it."""
        copy.closing_reason = reason
        if copy.pins:
            copy.pinned = False
            self._state.move(copy, Cause.CLOSED)
        else:
            self._unload(copy, reason)

    def _unload(self, copy: Copy, reason: str) -> None:
        copy.pinned = False
        foresee(self._state, copy)
        self._state.timers.cancel(Alarm("idle", copy.copy_id))
        self._state.move(copy, Cause.UNLOAD)
        self._out.append(StartUnload(copy.key, copy.copy_id, reason))

    # -- the host tier --------------------------------------------------------------------------------------------

    def _can_park(self, parks: Bytes | None) -> bool:
        return parks is not None and bool(parks) and not parks.missing_from(self._state.limits.capacity)

    def _park(self, copy: Copy, reason: str) -> None:
        """Nobody holds it, and there is room for it in RAM."""
        assert copy.parks is not None
        state = self._state
        copy.pinned = False
        state.timers.cancel(Alarm("idle", copy.copy_id))
        state.parkings_total += 1
        copy.returns = copy.size
        copy.parked = copy.parks
        state.charge(copy, copy.charged + copy.parked, copy.shared)
        state.move(copy, Cause.PARK)
        self._out.append(StartPark(copy.key, copy.copy_id, reason))

    def _on_parked(self, event: Parked) -> None:
        state = self._state
        copy = state.required(event.copy_id, event, CopyState.PARKING)
        _check_size(event.size)
        copy.parked = event.size
        state.resize(copy, event.size)
        copy.return_time_s = state.profiles.return_time_s(copy.key)
        state.move(copy, Cause.PARKED)
        if copy.debt or not copy.parked or copy.key in state.retired:
            self._unload(copy, "what it takes parked does not fit" if copy.debt else "nobody wants it parked")
            return
        newcomer = state.current.get(copy.key)
        if newcomer is not None:  # wanted again while it was on its way down
            self._call_up(copy)
            self._hand_over(newcomer, copy)

    def _on_park_failed(self, event: ParkFailed) -> None:
        state = self._state
        copy = state.required(event.copy_id, event, CopyState.PARKING)
        state.note(copy.key, copy.copy_id, f"it could not be parked: {event.message}")
        copy.parked = NO_BYTES
        state.charge(copy, copy.charged.at_most(copy.size), copy.shared)
        state.move(copy, Cause.PARK_FAILED)
        self._out.append(StartUnload(copy.key, copy.copy_id, f"it could not be parked: {event.message}"))

    def _call_up(self, copy: Copy) -> None:
        """A parked copy is wanted on its device."""
        state = self._state
        copy.needed, copy.needed_shared, copy.size = copy.returns, (), copy.parked
        copy.otherwise, copy.elsewhere = None, False
        copy.wanted_s, copy.urgent_s, copy.kept = state.now_s, inf, False
        copy.fetch_time_s = 0.0
        state.move(copy, Cause.WANTED)

    def _hand_over(self, newcomer: Copy, copy: Copy) -> None:
        """Who waits for a copy that was not begun waits for this one of the same model."""
        state = self._state
        copy.model, copy.wanted_s, copy.urgent_s = newcomer.model, newcomer.wanted_s, newcomer.urgent_s
        copy.kept = newcomer.kept
        for waiter in newcomer.waiters.values():
            state.waiters[waiter.waiter_id] = copy.waiters[waiter.waiter_id] = replace(waiter, copy_id=copy.copy_id)
        copy.foreground_waiters, newcomer.foreground_waiters = newcomer.foreground_waiters, 0
        newcomer.waiters.clear()
        newcomer.kept = False
        copy.changed()
        state.move(newcomer, Cause.DROPPED)

    def _drop(self, copy: Copy) -> None:
        """Nothing has been done for it yet on its device."""
        self._state.move(copy, Cause.PUT_BACK if copy.parked else Cause.DROPPED)

    def _keep_headroom(self) -> None:
        """What is parked and worth least leaves before its room is needed."""
        state = self._state
        for victim in plan_headroom(state):
            copy = state.copies[victim.copy_id]
            self._unload(copy, f"room for others that may be parked: unused for {victim.idle_s:.1f} s")
            state.crossed(copy, victim.freed, "")

    # -- answering ------------------------------------------------------------------------------------------------

    def _dismiss(self, waiter: Waiter) -> None:
        """The waiter is being answered; this is the only place where waiters leave."""
        copy = self._state.copies[waiter.copy_id]
        del self._state.waiters[waiter.waiter_id]
        del copy.waiters[waiter.waiter_id]
        copy.foreground_waiters -= not waiter.background
        copy.changed()
        self._state.timers.cancel(Alarm("deadline", waiter.waiter_id))

    def _refuse(self, waiter: Waiter, refusal: Refusal) -> None:
        self._dismiss(waiter)
        self._out.append(Refuse(waiter.waiter_id, refusal))

    def _refuse_all(self, copy: Copy, refusal: Refusal) -> None:
        for waiter in list(copy.waiters.values()):
            self._refuse(waiter, refusal)
        copy.kept = False

    def _fail(self, copy: Copy, kind: RefusalKind, message: str) -> None:
        """Remember a failure of this copy's model, and tell those who wait."""
        state = self._state
        refusal = state.failures.record(copy.key, kind, message, state.now_s)
        state.note(copy.key, copy.copy_id, f"{kind.value}: {message}")
        self._refuse_all(copy, refusal)

    # -- time -----------------------------------------------------------------------------------------------------

    def _on_alarm(self, alarm: Alarm) -> None:
        state = self._state
        match alarm.kind:
            case "deadline":
                self._on_deadline(state.waiters[alarm.subject_id])
            case "idle":
                copy = state.copies.get(alarm.subject_id)
                if copy is not None and copy.state is CopyState.SERVABLE:
                    self._on_maybe_idle(copy)
            case "prefetch":
                self._out.extend(prefetch_foreseen(state, alarm.subject_id))
            case "unload again":
                copy = state.copies[alarm.subject_id]
                state.move(copy, Cause.UNLOAD_AGAIN)
                reason = f"attempt {copy.unload_failures + 1} to unload it"
                self._out.append(StartUnload(copy.key, copy.copy_id, reason))
            case _:
                state.replan = True

    def _on_deadline(self, waiter: Waiter) -> None:
        copy = self._state.copies[waiter.copy_id]
        remaining_s = load_remaining_s(self._state, copy.key, copy)
        waited_s = self._state.now_s - waiter.wanted_s
        message = f"Model {copy.key} was not loaded within {waited_s:.3f} s: it is {copy.state.value}"
        if copy.blocked is not None:
            message += f" ({copy.blocked})"
        self._refuse(waiter, Refusal(RefusalKind.DEADLINE, message + ".", remaining_s))
        # The client is likely to retry, and what was fetched or loaded so far is not thrown away.
        copy.kept = copy.kept or not waiter.background
        if not copy.waiters and not copy.kept:
            self._abandon(copy, "nobody waits for it any more", and_loading=False)

    def _on_maybe_idle(self, copy: Copy) -> None:
        ttl_s = self._ttl_s(copy)
        if ttl_s is None:
            return
        in_use = copy.pinned or copy.pins > 0
        expires_at_s = (self._state.now_s if in_use else copy.last_used_s) + ttl_s
        if expires_at_s > self._state.now_s:
            self._state.timers.set(Alarm("idle", copy.copy_id), expires_at_s)
        elif not in_use:
            self._unload(copy, f"unused since its time to live of {ttl_s:.1f} s began")

    # -- starting what can start ----------------------------------------------------------------------------------

    def _start_fetches(self) -> None:
        state, by_state = self._state, self._state.by_state
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
            self._out.append(StartFetch(copy.key, copy.copy_id))

    def _follow_capacity(self) -> None:
        """The ledger's capacity goes up at once, and down as bytes come free; idle copies leave for that."""
        state = self._state
        if state.ledger.capacity == state.capacity_wanted:
            return
        state.ledger.resize(state.capacity_wanted.at_least(state.ledger.used))
        for victim in plan_shrinking(state):
            copy = state.copies[victim.copy_id]
            reason = f"{EVICTED_FOR}a smaller capacity of {state.capacity_wanted}: {state.why_smaller or 'resized'}"
            self._evict(copy, victim, reason)

    def _follow_limits(self) -> None:
        """Idle copies of a tenant that holds more than it may leave; those in use follow when they are given back."""
        for victim in plan_returns(self._state):
            copy = self._state.copies[victim.copy_id]
            limit = self._state.limits.tenants[copy.key.tenant].limit
            self._evict(copy, victim, f"{EVICTED_FOR}the limit of tenant {copy.key.tenant}, {limit}")

    def _evict(self, copy: Copy, victim: Victim, reason: str, *, park: bool = False) -> None:
        state = self._state
        state.evicted(victim.score, victim.idle_s)
        state.thrash.evicted(copy.key, state.now_s - copy.since_s, copy.load_time_s - copy.fetch_time_s, state.now_s)
        state.note(copy.key, copy.copy_id, reason)
        if park:
            self._park(copy, reason)
        else:
            self._unload(copy, reason)

    def _pay_debts(self) -> None:
        for copy in sorted(self._state.debtors.values(), key=lambda each: each.copy_id):
            self._state.pay_debt(copy)
        for copy in list(self._state.by_state[CopyState.SETTLING].values()):
            if not copy.debt:
                self._begin_serving(copy, Cause.SETTLED)

    def _start_loads(self) -> None:
        """Plan; end the first claim that is hopeless and plan again without it; carry out the plan that remains."""
        state = self._state
        self._give_turns()
        for copy in state.by_state[CopyState.WAITING_FOR_SPACE].values():
            if copy.otherwise is not None:
                copy.needed = choose_place(copy.mainly, copy.otherwise, state.ledger.free)
                copy.elsewhere = copy.needed is copy.otherwise
        while True:
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
            # One at a time: whoever stood behind it may fit once it is gone.
            if not any(self._ended(claim, why) for claim, why in plan.blocked):
                break
        self._space_wanted = (
            bool(plan.blocked) or state.ledger.capacity != state.capacity_wanted or is_over_limit(state)
        )
        for claim, why in plan.blocked:
            state.timers.set_no_later(LOOK_AGAIN, look_again_at_s(state, claim, why))
        for victim, claim in plan.unload:
            copy = state.copies[victim.copy_id]
            reason = f"{EVICTED_FOR}{claim.key}, which needs {claim.needed}: idle for {victim.idle_s:.1f} s"
            if victim.young:
                reason += ", loaded a moment ago, but the request has waited too long"
            self._evict(copy, victim, reason, park=parks_now(state, copy))
            state.crossed(copy, victim.freed, claim.key.tenant)
        for copy_id in plan.start:
            copy = state.copies[copy_id]
            state.charge(copy, copy.needed + copy.parked, copy.needed_shared)
            state.move(copy, Cause.RESERVED)
            start = StartReturn if copy.parked else StartLoad
            self._out.append(start(copy.key, copy_id, copy.needed))

    def _give_turns(self) -> None:
        """While the pod thrashes: say which of those that wait may evict now, and when to look again."""
        state, thrash, now_s = self._state, self._state.thrash, self._state.now_s
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

    def _ended(self, claim: Claim, why: CannotFit) -> bool:
        """End this blocked claim if it must end."""
        state = self._state
        hopeless = verdict(state, claim, why)
        if hopeless is None:
            return False
        copy = state.copies[claim.copy_id]
        if hopeless.remembered:
            self._fail(copy, hopeless.kind, hopeless.message)
        else:
            state.note(copy.key, copy.copy_id, hopeless.message)
            self._refuse_all(copy, Refusal(hopeless.kind, hopeless.message, state.limits.failure_backoff_base_s))
        if copy.state is CopyState.WAITING_FOR_SPACE:
            self._drop(copy)
        elif copy.state is CopyState.SETTLING:
            self._unload(copy, hopeless.message)
        else:
            self._close(copy, hopeless.message)
        return True

    # -- views ----------------------------------------------------------------------------------------------------

    def usage(self) -> Usage:
        """The ledger and the counts, now."""
        return reports.usage(self._state)

    @property
    def is_thrashing(self) -> bool:
        """Whether the working set exceeds the capacity; cheap enough to ask at every event."""
        return self._state.thrash.active

    @property
    def thrashing(self) -> Thrashing | None:
        """The working set exceeds the capacity; None: it does not."""
        return self._state.thrash.picture(self._state.now_s)

    @property
    def used(self) -> Bytes:
        """Bytes that are reserved, resident, or not yet given back."""
        return self._state.ledger.used

    def copies(self) -> list[CopyView]:
        """Every copy, resident or not, in the order of their ids."""
        return [copy.view() for copy in self._state.copies.values()]

    def current(self, key: ModelKey) -> CopyView | None:
        """The copy of this model that is here or on its way in."""
        copy = self._state.current.get(key)
        return None if copy is None else copy.view()

    def failure(self, key: ModelKey, now_s: float) -> FailureRecord | None:
        """What was remembered of this model's last failure."""
        return self._state.failures.get(key, now_s)

    def queue(self) -> tuple[QueueEntry, ...]:
        """What is on its way in, in the order in which it is considered."""
        return reports.queue(self._state)

    def explain(self, key: ModelKey) -> Explanation:
        """Why a model is here, not here, or refused."""
        return reports.explain(self._state, key)

    def validate(self) -> None:
        """Raise AssertionError if anything that must always hold does not. O(everything): for tests and simulators."""
        check_invariants(self._state)


def _check_size(size: Bytes, shared: Shared = ()) -> None:
    if any(count < 0 for _, count in size):
        raise ValueError(f"A size of {size} was reported; every component must be zero or more bytes.")
    if any(part.count_bytes <= 0 for part in shared) or len({part.content for part in shared}) < len(shared):
        raise ValueError(
            f"Shared parts {shared} were reported; each content must be named once, with bytes above zero."
        )
    if not bytes_of(shared) <= size:
        raise ValueError(f"Shared parts of {bytes_of(shared)} were reported of a copy that takes {size}.")
