"""The line of claims as it stands, and when a blocked claim must end. Reads the state, changes nothing.

`cache.space` plans over claims without knowing where they come from; here the copies of this pod become claims, and
a claim that cannot be satisfied gets its verdict: go on holding its place, or be refused, and in which words.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

from cache.admission import beyond_limit_message, too_big_message
from cache.copies import Copy
from cache.eviction import CannotFit
from cache.sharing import NOBODY, Holders, bytes_of, counted_once
from cache.space import Claim, SpacePlan, load_order, plan_space
from cache.state import PodState
from cache.tenancy import NO_SHARE, TenantTally, guarantees_within, sums_by_tenant
from cache.thrash import IDLE_S, Gathering
from cache.transitions import KEPT
from cache.types import NO_BYTES, Bytes, CopyState, RefusalKind, SharedPart


@dataclass(frozen=True, slots=True)
class Hopeless:
    """This claim ends now."""

    kind: RefusalKind
    message: str
    remembered: bool
    """Does the next Want have to wait out a back-off? Not for a mere guess that found no room."""


def rank(copy: Copy) -> tuple[bool, int, float, float, int]:
    """A copy's place in the order of fetches and loads."""
    return load_order(
        foreground=copy.foreground,
        priority=copy.model.priority,
        urgent_s=copy.urgent_s,
        wanted_s=copy.wanted_s,
        copy_id=copy.copy_id,
    )


def line_of_claims(state: PodState) -> list[Claim]:
    """Loaded copies that grew, by age; then the loads by rank, while there are slots for them."""
    debts = [
        Claim(copy.copy_id, copy.key, copy.debt, takes_slot=False, override_residency=True)
        for copy in sorted(state.debtors.values(), key=lambda each: each.copy_id)
        if copy.state in (CopyState.SETTLING, CopyState.SERVABLE)
    ]
    waiting = state.by_state[CopyState.WAITING_FOR_SPACE]
    if not waiting or load_slots(state) <= 0:
        return debts
    by_turns = serves_by_turns(state)
    in_turn = state.thrash.in_turn if by_turns else {}
    loads = [
        Claim(
            copy.copy_id,
            copy.key,
            copy.needed,
            shared=copy.needed_shared,
            may_evict=copy.foreground
            or ((state.limits.background_may_evict or copy.expected_at_s is not None) and not by_turns),
            worth_below=_worth_of_prefetch(state, copy),
            override_residency=copy.foreground and state.now_s >= _override_at_s(state, copy),
            held_back=by_turns and copy.foreground and copy.copy_id not in in_turn,
        )
        # Bytes that come free belong to whoever had them evicted in its turn.
        for copy in sorted(waiting.values(), key=lambda copy: (copy.copy_id not in in_turn, rank(copy)))
    ]
    return debts + loads


def _worth_of_prefetch(state: PodState, copy: Copy) -> float:
    """What copies that leave for this one must be worth less than: infinite unless it is brought in for a later use."""
    if copy.foreground or copy.expected_at_s is None:
        return inf
    situation = state.situation()
    return state.policy.soon(situation, copy.view(), max(0.0, copy.expected_at_s - state.now_s))


def serves_by_turns(state: PodState) -> bool:
    """Whether loads that must evict wait for their turns."""
    return state.limits.thrash_control and state.thrash.active


def gathering(state: PodState) -> list[Gathering]:
    """The models that wait for a turn."""
    thrash, found = state.thrash, []
    for copy in state.by_state[CopyState.WAITING_FOR_SPACE].values():
        if copy.foreground and copy.copy_id not in thrash.in_turn:
            load_s = thrash.load_s(copy.key)
            # Twice the load: those that are due at once go one after the other.
            due_s = copy.urgent_s - 2.0 * load_s
            found.append(
                Gathering(copy.copy_id, copy.model.priority, copy.foreground_waiters, due_s, load_s, copy.wanted_s)
            )
    return found


def idle_at_s(state: PodState) -> float:
    """When nothing resident will have been in use for a while, if nothing is used until then. Infinite while
    something is being loaded: that soon serves, and may itself be what nothing else gets a core beside."""
    if state.by_state[CopyState.LOADING]:
        return inf
    used_s = -inf
    for copy in state.by_state[CopyState.SERVABLE].values():
        used_s = max(used_s, state.now_s if copy.pins else copy.last_used_s)
    return used_s + IDLE_S


def plan_claims(state: PodState, claims: list[Claim]) -> SpacePlan:
    """What the line of claims asks of this pod's memory now."""
    if not claims:
        return SpacePlan((), (), ())
    return plan_space(
        claims,
        (copy.view() for copy in state.by_state[CopyState.SERVABLE].values()),
        free=state.ledger.free,
        coming=coming(state),
        slots=load_slots(state),
        now_s=state.now_s,
        score_of=state.score_of(),
        tally=tally_of(state) if state.limits.tenants else None,
        holders=holders_staying(state),
    )


def holders_staying(state: PodState) -> Holders:
    """Of shared parts, by copies that are not being unloaded."""
    if not state.ledger.holders:
        return NOBODY
    holders = Holders(state.ledger.holders)
    for copy in _leaving_their_places(state):
        holders.leaves(copy.shared)
    return holders


def _leaving_their_places(state: PodState) -> list[Copy]:
    return [copy for each in (CopyState.UNLOADING, CopyState.PARKING) for copy in state.by_state[each].values()]


def coming(state: PodState) -> Bytes:
    """Bytes that will be free once what is being unloaded, or parked, has left its place."""
    leaving = _leaving_their_places(state)
    amount = counted_once(leaving) - Bytes.sum(copy.parked for copy in state.by_state[CopyState.PARKING].values())
    if state.ledger.holders:
        staying = holders_staying(state)
        parts = {part for copy in leaving for part in copy.shared}
        amount -= bytes_of(part for part in parts if not staying.frees_any((part,)))
    return amount


