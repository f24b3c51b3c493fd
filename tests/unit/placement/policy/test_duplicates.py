"""(view, model) → which of several copies that nobody ordered remains."""

from __future__ import annotations

from placement.policy.duplicates import plan_surplus
from tests.unit.placement.policy.builders import busy, copy, healthy, model, pod, view


def test_of_two_first_copies_one_remains_the_same_for_every_pod() -> None:
    pods = [pod("a"), pod("b")]
    of, shuffled = view(pods, {"m": [copy("a"), copy("b")]}), view(pods[::-1], {"m": [copy("b"), copy("a")]})
    plan = plan_surplus(of, model(), 1, {}, healthy=healthy(of))
    assert plan is not None
    assert len(plan.kept) == len(plan.retired) == 1
    assert plan == plan_surplus(shuffled, model(), 1, {}, healthy=healthy(of))


def test_what_remains_is_where_it_is_used_and_stays() -> None:
    pods = [pod("a"), pod("b"), pod("c", draining=True), pod("d", ready=False), pod("e")]
    copies = [copy(each.id) for each in pods]
    used = {"b": busy(rate_per_s=0.5), "c": busy(rate_per_s=9.0), "e": busy(rate_per_s=1.0)}
    of = view(pods, {"m": copies}, fading=["e"])
    plan = plan_surplus(of, model(), 0, used, healthy=healthy(of))
    assert plan is not None
    assert plan.kept == ("b",)
    assert plan.retired == ("a", "c", "d", "e")


def test_what_somebody_wants_or_the_work_needs_remains() -> None:
    pods = [pod(each) for each in "abc"]
    of = view(pods, {"m": [copy(each) for each in "abc"]})
    kept = {
        wanted: len(plan.kept) if (plan := plan_surplus(of, model(), wanted, {}, healthy=healthy(of))) else None
        for wanted in (0, 1, 2, 3)
    }
    assert kept == {0: 1, 1: 1, 2: 2, 3: None}
    assert plan_surplus(of, model(copies_min=3), 0, {}, healthy=healthy(of)) is None
    assert plan_surplus(of, model(), 0, {"a": busy(in_flight=1.1)}, healthy=healthy(of)) is None


def test_what_is_kept_is_spread_over_zones() -> None:
    pods = [pod("a", zone="1"), pod("b", zone="1"), pod("c", zone="2")]
    of = view(pods, {"m": [copy(each) for each in "abc"]})
    plan = plan_surplus(of, model(), 2, {"a": busy(rate_per_s=2.0), "b": busy()}, healthy=healthy(of))
    assert plan is not None
    assert plan.kept == ("a", "c")


def test_copies_that_cannot_be_reached_or_are_still_loading_are_not_counted() -> None:
    of = view([pod("a"), pod("b"), pod("c")], {"m": [copy("a"), copy("b"), copy("c", 0, 1), copy("gone")]})
    assert plan_surplus(of, model(), 1, {}, healthy=frozenset("ac")) is None


def test_an_old_generation_is_not_what_is_kept() -> None:
    of = view([pod("a"), pod("b")], {"m": [copy("a", 1), copy("b", 2)]})
    assert plan_surplus(of, model(generation=2), 1, {}, healthy=healthy(of)) is None
