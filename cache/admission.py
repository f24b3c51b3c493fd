"""Is a Want taken in at all? Reads the state, changes nothing.

Whoever cannot be served is told so at once, with the reason and what to do, and not after a wait.
"""

from __future__ import annotations

from cache.copies import Copy
from cache.events import Want
from cache.state import PodState
from cache.transitions import PENDING
from cache.types import Bytes, CopyState, ModelKey, Refusal, RefusalKind


def refusal_at_the_door(state: PodState, want: Want, copy: Copy | None) -> Refusal | None:
    """Why this Want is refused without waiting; the first case that applies. `copy` is the one it would join."""
    key, limits = want.model.key, state.limits
    if state.draining:
        return Refusal(RefusalKind.DRAINING, f"This pod is stopping and loads nothing new; ask another for {key}.")
    if key in state.retired:
        message = f"Model {key} was unregistered or superseded; resolve its name again and retry."
        return Refusal(RefusalKind.GONE, message)
    if want.deadline_s is not None and want.deadline_s <= state.now_s:
        message = f"The request for {key} arrived after its own deadline; allow it more time."
        return Refusal(RefusalKind.DEADLINE, message)
    if remembered := state.failures.refusal(key, state.now_s):
        return remembered
    measured = state.profiles.size(key)  # what is declared turns nobody away: it may be wrong
    if measured is not None and measured.missing_from(limits.capacity):
        return Refusal(RefusalKind.TOO_BIG, too_big_message(key, f"was measured to take {measured}", limits.capacity))
    share = limits.tenants.get(key.tenant)
    if measured is not None and share is not None and share.beyond_limit(measured):
        return Refusal(RefusalKind.TOO_BIG, beyond_limit_message(key, f"was measured to take {measured}", share.limit))
    if copy is None and state.loads_paused:
        return _overloaded(state, key, f"this pod loads nothing now: {state.why_smaller}")
    if copy is None:
        pending = sum(len(state.by_state[pending_state]) for pending_state in PENDING)
        if pending >= limits.loads_pending_max:
            return _overloaded(state, key, f"{pending} models are on their way in, the most this pod takes at once")
    elif len(copy.waiters) >= limits.waiters_per_model_max:
        return _overloaded(state, key, f"{len(copy.waiters)} requests wait for it, the most this pod lets wait")
    if len(state.waiters) >= limits.waiters_total_max:
        return _overloaded(state, key, f"{len(state.waiters)} requests wait for loads, the most this pod lets wait")
    return None


def first_reservation(estimate: Bytes, declared: Bytes | None, capacity: Bytes, *, estimate_knows: bool) -> Bytes:
    """What a model that was never measured reserves: its estimate, or more where its spec declares more.

    A reservation that is too small oversells the pod until the load has measured, one that is too large evicts others
    for nothing. Estimates are within percents, declarations within whatever their author thought: they are believed up
    to twice the estimate. Where an estimate cannot know, there is nothing else to believe.
    """
    if declared is None:
        return estimate
    if not estimate_knows:
        return estimate.at_least(declared)
    return estimate.at_least(declared.at_most(Bytes.sum([estimate, estimate])).at_most(capacity))


def where_measured(measured: Bytes | None, expected: Bytes) -> Bytes | None:
    """A measured size, if it was measured where this is expected to lie."""
    if measured is None or {place for place, _ in measured} != {place for place, _ in expected}:
        return None
    return measured


def load_remaining_s(state: PodState, key: ModelKey, copy: Copy | None) -> float:
    """Predicted seconds until the model serves: of fetch and load, without waits for slots or space."""
    if copy is None:
        copy = state.parked.get(key)
    total_s = state.profiles.load_time_s(key)
    if copy is None:
        return total_s
    spent_s = copy.fetch_time_s
    if copy.parked:
        total_s, spent_s = state.profiles.climb_time_s(key), 0.0
    if copy.state in (CopyState.FETCHING, CopyState.LOADING):
        spent_s += state.now_s - copy.since_s
    return max(0.0, total_s - spent_s)


def late_refusal(key: ModelKey, remaining_s: float, left_s: float) -> Refusal:
    """The load takes longer than the request has."""
    message = (
        f"Model {key} is not loaded; loading it takes about {remaining_s:.3f} s more and the request has "
        f"{left_s:.3f} s left. The load goes on: retry then, or allow more time."
    )
    return Refusal(RefusalKind.DEADLINE, message, remaining_s)


def too_big_message(key: ModelKey, what: str, capacity: Bytes) -> str:
    """The model never fits this pod."""
    return (
        f"Model {key} {what}, and this pod's whole capacity is {capacity}. "
        "Raise --capacity, correct its size hint, or register a smaller model."
    )


def beyond_limit_message(key: ModelKey, what: str, limit: Bytes) -> str:
    """The model never fits into what its tenant may hold."""
    return (
        f"Model {key} {what}, and its tenant {key.tenant!r} may hold {limit} on this pod. "
        "Raise --tenant-limits, correct its size hint, or register a smaller model."
    )


def _overloaded(state: PodState, key: ModelKey, why: str) -> Refusal:
    hint_s = max(state.profiles.load_time_s(key), state.limits.failure_backoff_base_s)
    message = f"Model {key} is not loaded, and {why}. Ask another pod, or retry in {hint_s:.1f} s."
    return Refusal(RefusalKind.OVERLOADED, message, hint_s)
