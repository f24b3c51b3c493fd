"""What must hold between any two calls of the machine; asserted by the property tests and by the simulator.

Each block names the promise. O(everything), so never on the request path.
"""

from __future__ import annotations

from cache.claims import serves_by_turns
from cache.sharing import counted_once, own_bytes
from cache.state import PodState
from cache.timers import Alarm
from cache.transitions import CHARGED, ENDING, KEPT, LEAVING, PENDING
from cache.types import CopyState

_RUNNING = (CopyState.FETCHING, CopyState.LOADING, *ENDING)


def check_invariants(state: PodState) -> None:
    """Raise AssertionError if a promise is broken."""
    _check_bytes(state)
    _check_indexes(state)
    _check_concurrency(state)
    _check_waiters(state)
    _check_pins(state)
    _check_progress(state)
    _check_tenants(state)


def _check_bytes(state: PodState) -> None:
    """Reserved + resident + unloading bytes fit the capacity, in every place, and belong to someone."""
    state.ledger.validate()
    assert state.capacity_wanted <= state.ledger.capacity <= state.limits.capacity, (
        "the capacity went beyond its limits"
    )
    for copy in state.copies.values():
        assert copy.charged == state.ledger.charged(copy.copy_id), f"{copy.key}: copy and ledger disagree"
        assert copy.shared == state.ledger.shared(copy.copy_id), f"{copy.key}: copy and ledger disagree about parts"
        assert copy.state in CHARGED or copy.charged == copy.parked, f"{copy.key}: holds bytes while {copy.state.value}"
        indebted = copy.copy_id in state.debtors
        if copy.state in (CopyState.SERVABLE, CopyState.SETTLING, CopyState.RETIRING):
            assert bool(copy.debt) == indebted, f"{copy.key}: debt {copy.debt}, known as a debtor: {indebted}"
        if copy.state is CopyState.LOADING:
            assert copy.charged == copy.needed + copy.parked, f"{copy.key}: loads without its reservation"
    assert counted_once(state.copies.values()) == state.ledger.used, "the ledger charges someone who is gone"


def _check_indexes(state: PodState) -> None:
    """Every index says what the copies say."""
    by_state = {copy_state: set(members) for copy_state, members in state.by_state.items()}
    for copy in state.copies.values():
        assert copy.copy_id in by_state[copy.state], f"{copy.key}: not listed as {copy.state.value}"
        joinable = copy.state in PENDING or copy.state is CopyState.SERVABLE
        assert (state.current.get(copy.key) is copy) == joinable, f"{copy.key}: newcomers and {copy.state.value}"
        assert (state.servable.get(copy.key) is copy) == (copy.state is CopyState.SERVABLE), f"{copy.key}: servable"
        seen = copy.view()
        copy.changed()
        assert copy.view() == seen, f"{copy.key}: its view was out of date"
        on_its_way_back = copy.state in (CopyState.WAITING_FOR_SPACE, *_RUNNING[1:]) and bool(copy.parked)
        out = (CopyState.PARKING, CopyState.PARKED, CopyState.UNLOADING, CopyState.STUCK)
        holds_host = copy.state in out or on_its_way_back
        assert not copy.parked or holds_host, f"{copy.key}: counted in the host tier while {copy.state.value}"
        assert (state.parked.get(copy.key) is copy) == (copy.state is CopyState.PARKED), f"{copy.key}: parked"
    assert all(copy.copy_id in state.copies for copy in state.parked.values()), "a ghost is parked"
    assert sum(map(len, by_state.values())) == len(state.copies), "a copy is listed twice, or after it left"
    assert len(state.current) >= len(state.servable)
    assert all(copy.copy_id in state.copies for copy in state.current.values()), "newcomers would join a ghost"


def _check_concurrency(state: PodState) -> None:
    """Bounded fetches and loads; never two of one model."""
    count = {copy_state: len(members) for copy_state, members in state.by_state.items()}
    limits = state.limits
    assert count[CopyState.FETCHING] + count[CopyState.CANCELLING_FETCH] <= limits.fetches_concurrent_max
    assert count[CopyState.LOADING] + count[CopyState.CANCELLING_LOAD] <= limits.loads_concurrent_max
    running = [copy.key for copy_state in _RUNNING for copy in state.by_state[copy_state].values()]
    assert len(running) == len(set(running)), "two fetches or loads of one model at once"


