"""The state machine of one pod: events in, commands out.

A pod has memory for some of its models. This machine decides what is fetched, loaded, unloaded, who is served and
who is refused; it carries out nothing, so that every decision can be replayed in a test with an executor that is
late, unlucky and out of order. The ring around it (the pod's loader) carries out the commands and reports back.

A miss goes: Want -> StartFetch -> Fetched(estimate) -> its bytes are reserved, and if they are not free all victims
are chosen at once -> StartUnload ... -> Unloaded ... -> StartLoad -> Loaded(measured) -> Serve for every waiter.

What holds at every moment is in `cache.invariants`; which moves exist, in `cache.transitions`; who goes, in
`cache.eviction`; who gets the bytes, in `cache.space`. What an event means is in the module of its subject:
`cache.wanting`, `cache.outcomes`, `cache.serving`, `cache.tier_moves`, `cache.leaving`. They change the state and add
commands to `PodState.out`. Here is the one door, and what follows whatever the event was (`_finish`).

Deliberately absent: clocks, threads, tasks and locks (everything runs to its end on the caller's one thread), the
loaded models themselves, retries on other pods (the mesh's).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import assert_never

from cache import reports
from cache.commands import Command, WakeAt
from cache.copies import Copy
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
from cache.failures import FailureRecord
from cache.following import follow_capacity, follow_limits, on_capacity_changed, pay_debts
from cache.foreseeing import prefetch_followers, prefetch_foreseen
from cache.invariants import check_invariants
from cache.leaving import on_evict_request, on_retire, on_unload_failed, on_unloaded, unload, unload_again
from cache.limits import CacheLimits
from cache.outcomes import (
    on_crashed,
    on_fetch_failed,
    on_fetched,
    on_load_failed,
    on_load_out_of_memory,
    on_load_overdue,
    on_loaded,
    on_resized,
)
from cache.parking import choose_return
from cache.policies import policy_named
from cache.policies.base import EvictionPolicy
from cache.serving import describe, unload_if_idle
from cache.starting import start_fetches, start_loads
from cache.state import PodState
from cache.thrash import Thrashing
from cache.tier_moves import call_up, keep_headroom, on_park_failed, on_parked
from cache.timers import Alarm
from cache.transitions import InvalidTransition
from cache.types import Bytes, CopyState, ModelKey
from cache.views import CopyView, Explanation, QueueEntry, Usage
from cache.wanting import on_cancel, on_deadline, on_want

DEFAULT_POLICY = "lru"

NOTHING: Sequence[Command] = ()
"""What nearly every unpin answers."""


class CacheMachine:
    """What this pod holds, and what must happen next. `now_s` comes from one monotonic clock."""

    def __init__(self, limits: CacheLimits, policy: EvictionPolicy | None = None) -> None:
        self._state = PodState(limits, policy or policy_named(DEFAULT_POLICY))
        self._servable = self._state.servable
        self._space_wanted = False
        """A claim is blocked, so the next copy that becomes idle matters."""
        self._wake_at_s: float | None = None

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
        state = self._state
        match event:
            case Want():
                on_want(state, event)
            case Cancel():
                on_cancel(state, event)
            case Fetched():
                on_fetched(state, event)
            case FetchFailed():
                on_fetch_failed(state, event)
            case Loaded():
                on_loaded(state, event)
            case Parked():
                on_parked(state, event)
            case ParkFailed():
                on_park_failed(state, event)
            case LoadFailed():
                on_load_failed(state, event)
            case LoadOutOfMemory():
                on_load_out_of_memory(state, event)
            case LoadOverdue():
                on_load_overdue(state, event)
            case Unloaded():
                on_unloaded(state, event)
            case UnloadFailed():
                on_unload_failed(state, event)
            case Resized():
                on_resized(state, event)
            case Crashed():
                on_crashed(state, event)
            case Retire():
                on_retire(state, event)
            case Forgive():
                state.failures.forget(event.key)
                state.retired.pop(event.key, None)
            case SetPinned():
                if copy := state.current.get(event.key):
                    describe(state, copy, replace(copy.model, pinned=event.pinned))
            case SetPriority():
                if copy := state.current.get(event.key):
                    describe(state, copy, replace(copy.model, priority=event.priority))
            case EvictRequest():
                on_evict_request(state, event)
            case Tick():
                self._wake_at_s = None  # it has fired, be it a little early
            case CapacityChanged():
                on_capacity_changed(state, event)
            case Drain():
                state.draining = True
            case _:
                assert_never(event)
        return self._finish()

    def _begin(self, now_s: float) -> None:
        state = self._state
        state.now_s = max(state.now_s, now_s)
        state.out = []

    def _finish(self) -> list[Command]:
        """Whatever happened: ring what is due, start what can start, and say when to wake next."""
        state = self._state
        for alarm in state.timers.take_due(state.now_s):
            self._on_alarm(alarm)
        if state.histories.expected:
            state.out.extend(prefetch_followers(state))
        while state.replan:
            state.replan = False
            follow_capacity(state)
            follow_limits(state)
            pay_debts(state)
            start_fetches(state)
            self._space_wanted = start_loads(state)
            keep_headroom(state)
        if (best := choose_return(state)) is not None:
            call_up(state, best)
            state.replan = False
            self._space_wanted = start_loads(state)
        if self._wake_at_s is not None and self._wake_at_s <= state.now_s:
            self._wake_at_s = None
        next_at_s = state.timers.next_at_s()
        if next_at_s is not None and (self._wake_at_s is None or next_at_s < self._wake_at_s):
            self._wake_at_s = next_at_s
            state.out.append(WakeAt(next_at_s))
        return state.out

    def _on_alarm(self, alarm: Alarm) -> None:
        state = self._state
        match alarm.kind:
            case "deadline":
                on_deadline(state, state.waiters[alarm.subject_id])
            case "idle":
                if copy := state.copies.get(alarm.subject_id):
                    unload_if_idle(state, copy)
            case "prefetch":
                state.out.extend(prefetch_foreseen(state, alarm.subject_id))
            case "unload again":
                unload_again(state, state.copies[alarm.subject_id])
            case _:
                state.replan = True

    def _after_last_unpin(self, copy: Copy, now_s: float) -> list[Command]:
        self._begin(now_s)
        if copy.state is CopyState.RETIRING:
            unload(self._state, copy, copy.closing_reason)
        self._state.replan = True
        return self._finish()

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

    @property
    def free(self) -> Bytes:
        """What of the capacity is not used. Quick, unlike `usage`."""
        return self._state.ledger.free

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
