"""Orders in flight: each is given once, ends when the view shows it, and is not repeated at once if it was in vain."""

from __future__ import annotations

from dataclasses import replace

import pytest

from placement.expected import ExpectedPool, Overlaid
from placement.orders import OrderLimits, OrdersInFlight, Outcome
from placement.peers import LoadOrder, UnloadOrder
from placement.policy.obstacles import Promised
from placement.policy.snapshot import Copy, LoadFailure, ModelName, Pod, PoolView

A = ModelName("default", "a")
LOAD = LoadOrder(A, 1, "hot")
UNLOAD = UnloadOrder(A, 1, "surplus")
PODS = {
    pod_id: Pod(pod_id, f"{pod_id}-1", f"{pod_id}:1", capacity_bytes=1000, free_bytes=800) for pod_id in ("p1", "p2")
}
LIMITS = OrderLimits(accepted_within_s=10.0, gone_within_s=60.0, held_off_first_s=10.0, held_off_max_s=40.0)
EMPTY = PoolView(pods=PODS)


def copy(pod: str, servable: int = 0, loading: int = 0) -> Copy:
    return Copy(pod, servable, loading, 100, 0.0)


def view(*copies: Copy, failures: tuple[LoadFailure, ...] = ()) -> PoolView:
    return replace(EMPTY, copies={A: copies} if copies else {}, failures={A: failures} if failures else {})


def failure(generation: int = 1, at_s: float = 5.0) -> LoadFailure:
    return LoadFailure("p1", generation, False, "no memory", at_s, 1.0)


@pytest.fixture
def orders() -> OrdersInFlight:
    orders = OrdersInFlight(LIMITS)
    orders.give("p1", LOAD, EMPTY, 0.0, size_bytes=100, load_s=2.0)
    return orders


def outcomes(orders: OrdersInFlight, now: PoolView, now_s: float) -> list[Outcome]:
    return [settled.outcome for settled in orders.settle(now, now_s)]


# Loads --------------------------------------------------------------------------------------------------------------


def test_a_load_that_is_not_seen_yet_is_laid_over_the_view_and_takes_room(orders: OrdersInFlight) -> None:
    expected = ExpectedPool(EMPTY)
    orders.lay_over(expected)
    assert expected.view.copies[A] == (Copy("p1", 0, 1, 100, 0.0),)
    assert expected.promised == {"p1": Promised(bytes=100, loads=1, load_s=2.0)}
    assert orders.taken(A, 0.0) == {"p1"}


def test_a_load_that_is_seen_takes_its_room_once(orders: OrdersInFlight) -> None:
    seen = view(copy("p1", loading=1))
    assert outcomes(orders, seen, 1.0) == []
    expected = ExpectedPool(seen)
    orders.lay_over(expected)
    assert expected.promised == {}
    assert expected.view.copies[A] == (copy("p1", loading=1),)
    assert orders.taken(A, 1.0) == {"p1"}


@pytest.mark.parametrize("servable", [1, 2])
def test_a_load_is_done_when_its_generation_or_a_newer_one_serves(orders: OrdersInFlight, servable: int) -> None:
    assert outcomes(orders, view(copy("p1", servable=servable)), 1.0) == [Outcome.DONE]
    assert orders.taken(A, 1.0) == frozenset()
    assert len(orders) == 0


def test_a_load_may_take_long_once_it_is_accepted(orders: OrdersInFlight) -> None:
    loading = view(copy("p1", loading=1))
    assert outcomes(orders, loading, 1.0) == []
    assert outcomes(orders, loading, LIMITS.loaded_within_s - 1) == []
    assert outcomes(orders, loading, LIMITS.loaded_within_s + 1) == [Outcome.UNANSWERED]


def test_a_load_that_shows_nothing_in_time_is_held_off_longer_each_time(orders: OrdersInFlight) -> None:
    assert outcomes(orders, EMPTY, 10.0) == []
    assert outcomes(orders, EMPTY, 10.5) == [Outcome.UNANSWERED]
    assert orders.taken(A, 20.0) == {"p1"}
    assert orders.taken(A, 20.6) == frozenset()
    orders.give("p1", LOAD, EMPTY, 21.0)
    orders.refused("p1", LOAD, 21.0)
    assert orders.taken(A, 40.0) == {"p1"}
    assert orders.taken(A, 41.5) == frozenset()


