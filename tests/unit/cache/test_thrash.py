"""A working set beyond the memory: noticed, served by turns, and nobody waits for ever."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from cache.fake_loader import FakeLoader
from cache.thrash import Gathering, ThrashWatch, choose_turns
from cache.types import ModelKey, WantedModel

Pod = Callable[..., FakeLoader]
LOAD_S = 0.03


class Clients:
    """So many clients, each with one request at a time, on a pod whose loads take their time; 1 ms per step.

    Each step serves a few of those that found a copy; loads take what they would take of a core.
    """

    def __init__(self, loader: FakeLoader, models: int, clients: int, *, seed: int = 1) -> None:
        self.loader = loader
        self.models = models
        self.chance = random.Random(seed)
        self.idle = clients
        self.done_at_s: dict[int, float] = {}
        self.wanted_at_s: dict[int, float] = {}
        self.longest_wait_s = 0.0
        self.served = self.loads = 0
        self._waiter = 0

    def step(self, served_max: int) -> None:
        loader, machine = self.loader, self.loader.machine
        for copy_id in list(loader.unloading):
            loader.finish_unload(copy_id)
        for copy_id in list(loader.fetching):
            loader.finish_fetch(copy_id)
        for copy_id in list(loader.loading):
            if loader.now_s >= self.done_at_s.setdefault(copy_id, loader.now_s + LOAD_S):
                loader.finish_load(copy_id)
                self.loads += 1
        for waiter_id in list(loader.served):
            self.longest_wait_s = max(self.longest_wait_s, loader.now_s - self.wanted_at_s.pop(waiter_id))
            loader.release(waiter_id)
            self.idle += 1
            self.served += 1
        assert not loader.refused
        # What loads take is not there for serving.
        for _ in range(min(self.idle, max(0, served_max - served_max * len(loader.loading) // 2))):
            key = ModelKey("t", f"m{self.chance.randrange(self.models)}")
            copy = machine.servable(key)
            self._waiter += 1
            self.wanted_at_s[self._waiter] = loader.now_s
            if copy is None:
                loader.want(self._waiter, WantedModel(key))
            else:
                copy.pin(loader.now_s)
                loader.served[self._waiter] = copy.copy_id
            self.idle -= 1
        loader.pass_time(loader.now_s + 0.001)

    def run(self, seconds: float, served_max: int = 4) -> None:
        self.served = self.loads = 0
        self.longest_wait_s = 0.0
        for _ in range(int(seconds * 1000)):
            self.step(served_max)


def pod_for(pod: Pod, **limits: Any) -> FakeLoader:
    return pod(capacity_bytes=900, residency_override_wait_s=0.05, loads_concurrent_max=2, **limits)


def test_a_working_set_that_fits_is_no_thrashing(pod: Pod) -> None:
    clients = Clients(pod_for(pod), models=30, clients=100)
    clients.run(10.0)
    assert clients.loader.machine.usage().thrashing_episodes == 0


def test_beyond_the_capacity_turns_serve_several_times_as_much(pod: Pod) -> None:
    served = {}
    for control in (True, False):
        clients = Clients(pod_for(pod, thrash_control=control), models=40, clients=100)
        clients.run(10.0)
        clients.run(10.0)
        served[control] = clients.served
        assert clients.loader.machine.thrashing is not None, "noticed, with and without the remedy"
        assert clients.loader.machine.usage().thrashing_episodes == 1
        clients.loader.machine.validate()
    assert served[True] >= 5 * served[False]


def test_every_request_is_answered_within_patience_and_a_rotation(pod: Pod) -> None:
    loader = pod_for(pod, patience_s=1.0)
    clients = Clients(loader, models=40, clients=300)
    clients.run(10.0)
    clients.run(10.0)
    assert clients.longest_wait_s <= 1.0 + 10 * LOAD_S


def test_few_clients_do_not_wait_for_turns_while_nothing_is_used(pod: Pod) -> None:
    loader = pod_for(pod)
    clients = Clients(loader, models=40, clients=1)
    clients.run(10.0)
    clients.run(10.0)
    assert clients.longest_wait_s <= 3 * LOAD_S


@pytest.mark.parametrize("control", [True, False])
def test_it_ends_when_the_working_set_fits_again(pod: Pod, control: bool) -> None:
    clients = Clients(pod_for(pod, thrash_control=control), models=40, clients=100)
    clients.run(10.0)
    assert clients.loader.machine.thrashing is not None
    clients.models = 25
    clients.run(12.0)
    assert clients.loader.machine.thrashing is None
    assert clients.loader.wake_at_s is None or clients.loader.wake_at_s > clients.loader.now_s


def test_a_scan_is_no_thrashing(pod: Pod) -> None:
    loader = pod_for(pod)
    for number in range(500):
        loader.now_s += 0.001
        assert loader.use(number, WantedModel(ModelKey("t", f"m{number}"))) is None
    assert loader.machine.usage().thrashing_episodes == 0


def test_a_model_that_comes_back_later_than_it_had_stayed_is_no_reload() -> None:
    watch = ThrashWatch(slots=1, share=0.25)
    key = ModelKey("t", "m")
    watch.evicted(key, stay_s=5.0, load_s=1.0, now_s=100.0)
    watch.loaded(key, wanted_s=105.1, load_s=1.0, now_s=107.0)
    assert watch.reload_share(107.0) == 0.0
    watch.evicted(key, stay_s=5.0, load_s=1.0, now_s=200.0)
    watch.loaded(key, wanted_s=204.9, load_s=1.0, now_s=207.0)
    assert watch.reload_share(207.0) == pytest.approx(1 / 3)


def test_turns_leave_the_rest_of_the_time_to_serving() -> None:
    watch = ThrashWatch(slots=2, share=0.25)
    watch.give_turn(1, load_s=0.1, now_s=10.0)
    assert watch.next_turn_s == pytest.approx(10.2)
    for copy_id in range(2, 12):
        watch.give_turn(copy_id, load_s=0.1, now_s=10.0)
    assert watch.next_turn_s == pytest.approx(10.4), "what was due is paid back, but not for ever"


def waits(copy_id: int, **differs: Any) -> Gathering:
    values: dict[str, Any] = {"priority": 0, "requests": 1, "due_s": 100.0, "load_s": 1.0, "wanted_s": 0.0}
    return Gathering(copy_id, **(values | differs))


@pytest.mark.parametrize(
    ("others", "chosen"),
    [
        ([waits(2, requests=2)], [2]),
        ([waits(2, requests=2, load_s=3.0)], [1]),
        ([waits(2, priority=1)], [2]),
        ([waits(2, due_s=99.0)], [2]),
        ([waits(2, due_s=10.0)], [2]),
        ([waits(2, due_s=10.0), waits(3, due_s=9.0)], [3, 2]),
        ([waits(2, wanted_s=-1.0)], [2]),
        ([waits(2)], [1]),
    ],
    ids=["most requests", "per second of loading", "priority", "due first", "due now", "all due", "oldest", "id"],
)
def test_whose_turn_it_is(others: list[Gathering], chosen: list[int]) -> None:
    gathered = [waits(1), *others]
    assert choose_turns(gathered, 10.0, turn=True) == chosen
    assert choose_turns(gathered[::-1], 10.0, turn=True) == chosen


def test_without_a_turn_only_those_that_are_due_go() -> None:
    assert choose_turns([waits(1), waits(2, due_s=5.0)], 10.0, turn=False) == [2]
    assert choose_turns([waits(1)], 10.0, turn=False) == []
