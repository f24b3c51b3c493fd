"""The cache's machine against an executor that is late, unlucky, wrong about sizes and out of order."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from math import inf

import pytest
from cachetools import LRUCache
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cache.commands import StartFetch, StartLoad, StartUnload
from cache.events import (
    Cancel,
    CapacityChanged,
    Crashed,
    EvictRequest,
    Forgive,
    Resized,
    Retire,
    SetPinned,
    SetPriority,
)
from cache.eviction import Evict, plan_eviction
from cache.fake_loader import FakeLoader
from cache.limits import CacheLimits
from cache.machine import CacheMachine
from cache.policies.lru import last_use_s
from cache.sharing import bytes_of
from cache.space import Claim, plan_space
from cache.tenancy import TenantShare
from cache.types import (
    NO_BYTES,
    Bytes,
    CopyState,
    Failure,
    FailureKind,
    ModelKey,
    Place,
    RefusalKind,
    Shared,
    SharedPart,
    WantedModel,
)
from cache.views import CopyView

CPU = Place("device", "cpu")
GPU = Place("device", "cuda:0")
GPU_2 = Place("device", "cuda:1")
HOST = Place("host")
CAPACITY = Bytes.from_mapping({CPU: 100, GPU: 40, GPU_2: 30, HOST: 60})
KEYS = [ModelKey(tenant, f"m{number}", 1) for tenant in ("blue", "red") for number in range(5)]
SIZES = st.builds(
    lambda cpu, gpu: Bytes.from_mapping({CPU: cpu, GPU: gpu}),
    st.integers(0, 70) | st.integers(0, 130),
    st.just(0) | st.integers(0, 50),
)
SHARES = {
    "blue": TenantShare(guarantee=Bytes.of(CPU, 30), limit=Bytes.of(CPU, 60)),
    "red": TenantShare(guarantee=Bytes.from_mapping({CPU: 25, GPU: 20})),
}
PARTS = (SharedPart("backbone", CPU, 30), SharedPart("tokens", CPU, 8), SharedPart("table", GPU, 15))
SHARED = st.lists(st.sampled_from(PARTS), unique=True, max_size=3).map(tuple)


def with_parts(size: Bytes, shared: Shared) -> Bytes:
    return size.at_least(bytes_of(shared))


FAILURES = st.builds(Failure, st.sampled_from(FailureKind), st.just("it failed"))


class CacheUnderStress(RuleBasedStateMachine):
    """Every rule is one event; the fake loader asserts single loads, single answers and no victim in use."""

    def __init__(self) -> None:
        super().__init__()
        self.next_waiter_id = 0
        self.sizes = {key: Bytes.of(CPU, 10 + 7 * number) for number, key in enumerate(KEYS)}

    @initialize(
        loads=st.integers(1, 3),
        fetches=st.integers(1, 3),
        residency_s=st.sampled_from([0.0, 3.0]),
        ttl_s=st.sampled_from([None, 5.0]),
        background_may_evict=st.booleans(),
        waiters=st.sampled_from([3, 100]),
        tenants=st.sampled_from([{}, {}, SHARES]),
        load_share=st.sampled_from([0.25, 0.0001]),
        parks=st.booleans(),
        gpu_bytes=st.sampled_from([0, 0, 9]),
        may_run_elsewhere=st.booleans(),
    )
    def start(
        self,
        loads: int,
        fetches: int,
        residency_s: float,
        ttl_s: float | None,
        background_may_evict: bool,
        waiters: int,
        tenants: dict[str, TenantShare],
        load_share: float,
        parks: bool,
        gpu_bytes: int,
        may_run_elsewhere: bool,
    ) -> None:
        self.tenants = tenants
        in_ram = dict(self.sizes)
        if gpu_bytes:  # and a choice of two devices, or of a third place
            self.sizes = {key: size + Bytes.of(GPU, gpu_bytes) for key, size in in_ram.items()}
        limits = CacheLimits(
            capacity=CAPACITY,
            loads_concurrent_max=loads,
            fetches_concurrent_max=fetches,
            residency_min_s=residency_s,
            ttl_s=ttl_s,
            background_may_evict=background_may_evict,
            waiters_per_model_max=waiters,
            pinned_bytes_per_tenant_max=40,
            wait_max_s=30.0,
            loads_pending_max=8,
            tenants=tenants,
            thrash_load_share=load_share,
        )
        self.machine = CacheMachine(limits)
        self.loader = FakeLoader(
            self.machine,
            lambda key: self.sizes[key],
            parks_of=lambda key: Bytes.of(HOST, self.sizes[key][CPU] // 2) if parks else None,
            peers_of=lambda key: (in_ram[key] + Bytes.of(GPU_2, gpu_bytes),) if gpu_bytes else (),
            otherwise_of=lambda key: in_ram[key] if gpu_bytes and may_run_elsewhere else None,
        )

    def _pick(self, data: st.DataObject, running: Iterable[int]) -> int:
        return data.draw(st.sampled_from(sorted(running)))

    @rule(
        key=st.sampled_from(KEYS),
        pinned=st.booleans(),
        priority=st.integers(0, 2),
        wait_s=st.none() | st.floats(0.0, 20.0),
        background=st.booleans(),
        space_wait_s=st.sampled_from([inf, inf, 0.0, 1.5]),
        size_hint=st.none() | SIZES,
        burst=st.sampled_from([1, 1, 1, 4]),
    )
    def want(
        self,
        key: ModelKey,
        pinned: bool,
        priority: int,
        wait_s: float | None,
        background: bool,
        space_wait_s: float,
        size_hint: Bytes | None,
        burst: int,
    ) -> None:
        model = WantedModel(key, priority=priority, pinned=pinned, size_hint=size_hint)
        deadline_s = None if wait_s is None else self.loader.now_s + wait_s
        for _ in range(burst):
            self.next_waiter_id += 1
            self.loader.want(self.next_waiter_id, model, deadline_s, background=background, space_wait_s=space_wait_s)

    @precondition(lambda self: self.loader.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        waiter_id = data.draw(st.sampled_from(sorted(self.loader.waiting)))
        self.loader.send(Cancel(waiter_id))
        assert self.loader.refused[waiter_id].kind is RefusalKind.CANCELLED

    @precondition(lambda self: self.loader.served)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.loader.release(data.draw(st.sampled_from(sorted(self.loader.served))))

    @rule(key=st.sampled_from(KEYS))
    def hit(self, key: ModelKey) -> None:
        copy = self.machine.servable(key)
        if copy is not None:
            self.next_waiter_id += 1
            copy.pin(self.loader.now_s)
            self.loader.served[self.next_waiter_id] = copy.copy_id

    @precondition(lambda self: self.loader.fetching)
    @rule(data=st.data(), size=st.none() | SIZES, shared=SHARED)
    def finish_fetch(self, data: st.DataObject, size: Bytes | None, shared: Shared) -> None:
        copy_id = self._pick(data, self.loader.fetching)
        if size is None:
            self.loader.finish_fetch(copy_id)
        else:
            self.loader.finish_fetch(copy_id, with_parts(size, shared), shared)

    @precondition(lambda self: self.loader.fetching)
    @rule(data=st.data(), failure=FAILURES)
    def fail_fetch(self, data: st.DataObject, failure: Failure) -> None:
        self.loader.fail_fetch(self._pick(data, self.loader.fetching), failure)

    @precondition(lambda self: self.loader.loading)
    @rule(data=st.data(), size=st.none() | SIZES, shared=SHARED)
    def finish_load(self, data: st.DataObject, size: Bytes | None, shared: Shared) -> None:
        copy_id = self._pick(data, self.loader.loading)
        if size is None:
            self.loader.finish_load(copy_id)
        else:
            self.loader.finish_load(copy_id, with_parts(size, shared), shared)

    @precondition(lambda self: self.loader.loading)
    @rule(data=st.data(), failure=FAILURES)
    def fail_load(self, data: st.DataObject, failure: Failure) -> None:
        self.loader.fail_load(self._pick(data, self.loader.loading), failure)

    @precondition(lambda self: self.loader.loading)
    @rule(data=st.data(), needed=SIZES)
    def run_out(self, data: st.DataObject, needed: Bytes) -> None:
        self.loader.run_out(self._pick(data, self.loader.loading), needed)

    @rule(cpu=st.integers(0, 120), gpu=st.integers(0, 50), paused=st.booleans())
    def change_capacity(self, cpu: int, gpu: int, paused: bool) -> None:
        capacity = Bytes.from_mapping({CPU: cpu, GPU: gpu, GPU_2: gpu // 2})
        self.loader.send(CapacityChanged(capacity, "the kernel takes memory back", loads_paused=paused))

    @precondition(lambda self: self._in_time())
    @rule(data=st.data(), failure=FAILURES)
    def overdue_load(self, data: st.DataObject, failure: Failure) -> None:
        self.loader.overdue_load(self._pick(data, self._in_time()), failure)

    def _in_time(self) -> list[int]:
        """Loads that were not called overdue."""
        states = {view.copy_id: view.state for view in self.machine.copies()}
        return [copy_id for copy_id in self.loader.loading if states[copy_id] is not CopyState.OVERDUE]

    @precondition(lambda self: self.loader.unloading)
    @rule(data=st.data(), works=st.sampled_from([True, True, True, False]))
    def end_unload(self, data: st.DataObject, works: bool) -> None:
        copy_id = self._pick(data, self.loader.unloading)
        if works:
            self.loader.finish_unload(copy_id)
        else:
            self.loader.fail_unload(copy_id)

    @precondition(lambda self: self.loader.parking)
    @rule(data=st.data(), works=st.sampled_from([True, True, True, False]), larger=st.integers(-10, 30))
    def end_park(self, data: st.DataObject, works: bool, larger: int) -> None:
        copy_id = self._pick(data, self.loader.parking)
        if not works:
            self.loader.fail_park(copy_id)
        elif larger > 0:
            self.loader.finish_park(copy_id, Bytes.of(HOST, larger))
        else:
            self.loader.finish_park(copy_id)

    @precondition(lambda self: self.loader.loaded)
    @rule(data=st.data(), size=SIZES, shared=SHARED)
    def resize(self, data: st.DataObject, size: Bytes, shared: Shared) -> None:
        self.loader.send(Resized(self._pick(data, self.loader.loaded), with_parts(size, shared), shared))

    @precondition(lambda self: self.loader.loaded)
    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        self.loader.send(Crashed(self._pick(data, self.loader.loaded), "the worker died"))

    @rule(key=st.sampled_from(KEYS), event=st.sampled_from([Retire, Forgive, EvictRequest]))
    def manage(self, key: ModelKey, event: type[Retire] | type[Forgive] | type[EvictRequest]) -> None:
        self.loader.send(event(key))

    @rule(key=st.sampled_from(KEYS), pinned=st.booleans())
    def set_pinned(self, key: ModelKey, pinned: bool) -> None:
        self.loader.send(SetPinned(key, pinned))

    @rule(key=st.sampled_from(KEYS), priority=st.integers(0, 2))
    def set_priority(self, key: ModelKey, priority: int) -> None:
        self.loader.send(SetPriority(key, priority))

    @rule(seconds=st.floats(0.0, 12.0))
    def pass_time(self, seconds: float) -> None:
        self.loader.pass_time(self.loader.now_s + seconds)

    @invariant()
    def everything_holds(self) -> None:
        if not hasattr(self, "machine"):
            return
        self.machine.validate()
        usage = self.machine.usage()
        assert usage.used <= usage.capacity
        assert usage.waiters == len(self.loader.waiting)
        running = {view.copy_id: view.state for view in self.machine.copies()}
        assert {i for i, state in running.items() if state in (CopyState.FETCHING, CopyState.CANCELLING_FETCH)} == set(
            self.loader.fetching
        )
        loading = (CopyState.LOADING, CopyState.CANCELLING_LOAD, CopyState.OVERDUE)
        assert {i for i, state in running.items() if state in loading} == set(self.loader.loading)
        assert {i for i, state in running.items() if state is CopyState.UNLOADING} == set(self.loader.unloading)
        assert {i for i, state in running.items() if state is CopyState.PARKING} == set(self.loader.parking)
        for view in self.machine.copies():
            assert view.pins == sum(copy_id == view.copy_id for copy_id in self.loader.served.values())

    def teardown(self) -> None:
        """Traffic stops, the executor becomes fair: everybody is answered, and whatever fits is served."""
        if not hasattr(self, "machine"):
            return
        loader = self.loader
        loader.send(CapacityChanged(CAPACITY))
        for _ in range(200):
            loader.run()
            for waiter_id in list(loader.served):
                loader.release(waiter_id)
            loader.run()
            if (
                not loader.waiting
                and not loader.served
                and not any(
                    view.state in (CopyState.QUEUED, CopyState.WAITING_FOR_SPACE, CopyState.STUCK)
                    for view in self.machine.copies()
                )
            ):
                break
            loader.pass_time(loader.now_s + 1.0)
            self.machine.validate()
        assert not loader.waiting
        for key in KEYS:
            loader.send(Forgive(key))
            loader.send(SetPinned(key, False))
        loader.pass_time(loader.now_s + 100.0)
        loader.run()
        for key in KEYS:
            loader.send(Retire(key))  # what was measured in the chaos is forgotten with it
            loader.run()
            loader.send(Forgive(key))
        for key in KEYS:
            self.next_waiter_id += 1
            waiter_id = self.next_waiter_id
            loader.want(waiter_id, WantedModel(key))
            loader.run()
            loader.pass_time(loader.now_s + 1.0)
            loader.run()
            if waiter_id not in loader.served and not self._surely_fits(key):
                loader.pass_time(loader.now_s + 12.0)
                loader.run()
                if waiter_id in loader.refused:
                    continue
            assert waiter_id in loader.served, f"{key} fits and was not served: {loader.refused.get(waiter_id)}"
            loader.release(waiter_id)
        self.machine.validate()

    def _surely_fits(self, key: ModelKey) -> bool:
        """Into its tenant's limit, and beside what others are guaranteed and one copy more of each."""
        size = self.sizes[key][CPU]
        limit = self.tenants.get(key.tenant, TenantShare()).limit[CPU] or CAPACITY[CPU]
        kept = sum(
            share.guarantee[CPU] + max(self.sizes[other][CPU] for other in KEYS if other.tenant == tenant)
            for tenant, share in self.tenants.items()
            if tenant != key.tenant and share.guarantee
        )
        return size <= min(limit, CAPACITY[CPU] - kept)