def _check_waiters(state: PodState) -> None:
    """Everyone who waits is waiting for a copy that is on its way, and has an alarm for the latest answer."""
    assert len(state.waiters) <= state.limits.waiters_total_max
    listed = 0
    for copy in state.copies.values():
        listed += len(copy.waiters)
        assert not copy.waiters or copy.state in PENDING, f"{copy.key}: waited for while {copy.state.value}"
        assert len(copy.waiters) <= state.limits.waiters_per_model_max
        foreground = sum(not waiter.background for waiter in copy.waiters.values())
        assert copy.foreground_waiters == foreground, f"{copy.key}: miscounted its requests"
        for waiter in copy.waiters.values():
            assert state.waiters[waiter.waiter_id] is waiter
            assert state.timers.is_set(Alarm("deadline", waiter.waiter_id)), "a waiter could be forgotten"
    assert listed == len(state.waiters), "a waiter waits for nothing"


def _check_pins(state: PodState) -> None:
    """Only servable and retiring copies are in use; pins (the spec's) stay within their tenant's limit."""
    pinned: dict[str, int] = {}
    for copy in state.copies.values():
        assert copy.pins >= 0
        assert not copy.pins or copy.state in (CopyState.SERVABLE, CopyState.RETIRING), f"{copy.key}: a victim in use"
        assert not copy.pinned or copy.state is CopyState.SERVABLE, f"{copy.key}: pinned while {copy.state.value}"
        assert copy.pins or copy.state is not CopyState.RETIRING, f"{copy.key}: retires although nobody holds it"
        if copy.pinned:
            pinned[copy.key.tenant] = pinned.get(copy.key.tenant, 0) + copy.size.total_bytes
    for tenant, held_bytes in pinned.items():
        assert held_bytes <= state.limits.pinned_bytes_max, f"tenant {tenant} pins {held_bytes:,} bytes"


def _check_progress(state: PodState) -> None:
    """Whatever waits, waits for something that will happen: an answer of the loader, an alarm, or a request's end."""
    members = state.by_state
    if members[CopyState.QUEUED]:
        full = len(members[CopyState.FETCHING]) + len(members[CopyState.CANCELLING_FETCH])
        ending = any(members[each] for each in (*ENDING, CopyState.PARKING))
        assert full >= state.limits.fetches_concurrent_max or ending, "a fetch could start"
    for copy_state in (CopyState.WAITING_FOR_SPACE, CopyState.SETTLING):
        if members[copy_state]:
            running = (CopyState.LOADING, CopyState.CANCELLING_LOAD, CopyState.PARKING, CopyState.UNLOADING)
            claims = [*members[CopyState.WAITING_FOR_SPACE].values(), *state.debtors.values()]
            paused = state.loads_paused and copy_state is CopyState.WAITING_FOR_SPACE
            by_turns = serves_by_turns(state) and state.timers.is_set(Alarm("turn", 0))
            assert (
                paused or by_turns or any(members[each] for each in running) or any(copy.blocked for copy in claims)
            ), f"copies are {copy_state.value} and nothing will wake them"
    for copy in members[CopyState.STUCK].values():
        assert state.timers.is_set(Alarm("unload again", copy.copy_id)), f"{copy.key}: stuck for ever"


def _check_tenants(state: PodState) -> None:
    """No tenant's claim has taken another below its guarantee, and nobody stays above a limit for want of looking."""
    for crossing in state.crossings:
        assert crossing.is_allowed(), (
            f"{crossing.key} left for tenant {crossing.for_tenant}: its tenant keeps {crossing.left} of the "
            f"{crossing.guarantee} that it is guaranteed"
        )
    state.crossings.clear()
    for tenant, share in state.limits.tenants.items():
        own = [copy for copy in state.copies.values() if copy.key.tenant == tenant]
        staying = [copy for copy in own if copy.state not in LEAVING]
        if over := share.beyond_limit(counted_once(staying)):
            idle = [copy for copy in staying if copy.state in KEPT and not copy.pins and not copy.pinned]
            assert not any(own_bytes(copy)[place] > 0 for copy in idle for place, _ in over), (
                f"tenant {tenant} is above its limit and keeps idle copies"
            )
