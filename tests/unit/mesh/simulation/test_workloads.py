"""The fixed workloads: the same for a seed wherever and whenever they are made, and what their names say."""

from __future__ import annotations

from collections import Counter

import pytest

from mesh.simulation.workloads import SPAN_S, WORKLOADS, workload
from mesh.simulation.workloads.trace import RecordedLoad, RecordedRun, Trace, TraceModel, trace_of

names = pytest.mark.parametrize("name", sorted(WORKLOADS))


def made(name: str, seed: int = 5) -> Trace:
    return workload(name, seed, models=120, requests=6_000)


@names
def test_a_seed_is_one_trace_and_another_seed_another(name: str) -> None:
    assert made(name) == made(name)
    assert made(name) != made(name, seed=6)


def test_traces_do_not_change_from_release_to_release() -> None:
    # A figure that was published for a seed must stay true. If a generator has to change, this and they change.
    first = {name: (len(made(name)), made(name).times_s[0], made(name).asked[:3]) for name in WORKLOADS}
    assert first == FIRST


@names
def test_requests_are_in_the_order_of_time_and_about_as_many_as_asked_for(name: str) -> None:
    trace = made(name)
    assert list(trace.times_s) == sorted(trace.times_s)
    assert 0 <= trace.times_s[0] <= trace.times_s[-1] < SPAN_S + 10
    assert 4_000 < len(trace) < 8_000
    assert len(trace.models) == 120


def test_azure_has_models_that_are_asked_for_all_the_time_and_most_hardly_ever() -> None:
    trace = workload("azure", 5)
    counts = sorted(Counter(trace.asked).values(), reverse=True)
    assert sum(counts[: len(counts) // 5]) > 0.85 * len(trace)
    assert sum(count <= SPAN_S / 3600 for count in counts) + 800 - len(counts) > 0.35 * 800


def test_a_flash_crowd_takes_most_of_its_model_s_requests_in_minutes() -> None:
    trace = workload("flash", 5)
    per_minute: Counter[int] = Counter(int(time_s // 60) for time_s in trace.times_s)
    usual = len(trace) / (SPAN_S / 60)
    assert max(per_minute.values()) > 1.2 * usual


def test_a_scan_asks_for_every_model_within_minutes() -> None:
    trace = workload("scan", 5)
    within = {model for time_s, model in zip(trace.times_s, trace.asked, strict=True) if 1800 <= time_s < 2400}
    assert len(within) == len(trace.models)


def test_an_unknown_workload_is_refused_with_the_names_of_those_that_are() -> None:
    with pytest.raises(ValueError, match="azure, zipf, flash, scan"):
        workload("poisson", 1)


def test_equal_times_are_ordered_by_model() -> None:
    models = [TraceModel("a", 1, 1.0), TraceModel("b", 1, 1.0)]
    assert trace_of(models, [(1.0, 1), (1.0, 0), (0.5, 1)]).asked == (1, 0, 1)


def test_loads_and_runs_take_what_those_recorded_nearest_in_time_took() -> None:
    first, early, late = RecordedLoad(1.0, 0.5, 0.3), RecordedLoad(10.0, 0.0, 0.1), RecordedLoad(20.0, 0.0, 0.2)
    runs = (RecordedRun(1.0, 0.01), RecordedRun(20.0, 0.02))
    model = TraceModel("a", 1, 0.15, first, (early, late), runs)
    assert model.load_at(19.0, is_first=True) is first
    assert [model.load_at(time_s, is_first=False) for time_s in (0.0, 10.0, 15.0, 15.1, 99.0)] == [
        early, early, early, late, late,
    ]  # fmt: skip
    assert [model.run_at(time_s) for time_s in (0.0, 10.0, 11.0, 30.0)] == [0.01, 0.01, 0.02, 0.02]


def test_where_nothing_was_recorded_every_load_is_alike_and_runs_take_no_time() -> None:
    model = TraceModel("a", 1, 0.15)
    assert model.load_at(3.0, is_first=True) == RecordedLoad(3.0, 0.0, 0.15)
    assert model.run_at(3.0) == 0.0


FIRST: dict[str, tuple[int, float, tuple[int, ...]]] = {
    "azure": (7325, 1.948286, (70, 83, 84)),
    "zipf": (6019, 0.363646, (69, 22, 105)),
    "flash": (6227, 1.545845, (52, 111, 49)),
    "scan": (6242, 5.249981, (71, 118, 2)),
}
