"""(view, alias) → prepare the target, switch, wait, or give up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from placement.policy.places import Terms
from placement.policy.snapshot import Death, ModelFacts, PoolView, Suspicion, Verdict
from placement.policy.transitions import Fail, Finish, Prepare, Step, Wait, plan_split, plan_transition
from tests.unit.placement.policy.builders import copy, failure, healthy, model, name, pod, view

PODS = [pod(each) for each in "abcd"]
ACTIVE, TARGET = model("old"), model("new")


def step(of: PoolView, active: ModelFacts | None = ACTIVE, target: ModelFacts = TARGET, **rest: Any) -> Step:
    return plan_transition(of, active, target, rest.pop("rate_per_s", 1.0), Terms(**({"healthy": healthy(of)} | rest)))


def test_the_target_gets_as_many_copies_as_the_active_model_before_the_switch() -> None:
    """ModelMesh switched at one copy, and ten pods' traffic landed on one."""
    old = [copy("a"), copy("b"), copy("c")]
    first = step(view(PODS, {"old": old}))
    assert isinstance(first, Prepare)
    assert len({place.pod for place in first.places}) == 3
    assert first.places[0].reason == "copy 1 of 3 before an alias is switched"
    half = step(view(PODS, {"old": old, "new": [copy("a"), copy("b", 0, 1)]}))
    assert isinstance(half, Prepare)
    assert len(half.places) == 1
    loading = step(view(PODS, {"old": old, "new": [copy("a"), copy("b"), copy("c", 0, 1)]}))
    assert loading == Wait("2 of 3 copies serve, 1 on their way")
    assert step(view(PODS, {"old": old, "new": [copy(each) for each in "abc"]})) == Finish("3 of 3 copies serve")


def test_an_active_model_that_serves_nowhere_is_switched_from_at_once() -> None:
    assert step(view(PODS)) == Finish("the active model serves nowhere")
    assert isinstance(step(view(PODS), None), Finish)
    assert isinstance(step(view(PODS, {"old": [copy("a", 0, 1)]})), Finish)


def test_a_cold_active_model_is_not_left_for_a_target_that_failed_to_load_or_kills_pods() -> None:
    broken = view(PODS, failures={"new": [failure(each, permanent=True) for each in "ab"]})
    assert isinstance(step(broken), Fail)
    assert step(broken, None) == Finish("the active model serves nowhere"), "there is nothing to stay with"
    once = view(PODS, failures={"new": [failure("a", permanent=True)]})
    assert isinstance(step(once), Prepare)
    assert isinstance(step(view(PODS, failures={"new": [failure("a", generation=7)]})), Finish)
    deaths = tuple(Death(each, f"{each}-1", "loading", 0.0) for each in "ab")
    killer = {name("new"): Suspicion(1, Verdict.QUARANTINED, deaths)}
    assert isinstance(step(replace(view(PODS), suspicions=killer)), Fail)
    served = view(PODS, {"new": [copy("b")]}, failures={"new": [failure("a")]})
    assert isinstance(step(served), Finish)


def test_an_active_model_whose_pod_drains_still_serves() -> None:
    of = view([pod("a", draining=True), pod("b")], {"old": [copy("a")]})
    assert isinstance(step(of), Prepare)
    assert isinstance(step(of, healthy=frozenset("b")), Prepare)


def test_the_target_on_a_draining_pod_does_not_count() -> None:
    of = view([pod("a", draining=True), pod("b")], {"old": [copy("b")], "new": [copy("a")]})
    assert isinstance(step(of), Prepare)


def test_the_targets_own_maximum_bounds_what_is_waited_for() -> None:
    of = view(PODS, {"old": [copy(each) for each in "abc"], "new": [copy("a")]})
    assert step(of, target=model("new", copies_max=1)) == Finish("1 of 1 copies serve")


def test_the_switch_does_not_wait_for_copies_that_fit_nowhere() -> None:
    pods = [pod("a"), pod("b", capacity_bytes=50)]
    of = view(pods, {"old": [copy("a"), copy("b", size_bytes=10)], "new": [copy("a")]})
    answer = step(of)
    assert isinstance(answer, Finish)
    assert "too small" in answer.reason


def test_further_copies_do_not_push_out_what_is_used_more() -> None:
    pods = [pod("a"), pod("b", free_bytes=0, eviction_age_s=2.0)]
    of = view(pods, {"old": [copy("a"), copy("b")], "new": [copy("a")]})
    assert isinstance(step(of, rate_per_s=0.1), Finish)
    assert isinstance(step(of, rate_per_s=10.0), Prepare)


def test_a_target_that_cannot_be_loaded_for_good_fails_the_change() -> None:
    of = view(PODS, {"old": [copy("a")]}, failures={"new": [failure(each, permanent=True) for each in "ab"]})
    answer = step(of)
    assert isinstance(answer, Fail)
    assert "it failed" in answer.reason
    assert isinstance(step(view(PODS, {"old": [copy("a")]}), target=model("new", size_bytes=9999)), Fail)


def test_a_target_that_failed_on_every_pod_that_could_load_it_fails_the_change() -> None:
    pods = [pod("a"), pod("b"), pod("small", capacity_bytes=10)]
    of = view(pods, {"old": [copy("a")]}, failures={"new": [failure(each) for each in "ab"]})
    assert isinstance(step(of), Fail)
    of = view(
        [*pods, pod("c", draining=True)], {"old": [copy("a")]}, failures={"new": [failure(each) for each in "ab"]}
    )
    assert isinstance(step(of), Wait)


def test_a_target_that_failed_on_some_pods_is_tried_on_others() -> None:
    of = view(PODS, {"old": [copy("a")]}, failures={"new": [failure("a"), failure("b")]})
    answer = step(of)
    assert isinstance(answer, Prepare)
    assert answer.places[0].pod in "cd"


def test_the_target_counts_from_its_registered_generation_on() -> None:
    of = view(PODS, {"old": [copy("a")], "new": [copy("b", servable=1)]})
    assert isinstance(step(of, target=model("new", generation=2)), Prepare)


def test_what_was_ordered_is_not_ordered_again() -> None:
    of = view(PODS, {"old": [copy("a")]})
    assert step(of, ordered={name("new"): ["b"]}) == Wait("0 of 1 copies serve, 1 on their way")


def test_pods_that_load_enough_are_waited_for() -> None:
    of = view([pod("a", loads_queued=9)], {"old": [copy("a")]})
    assert isinstance(step(of), Wait)


def test_each_model_with_a_share_is_made_servable_the_larger_share_first() -> None:
    pods = [pod("a"), pod("b")]
    of = view(pods, {"main": [copy("a")]})
    models = [(model("main"), 90), (model("canary"), 4), (model("other"), 6), (model("off"), 0)]
    plan = plan_split(of, models, Terms(healthy(of)))
    assert [place.name.id for place in plan.places] == ["other", "canary"]
    assert not plan.servable
    copies = {each: [copy("a")] for each in ("main", "canary", "other")}
    assert plan_split(view(pods, copies), models, Terms(healthy(of))).servable
    loading = view(pods, copies | {"other": [copy("a", 0, 1)]})
    assert plan_split(loading, models, Terms(healthy(of))).waiting == (name("other"),)


def test_a_share_that_no_pod_can_serve_is_listed() -> None:
    of = view([pod("a")])
    plan = plan_split(of, [(model("big", size_bytes=9999), 5)], Terms(healthy(of)))
    assert not plan.servable
    assert plan.unplaced[0].lasting
