"""(view, request) → who answers it."""

from __future__ import annotations

from typing import Any

import pytest

from placement.policy.routing import Forward, Load, Mode, NotHere, Route, RunHere, choose_copy, choose_route
from placement.policy.snapshot import PoolView
from tests.unit.placement.policy.builders import copy, healthy, name, pod, view

PODS = [pod(each) for each in "abcd"]


def route(of: PoolView, **rest: Any) -> Route:
    """A request for generation 1 of `m` that arrives at pod `a`, where nothing is loaded."""
    request: dict[str, Any] = {
        "self_pod": "a", "servable_here": 0, "loading_here": False, "here_in_flight": 0, "here_limit": 0,
        "forwarded": False, "healthy": healthy(of), "in_flight": {}, "excluded": frozenset(), "ordinal": 0,
    } | rest  # fmt: skip
    return choose_route(of, name(), request.pop("generation", 1), **request)


def test_a_copy_here_answers_without_a_hop() -> None:
    assert route(view(PODS, {"m": [copy("a"), copy("b")]}), servable_here=1) == RunHere(1)


def test_a_saturated_copy_here_gives_way_to_a_holder_with_less_to_do() -> None:
    of = view(PODS, {"m": [copy("a"), copy("b")]})
    here = {"servable_here": 1, "here_limit": 1, "here_in_flight": 2}
    assert route(of, **here) == Forward("b", Mode.HIT, 1)
    assert route(of, **here, in_flight={"b": 2}) == RunHere(1)
    assert route(of, servable_here=1, here_limit=3, here_in_flight=2) == RunHere(1)
    assert route(view(PODS, {"m": [copy("a")]}), **here) == RunHere(1)


def test_a_holder_elsewhere_is_called_when_there_is_no_copy_here() -> None:
    assert route(view(PODS, {"m": [copy("b")]})) == Forward("b", Mode.HIT, 1)


def test_of_two_holders_the_lesser_loaded_is_called() -> None:
    pods = [pod("a"), pod("b", requests_in_flight=3), pod("c", requests_in_flight=1)]
    of = view(pods, {"m": [copy("b"), copy("c")]})
    assert {route(of, ordinal=ordinal) for ordinal in range(20)} == {Forward("c", Mode.HIT, 1)}
    assert route(of, in_flight={"c": 3}) == Forward("b", Mode.HIT, 1)


def test_requests_spread_over_many_equally_loaded_holders() -> None:
    pods = [pod(f"p{number}") for number in range(8)]
    copies = tuple(copy(each.id) for each in pods)
    of = view(pods, {"m": copies})
    chosen = [choose_copy(of, name(), copies, {}, ordinal) for ordinal in range(400)]
    # With equal loads the hash decides between the two drawn, so the least preferred one is called last of all.
    assert len(set(chosen)) == 7
    in_flight: dict[str, int] = {}
    for ordinal in range(400):
        pod_id = choose_copy(of, name(), copies, in_flight, ordinal)
        in_flight[pod_id] = in_flight.get(pod_id, 0) + 1
    assert max(in_flight.values()) - min(in_flight.values()) <= 3


@pytest.mark.parametrize("leaving", [{"draining": True}, {"ready": False}])
def test_copies_on_leaving_pods_answer_only_when_no_other_does(leaving: dict[str, bool]) -> None:
    pods = [pod("a"), pod("b", **leaving), pod("c", requests_in_flight=50)]
    assert route(view(pods, {"m": [copy("b"), copy("c")]})) == Forward("c", Mode.HIT, 1)
    assert route(view(pods, {"m": [copy("b")]})) == Forward("b", Mode.HIT, 1)


def test_a_fading_pod_that_answers_its_probes_is_a_holder() -> None:
    assert route(view(PODS, {"m": [copy("b")]}, fading=["b"])) == Forward("b", Mode.HIT, 1)


def test_pods_that_do_not_answer_or_were_tried_are_not_called() -> None:
    of = view(PODS, {"m": [copy("b"), copy("c")]})
    assert route(of, healthy=frozenset("ac")) == Forward("c", Mode.HIT, 1)
    assert route(of, excluded=frozenset("c")) == Forward("b", Mode.HIT, 1)
    assert route(of, excluded=frozenset("bc")) == Load(1)
    assert route(of, servable_here=1, excluded=frozenset("abc")) == Load(1)


def test_a_copy_of_a_pod_that_is_unknown_is_not_called() -> None:
    assert route(view(PODS, {"m": [copy("gone")]}), healthy=frozenset({"gone"})) == Load(1)


def test_without_a_servable_copy_the_request_joins_the_one_that_is_being_loaded() -> None:
    of = view(PODS, {"m": [copy("b", servable=0, loading=1)]})
    assert route(of) == Forward("b", Mode.JOIN, 1)
    assert route(of, loading_here=True) == RunHere(1, joins=True)
    assert route(view(PODS, {"m": [copy("b", servable=0, loading=2)]})) == Load(1)


def test_all_who_join_go_to_the_same_loading_copy() -> None:
    of = view(PODS, {"m": [copy(each, servable=0, loading=1) for each in "bcd"]})
    assert len({route(of, ordinal=ordinal) for ordinal in range(20)}) == 1


def test_a_model_that_nobody_has_is_to_be_loaded() -> None:
    assert route(view(PODS)) == Load(1)


def test_the_old_generation_answers_until_half_of_the_copies_have_the_new_one() -> None:
    old = view(PODS, {"m": [copy("b", 1), copy("c", 1), copy("d", 2)]})
    half = view(PODS, {"m": [copy("b", 1), copy("d", 2)]})
    for ordinal in range(20):
        answer = route(old, generation=2, ordinal=ordinal)
        assert isinstance(answer, Forward)
        assert answer.generation == 1
        assert route(half, generation=2, ordinal=ordinal) == Forward("d", Mode.HIT, 2)


def test_an_old_generation_is_better_than_waiting_for_the_new_one() -> None:
    of = view(PODS, {"m": [copy("b", servable=1, loading=2)]})
    assert route(of, generation=2) == Forward("b", Mode.HIT, 1)


def test_a_pod_whose_registry_lags_behind_calls_what_others_serve_already() -> None:
    assert route(view(PODS, {"m": [copy("b", servable=3)]}), generation=2) == Forward("b", Mode.HIT, 3)


def test_an_old_copy_here_gives_way_once_the_new_generation_answers() -> None:
    of = view(PODS, {"m": [copy("a", 1), copy("b", 2)]})
    assert route(of, generation=2, servable_here=1) == Forward("b", Mode.HIT, 2)
    assert route(view(PODS, {"m": [copy("b", 1), copy("c", 1)]}), generation=2, servable_here=2) == RunHere(2)


def test_a_forwarded_request_is_never_forwarded_again() -> None:
    of = view(PODS, {"m": [copy("b")]})
    assert route(of, forwarded=True) == NotHere("b")
    assert route(of, forwarded=True, servable_here=1, here_limit=1, here_in_flight=9) == RunHere(1)
    assert route(of, forwarded=True, loading_here=True) == RunHere(1, joins=True)
    assert route(view(PODS, {"m": [copy("b", 0, 1)]}), forwarded=True) == NotHere("b")
    assert route(view(PODS), forwarded=True) == NotHere(None)
