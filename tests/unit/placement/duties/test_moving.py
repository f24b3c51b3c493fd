"""Moves: the copy serves at its new place before the old one goes, and one that fails stays where it was."""

from __future__ import annotations

from placement.duties.moving import Moving
from placement.expected import ExpectedPool
from placement.heat import Heat
from placement.orders import OrdersInFlight
from placement.peers import LoadOrder, UnloadOrder
from placement.planning import Planning
from placement.policy.rebalance import RebalanceLimits
from placement.policy.snapshot import ModelName, PoolView
from placement.view import RegistryView
from tests.unit.placement.policy.builders import copy, healthy, model, name, pod, view

CROWDED = pod("p1", free_bytes=0, eviction_age_s=2.0)
ROOMY = pod("p2", free_bytes=900)
RATES = {name("m"): 5.0}
LIMITS = RebalanceLimits()


def plan_of(pool: PoolView, orders: OrdersInFlight, now_s: float) -> Planning:
    expected = ExpectedPool(pool)
    orders.lay_over(expected)

    def facts(asked: ModelName) -> object:
        return model(asked.id)

    return Planning(
        now_s, RegistryView(), expected, healthy(pool), Heat(half_life_s=60, models_max=9), orders, facts, 9  # type: ignore[arg-type]
    )  # fmt: skip


class Turns:
    """Turns of one leader's moving, with orders given as they are planned."""

    def __init__(self) -> None:
        self.moving = Moving(begun_every_s=10.0, within_s=100.0, limits=LIMITS)
        self.orders = OrdersInFlight()
        self.moving.begin(0.0)

    def turn(self, pool: PoolView, now_s: float) -> list[tuple[str, str]]:
        for settled in self.orders.settle(pool, now_s):
            self.moving.order_settled(settled)
        plan = plan_of(pool, self.orders, now_s)
        self.moving.turn(plan, RATES)
        for planned in plan.planned:
            self.orders.give(planned.pod, planned.order, pool, now_s)
        kinds = {LoadOrder: "load", UnloadOrder: "unload"}
        return [(kinds[type(planned.order)], planned.pod) for planned in plan.planned]


BEFORE = view([CROWDED, ROOMY], {"m": [copy("p1")]})
LOADING = view([CROWDED, ROOMY], {"m": [copy("p1"), copy("p2", servable=0, loading=1)]})
BOTH = view([CROWDED, ROOMY], {"m": [copy("p1"), copy("p2")]})
AFTER = view([CROWDED, ROOMY], {"m": [copy("p2")]})


def test_a_move_is_made_before_it_is_broken_and_then_over() -> None:
    turns = Turns()
    assert turns.turn(BEFORE, 5.0) == []
    assert turns.turn(BEFORE, 10.0) == [("load", "p2")]
    assert name("m") in turns.moving
    assert turns.turn(LOADING, 11.0) == []
    assert turns.turn(BOTH, 12.0) == [("unload", "p1")]
    assert turns.turn(BOTH, 13.0) == []
    assert turns.turn(AFTER, 14.0) == []
    assert name("m") not in turns.moving


def test_a_move_whose_load_comes_to_nothing_is_over_and_nothing_is_unloaded() -> None:
    turns = Turns()
    turns.turn(BEFORE, 10.0)
    turns.turn(LOADING, 11.0)
    assert turns.turn(BEFORE, 12.0) == []
    assert name("m") not in turns.moving
    assert turns.turn(BEFORE, 21.0) == []  # the pod is left alone with this model for a while


def test_a_move_that_takes_too_long_is_over() -> None:
    turns = Turns()
    turns.turn(BEFORE, 10.0)
    for now_s in range(11, 111, 10):
        turns.turn(LOADING, float(now_s))
        assert name("m") in turns.moving
    turns.turn(LOADING, 112.0)
    assert name("m") not in turns.moving
