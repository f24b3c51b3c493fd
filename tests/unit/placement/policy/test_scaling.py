"""(view, measurements, history, now) → more copies, fewer, or as many."""

from __future__ import annotations

from typing import Any

import pytest

from placement.policy.scaling import (
    NO_HISTORY,
    AddCopies,
    CopiesDecision,
    DropCopies,
    KeepCopies,
    ScalingHistory,
    plan_copies,
)
from placement.policy.snapshot import BusyModel, Copy, PoolView
from tests.unit.placement.policy.builders import busy, copy, healthy, model, pod, view

PODS = [pod(f"p{number}") for number in range(8)]


def on(*pods: str) -> PoolView:
    return view(PODS, {"m": [copy(each) for each in pods]})


class Model:
    """One model from turn to turn, a second each."""

    def __init__(self, **spec: Any) -> None:
        self.facts = model(**spec)
        self.history: ScalingHistory = NO_HISTORY
        self.now_s = 1000.0

    def turn(self, of: PoolView, measured: dict[str, BusyModel] | None = None) -> CopiesDecision:
        decision, self.history = plan_copies(
            of, self.facts, measured or {}, self.history, healthy=healthy(of), now_s=self.now_s
        )
        self.now_s += 1.0
        return decision

    def turns(self, of: PoolView, measured: dict[str, BusyModel] | None, seconds: int) -> tuple[CopiesDecision, float]:
        """The first decision to change something, and the seconds until it."""
        began_s = self.now_s
        for _ in range(seconds):
            decision = self.turn(of, measured)
            if not isinstance(decision, KeepCopies):
                return decision, self.now_s - 1.0 - began_s
        return decision, self.now_s - began_s


def test_copies_are_ordered_two_seconds_after_requests_began_to_wait() -> None:
    waiting = {"p0": busy(rate_per_s=50.0, run_s=0.02, in_flight=4.0, queue_delay_s=0.06)}
    decision, after_s = Model().turns(on("p0"), waiting, 10)
    assert isinstance(decision, AddCopies)
    assert after_s == 2.0
    assert "100%" not in decision.reason
    assert "400% busy" in decision.reason


def test_a_short_burst_orders_nothing() -> None:
    subject = Model()
    burst = {"p0": busy(in_flight=9.0, queue_delay_s=1.0)}
    for _ in range(5):
        assert isinstance(subject.turn(on("p0"), burst), KeepCopies)
        assert isinstance(subject.turn(on("p0"), burst), KeepCopies)
        assert isinstance(subject.turn(on("p0"), {"p0": busy()}), KeepCopies)


@pytest.mark.parametrize(
    ("copies", "work", "more"),
    [
        (1, 0.9, 1),  # 0.9 / 0.6 = 2 copies
        (1, 9.0, 2),  # at most doubling and one
        (2, 1.8, 1),  # 1.8 / 0.6 = 3
        (4, 3.2, 2),  # 3.2 / 0.6 = 6
        (4, 99.0, 4),  # there are eight pods
    ],
)
def test_as_many_are_added_as_bring_the_copies_to_six_tenths(copies: int, work: float, more: int) -> None:
    pods = [f"p{number}" for number in range(copies)]
    share = work / copies
    decision, _ = Model().turns(on(*pods), {each: busy(in_flight=share) for each in pods}, 10)
    assert decision == AddCopies(more, decision.reason)


def test_four_copies_that_need_six_get_two_and_not_one() -> None:
    """ModelMesh's min(k, n / 3) turned a need of three or more into one (its defect e)."""
    pods = ["p0", "p1", "p2", "p3"]
    decision, _ = Model().turns(on(*pods), {each: busy(in_flight=0.9) for each in pods}, 10)
    assert decision == AddCopies(2, decision.reason)


@pytest.mark.parametrize(("work", "changes"), [(0.75, False), (0.76, True)])
def test_a_copy_is_too_busy_above_three_quarters(work: float, changes: bool) -> None:
    """The limits are what their names and words say; ModelMesh's "half" was a quarter (its defect f)."""
    decision, _ = Model().turns(on("p0"), {"p0": busy(in_flight=work)}, 10)
    assert isinstance(decision, AddCopies) is changes


@pytest.mark.parametrize(("work", "changes"), [(0.40, True), (0.41, False)])
def test_two_copies_are_too_many_when_one_would_be_less_than_four_tenths_busy(work: float, changes: bool) -> None:
    decision, _ = Model().turns(on("p0", "p1"), {each: busy(in_flight=work / 2) for each in ("p0", "p1")}, 100)
    assert isinstance(decision, DropCopies) is changes


