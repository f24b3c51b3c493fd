"""Cells of a plan: pools that are replayed."""

from __future__ import annotations

import json

import pytest

from mesh.planning.cells import Cell, Planned, Planner, TooSmall, bytes_that_never_evict, planning
from mesh.planning.comparing import sentences
from mesh.simulation.workloads import workload
from mesh.simulation.workloads.trace import Trace
from tests.unit.mesh.planning.builders import MB, cell, planned, round_robin

CONTRACT = {
    "cold_fraction", "cold_time_s", "cold_p99_ms", "evictions", "prefetches", "prefetches_wasted",
    "clairvoyant_cold_time_s",
}  # fmt: skip


def plan_cell(trace: Trace, where: Cell) -> Planned:
    return Planner(trace).plan([where])[0]


def test_a_cell_has_what_scripts_rely_on_and_is_the_same_again() -> None:
    trace = workload("zipf", 3, models=40, requests=1500, span_s=1800.0)
    where = cell(capacity_bytes=trace.footprint_bytes // 3, policy="hazard")
    first, second = plan_cell(trace, where), plan_cell(trace, where)
    assert first == second
    value = first.to_json()
    assert set(value) >= CONTRACT
    assert json.loads(json.dumps(value)) == value
    assert 0 < value["cold_fraction"] < 1
    assert value["cold_fraction"] + value["hit_ratio"] == pytest.approx(1.0)
    assert 0 < value["memory_max_bytes"] <= where.capacity_bytes


def test_nothing_is_evicted_with_memory_for_all_and_nothing_hits_in_turn_with_less() -> None:
    trace = round_robin(models=6, rounds=20)
    for pods in (1, 2):
        enough = plan_cell(trace, cell(pods=pods, capacity_bytes=bytes_that_never_evict(trace, pods)))
        assert (enough.result.evictions, enough.result.cold) == (0, 6)
    less = plan_cell(trace, cell(capacity_bytes=50 * MB))
    assert less.result.cold_fraction > 0.5
    assert less.clairvoyant_cold_time_s is not None
    assert less.clairvoyant_cold_time_s < less.result.cold_time_s


def test_a_model_larger_than_a_pod_is_named_with_what_would_do() -> None:
    trace = round_robin(models=3)
    with pytest.raises(TooSmall, match=r"model 'm0' takes 10,000,000 bytes, more than a pod holds: 6,000,000") as error:
        plan_cell(trace, cell(pods=2, capacity_bytes=12 * MB))
    assert "the least that would do is 20,000,000 over all pods, a fraction of 0.6667" in str(error.value)


def test_cells_come_back_in_the_order_in_which_they_were_asked_for() -> None:
    trace = round_robin()
    done: list[int] = []
    planner = Planner(trace, None, done.append)
    asked = [cell(capacity_bytes=30 * MB), cell(capacity_bytes=20 * MB), cell(capacity_bytes=30 * MB)]
    assert [each.cell for each in planner.plan(asked)] == asked
    assert sum(done) == 4, "each of two is replayed once, and one who knows the future beside it"


def test_processes_give_the_answers_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.planning.cells.REQUESTS_WORTH_PROCESSES", 0)
    trace = round_robin()
    asked = [cell(capacity_bytes=capacity_bytes * MB) for capacity_bytes in (20, 30, 40)]
    with planning(trace, len(asked), lambda more: None) as planner:
        assert planner.plan(asked) == [plan_cell(trace, each) for each in asked]


def test_fewer_pods_are_summed_up_in_a_sentence() -> None:
    four = planned(cell(4, 400 * MB), cold=50, cold_p99_ms=80, cold_time_s=4.0)
    two = planned(cell(2, 200 * MB), cold=150, cold_p99_ms=120, cold_time_s=12.0)
    assert sentences([four, two]) == [
        "2 pods in place of 4, 95.4 MiB each, lru: cold requests 5.00% → 15.00%, cold p99 80 → 120 ms, "
        "3.0 times the waiting in all."
    ]


def test_policies_are_held_against_the_first_one() -> None:
    lru = planned(cell(policy="lru"), cold=100, cold_time_s=10.0)
    hazard = planned(cell(policy="hazard"), cold=60, cold_time_s=7.0)
    assert "hazard in place of lru: cold requests 10.00% → 6.00%" in sentences([lru, hazard])[0]
    assert "30% less waiting in all" in sentences([lru, hazard])[0]
    assert sentences([hazard, lru]) == ["At 95.4 MiB on 1 pod nothing waits less than hazard."]


def test_a_cell_alone_is_held_against_the_clairvoyant() -> None:
    assert (
        "they wait 10.0 s in all, 2.00 times what they would if evictions knew every next use"
        in (sentences([planned()])[0])
    )
