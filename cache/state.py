"""All that the machine knows, and the one function that moves a copy from state to state.

Indexes follow from a copy's state and are updated in `move` alone: who is in which state, which copy newcomers of a
model join, which copies serve. Bytes of a copy that no longer may hold any are given back there as well. So no
handler can forget one of them.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from cachetools import LRUCache, TTLCache

from cache.commands import Command
from cache.copies import Copy, Waiter
from cache.failures import FailureMemory
from cache.history import Histories
from cache.ledger import Ledger
from cache.limits import CacheLimits
from cache.policies.base import EvictionMemory, EvictionPolicy, Score, Situation
from cache.profiles import Profiles
from cache.sharing import bytes_of, counted_once
from cache.tenancy import Crossing, guarantees_within
from cache.thrash import ThrashWatch
from cache.timers import Timers
from cache.transitions import CHARGED, KEPT, PENDING, Cause, InvalidTransition, StoryLine, next_state
from cache.types import NO_BYTES, Bytes, CopyState, ModelKey, Shared, WantedModel
from cache.views import Note

DEPARTED_STORIES_MAX = 256
"""Copies that are gone and still have their story told in an InvalidTransition."""

RETIRED_KEYS_MAX = 100_000
"""Retired models remembered at once; each for `retired_remembered_s` only."""


CROSSINGS_MAX = 64
"""Evictions across tenants that `validate` can look back on; it is called far more often."""


class Foreseen(NamedTuple):
    """A model that is to be brought in before its next use."""

    model: WantedModel
    at_s: float
    """The next use."""


class PodState:
    """The state of one pod's cache; owned by one CacheMachine."""

    def __init__(self, limits: CacheLimits, policy: EvictionPolicy) -> None:
        self.limits = limits
        self.policy = policy
        self.now_s = 0.0
        self.draining = False
        self.ledger = Ledger(limits.capacity)
        self.capacity_wanted = limits.capacity
        """What the ledger's capacity is on its way to; never more than the limits'."""
        self.why_smaller = ""
        self.loads_paused = False
        self.timers = Timers()
        self.failures = FailureMemory(limits)
        self.profiles = Profiles(limits)
        self.histories = Histories(limits.models_remembered_max)
        self.eviction_memory = EvictionMemory()
        self.expected: dict[int, Foreseen] = {}
        """Models that left and are expected back, by the number of their history."""
        self.copies: dict[int, Copy] = {}
        self.by_state: dict[CopyState, dict[int, Copy]] = {state: {} for state in CopyState}
        self.current: dict[ModelKey, Copy] = {}
        """The copy that newcomers of a model join: pending or servable."""
        self.servable: dict[ModelKey, Copy] = {}
        self.parked: dict[ModelKey, Copy] = {}
        """In the host tier, wanted by nobody now."""
        self.debtors: dict[int, Copy] = {}
        """Loaded copies that take more than the ledger could charge."""
        self.waiters: dict[int, Waiter] = {}
        self.retired: TTLCache[ModelKey, bool] = TTLCache(
            maxsize=RETIRED_KEYS_MAX, ttl=limits.retired_remembered_s, timer=lambda: self.now_s
        )
        self.notes: deque[Note] = deque(maxlen=limits.history_max)
        self.evictions_total = 0
        self.parkings_total = 0
        self.thrash = ThrashWatch(slots=limits.loads_concurrent_max, share=limits.thrash_load_share)
        self.crossings: deque[Crossing] = deque(maxlen=CROSSINGS_MAX)
        self.out: list[Command] = []
        """What must be done, in this order, because of the event that is being handled."""
        self.replan = False
        """Something changed that may let a fetch or a load start."""
        self.changed: dict[ModelKey, None] = {}
        """Models with a copy that was added or moved since somebody last asked."""
        self._copies_made = 0
        self._departed: LRUCache[int, tuple[ModelKey, tuple[StoryLine, ...]]] = LRUCache(maxsize=DEPARTED_STORIES_MAX)

    def add_copy(self, model: WantedModel) -> Copy:
        """A new copy in the queue."""
        self._copies_made += 1
        copy = Copy(self._copies_made, model, self.histories.of(model), self.now_s)
        copy.return_time_s = self.profiles.return_time_s(model.key)
        self.copies[copy.copy_id] = copy
        self.by_state[copy.state][copy.copy_id] = copy
        self.current[copy.key] = copy
        self.changed[copy.key] = None
        self.replan = True
        return copy

    def move(self, copy: Copy, cause: Cause) -> None:
        """Take the transition that the table gives for this cause."""
        state = next_state(copy.state, cause)
        if state is None:
            raise InvalidTransition(
                copy.copy_id, copy.key, f"'{cause.value}' in state '{copy.state.value}' is not allowed", copy.story
            )
        copy_id = copy.copy_id
        del self.by_state[copy.state][copy_id]
        copy.story.append(StoryLine(self.now_s, cause, state))
        copy.state = state
        copy.since_s = self.now_s
        copy.blocked = copy.blocked_since_s = None
        copy.changed()
        self.changed[copy.key] = None
        self.replan = True

        if state is CopyState.SERVABLE:
            self.servable[copy.key] = copy
        elif state not in PENDING and self.current.get(copy.key) is copy:
            del self.current[copy.key]
            self.servable.pop(copy.key, None)
        if state is CopyState.PARKED:
            self.parked[copy.key] = copy
        elif self.parked.get(copy.key) is copy:
            del self.parked[copy.key]
        if state is CopyState.WAITING_FOR_SPACE and copy.parked:
            self.current[copy.key] = copy  # it comes back; what it holds in RAM it keeps until then
        elif state not in CHARGED:
            copy.parked = NO_BYTES
            self.charge(copy, NO_BYTES)
        if state in (CopyState.UNLOADING, CopyState.GONE):
            self.debtors.pop(copy_id, None)
            if copy.prefetched:
                copy.prefetched = False
                self.histories.prefetches.wasted += 1
        if state is CopyState.GONE:
            del self.copies[copy_id]
            self._departed[copy_id] = (copy.key, tuple(copy.story))
        else:
            self.by_state[state][copy_id] = copy

    def charge(self, copy: Copy, size: Bytes, shared: Shared = ()) -> None:
        """The ledger holds exactly `size` for this copy from now on, these shared parts in it."""
        if copy.charged != size or copy.shared != shared:
            self.ledger.charge(copy.copy_id, size, shared)
            copy.charged = size
            copy.shared = shared
            copy.changed()
            self.replan = True

    def resize(self, copy: Copy, size: Bytes, shared: Shared = ()) -> None:
        """A loaded copy takes `size`, these shared parts in it; what cannot be charged now is a debt."""
        copy.size = size
        copy.changed()
        room = self.ledger.room_for(copy.copy_id, shared)
        if shared and not room >= NO_BYTES:
            # Not even the parts fit, which nobody else holds yet: what can be charged counts as the copy's own.
            shared = ()
            room = self.ledger.room_for(copy.copy_id, ())
        parts = bytes_of(shared)
        self.charge(copy, parts + (size - parts).at_most(room).shortage(), shared)
        self.pay_debt(copy)

    def pay_debt(self, copy: Copy) -> None:
        """Charge as much of what the copy takes as is free; the copy stays a debtor while some is left."""
        if debt := copy.debt:
            self.charge(copy, copy.charged + debt.at_most(self.ledger.free.shortage()), copy.shared)
        if not copy.debt:
            self.debtors.pop(copy.copy_id, None)
        elif copy.copy_id not in self.debtors:
            self.debtors[copy.copy_id] = copy
            self.replan = True

    def situation(self) -> Situation:
        """What the eviction policy is told of this pod."""
        return Situation(self.now_s, self.eviction_memory)

    def score_of(self) -> Score:
        """What the policy finds copies worth keeping, now."""
        return self.policy.scorer(self.situation())

    def evicted(self, score: float, idle_s: float) -> None:
        """A copy of this worth makes room for another."""
        self.evictions_total += 1
        self.eviction_memory = self.policy.after_eviction(self.eviction_memory, score, idle_s)
        self.histories.inflation = self.eviction_memory.inflation

    def crossed(self, copy: Copy, freed: Bytes, for_tenant: str) -> None:
        """This copy was taken from its tenant for another; what that leaves is remembered until it was checked."""
        tenant = copy.key.tenant
        share = self.limits.tenants.get(tenant)
        if share is None or tenant == for_tenant:
            return
        guarantee = guarantees_within(self.limits.tenants, self.capacity_wanted).get(tenant, NO_BYTES)
        kept = [each for copy_state in KEPT for each in self.by_state[copy_state].values()]
        left = counted_once(each for each in kept if each.key.tenant == tenant)
        self.crossings.append(Crossing(copy.key, for_tenant, freed, left, guarantee))

    def required(self, copy_id: int, event: object, *states: CopyState) -> Copy:
        """The copy that this event names; it must be in one of these states."""
        copy = self.copies.get(copy_id)
        what = f"{type(event).__name__} does not fit"
        if copy is None:
            key, story = self._departed.get(copy_id, (None, ()))
            raise InvalidTransition(copy_id, key, f"{what}: it is gone or never was", story)
        if copy.state not in states:
            raise InvalidTransition(copy_id, copy.key, f"{what} its state '{copy.state.value}'", copy.story)
        return copy

    def note(self, key: ModelKey, copy_id: int | None, text: str) -> None:
        """Remember this for `explain`."""
        self.notes.append(Note(self.now_s, key, copy_id, text))
