"""How much capacity keeps a promise."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from mesh.planning.cells import Cell, Planned, Planner
from mesh.planning.comparing import sentence_on_capacity
from mesh.planning.finding import PRECISION, Found, Goal, NotFound, find_capacity
from tests.unit.mesh.planning.builders import MB, cell, planned, round_robin


class Supposed(Planner):
    """Answers by a rule in place of a replay."""

    def __init__(self, rule: Callable[[int], tuple[int, float]]) -> None:
        super().__init__(round_robin(models=100))
        self._rule = rule
        self.tried: list[int] = []

    def plan(self, cells: Sequence[Cell], *, ideals: bool = True) -> list[Planned]:
        answers = []
        for each in cells:
            self.tried.append(each.capacity_bytes)
            cold, p99_ms = self._rule(each.capacity_bytes)
            answers.append(planned(each, cold=cold, cold_p99_ms=p99_ms))
        return answers


def test_the_least_capacity_is_found_within_its_precision() -> None:
    edge_bytes = 333 * MB
    supposed = Supposed(lambda capacity_bytes: (10 if capacity_bytes >= edge_bytes else 400, 50.0))
    found = find_capacity(supposed, cell(), Goal(cold_fraction_max=0.05))
    assert isinstance(found, Found)
    assert edge_bytes <= found.least.cell.capacity_bytes <= edge_bytes * (1 + PRECISION)
    assert found.below is not None
    assert found.below.cell.capacity_bytes < edge_bytes
    assert len(supposed.tried) < 20
    assert "40.00% of requests are cold, not 5.00%" in sentence_on_capacity(found)


def test_a_p99_that_is_better_in_the_middle_is_found_there() -> None:
    supposed = Supposed(lambda capacity_bytes: (10, 40.0 if 100 * MB <= capacity_bytes <= 300 * MB else 90.0))
    found = find_capacity(supposed, cell(), Goal(cold_p99_max_ms=50.0))
    assert isinstance(found, Found)
    assert 100 * MB <= found.least.cell.capacity_bytes <= 102 * MB


def test_the_largest_model_is_the_least_that_is_tried() -> None:
    supposed = Supposed(lambda capacity_bytes: (0, 0.0))
    found = find_capacity(supposed, cell(pods=2), Goal(cold_fraction_max=0.5))
    assert isinstance(found, Found)
    assert found.below is None
    assert min(supposed.tried) >= 2 * 10 * MB
    assert "could not hold the largest model" in sentence_on_capacity(found)


def test_where_no_capacity_does_it_the_reason_is_what_is_cold_with_memory_for_all() -> None:
    supposed = Supposed(lambda capacity_bytes: (100, 120.0))
    answer = find_capacity(supposed, cell(), Goal(cold_fraction_max=0.01, cold_p99_max_ms=100.0))
    assert isinstance(answer, NotFound)
    assert answer.most.cell.capacity_bytes == 1000 * MB
    said = sentence_on_capacity(answer)
    assert "No capacity keeps at most 1.00% of requests cold and a cold p99 of at most 100 ms" in said
    assert "10.00% of requests are cold, not 1.00% and the cold p99 is 120 ms, not 100 ms" in said


def test_refused_requests_keep_no_promise() -> None:
    assert Goal(cold_fraction_max=1.0).missed(planned(refused=3)) == ["3 requests are refused"]


@pytest.mark.parametrize("pods", [1, 3])
def test_on_real_replays_the_answer_holds_and_the_bound_does_not(pods: int) -> None:
    goal = Goal(cold_fraction_max=0.05)
    planner = Planner(round_robin(models=8, rounds=30))
    found = find_capacity(planner, cell(pods=pods), goal)
    assert isinstance(found, Found)
    assert not goal.missed(found.least)
    assert found.below is not None
    assert goal.missed(found.below)
    if pods == 1:  # in turn: whoever was used longest ago is who comes next, so all must fit
        assert found.least.cell.capacity_bytes >= 79 * MB
