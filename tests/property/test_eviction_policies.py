"""Whatever models are asked for, and whoever chooses victims: promises that no policy may break."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.commands import StartLoad, StartUnload
from cache.events import Want
from cache.eviction import Evict, plan_eviction
from cache.fake_loader import FakeLoader
from cache.history import Histories
from cache.limits import CacheLimits
from cache.machine import CacheMachine
from cache.policies import POLICIES, policy_named
from cache.policies.base import EvictionMemory, Situation
from cache.types import Bytes, CopyState, ModelKey, Place, WantedModel
from cache.views import CopyView

CPU = Place("device", "cpu")
NOW_S = 100_000.0
names = pytest.mark.parametrize("name", sorted(POLICIES))


@st.composite
def copies(draw: st.DrawFn) -> list[CopyView]:
    """Servable copies with histories of all kinds; some are in use, pinned, or young."""
    histories = Histories(100)
    views: list[CopyView] = []
    for number in range(draw(st.integers(1, 12))):
        key = ModelKey("t", f"m{number}")
        history = histories.of(WantedModel(key))
        uses_s = sorted(draw(st.lists(st.floats(0.0, NOW_S + 100.0), max_size=8)))  # a clock may be read early
        for use_s in uses_s:
            history.record(use_s)
        size = Bytes.of(CPU, draw(st.integers(0, 50)))
        views.append(
            CopyView(
                copy_id=number,
                key=key,
                state=CopyState.SERVABLE,
                size=size,
                charged=size,
                since_s=0.0,
                last_used_s=uses_s[-1] if uses_s else draw(st.floats(0.0, NOW_S)),
                pins=draw(st.integers(0, 1)),
                waiters=0,
                priority=draw(st.integers(0, 1)),
                pinned=draw(st.booleans()),
                protected_until_s=draw(st.sampled_from((0.0, NOW_S + 1.0))),
                load_time_s=1.0,
                return_time_s=draw(st.floats(0.0, 10.0)),
                uses=history.picture(),
            )
        )
    return views


situations = st.builds(Situation, st.just(NOW_S), st.builds(EvictionMemory, st.floats(0.0, 1e-3), st.floats(60.0, 1e6)))


@names
@given(views=copies(), situation=situations, missing=st.integers(1, 200), seed=st.integers(0, 99), data=st.data())
def test_the_same_state_gives_the_same_victims_in_any_order_and_none_that_must_stay(
    name: str, views: list[CopyView], situation: Situation, missing: int, seed: int, data: st.DataObject
) -> None:
    policy = policy_named(name)
    shuffled = list(views)
    Random(seed).shuffle(shuffled)
    override = data.draw(st.booleans())

    def plan(order: list[CopyView]) -> object:
        score_of = policy.scorer(situation)
        return plan_eviction(order, Bytes.of(CPU, missing), NOW_S, score_of, override_residency=override)

    first, second = plan(views), plan(shuffled)
    assert first == second
    if isinstance(first, Evict):
        by_id = {view.copy_id: view for view in views}
        victims = [by_id[victim.copy_id] for victim in first.victims]
        assert not any(victim.pins or victim.pinned for victim in victims)
        assert override or not any(victim.protected_until_s > NOW_S for victim in victims)
        freed = [victim.charged[CPU] for victim in victims]
        assert sum(freed) >= missing
        assert all(sum(freed) - each < missing for each in freed), "one of them need not leave"


@names
@given(views=copies(), situation=situations)
def test_scores_are_numbers_that_can_be_ordered(name: str, views: list[CopyView], situation: Situation) -> None:
    policy = policy_named(name)
    score_of = policy.scorer(situation)
    for view in views:
        assert score_of(view) == score_of(view)  # not NaN, and no memory of having been asked
        assert policy.soon(situation, view, 1.0) >= 0.0
    after = policy.after_eviction(situation.memory, 1.0, 60.0)
    assert after == policy.after_eviction(situation.memory, 1.0, 60.0)


@names
@settings(max_examples=30, deadline=None)
@given(
    asked=st.lists(st.tuples(st.integers(0, 9), st.floats(0.01, 400.0), st.booleans()), min_size=5, max_size=80),
    prefetch=st.booleans(),
    pinned=st.integers(0, 2),
)
def test_nothing_in_use_or_pinned_leaves_and_the_pod_is_never_oversold(
    name: str, asked: list[tuple[int, float, bool]], prefetch: bool, pinned: int
) -> None:
    limits = CacheLimits(capacity=Bytes.of(CPU, 100), residency_min_s=0.0, prefetch=prefetch)
    machine = CacheMachine(limits, policy_named(name))
    loader = FakeLoader(machine, lambda key: Bytes.of(CPU, 10 + 3 * int(key.model_id)))
    held: list[int] = []
    for waiter_id, (number, pause_s, holds) in enumerate(asked):
        model = WantedModel(ModelKey("t", str(number)), pinned=number < pinned)
        loader.want(waiter_id, model)
        loader.run()
        if waiter_id in loader.served:
            held.append(waiter_id)
        if not holds or len(held) > 2:
            while held:
                loader.release(held.pop())
        for command in loader.prefetches:
            loader.want(10_000 + len(loader.log), command.model, background=True)
        loader.prefetches.clear()
        loader.run()
        for waiter in [waiter for waiter in loader.served if waiter >= 10_000]:
            loader.release(waiter)
        loader.pass_time(loader.now_s + pause_s)
        loader.run()
        machine.validate()  # bytes fit, victims are not in use, everybody waits for something


@names
@settings(max_examples=40, deadline=None)
@given(period_s=st.floats(60.0, 3600.0), others=st.integers(4, 9), load_s=st.floats(0.0, 1.0))
def test_a_periodic_model_is_back_before_its_next_use(name: str, period_s: float, others: int, load_s: float) -> None:
    limits = CacheLimits(capacity=Bytes.of(CPU, 100), residency_min_s=0.0, prefetch=True)
    loader = FakeLoader(CacheMachine(limits, policy_named(name)), lambda key: Bytes.of(CPU, 30))
    timer = WantedModel(ModelKey("t", "timer"))
    waiter_id = 0

    def use(model: WantedModel) -> bool:
        """Was it there already?"""
        nonlocal waiter_id
        waiter_id += 1
        here = loader.machine.servable(model.key) is not None
        loader.want(waiter_id, model)
        _load(loader, load_s)
        loader.release(waiter_id)
        return here

    for call in range(8):
        loader.pass_time(call * period_s)
        here = use(timer)
        assert here or call < 5, f"call {call} found it away"
        for number in range(others):  # more than fit, each of them asked for once
            loader.pass_time(call * period_s + (0.2 + 0.05 * number) * period_s)
            use(WantedModel(ModelKey("t", f"{call}/{number}")))
        while loader.wake_at_s is not None and loader.wake_at_s < (call + 1) * period_s:
            loader.pass_time(loader.wake_at_s)
            for command in loader.prefetches:
                assert command.model == timer
                waiter_id += 1
                loader.waiting.add(waiter_id)
                loader.send(Want(waiter_id, command.model, background=True, expected_at_s=command.expected_at_s))
                _load(loader, load_s)
                loader.release(waiter_id)
            loader.prefetches.clear()
    usage = loader.machine.usage()
    assert usage.prefetches >= usage.prefetches_used >= usage.prefetches - 1  # the last call was not made
    assert not usage.prefetches_wasted


def _load(loader: FakeLoader, load_s: float) -> None:
    """Everything that runs ends; loads take their time."""
    while loader.fetching or loader.loading or loader.unloading:
        for copy_id in list(loader.unloading):
            loader.finish_unload(copy_id)
        for copy_id in list(loader.fetching):
            loader.finish_fetch(copy_id)
        for copy_id in list(loader.loading):
            loader.now_s += load_s
            loader.finish_load(copy_id)


def test_a_prefetch_evicts_only_what_is_worth_less() -> None:
    limits = CacheLimits(capacity=Bytes.of(CPU, 100), residency_min_s=0.0, prefetch=True)
    loader = FakeLoader(CacheMachine(limits, policy_named("hazard")), lambda key: Bytes.of(CPU, 60))
    busy, guess = WantedModel(ModelKey("t", "busy")), WantedModel(ModelKey("t", "guess"))
    loader.want(1, guess)
    _load(loader, 0.5)
    loader.release(1)
    for use in range(30):
        loader.now_s += 1.0
        loader.want(10 + use, busy)
        _load(loader, 0.5)
        loader.release(10 + use)
    loader.waiting.add(99)
    loader.log.clear()
    loader.send(Want(99, guess, background=True, expected_at_s=loader.now_s + 3600.0))
    _load(loader, 0.5)
    assert 99 in loader.refused
    assert not any(isinstance(command, StartUnload | StartLoad) for command in loader.log)
    usage = loader.machine.usage()
    assert (usage.prefetches, usage.prefetches_used, usage.prefetches_wasted) == (1, 0, 1)
    loader.machine.validate()