def test_held_off_pods_are_forgotten_in_the_end(orders: OrdersInFlight) -> None:
    orders.refused("p1", LOAD, 0.0)
    orders.settle(EMPTY, 1000.0)
    orders.give("p1", LOAD, EMPTY, 1000.0)
    orders.refused("p1", LOAD, 1000.0)
    assert orders.taken(A, 1000.0 + LIMITS.held_off_first_s + 0.1) == frozenset()


def test_a_load_that_vanishes_without_a_word_is_held_off(orders: OrdersInFlight) -> None:
    assert outcomes(orders, view(copy("p1", loading=1)), 1.0) == []
    assert outcomes(orders, EMPTY, 2.0) == [Outcome.VANISHED]
    assert orders.taken(A, 2.0) == {"p1"}


def test_a_failure_that_came_after_the_order_ends_it_and_one_from_before_does_not() -> None:
    orders = OrdersInFlight(LIMITS)
    before = view(failures=(failure(at_s=1.0),))
    orders.give("p1", LOAD, before, 0.0)
    assert outcomes(orders, before, 1.0) == []
    assert outcomes(orders, view(failures=(failure(at_s=2.0),)), 2.0) == [Outcome.FAILED]


def test_an_order_ends_with_the_process_that_it_was_given_to(orders: OrdersInFlight) -> None:
    restarted = replace(EMPTY, pods={**PODS, "p1": replace(PODS["p1"], incarnation="p1-2")})
    assert outcomes(orders, restarted, 1.0) == [Outcome.POD_GONE]
    assert orders.taken(A, 1.0) == frozenset()


# Unloads ------------------------------------------------------------------------------------------------------------


def test_a_copy_that_is_ordered_away_is_gone_from_the_expected_view() -> None:
    orders, now = OrdersInFlight(LIMITS), view(copy("p1", servable=1), copy("p2", servable=1))
    orders.give("p1", UNLOAD, now, 0.0)
    expected = ExpectedPool(now)
    orders.lay_over(expected)
    assert [c.pod for c in expected.view.copies[A]] == ["p2"]
    assert expected.promised == {}
    assert not orders.may_unload(A, "p1", 0.0)
    assert orders.may_unload(A, "p2", 0.0)
    assert outcomes(orders, now, 60.0) == []
    assert outcomes(orders, view(copy("p2", servable=1)), 60.0) == [Outcome.DONE]


def test_a_copy_that_a_pod_does_not_let_go_of_is_left_alone_for_a_while() -> None:
    orders, now = OrdersInFlight(LIMITS), view(copy("p1", servable=1))
    orders.give("p1", UNLOAD, now, 0.0)
    assert outcomes(orders, now, 61.0) == [Outcome.UNANSWERED]
    assert not orders.may_unload(A, "p1", 70.0)
    assert orders.taken(A, 70.0) == frozenset()
    assert orders.may_unload(A, "p1", 71.5)


# What lies over -----------------------------------------------------------------------------------------------------


def test_an_overlaid_mapping_is_the_mapping_that_it_says_it_is() -> None:
    below = {"a": 1, "b": 2, "c": 3}
    over = Overlaid(below)
    assert dict(over) == below
    over.hide("a")
    over.lay("b", 20)
    over.lay("d", 4)
    over.hide("e")
    assert dict(over) == {"b": 20, "c": 3, "d": 4}
    assert len(over) == 3
    assert [key in over for key in "abcde"] == [False, True, True, True, False]
    assert (over.get("a"), over.get("a", 0), over.get("b"), over.get("z", 9)) == (None, 0, 20, 9)
    with pytest.raises(KeyError):
        over["a"]
    assert below == {"a": 1, "b": 2, "c": 3}


def test_a_newer_generation_is_expected_beside_the_one_that_serves() -> None:
    expected = ExpectedPool(view(copy("p1", servable=1), copy("p2", servable=1)))
    expected.load("p1", A, 2, 100, 1.0)
    expected.load("p1", A, 2, 100, 1.0)
    assert expected.view.copies[A] == (copy("p1", servable=1, loading=2), copy("p2", servable=1))
    assert expected.promised == {"p1": Promised(100, 1, 1.0)}


def test_the_last_copy_that_goes_takes_the_name_with_it() -> None:
    expected = ExpectedPool(view(copy("p1", servable=1)))
    expected.unload("p1", A)
    assert A not in expected.view.copies
    assert len(expected.view.copies) == 0