TestCacheUnderStress = CacheUnderStress.TestCase
TestCacheUnderStress.settings = settings(
    max_examples=150, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)


# -- the default policy is LRU by bytes -------------------------------------------------------------------------------


@settings(deadline=None, max_examples=150)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=8, max_size=8),
    requests=st.lists(st.integers(0, 7), max_size=60),
)
def test_one_request_after_the_other_the_pod_is_an_lru_cache_by_bytes(sizes: list[int], requests: list[int]) -> None:
    machine = CacheMachine(CacheLimits(capacity=Bytes.of(CPU, 100), residency_min_s=0.0))
    loader = FakeLoader(machine, lambda key: Bytes.of(CPU, sizes[int(key.model_id)]))
    oracle: LRUCache[int, int] = LRUCache(maxsize=100, getsizeof=lambda size: size)
    hits = oracle_hits = 0
    for waiter_id, number in enumerate(requests):
        loader.now_s += 1.0
        key = ModelKey("t", str(number))
        hits += machine.servable(key) is not None
        assert loader.use(waiter_id, WantedModel(key)) is None
        if oracle.get(number) is not None:
            oracle_hits += 1
        else:
            oracle[number] = sizes[number]
        resident = {int(view.key.model_id) for view in machine.copies()}
        assert resident == set(oracle)
    assert hits == oracle_hits