def test_copies_on_their_way_are_not_ordered_again() -> None:
    subject = Model()
    waiting = {"p0": busy(in_flight=9.0)}
    decision, _ = subject.turns(on("p0"), waiting, 10)
    assert decision == AddCopies(2, decision.reason)
    loading = view(PODS, {"m": [copy("p0"), copy("p1", 0, 1), copy("p2", 0, 1)]})
    assert isinstance(subject.turns(loading, waiting, 30)[0], KeepCopies)


def test_new_copies_have_two_seconds_to_show_before_more_are_ordered() -> None:
    subject = Model()
    waiting = {"p0": busy(in_flight=9.0)}
    assert isinstance(subject.turns(on("p0"), waiting, 10)[0], AddCopies)
    loading = view(PODS, {"m": [copy("p0"), copy("p1", 0, 1), copy("p2", 0, 1)]})
    subject.turns(loading, waiting, 30)
    _, after_s = subject.turns(on("p0", "p1", "p2"), waiting, 10)
    assert after_s == 2.0


def test_a_copy_that_runs_many_at_a_time_is_not_busy_with_a_few() -> None:
    assert isinstance(Model().turns(on("p0"), {"p0": busy(in_flight=4.0, concurrency=8)}, 10)[0], KeepCopies)


def test_a_thousand_short_requests_are_one_copys_work() -> None:
    many = {"p0": busy(rate_per_s=1000.0, run_s=0.0005, in_flight=0.5)}
    assert isinstance(Model().turns(on("p0"), many, 10)[0], KeepCopies)


def test_a_wait_of_less_than_one_run_is_fair() -> None:
    slow = {"p0": busy(rate_per_s=0.2, run_s=2.0, in_flight=0.5, queue_delay_s=1.0)}
    assert isinstance(Model().turns(on("p0"), slow, 10)[0], KeepCopies)


def test_a_model_that_waits_for_its_neighbours_gets_a_copy_where_requests_do_not_wait() -> None:
    waiting = {"p0": busy(in_flight=0.3, queue_delay_s=0.2)}
    decision, _ = Model().turns(on("p0"), waiting, 10)
    assert decision == AddCopies(1, decision.reason)
    crowded = view([pod("p0"), pod("p1", queue_delay_s=0.2)], {"m": [copy("p0")]})
    assert isinstance(Model().turns(crowded, waiting, 10)[0], KeepCopies)


def test_a_busy_model_that_every_pod_has_stays_as_it_is() -> None:
    pods = [each.id for each in PODS]
    decision, _ = Model().turns(on(*pods), {each: busy(in_flight=9.0) for each in pods}, 10)
    assert isinstance(decision, KeepCopies)
    assert "0 pods could have one more" in decision.reason


def test_idle_copies_go_after_a_minute_by_half() -> None:
    pods = [f"p{number}" for number in range(8)]
    subject = Model()
    left = []
    for _ in range(4):
        decision, after_s = subject.turns(on(*pods), None, 100)
        if isinstance(decision, DropCopies):
            assert after_s in (60.0, 61.0)
            pods = [each for each in pods if each not in decision.pods]
            left.append(len(pods))
    assert left == [4, 2, 1]


def test_the_last_copy_is_never_dropped() -> None:
    assert isinstance(Model().turns(on("p0"), None, 1000)[0], KeepCopies)


def test_what_was_needed_at_any_time_in_the_last_minute_stays() -> None:
    subject = Model()
    pods = [f"p{number}" for number in range(4)]
    for _ in range(59):
        subject.turn(on(*pods), {each: busy(in_flight=0.28) for each in pods})  # 1.12 / 0.4 = 3 copies
    decision, _ = subject.turns(on(*pods), None, 10)
    assert isinstance(decision, DropCopies)
    assert len(decision.pods) == 1


def test_a_copy_that_was_just_added_has_half_a_minute_at_least() -> None:
    subject = Model()
    decision, _ = subject.turns(on("p0"), {"p0": busy(in_flight=0.9)}, 10)
    assert isinstance(decision, AddCopies)
    _, after_s = subject.turns(on("p0", "p1"), None, 200)
    assert after_s == 60.0


