"""Where a copy's runs go: where they cost less, whatever noise is on the clock, and without going to and fro."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.batching.run_place import (
    COUNTED_MAX_S,
    FIRST_RUNS,
    HANDOVER_S,
    LEAVE_S,
    MEASURED_EVERY,
    RETURN_S,
    TRIED_MAX_S,
    TRIES,
    WHILE_MAX,
    WHILE_MIN,
    WINDOW,
    RunPlace,
)

costs_s = st.floats(1e-6, 1.0)
quick_s = st.floats(1e-6, RETURN_S / 2)
slow_s = st.floats(2 * LEAVE_S, 1.0)
pasts = st.lists(costs_s, max_size=200)
BACK_WITHIN = WHILE_MAX + WINDOW + TRIES


def run(place: RunPlace, cost_s: float, on_thread_s: float | None = None) -> bool:
    """One run of one request, wherever it goes; whether it was on the loop."""
    here = place.on_loop
    if here:
        place.ran_on_loop(cost_s)
    else:
        place.ran_on_thread(cost_s if on_thread_s is None else on_thread_s)
    return here


def lived(past: list[float]) -> RunPlace:
    place = RunPlace(past[0] if past else 0.0)
    for cost_s in past:
        run(place, cost_s)
    return place


@settings(max_examples=30, deadline=None)
@given(pasts, quick_s, st.floats(1, TRIED_MAX_S / RETURN_S))
def test_a_quick_model_comes_back_to_the_loop_whatever_was_before_and_stays(
    past: list[float], cost_s: float, dearer: float
) -> None:
    place = lived(past)
    for _ in range(BACK_WITHIN):
        run(place, cost_s, cost_s * dearer)  # on threads it begins with cold caches
    assert all(run(place, cost_s) for _ in range(2 * WINDOW * MEASURED_EVERY))


@settings(max_examples=30, deadline=None)
@given(pasts, slow_s)
def test_a_slow_model_leaves_the_loop_whatever_was_before(past: list[float], cost_s: float) -> None:
    place = lived(past)
    assert sum(run(place, cost_s) for _ in range(BACK_WITHIN)) <= WINDOW + MEASURED_EVERY + 10
    assert sum(run(place, cost_s) for _ in range(2 * WHILE_MAX)) <= 10, "tries"


@given(st.floats(0, RETURN_S / 2), slow_s)
def test_a_slow_model_that_its_load_took_for_quick_leaves_after_a_few_runs(first_s: float, cost_s: float) -> None:
    place = RunPlace(first_s)
    assert sum(run(place, cost_s) for _ in range(WHILE_MIN)) == FIRST_RUNS


@given(st.permutations([5e-6, 0.02, 0.001]))
def test_a_quick_model_whose_first_runs_set_things_up_stays(first_runs_s: list[float]) -> None:
    place = RunPlace(0.0)
    assert all(run(place, cost_s) for cost_s in first_runs_s)
    assert all(run(place, 5e-6) for _ in range(100))


@given(quick_s, st.lists(st.floats(1e-3, 10.0), min_size=1, max_size=WINDOW), st.integers(12, 40))
def test_a_few_runs_that_the_machine_held_up_move_nothing(cost_s: float, held_s: list[float], apart: int) -> None:
    place = RunPlace(cost_s / 3)
    for outlier_s in held_s:
        assert all(run(place, cost_s / 3) for _ in range(apart))
        assert run(place, outlier_s)
    assert place.on_loop


@settings(max_examples=30, deadline=None)
@given(pasts, st.floats(RETURN_S, LEAVE_S))
def test_what_costs_about_a_hand_over_stays_where_it_is(past: list[float], cost_s: float) -> None:
    place = lived(past)
    for _ in range(WINDOW * MEASURED_EVERY):
        run(place, cost_s)
    if place.on_loop:
        assert all(run(place, cost_s) for _ in range(1000))
    else:
        assert sum(run(place, cost_s) for _ in range(1000)) <= 10, "tries"


@settings(max_examples=30, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=50), st.floats(0.001, 0.1))
def test_a_model_many_of_whose_runs_are_long_holds_up_the_loop_less_and_less(
    pattern: list[bool], long_s: float
) -> None:
    place, held = RunPlace(0.0), 0
    pattern = [*pattern, *[True] * (1 + len(pattern) // 5)]
    for number in range(20_000):
        is_long = pattern[number % len(pattern)]
        held += run(place, long_s if is_long else 5e-6) and is_long
    assert held < 200


@given(quick_s, st.integers(2, 64))
def test_runs_that_requests_share_count_as_what_each_of_them_costs(cost_s: float, requests: int) -> None:
    place = RunPlace(cost_s)
    for _ in range(WINDOW):
        place.ran_on_loop(cost_s * requests, requests)
    assert place.on_loop
    assert abs(place.mean_s - cost_s) < 1e-9


def test_on_the_loop_one_run_in_a_few_is_measured_and_some_after_a_long_one() -> None:
    place = RunPlace(5e-6)
    measured = []
    for _ in range(4 * MEASURED_EVERY):
        measured.append(place.measured)
        place.ran_on_loop(5e-6)
    assert sum(measured) <= FIRST_RUNS + 4
    place.ran_on_loop(5e-6)
    assert not place.measured
    place.ran_on_loop(1.0)  # on a clock that also shows what others do: it says nothing of the model
    assert place.measured
    assert place.mean_s < HANDOVER_S


@given(st.lists(costs_s, min_size=1, max_size=300))
def test_the_mean_is_that_of_the_last_runs_none_of_which_counts_for_much(seen_s: list[float]) -> None:
    place = RunPlace(0.0)
    for cost_s in seen_s:
        place.ran_on_thread(cost_s)
    counted = ([0.0] * WINDOW + [min(cost_s, COUNTED_MAX_S) for cost_s in seen_s])[-WINDOW:]
    assert abs(place.mean_s - sum(counted) / WINDOW) < 1e-12


def test_a_trial_that_shows_a_model_to_be_quick_brings_it_back_at_once() -> None:
    place = RunPlace(0.01)
    place.costs_at_most(0.005)
    assert not place.on_loop
    place.costs_at_most(10e-6)
    assert place.on_loop


def test_a_model_that_is_quick_on_threads_returns_after_a_while() -> None:
    place = RunPlace(0.01)
    runs = next(number for number in range(1000) if not run(place, 10e-6) and place.on_loop) + 1
    assert WHILE_MIN <= runs <= 2 * WINDOW