# -- the pure decisions do not depend on the order of their input -----------------------------------------------------

VIEWS = st.builds(
    lambda number, state, size, used_s, pins, pinned, young, comes_back: CopyView(
        copy_id=number,
        key=ModelKey("t", f"m{number}"),
        state=state,
        size=size,
        charged=size,
        since_s=0.0,
        last_used_s=used_s,
        pins=pins,
        waiters=0,
        priority=0,
        pinned=pinned,
        protected_until_s=young,
        load_time_s=0.0,
        comes_back=comes_back,
    ),
    st.integers(0, 1000),
    st.sampled_from([CopyState.SERVABLE, CopyState.SERVABLE, CopyState.LOADING, CopyState.RETIRING]),
    SIZES,
    st.integers(0, 3).map(float),
    st.sampled_from([0, 0, 0, 1]),
    st.sampled_from([False, False, True]),
    st.sampled_from([0.0, 0.0, 20.0]),
    st.booleans(),
)
RESIDENTS = st.lists(VIEWS, max_size=10, unique_by=lambda view: view.copy_id)


@given(residents=RESIDENTS, missing=SIZES, override=st.booleans(), seed=st.integers())
def test_eviction_plans_suffice_spare_the_protected_and_ignore_the_order_of_the_copies(
    residents: list[CopyView], missing: Bytes, override: bool, seed: int
) -> None:
    def plan(copies: Sequence[CopyView]) -> object:
        return plan_eviction(copies, missing, 10.0, last_use_s, override_residency=override)

    shuffled = list(residents)
    random.Random(seed).shuffle(shuffled)
    outcome = plan(residents)
    assert outcome == plan(shuffled)
    by_id = {view.copy_id: view for view in residents}
    allowed = [
        view
        for view in residents
        if view.state is CopyState.SERVABLE
        and not view.pins
        and not view.pinned
        and (override or view.protected_until_s <= 10.0)
    ]
    attainable = Bytes.sum(view.charged for view in allowed)
    assert isinstance(outcome, Evict) == (missing <= attainable)
    if isinstance(outcome, Evict):
        assert missing <= Bytes.sum(victim.freed for victim in outcome.victims)
        assert all(by_id[victim.copy_id] in allowed for victim in outcome.victims)
        but_last = Bytes.sum(victim.freed for victim in outcome.victims[:-1])
        assert not outcome.victims or not missing <= but_last, "it went on after it had enough"
        come_back = [by_id[victim.copy_id].comes_back for victim in outcome.victims]
        assert come_back == sorted(come_back), "what would be loaded again at once leaves last"


