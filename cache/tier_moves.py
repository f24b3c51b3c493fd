"""Copies move between their device and RAM, as `cache.parking` decides: the way down, the way up, and who makes room.

On its way down nobody is served by a copy; a request that comes then begins a copy of its own, whose waiters it takes
over as soon as it has arrived in RAM.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf

from cache.commands import StartUnload
from cache.copies import Copy
from cache.events import Parked, ParkFailed
from cache.leaving import unload
from cache.parking import plan_headroom
from cache.sharing import check_size
from cache.state import PodState
from cache.transitions import Cause
from cache.types import NO_BYTES, CopyState


def on_parked(state: PodState, event: Parked) -> None:
    """It lies in RAM; if it is wanted again already, it goes up at once."""
    copy = state.required(event.copy_id, event, CopyState.PARKING)
    check_size(event.size)
    copy.parked = event.size
    state.resize(copy, event.size)
    copy.return_time_s = state.profiles.return_time_s(copy.key)
    state.move(copy, Cause.PARKED)
    if copy.debt or not copy.parked or copy.key in state.retired or copy.closing_reason:
        unwanted = copy.closing_reason or "nobody wants it parked"
        unload(state, copy, "what it takes parked does not fit" if copy.debt else unwanted)
        return
    newcomer = state.current.get(copy.key)
    if newcomer is not None:  # wanted again while it was on its way down
        call_up(state, copy)
        _hand_over(state, newcomer, copy)


def on_park_failed(state: PodState, event: ParkFailed) -> None:
    """It is still on its device, and leaves for good."""
    copy = state.required(event.copy_id, event, CopyState.PARKING)
    state.note(copy.key, copy.copy_id, f"it could not be parked: {event.message}")
    copy.parked = NO_BYTES
    state.charge(copy, copy.charged.at_most(copy.size), copy.shared)
    state.move(copy, Cause.PARK_FAILED)
    state.out.append(StartUnload(copy.key, copy.copy_id, f"it could not be parked: {event.message}"))


def call_up(state: PodState, copy: Copy) -> None:
    """A parked copy is wanted on its device."""
    copy.needed, copy.needed_shared, copy.size = copy.returns, (), copy.parked
    copy.on_devices, copy.otherwise, copy.elsewhere = (), None, False
    copy.wanted_s, copy.urgent_s, copy.kept = state.now_s, inf, False
    copy.fetch_time_s = 0.0
    state.move(copy, Cause.WANTED)


def _hand_over(state: PodState, newcomer: Copy, copy: Copy) -> None:
    """Who waits for a copy that was not begun waits for this one of the same model."""
    copy.model, copy.wanted_s, copy.urgent_s = newcomer.model, newcomer.wanted_s, newcomer.urgent_s
    copy.kept = newcomer.kept
    for waiter in newcomer.waiters.values():
        state.waiters[waiter.waiter_id] = copy.waiters[waiter.waiter_id] = replace(waiter, copy_id=copy.copy_id)
    copy.foreground_waiters, newcomer.foreground_waiters = newcomer.foreground_waiters, 0
    newcomer.waiters.clear()
    newcomer.kept = False
    copy.changed()
    state.move(newcomer, Cause.DROPPED)


def keep_headroom(state: PodState) -> None:
    """What is parked and worth least leaves before its room is needed."""
    for victim in plan_headroom(state):
        copy = state.copies[victim.copy_id]
        unload(state, copy, f"room for others that may be parked: unused for {victim.idle_s:.1f} s")
        state.crossed(copy, victim.freed, "")
