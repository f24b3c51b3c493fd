"""A copy serves: from the end of its load until it is closed (`cache.leaving`).

What its spec says counts from the moment that it is heard: pins within what the tenant may pin, and the time to live of
a copy that nobody uses.
"""

from __future__ import annotations

from cache.answering import dismiss
from cache.commands import Serve
from cache.copies import Copy
from cache.leaving import unload
from cache.state import PodState
from cache.timers import Alarm
from cache.transitions import Cause
from cache.types import CopyState, WantedModel


def begin_serving(state: PodState, copy: Copy, cause: Cause) -> None:
    """Whoever waits is served, the most urgent first; the copy is protected for a while."""
    limits, model = state.limits, copy.model
    state.move(copy, cause)
    residency_s = model.residency_min_s
    if residency_s is None:
        residency_s = min(limits.residency_min_s, limits.residency_load_times * copy.load_time_s)
    copy.last_used_s = state.now_s
    copy.protected_until_s = state.now_s + residency_s
    copy.kept = False
    waits_s = [state.now_s - waiter.wanted_s for waiter in copy.waiters.values() if not waiter.background]
    if waits_s:
        copy.history.loaded(sum(waits_s) - max(waits_s))
    for waiter in sorted(copy.waiters.values(), key=lambda each: (each.deadline_s, each.wanted_s, each.waiter_id)):
        dismiss(state, waiter)
        copy.hold(state.now_s)
        state.out.append(Serve(waiter.waiter_id, copy.copy_id))
    grant_pin(state, copy)
    _watch_idleness(state, copy)


def describe(state: PodState, copy: Copy, model: WantedModel) -> None:
    """The newest word on a model's spec counts."""
    if copy.model == model:
        return
    copy.model = model
    copy.changed()
    state.replan = True
    if copy.state is CopyState.SERVABLE:
        grant_pin(state, copy)
        _watch_idleness(state, copy)


def grant_pin(state: PodState, copy: Copy) -> None:
    """Pin or release as the spec says, within what its tenant may pin."""
    limit_bytes = state.limits.pinned_bytes_max
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


def _watch_idleness(state: PodState, copy: Copy) -> None:
    ttl_s = _ttl_s(state, copy)
    alarm = Alarm("idle", copy.copy_id)
    if ttl_s is None:
        state.timers.cancel(alarm)
    else:
        state.timers.set(alarm, copy.last_used_s + ttl_s)


def unload_if_idle(state: PodState, copy: Copy) -> None:
    """Its time to live may have passed without a use."""
    if copy.state is not CopyState.SERVABLE:
        return
    ttl_s = _ttl_s(state, copy)
    if ttl_s is None:
        return
    in_use = copy.pinned or copy.pins > 0
    expires_at_s = (state.now_s if in_use else copy.last_used_s) + ttl_s
    if expires_at_s > state.now_s:
        state.timers.set(Alarm("idle", copy.copy_id), expires_at_s)
    elif not in_use:
        unload(state, copy, f"unused since its time to live of {ttl_s:.1f} s began")


def _ttl_s(state: PodState, copy: Copy) -> float | None:
    ttl_s = state.limits.ttl_s if copy.model.ttl_s is None else copy.model.ttl_s
    return ttl_s if ttl_s is not None and ttl_s > 0 else None