@given(
    residents=RESIDENTS,
    needs=st.lists(SIZES, max_size=5),
    free=SIZES,
    coming=SIZES,
    slots=st.integers(1, 4),
    seed=st.integers(),
)
def test_space_plans_never_promise_a_byte_twice_and_ignore_the_order_of_the_copies(
    residents: list[CopyView], needs: list[Bytes], free: Bytes, coming: Bytes, slots: int, seed: int
) -> None:
    claims = [Claim(5000 + number, ModelKey("t", f"c{number}"), need) for number, need in enumerate(needs)]
    shuffled = list(residents)
    random.Random(seed).shuffle(shuffled)
    plans = [
        plan_space(claims, copies, free=free, coming=coming, slots=slots, now_s=10.0, score_of=last_use_s)
        for copies in (residents, shuffled)
    ]
    assert plans[0] == plans[1]
    plan = plans[0]
    needs_of = {claim.copy_id: claim.needed for claim in claims}
    assert Bytes.sum(needs_of[copy_id] for copy_id in plan.start) <= free
    victims = [victim.copy_id for victim, _ in plan.unload]
    assert len(victims) == len(set(victims))
    blocked = {claim.copy_id for claim, _ in plan.blocked}
    taken = [claim.needed for claim in claims[:slots] if claim.copy_id not in blocked]
    if not blocked:
        assert Bytes.sum(taken) <= free + coming + Bytes.sum(victim.freed for victim, _ in plan.unload)
    assert len(plan.start) + len(blocked) <= slots