def test_copies_do_not_come_and_go_at_steady_work() -> None:
    """Three copies that shrink only after five hours, or never settle: ModelMesh compared a time with an age (d)."""
    subject, pods = Model(), ["p0"]
    changes = 0
    for _ in range(1000):
        decision = subject.turn(on(*pods), {each: busy(in_flight=1.5 / len(pods)) for each in pods})
        if isinstance(decision, AddCopies):
            pods += [f"p{len(pods) + number}" for number in range(decision.count)]
            changes += 1
        elif isinstance(decision, DropCopies):
            pods = [each for each in pods if each not in decision.pods]
            changes += 1
    assert (len(pods), changes) == (3, 1)


def test_the_minimum_holds_at_once_and_without_traffic() -> None:
    assert Model(copies_min=3).turn(on("p0")) == AddCopies(2, "1 of at least 3")
    assert Model(pinned=True).turn(on()) == AddCopies(1, "0 of at least 1")
    assert isinstance(Model(copies_min=2).turns(on("p0", "p1"), None, 1000)[0], KeepCopies)


def test_a_minimum_beyond_the_pool_asks_for_what_there_is() -> None:
    assert Model(copies_min=20).turn(on("p0")) == AddCopies(7, "1 of at least 20")
    assert isinstance(Model(copies_min=20).turn(on(*(each.id for each in PODS))), KeepCopies)


def test_the_maximum_holds_whatever_waits() -> None:
    waiting = {"p0": busy(in_flight=9.0), "p1": busy(in_flight=9.0)}
    assert isinstance(Model(copies_max=2).turns(on("p0", "p1"), waiting, 10)[0], KeepCopies)
    decision = Model(copies_max=1).turn(on("p0", "p1"), waiting)
    assert isinstance(decision, DropCopies)
    assert len(decision.pods) == 1


def test_copies_on_draining_pods_do_not_count() -> None:
    pods = [pod("p0", draining=True), pod("p1"), pod("p2")]
    of = view(pods, {"m": [copy("p0"), copy("p1")]})
    assert Model(copies_min=2).turn(of) == AddCopies(1, "1 of at least 2")
    decision, _ = Model().turns(of, {"p0": busy(in_flight=0.5), "p1": busy(in_flight=0.5)}, 10)
    assert decision == AddCopies(1, decision.reason)


def test_a_pod_that_does_not_answer_for_a_moment_is_not_replaced_before_its_lease_ends() -> None:
    of = on("p0", "p1")
    cut_off = healthy(of) - {"p1"}
    decision, _ = plan_copies(of, model(copies_min=2), {}, NO_HISTORY, healthy=cut_off, now_s=0.0)
    assert isinstance(decision, KeepCopies)
    faded = view(PODS, {"m": [copy("p0"), copy("p1")]}, fading=["p1"])
    decision, _ = plan_copies(faded, model(copies_min=2), {}, NO_HISTORY, healthy=cut_off, now_s=0.0)
    assert decision == AddCopies(1, "1 of at least 2")


@pytest.mark.parametrize(
    ("pods", "copies"),
    [
        ([pod("keep"), pod("go", draining=True)], {}),
        ([pod("keep"), pod("go")], {"keep": copy("keep", 2), "go": copy("go", 1)}),
        ([pod("keep", zone="1"), pod("go", zone="2"), pod("also", zone="2", draining=False)], {}),
        ([pod("keep", eviction_age_s=900.0), pod("go", eviction_age_s=10.0)], {}),
        ([pod("keep"), pod("go", eviction_age_s=10.0)], {}),
        ([pod("keep"), pod("go", queue_delay_s=0.1)], {}),
    ],
    ids=["draining", "older generation", "crowded zone", "memory is scarce", "memory is scarce here only", "queue"],
)
def test_the_copy_that_is_worth_least_is_dropped(pods: list[Any], copies: dict[str, Copy]) -> None:
    of = view(pods, {"m": [copies.get(each.id, copy(each.id)) for each in pods]})
    staying = sum(not each.draining for each in pods)
    decision = Model(copies_max=staying - 1 if staying > 1 else 1).turns(of, None, 2)[0]
    if staying == 1:
        assert isinstance(decision, KeepCopies)  # the draining copy goes with its pod
    else:
        assert isinstance(decision, DropCopies)
        assert decision.pods[0] in ("go", "also")


def test_dropping_spreads_what_remains_over_zones() -> None:
    pods = [pod("a", zone="1"), pod("b", zone="1"), pod("c", zone="2"), pod("d", zone="2")]
    of = view(pods, {"m": [copy(each.id) for each in pods]})
    decision = Model(copies_max=2).turn(of)
    assert isinstance(decision, DropCopies)
    assert {"a", "b"} & set(decision.pods)
    assert {"c", "d"} & set(decision.pods)
