"""Copies that nobody ordered go once the pods reach one another again, and not while a partition lasts."""

from __future__ import annotations

from placement.duties.surplus import Surplus
from placement.expected import ExpectedPool
from placement.heat import Heat
from placement.orders import OrdersInFlight
from placement.planning import Planning
from placement.policy.snapshot import ModelName, PoolView
from placement.view import RegistryView
from tests.unit.placement.policy.builders import copy, model, name, pod, view

ONE = view([pod("p1"), pod("p2")], {"m": [copy("p1")]})
TWO = view([pod("p1"), pod("p2")], {"m": [copy("p1"), copy("p2")]})


def turn(surplus: Surplus, pool: PoolView, reachable: frozenset[str], now_s: float) -> list[str]:
    def facts(asked: ModelName) -> object:
        return model(asked.id)

    orders = OrdersInFlight()
    plan = Planning(
        now_s, RegistryView(), ExpectedPool(pool), reachable, Heat(half_life_s=60, models_max=9), orders, facts, 9  # type: ignore[arg-type]
    )  # fmt: skip
    surplus.turn(plan, lambda name: 0, lambda name: False, {})
    return [planned.pod for planned in plan.planned]


def test_a_surplus_that_came_of_a_partition_waits_for_its_end() -> None:
    surplus = Surplus(after_s=3.0, inherited_after_s=12.0)
    surplus.copies_changed(name("m"), ONE, TWO, ordered=False, now_s=0.0)
    everybody = frozenset({"p1", "p2"})
    assert turn(surplus, TWO, everybody, 1.0) == [], "too early"
    assert turn(surplus, TWO, frozenset({"p1"}), 4.0) == [], "each may be the only one that somebody reaches"
    assert turn(surplus, TWO, everybody, 5.0) == []
    assert len(turn(surplus, TWO, everybody, 8.0)) == 1