# -- no starvation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("small_deadline_s", [None, 3.0])
@settings(deadline=None, max_examples=25)
@given(stride=st.sampled_from([1, 3, 7, 9, 11]), hold=st.integers(1, 4), arrives=st.integers(0, 60))
def test_a_large_model_is_served_within_its_bound_under_an_endless_stream_of_small_misses(
    small_deadline_s: float | None, stride: int, hold: int, arrives: int
) -> None:
    """Twenty small models take turns, each in use for a while; the large one needs nearly the whole pod."""
    limits = CacheLimits(
        capacity=Bytes.of(CPU, 100), loads_concurrent_max=2, patience_s=2.0, residency_min_s=1.0, space_wait_max_s=10.0
    )
    machine = CacheMachine(limits)
    loader = FakeLoader(machine, lambda key: Bytes.of(CPU, 95 if key.model_id == "big" else 20))
    for step in range(200):
        loader.pass_time(step * 0.1)
        deadline_s = None if small_deadline_s is None else loader.now_s + small_deadline_s
        loader.want(step, WantedModel(ModelKey("t", f"small{step * stride % 20}")), deadline_s)
        if step == arrives:
            loader.want(100_000, WantedModel(ModelKey("t", "big")))
        for copy_id in list(loader.unloading):
            loader.finish_unload(copy_id)
        for copy_id in list(loader.loading):
            loader.finish_load(copy_id)
        for copy_id in list(loader.fetching):
            loader.finish_fetch(copy_id)
        for waiter_id in [waiter_id for waiter_id in loader.served if waiter_id <= step - hold]:
            if waiter_id != 100_000:
                loader.release(waiter_id)
        machine.validate()
        if 100_000 in loader.served:
            assert (
                loader.now_s <= arrives * 0.1 + limits.patience_s + limits.residency_override_wait_s + hold * 0.1 + 1.0
            )
            return
    raise AssertionError(f"the large model starved: {loader.refused.get(100_000)}")


def test_the_same_history_gives_the_same_commands() -> None:
    def commands(seed: int) -> list[object]:
        chance = random.Random(seed)
        machine = CacheMachine(CacheLimits(capacity=Bytes.of(CPU, 100)))
        loader = FakeLoader(machine, lambda key: Bytes.of(CPU, 10 + 7 * int(key.model_id[1:])))
        for waiter_id in range(300):
            loader.pass_time(loader.now_s + chance.random())
            loader.want(waiter_id, WantedModel(chance.choice(KEYS)))
            loader.run()
            for served in list(loader.served):
                loader.release(served)
        kinds = (StartFetch, StartLoad, StartUnload)
        assert all(any(isinstance(command, kind) for command in loader.log) for kind in kinds)
        return list(loader.log)

    assert commands(1) == commands(1)
    assert Bytes.sum([]) == NO_BYTES
