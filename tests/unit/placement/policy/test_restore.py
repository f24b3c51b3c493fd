"""(view, what is wanted) → what to load again, and in which order."""

from __future__ import annotations

from typing import Any

from placement.policy.obstacles import Promised
from placement.policy.places import Terms
from placement.policy.restore import PLACES_MAX, RestorePlan, plan_restore
from placement.policy.snapshot import ModelFacts, PoolView
from tests.unit.placement.policy.builders import copy, healthy, model, name, pod, view


def restore(of: PoolView, *wanted: tuple[ModelFacts, float], places_max: int = PLACES_MAX, **terms: Any) -> RestorePlan:
    return plan_restore(of, wanted, Terms(**({"healthy": healthy(of)} | terms)), places_max=places_max)


def ids(plan: RestorePlan) -> list[str]:
    return [place.name.id for place in plan.places]


def test_what_lost_its_last_copy_comes_back_hottest_first() -> None:
    plan = restore(view([pod("a"), pod("b")]), (model("cool"), 0.1), (model("hot"), 9.0), (model("warm"), 1.0))
    assert ids(plan) == ["hot", "warm", "cool"]
    assert plan.places[0].reason == "lost while asked for 9 times a second"


def test_pinned_models_and_those_with_a_minimum_come_first() -> None:
    plan = restore(
        view([pod("a"), pod("b")]),
        (model("hot"), 9.0), (model("pin", pinned=True), 0.0), (model("min", copies_min=2), 1.0),
    )  # fmt: skip
    assert ids(plan) == ["min", "pin", "hot"]


def test_what_has_a_copy_or_gets_one_is_left_alone() -> None:
    pods = [pod("a"), pod("b", draining=True), pod("c")]
    copies = {"serving": [copy("a")], "loading": [copy("a", 0, 1)], "old": [copy("a", 1, 2)], "draining": [copy("b")]}
    wanted = [(model(each), 1.0) for each in (*copies, "ordered")]
    plan = restore(view(pods, copies), *wanted, ordered={name("ordered"): ["c"]})
    assert plan == RestorePlan((), (), ())


def test_the_copies_of_a_pod_that_is_gone_or_as_good_as_gone_do_not_count() -> None:
    pods = [pod("a"), pod("b")]
    of = view(pods, {"m": [copy("b")], "n": [copy("vanished")]}, fading=["b"])
    assert ids(restore(of, (model("m"), 1.0), (model("n"), 1.0), healthy=frozenset("a"))) == ["m", "n"]
    assert ids(restore(of, (model("m"), 1.0))) == []


def test_cold_models_wait_until_they_are_asked_for() -> None:
    assert restore(view([pod("a")]), (model(), 0.0)) == RestorePlan((), (), ())


def test_a_pod_loads_only_a_few_at_a_time() -> None:
    wanted = [(model(f"m{number}", size_bytes=10), 10.0 - number) for number in range(10)]
    plan = restore(view([pod("a"), pod("b", loads_queued=3)]), *wanted, loads_per_pod_max=4)
    assert [place.pod for place in plan.places].count("a") == 4
    assert [place.pod for place in plan.places].count("b") == 1
    assert [each.id for each in plan.later] == ["m5", "m6", "m7", "m8", "m9"]
    plan = restore(view([pod("a")]), *wanted, promised={"a": Promised(30, 3, 3.0)})
    assert ids(plan) == ["m0"]


def test_no_more_is_placed_than_one_plan_may() -> None:
    wanted = [(model(f"m{number}", size_bytes=10), 1.0) for number in range(10)]
    plan = restore(view([pod("a")]), *wanted, loads_per_pod_max=100, places_max=6)
    assert (len(plan.places), len(plan.later)) == (6, 4)


def test_one_plan_never_gives_the_same_room_away_twice() -> None:
    wanted = [(model(f"m{number}", size_bytes=400), 1.0) for number in range(6)]
    plan = restore(view([pod("a"), pod("b")]), *wanted)
    assert len(plan.places) == 4
    assert {place.pod for place in plan.places} == {"a", "b"}
    assert not plan.later
    assert len(plan.unplaced) == 2


def test_a_model_does_not_push_out_what_is_used_more() -> None:
    full = view([pod("a", free_bytes=0, eviction_age_s=60.0)])
    assert ids(restore(full, (model(), 1 / 50))) == ["m"]
    plan = restore(full, (model(), 1 / 70))
    assert plan.places == ()
    assert "not worth its price" in plan.unplaced[0].reason
    assert ids(restore(full, (model(pinned=True), 0.0))) == ["m"]


def test_what_fits_nowhere_is_listed_with_the_reason() -> None:
    plan = restore(view([pod("a")]), (model(size_bytes=5000), 1.0))
    assert plan.unplaced[0].lasting
    assert "too small: 1 pod" in plan.unplaced[0].reason


def test_a_model_without_a_place_does_not_end_the_turn_for_the_others() -> None:
    """ModelMesh's janitor returned where it should have gone on to the next model (its defect i)."""
    wanted = [(model("hottest", size_bytes=5000), 9.0), (model("gone", format="x"), 5.0), (model("next"), 1.0)]
    plan = restore(view([pod("a", formats=frozenset({"", "onnx"}))]), *wanted)
    assert [each.name.id for each in plan.unplaced] == ["hottest", "gone"]
    assert ids(plan) == ["next"]


def test_pods_that_are_held_off_are_not_asked() -> None:
    plan = restore(view([pod("a"), pod("b")]), (model(), 1.0), held_off=lambda _: frozenset("a"))
    assert [place.pod for place in plan.places] == ["b"]


def test_the_order_in_which_models_are_given_changes_nothing() -> None:
    wanted = [(model(f"m{number}"), 1.0) for number in range(8)]
    of = view([pod("a"), pod("b"), pod("c")])
    assert restore(of, *wanted) == restore(of, *reversed(wanted))
