"""(view, a pod that wants to stop) → what must be servable elsewhere first."""

from __future__ import annotations

from typing import Any

import pytest

from placement.policy import places
from placement.policy.drain import SEARCHES_WHEN_FULL_MAX, DrainPlan, plan_drain
from placement.policy.load_choice import choose_load_pod
from placement.policy.places import Terms
from placement.policy.snapshot import ModelFacts, Pod, PoolView
from tests.unit.placement.policy.builders import copy, failure, healthy, model, name, pod, view

LEAVING = pod("x", draining=True)


def drain(of: PoolView, rates: dict[str, float], *models: ModelFacts, **rest: Any) -> DrainPlan:
    facts = {each.name: each for each in (models or [model(i) for i in rates])}
    by_name = {name(i): rate for i, rate in rates.items()}
    return plan_drain(of, "x", facts, by_name, Terms(**({"healthy": healthy(of)} | rest)))


def pool(*others: Pod, **copies: Any) -> PoolView:
    return view([LEAVING, *others], {i: [copy("x"), *of] for i, of in copies.items()})


def test_what_is_used_is_placed_elsewhere_hottest_first() -> None:
    plan = drain(pool(pod("a"), pod("b"), m=[], n=[], o=[]), {"m": 1.0, "n": 5.0, "o": 2.0})
    assert [place.name.id for place in plan.places] == ["n", "o", "m"]
    assert {place.pod for place in plan.places} <= {"a", "b"}
    assert plan.places[0].reason == "x drains"
    assert not plan.done


def test_a_replacement_is_asked_for_while_the_copy_still_serves() -> None:
    """ModelMesh let go of the copy first, and requests stalled for as long as the load took (its defect k)."""
    of = pool(pod("a"), m=[copy("a", 0, 1)])
    plan = drain(of, {"m": 1.0})
    assert plan.waiting == (name(),)
    assert not plan.done
    assert drain(pool(pod("a"), m=[copy("a")]), {"m": 1.0}).done


def test_copies_that_do_not_matter_do_not_hold_the_pod() -> None:
    plan = drain(pool(pod("a"), m=[], n=[]), {}, model("m"), model("n"))
    assert plan.done
    assert plan.unneeded == 2


def test_pinned_models_and_those_with_a_minimum_matter_without_traffic() -> None:
    plan = drain(pool(pod("a"), m=[], n=[]), {}, model("m", pinned=True), model("n", copies_min=1))
    assert [place.name.id for place in plan.places] == ["m", "n"]


def test_a_copy_on_a_pod_that_leaves_too_or_does_not_answer_is_no_replacement() -> None:
    of = pool(pod("a", draining=True), pod("b"), pod("c", ready=False), m=[copy("a"), copy("c")])
    assert [place.pod for place in drain(of, {"m": 1.0}).places] == ["b"]
    of = pool(pod("a"), pod("b"), m=[copy("a")])
    assert [place.pod for place in drain(of, {"m": 1.0}, healthy=frozenset("xb")).places] == ["b"]


def test_an_older_generation_elsewhere_is_no_replacement() -> None:
    of = view([LEAVING, pod("a")], {"m": [copy("x", servable=2), copy("a", servable=1)]})
    assert [place.pod for place in drain(of, {"m": 1.0}, model(generation=2)).places] == ["a"]
    newer = view([LEAVING, pod("a")], {"m": [copy("x", servable=1), copy("a", servable=2)]})
    assert drain(newer, {"m": 1.0}, model(generation=2)).done


def test_what_was_ordered_is_waited_for_and_not_ordered_again() -> None:
    plan = drain(pool(pod("a"), m=[]), {"m": 1.0}, ordered={name(): ["a"]})
    assert plan.waiting == (name(),)
    assert not plan.places


def test_the_rest_of_the_pool_is_not_asked_for_more_than_it_has() -> None:
    of = pool(pod("a", capacity_bytes=250, free_bytes=250), m=[], n=[], o=[], p=[])
    plan = drain(of, {"m": 4.0, "n": 3.0, "o": 2.0, "p": 1.0})
    assert [place.name.id for place in plan.places] == ["m", "n"]
    blocked = [each.name.id for each in plan.blocked]
    assert blocked == ["o", "p"]  # room that is promised may come free


def test_what_fits_nowhere_is_given_up_and_does_not_hold_the_pod() -> None:
    plan = drain(pool(pod("a"), m=[]), {"m": 1.0}, model(size_bytes=5000))
    assert plan.done
    assert "too small" in plan.given_up[0].reason


def test_what_would_push_out_more_used_models_is_given_up() -> None:
    plan = drain(pool(pod("a", free_bytes=0, eviction_age_s=5.0), m=[]), {"m": 0.01})
    assert plan.done
    assert "not worth its price" in plan.given_up[0].reason


def test_a_pool_without_another_pod_gives_no_reason_to_wait_for_what_cannot_come() -> None:
    plan = drain(view([LEAVING], {"m": [copy("x")]}), {"m": 1.0})
    assert [each.name for each in plan.blocked] == [name()]


def test_a_failure_that_passes_is_waited_for() -> None:
    of = view([LEAVING, pod("a")], {"m": [copy("x")]}, failures={"m": [failure("a")]})
    plan = drain(of, {"m": 1.0})
    assert not plan.done
    assert not plan.blocked[0].lasting


def test_pods_that_load_enough_are_asked_later() -> None:
    plan = drain(pool(pod("a", loads_queued=4), m=[]), {"m": 1.0})
    assert plan.later == (name(),)
    assert not plan.done


def test_copies_that_are_only_being_loaded_here_are_left_to_their_requests() -> None:
    of = view([LEAVING, pod("a")], {"m": [copy("x", 0, 1)]})
    assert drain(of, {"m": 1.0}).done


def test_a_pod_whose_registry_lags_behind_its_own_copy_orders_once() -> None:
    of = view([LEAVING, pod("a"), pod("b")], {"m": [copy("x", servable=2), copy("a", 0, 1)]})
    assert drain(of, {"m": 1.0}, model(generation=1)).waiting == (name(),)


def test_thousands_of_models_that_have_to_wait_are_not_sought_a_place_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    searches = 0

    def counted(*of: Any, **rest: Any) -> Any:
        nonlocal searches
        searches += 1
        return choose_load_pod(*of, **rest)

    monkeypatch.setattr(places, "choose_load_pod", counted)
    hot: dict[str, list[Any]] = {f"m{number}": [] for number in range(1000)}
    plan = drain(pool(pod("a", capacity_bytes=10**6), **hot), dict.fromkeys(hot, 1.0))
    assert len(plan.places) + len(plan.later) == len(hot)
    assert searches <= len(plan.places) + 2 * SEARCHES_WHEN_FULL_MAX
