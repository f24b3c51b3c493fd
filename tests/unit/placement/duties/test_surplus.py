"""Copies that nobody ordered go once the pods reach one another again, and not while a partition lasts."""

from __future__ import annotations

from placement.duties.surplus import Surplus
from placement.expected import ExpectedPool
from placement.heat import Heat
from placement.orders import OrdersInFlight
from placement.planning import Planning
from placement.policy.snapshot import BusyModel, ModelName, PoolView
from placement.view import RegistryView
from tests.unit.placement.policy.builders import copy, model, name, pod, view

ONE = view([pod("p1"), pod("p2")], {"m": [copy("p1")]})
TWO = view([pod("p1"), pod("p2")], {"m": [copy("p1"), copy("p2")]})


def turn(
    surplus: Surplus, pool: PoolView, reachable: frozenset[str], now_s: float, in_flight: float = 0.0
) -> list[str]:
    def facts(asked: ModelName) -> object:
        return model(asked.id)

    orders = OrdersInFlight()
    plan = Planning(
        now_s, RegistryView(), ExpectedPool(pool), reachable, Heat(half_life_s=60, models_max=9), orders, facts, 9  # type: ignore[arg-type]
    )  # fmt: skip
    busy = BusyModel(name("m"), rate_per_s=2.0, in_flight=in_flight, queue_delay_s=0.0, run_s=0.001, concurrency=2)
    surplus.turn(plan, lambda name: 0, lambda name: False, {name("m"): {"p1": busy}})
    return [planned.pod for planned in plan.planned]


def test_a_surplus_that_came_of_a_partition_waits_for_its_end() -> None:
    surplus = Surplus(after_s=3.0, inherited_after_s=12.0)
    surplus.copies_changed(name("m"), ONE, TWO, ordered=(), now_s=0.0)
    everybody = frozenset({"p1", "p2"})
    assert turn(surplus, TWO, everybody, 1.0) == [], "too early"
    assert turn(surplus, TWO, frozenset({"p1"}), 4.0) == [], "each may be the only one that somebody reaches"
    assert turn(surplus, TWO, everybody, 5.0) == []
    assert len(turn(surplus, TWO, everybody, 8.0)) == 1


def test_one_glimpse_of_demand_does_not_keep_a_copy_for_good() -> None:
    surplus = Surplus(after_s=3.0, inherited_after_s=12.0)
    surplus.copies_changed(name("m"), ONE, TWO, ordered=(), now_s=0.0)
    everybody = frozenset({"p1", "p2"})
    assert turn(surplus, TWO, everybody, 3.0, in_flight=2.0) == [], "it seems to need two"
    assert turn(surplus, TWO, everybody, 4.0) == [], "asked again after as long"
    assert len(turn(surplus, TWO, everybody, 6.0)) == 1


def test_a_model_that_keeps_needing_its_copies_is_left_to_scaling() -> None:
    surplus = Surplus(after_s=3.0, inherited_after_s=12.0)
    surplus.copies_changed(name("m"), ONE, TWO, ordered=(), now_s=0.0)
    everybody = frozenset({"p1", "p2"})
    for now_s in (3.0, 6.0, 9.0, 12.0):
        assert turn(surplus, TWO, everybody, now_s, in_flight=2.0) == []
    assert turn(surplus, TWO, everybody, 15.0) == [], "scaling has patience, and takes it from here"


def test_a_copy_that_shows_up_while_another_ones_order_is_under_way_was_ordered_by_nobody() -> None:
    three = view([pod("p1"), pod("p2"), pod("p3")], {"m": [copy("p1"), copy("p2"), copy("p3")]})
    everybody = frozenset({"p1", "p2", "p3"})
    surplus = Surplus(after_s=3.0, inherited_after_s=12.0)
    surplus.copies_changed(name("m"), ONE, TWO, ordered={"p2"}, now_s=0.0)
    assert turn(surplus, TWO, everybody, 4.0) == [], "the leader wants it"
    surplus.copies_changed(name("m"), TWO, three, ordered={"p2"}, now_s=5.0)
    assert turn(surplus, three, everybody, 9.0), "p3 was not asked to load it"
