"""Pictures of the whole cache: usage, queue, the explanation of one model. Read-only; O(copies), for status calls."""

from __future__ import annotations

from math import inf

from cache.claims import rank, serves_by_turns
from cache.copies import Copy
from cache.sharing import bytes_of, own_bytes
from cache.state import PodState
from cache.tenancy import NO_SHARE, guarantees_within, sums_by_tenant
from cache.transitions import PENDING
from cache.types import NO_BYTES, Bytes, CopyState, ModelKey, SharedPart
from cache.views import Explanation, QueueEntry, TenantUse, Usage


def usage(state: PodState) -> Usage:
    """The ledger and the counts, now."""
    copies = list(state.copies.values())
    servable = state.by_state[CopyState.SERVABLE].values()
    pinned: dict[str, int] = {}
    for copy in copies:
        if copy.pinned:
            pinned[copy.key.tenant] = pinned.get(copy.key.tenant, 0) + copy.size.total_bytes
    return Usage(
        capacity=state.ledger.capacity,
        used=state.ledger.used,
        free=state.ledger.free,
        overdraft=Bytes.sum(copy.debt for copy in state.debtors.values()),
        bytes_by_state=_bytes_by_state(state),
        tenants=_tenants(state),
        pinned_bytes_by_tenant=pinned,
        copies_by_state={copy_state: len(members) for copy_state, members in state.by_state.items() if members},
        waiters=len(state.waiters),
        oldest_use_s=min((copy.last_used_s for copy in servable), default=None),
        saved_by_sharing=Bytes.sum(copy.charged for copy in copies) - state.ledger.used,
        evictions_total=state.evictions_total,
        parkings_total=state.parkings_total,
        policy=state.policy.name,
        prefetches=state.histories.prefetches.begun,
        prefetches_used=state.histories.prefetches.used,
        prefetches_wasted=state.histories.prefetches.wasted,
        thrashing=state.thrash.picture(state.now_s),
        thrashing_episodes=state.thrash.episodes,
    )


def _bytes_by_state(state: PodState) -> dict[CopyState, Bytes]:
    """What copies share counts once: for the first state in which somebody holds it, residents first."""
    counted: set[SharedPart] = set()
    amounts: dict[CopyState, Bytes] = {}
    for copy_state in sorted(CopyState, key=lambda each: each is not CopyState.SERVABLE):
        members = state.by_state[copy_state].values()
        if members:
            parts = {part for copy in members for part in copy.shared} - counted
            counted |= parts
            amounts[copy_state] = Bytes.sum(own_bytes(copy) for copy in members) + bytes_of(parts)
    return amounts


def _tenants(state: PodState) -> dict[str, TenantUse]:
    shares = state.limits.tenants
    guarantees = guarantees_within(shares, state.capacity_wanted)
    held = sums_by_tenant(state.copies.values())
    return {
        tenant: TenantUse(
            held.get(tenant, NO_BYTES), guarantees.get(tenant, NO_BYTES), shares.get(tenant, NO_SHARE).limit
        )
        for tenant in sorted({*held, *shares})
    }


def queue(state: PodState) -> tuple[QueueEntry, ...]:
    """What is on its way in, in the order in which it is considered."""
    pending = [copy for copy_state in PENDING for copy in state.by_state[copy_state].values()]
    return tuple(
        QueueEntry(
            copy_id=copy.copy_id,
            key=copy.key,
            state=copy.state,
            waiters=len(copy.waiters),
            foreground=copy.foreground,
            priority=copy.model.priority,
            urgent_s=copy.urgent_s,
            needed=copy.needed,
            blocked=None if copy.blocked is None else str(copy.blocked),
        )
        for copy in sorted(pending, key=rank)
    )


def explain(state: PodState, key: ModelKey) -> Explanation:
    """Why a model is here, not here, or refused."""
    current = state.current.get(key)
    leaving = [copy for copy in state.copies.values() if copy.key == key and copy is not current]
    record = state.failures.get(key, state.now_s)
    refused = record is not None and record.retry_at_s > state.now_s
    return Explanation(
        key=key,
        summary=_summary(state, key, current, leaving),
        copies=tuple(copy.view() for copy in ([current] if current is not None else []) + leaving),
        known_size=state.profiles.size(key),
        predicted_load_s=state.profiles.load_time_s(key),
        retry_at_s=record.retry_at_s if record is not None and refused else None,
        tenant_share=_share_in_words(state, key.tenant),
        notes=tuple(note for note in state.notes if note.key == key),
    )


def _share_in_words(state: PodState, tenant: str) -> str:
    share = state.limits.tenants.get(tenant)
    if share is None:
        return ""
    use = _tenants(state)[tenant]
    bounds = [f"is guaranteed {use.guarantee}"] if use.guarantee else []
    bounds += [f"may hold {use.limit}"] if use.limit else []
    return f"tenant {tenant} holds {use.held}, {' and '.join(bounds)}"


def _summary(state: PodState, key: ModelKey, current: Copy | None, leaving: list[Copy]) -> str:
    """One sentence; the first case that applies."""
    if current is not None and current.state is CopyState.SERVABLE:
        idle_s = state.now_s - current.last_used_s
        held = f"held by {current.pins} requests" if current.pins else f"idle for {idle_s:.1f} s"
        if current.pinned:
            held += ", pinned"
        elif current.model.pinned:
            held += ", not pinned although its spec asks for it"
        return f"Servable here: takes {current.size}, {held}."
    if current is not None:
        sentence = f"On its way in: {current.state.value} for {state.now_s - current.since_s:.1f} s"
        sentence += f", {len(current.waiters)} requests wait"
        if current.state is CopyState.WAITING_FOR_SPACE and serves_by_turns(state):
            sentence += f"; it waits for its turn: {state.thrash.picture(state.now_s)}"
        elif current.blocked is not None:
            sentence += f"; {current.blocked}"
        return sentence + "."
    record = state.failures.get(key, state.now_s)
    if record is not None and record.retry_at_s == inf:
        return f"Refused until its spec changes ({record.kind.value}): {record.message}"
    if record is not None and record.retry_at_s > state.now_s:
        pause_s = record.retry_at_s - state.now_s
        return (
            f"Refused for another {pause_s:.1f} s ({record.kind.value}, {record.failures} in a row): {record.message}"
        )
    if key in state.retired:
        return "Not here: it was unregistered or superseded a moment ago."
    if leaving and leaving[0].state is CopyState.PARKED:
        parked_s = state.now_s - leaving[0].since_s
        return f"Parked for {parked_s:.1f} s: takes {leaving[0].parked}; it returns without a fetch or a load."
    if leaving:
        return f"On its way out: {leaving[0].state.value}" + (
            f", because {leaving[0].closing_reason}." if leaving[0].closing_reason else "."
        )
    notes = [note for note in state.notes if note.key == key]
    if notes:
        return f"Not here; last: {notes[-1].text}"
    return "Not here: nobody has wanted it lately."