def tally_of(state: PodState) -> TenantTally:
    """What the tenants hold now, against their shares."""

    def held(copies: Iterable[Copy]) -> dict[str, Bytes]:
        return sums_by_tenant(copies)

    parts: dict[str, set[SharedPart]] = {}
    for copy in state.copies.values():
        if copy.shared:
            parts.setdefault(copy.key.tenant, set()).update(copy.shared)
    return TenantTally(
        state.limits.tenants,
        guarantees_within(state.limits.tenants, state.capacity_wanted),
        held=held(state.copies.values()),
        leaving=held(_leaving_their_places(state)),
        servable=held(copy for each in KEPT for copy in state.by_state[each].values()),
        parts=parts,
    )


def load_slots(state: PodState) -> int:
    """Loads that may start now."""
    if state.loads_paused:
        return 0
    running = len(state.by_state[CopyState.LOADING]) + len(state.by_state[CopyState.CANCELLING_LOAD])
    return state.limits.loads_concurrent_max - running


def verdict(state: PodState, claim: Claim, why: CannotFit) -> Hopeless | None:
    """Does this blocked claim end now? The first case that applies; None means that it holds its place."""
    limits = state.limits
    copy = state.copies[claim.copy_id]
    needed = claim.needed if claim.takes_slot else copy.size
    if claim.takes_slot and not copy.foreground:
        message = f"Model {copy.key} does not fit beside what this pod holds, and no request waits for it: {why}."
        return Hopeless(RefusalKind.FULL, message, remembered=False)
    if needed.missing_from(limits.capacity):
        message = too_big_message(copy.key, f"takes {needed}", limits.capacity)
        return Hopeless(RefusalKind.TOO_BIG, message, remembered=True)
    share = limits.tenants.get(copy.key.tenant, NO_SHARE)
    if share.beyond_limit(needed):
        message = beyond_limit_message(copy.key, f"takes {needed}", share.limit)
        return Hopeless(RefusalKind.TOO_BIG, message, remembered=True)
    if why.limited_tenant and share.beyond_limit(needed + _unfreeable(state, copy, of=copy.key.tenant)):
        message = (
            f"Model {copy.key} needs {needed}; its tenant may hold {share.limit} here, and too much of that is pinned "
            "or could not be freed. Unpin models, or raise --tenant-limits."
        )
        return Hopeless(RefusalKind.FULL, message, remembered=True)
    unfreeable = _unfreeable(state, copy)
    if claim.takes_slot:
        needed = holders_staying(state).needed(needed, claim.shared)
    if needed.missing_from(state.capacity_wanted - unfreeable):
        message = (
            f"Model {copy.key} needs {needed}; {unfreeable} of {state.capacity_wanted} are pinned, guaranteed to other "
            f"tenants or could not be freed{f' ({state.why_smaller})' if state.why_smaller else ''}. "
            "Unpin models, raise --capacity, or ask another pod."
        )
        return Hopeless(RefusalKind.FULL, message, remembered=True)
    if state.now_s >= _gives_up_at_s(state, copy):
        message = (
            f"Model {copy.key} needs {needed} and found no room in {_space_wait_s(state, copy):.1f} s: {why}. "
            "Ask another pod, retry later, or raise --capacity."
        )
        return Hopeless(RefusalKind.FULL, message, remembered=True)
    return None


def look_again_at_s(state: PodState, claim: Claim, why: CannotFit) -> float:
    """The next moment at which time alone may unblock this claim, or end it. Later than now: `verdict` was None."""
    copy = state.copies[claim.copy_id]
    moments_s = [_gives_up_at_s(state, copy)]
    if why.retry_at_s is not None:
        moments_s += [why.retry_at_s, _override_at_s(state, copy)]
    return min(moment_s for moment_s in moments_s if moment_s > state.now_s)


def _override_at_s(state: PodState, copy: Copy) -> float:
    return copy.since_s + state.limits.residency_override_wait_s


def _gives_up_at_s(state: PodState, copy: Copy) -> float:
    since_s = state.now_s if copy.blocked_since_s is None else copy.blocked_since_s
    return since_s + _space_wait_s(state, copy)


def _space_wait_s(state: PodState, copy: Copy) -> float:
    limit_s = state.limits.space_wait_max_s
    return min(limit_s, copy.space_wait_s) if copy.state is CopyState.WAITING_FOR_SPACE else limit_s


def _unfreeable(state: PodState, claimant: Copy, of: str | None = None) -> Bytes:
    """Bytes that no amount of waiting frees: pinned by specs, lost to failing unloads, and what other tenants hold of
    their guarantees. `of`: those of one tenant alone."""
    servable = state.by_state[CopyState.SERVABLE].values()
    pinned = sums_by_tenant(copy for copy in servable if copy.pinned and copy is not claimant)
    stuck = sums_by_tenant(state.by_state[CopyState.STUCK].values())
    if of is not None:
        return pinned.get(of, NO_BYTES) + stuck.get(of, NO_BYTES)
    if state.limits.tenants:
        held = sums_by_tenant(servable)
        for tenant, guarantee in guarantees_within(state.limits.tenants, state.capacity_wanted).items():
            if tenant != claimant.key.tenant:
                kept = guarantee.at_most(held.get(tenant, NO_BYTES))
                pinned[tenant] = pinned.get(tenant, NO_BYTES).at_least(kept)
    return Bytes.sum([*pinned.values(), *stuck.values()])
