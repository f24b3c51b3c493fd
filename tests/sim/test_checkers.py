"""The checkers, checked: each way of breaking the product on purpose is noticed, and named for what it is."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from cache.copies import Copy
from cache.limits import CacheLimits
from cache.types import ModelKey
from mesh import node
from mesh.loading.loading import Loading
from mesh.resident import Resident
from mesh.routing.router import Router
from mesh.serving import Serving
from mesh.settings import Settings
from mesh.simulation.scenario import draw_scenario
from mesh.simulation.simulation import play
from mesh.transport.base import StatusCode, TransportError
from placement import registry
from placement.leadership import Leadership
from placement.membership import Membership
from placement.policy import load_choice
from placement.policy.routing import Load
from placement.publishing import Publisher
from runtime_adapters.base import Device

SEEDS = (3, 5, 6, 7, 10, 11, 12, 13, 14, 15)
STEPS = 3_000

pytestmark = pytest.mark.timeout(600)


def broken_promise(seeds: Iterable[int] = SEEDS) -> str:
    """What the first of these seeds finds that finds anything."""
    for seed in seeds:
        outcome = play(draw_scenario(seed, STEPS))
        if outcome.promise:
            return outcome.promise
    return ""


def test_an_answer_of_another_model_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    servable = Loading.servable

    def any_copy(self: Loading, key: ModelKey) -> Resident | None:
        found = servable(self, key)
        others = [resident for resident in self.every_resident() if resident.copy.key != key]
        if found is None or not others:
            return found
        found.let_go()
        others[0].hold()
        return others[0]

    monkeypatch.setattr(Loading, "servable", any_copy)
    assert broken_promise() == "answers come from the model that was asked for"


def test_loading_what_others_have_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    route = Router._route

    async def claimed(self: Router, *arguments: Any) -> None:
        return None

    def always_load(self: Router, view: Any, name: Any, generation: int, *arguments: Any, **named: Any) -> Any:
        chosen = route(self, view, name, generation, *arguments, **named)
        return Load(generation) if type(chosen).__name__ == "Forward" else chosen

    monkeypatch.setattr(Router, "_claim", claimed)
    monkeypatch.setattr(Router, "_route", always_load)
    assert broken_promise() == "at most one first load of a model"


def test_giving_up_after_one_try_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = Router._forward

    async def fail_at_once(self: Router, *arguments: Any, **named: Any) -> Any:
        reply = await forward(self, *arguments, **named)
        if reply is None:
            raise next(each.last for each in arguments if hasattr(each, "last"))
        return reply

    monkeypatch.setattr(Router, "_forward", fail_at_once)
    assert broken_promise(range(1, 30)) in (
        "no error while a reachable copy serves",
        "no error in calm",
        "a registered model is never lost",
    )


def test_an_error_although_a_copy_serves_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = Router._forward

    async def fail_now_and_then(self: Router, *arguments: Any, **named: Any) -> Any:
        reply = await forward(self, *arguments, **named)
        if self.forwarded % 20 == 0:
            raise TransportError(StatusCode.UNAVAILABLE, "on purpose")
        return reply

    monkeypatch.setattr(Router, "_forward", fail_now_and_then)
    assert broken_promise() == "no error while a reachable copy serves"


def test_a_request_that_nobody_answers_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    infer = Serving.infer

    async def forget(self: Serving, *arguments: Any) -> Any:
        answer = await infer(self, *arguments)
        if self.hits == 50:
            while True:
                try:
                    await asyncio.get_running_loop().create_future()
                except asyncio.CancelledError:
                    continue  # whatever happens, it does not answer
        return answer

    monkeypatch.setattr(Serving, "infer", forget)
    assert broken_promise() == "every waiter is answered"


def test_memory_that_is_sold_twice_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    limits_of = node.cache_limits

    def doubled(settings: Settings, devices: Sequence[Device], beside: Mapping[Device, int]) -> CacheLimits:
        limits = limits_of(settings, devices, beside)
        return replace(limits, capacity=limits.capacity + limits.capacity)

    monkeypatch.setattr(node, "cache_limits", doubled)
    assert broken_promise() == "memory is never oversold"


def test_a_decision_that_depends_on_the_order_of_a_mapping_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    candidate = load_choice._candidate
    monkeypatch.setattr(load_choice, "_ordered", tuple)
    monkeypatch.setattr(
        load_choice,
        "_candidates",
        lambda model, at, pods, zones: [candidate(model, at, pod, zones, 0.0) for pod in pods],
    )
    assert broken_promise() == "the same view gives the same decision"


def test_a_leader_that_does_not_let_go_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Leadership, "is_leader", property(lambda self: self._revision > 0))
    assert broken_promise(range(1, 30)) == "there is one leader"


def test_copies_that_are_not_published_again_after_a_lost_lease_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = Publisher.lease_lost

    def forgetful(self: Publisher, lease: int, reason: str) -> None:
        lost(self, lease, reason)
        for key in [key for key in self._wanted if key.startswith("copies/")]:
            del self._wanted[key]

    monkeypatch.setattr(Publisher, "lease_lost", forgetful)
    assert broken_promise(range(1, 30)) in ("the store holds what the pods have", "views converge")


def test_a_pod_that_says_nothing_of_its_disk_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Membership, "set_parked", lambda self, name, parked: None)
    assert broken_promise() == "the store holds what the pods have"


def test_a_registry_that_misses_changes_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    advance = registry.advance

    def deaf(view: Any, events: Iterable[Any], revision: int) -> Any:
        return advance(view, [event for event in events if event.id != "m005"], revision)

    monkeypatch.setattr(registry, "advance", deaf)
    assert broken_promise() in ("views converge", "a registered model is never lost", "no error in calm")


def test_a_victim_that_is_in_use_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    view = Copy.view
    monkeypatch.setattr(Copy, "view", lambda self: replace(view(self), pins=0))
    assert broken_promise() == "a copy in use is never a victim"
