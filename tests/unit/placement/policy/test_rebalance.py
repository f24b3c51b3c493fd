"""(view, models in use, moves under way) → moves to begin and to end."""

from __future__ import annotations

from typing import Any

from placement.policy.places import Terms
from placement.policy.rebalance import RebalancePlan, plan_rebalance
from placement.policy.snapshot import ModelFacts, PoolView
from tests.unit.placement.policy.builders import copy, healthy, model, pod, view

PRESSED = pod("x", free_bytes=0, eviction_age_s=30.0)
ROOMY = pod("y")


def rebalance(of: PoolView, *models: ModelFacts, **rest: Any) -> RebalancePlan:
    arguments: dict[str, Any] = {
        "under_way": (), "started_at_s": (), "now_s": 1000.0, "terms": Terms(healthy(of))
    } | rest  # fmt: skip
    return plan_rebalance(of, [(each, 1.0) for each in models or [model()]], **arguments)


def test_a_model_in_use_moves_from_a_pod_that_thrashes_to_one_with_room() -> None:
    plan = rebalance(view([PRESSED, ROOMY], {"m": [copy("x")]}))
    (move,) = plan.start
    assert (move.source, move.target) == ("x", "y")
    assert (move.benefit_s, move.cost_s) == (20.0, 1.0)
    assert move.place.reason == "x throws out what was used 30 s ago"


def test_the_source_lets_go_only_when_the_target_serves() -> None:
    (move,) = rebalance(view([PRESSED, ROOMY], {"m": [copy("x")]})).start
    loading = rebalance(view([PRESSED, ROOMY], {"m": [copy("x"), copy("y", 0, 1)]}), under_way=[move])
    assert loading == RebalancePlan((), (), ())
    serving = rebalance(view([PRESSED, ROOMY], {"m": [copy("x"), copy("y")]}), under_way=[move])
    assert serving == RebalancePlan((), (move,), ())
    gone = rebalance(view([PRESSED, ROOMY], {"m": [copy("y")]}), under_way=[move])
    assert gone.over == (move,)


def test_a_move_is_over_when_its_target_has_gone() -> None:
    (move,) = rebalance(view([PRESSED, ROOMY], {"m": [copy("x")]})).start
    assert rebalance(view([PRESSED], {"m": [copy("x")]}), under_way=[move]).over == (move,)


def test_a_move_that_does_not_pay_is_not_made() -> None:
    mild = pod("x", free_bytes=0, eviction_age_s=310.0)
    assert not rebalance(view([mild, ROOMY], {"m": [copy("x")]})).start
    as_bad = pod("y", free_bytes=0, eviction_age_s=31.0)
    assert not rebalance(view([PRESSED, as_bad], {"m": [copy("x")]})).start
    far_older = pod("y", free_bytes=0, eviction_age_s=3000.0)
    assert rebalance(view([PRESSED, far_older], {"m": [copy("x")]})).start


def test_pods_with_room_lose_nothing() -> None:
    assert not rebalance(view([pod("x", eviction_age_s=1.0), ROOMY], {"m": [copy("x")]})).start


def test_only_lone_copies_of_models_in_use_that_are_not_pinned_move() -> None:
    assert not rebalance(view([PRESSED, ROOMY, pod("z")], {"m": [copy("x"), copy("z")]})).start
    assert not rebalance(view([PRESSED, ROOMY], {"m": [copy("x")]}), model(pinned=True)).start
    assert not rebalance(view([PRESSED, ROOMY], {"m": [copy("x", 1, 2)]}), model(generation=2)).start
    of = view([PRESSED, ROOMY], {"m": [copy("x")]})
    idle = plan_rebalance(of, [(model(), 0.0)], (), (), now_s=0.0, terms=Terms(healthy(of)))
    assert not idle.start


def test_one_move_at_a_time_from_each_pod_and_the_largest_first() -> None:
    copies = {each: [copy("x")] for each in ("small", "large")}
    models = [model("small", load_s=1.0), model("large", load_s=3.0, size_bytes=300)]
    plan = rebalance(view([PRESSED, ROOMY], copies), *models)
    assert [move.name.id for move in plan.start] == ["large"]
    again = rebalance(view([PRESSED, ROOMY], copies), *models, under_way=plan.start)
    assert not again.start


def test_no_more_moves_begin_than_the_budget_of_a_minute() -> None:
    pods = [pod(f"x{number}", free_bytes=0, eviction_age_s=30.0) for number in range(6)]
    copies = {f"m{number}": [copy(f"x{number}")] for number in range(6)}
    models = [model(f"m{number}") for number in range(6)]
    of = view([*pods, ROOMY], copies)
    assert len(rebalance(of, *models).start) == 4
    assert len(rebalance(of, *models, started_at_s=[945.0, 990.0, 999.0]).start) == 1
    assert len(rebalance(of, *models, started_at_s=[930.0] * 4).start) == 4
    assert not rebalance(of, *models, started_at_s=[990.0] * 4).start


def test_a_move_never_ends_on_a_draining_pod_and_never_begins_there() -> None:
    assert not rebalance(view([PRESSED, pod("y", draining=True)], {"m": [copy("x")]})).start
    leaving = pod("x", free_bytes=0, eviction_age_s=30.0, draining=True)
    assert not rebalance(view([leaving, ROOMY], {"m": [copy("x")]})).start
