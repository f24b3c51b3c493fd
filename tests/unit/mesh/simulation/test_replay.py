"""A trace on the real cache, with figures that can be worked out by hand; and what bounds them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mesh.settings import Settings
from mesh.simulation.bounds import clairvoyant, clairvoyant_cold_time_s, pfoo_lower_s
from mesh.simulation.replay import ReplayOptions, home_of, replay
from mesh.simulation.workloads import WORKLOADS, workload
from mesh.simulation.workloads.trace import RecordedLoad, RecordedRun, Trace, TraceModel, trace_of

GB = 1_000_000_000


def two_models(*requests: tuple[float, int]) -> Trace:
    return trace_of([TraceModel("a", 10, 1.0), TraceModel("b", 10, 2.0)], requests)


def test_a_miss_waits_for_the_load_and_who_joins_it_for_the_rest() -> None:
    result = replay(two_models((0.0, 0), (0.25, 0), (5.0, 0)), ReplayOptions(capacity_bytes=20))
    assert (result.requests, result.cold, result.loads, result.evictions) == (3, 2, 1, 0)
    assert result.cold_time_s == pytest.approx(1.75)
    assert result.cold_fraction == pytest.approx(2 / 3)
    assert result.memory[-1][1] == 10


def test_the_first_load_fetches_where_that_was_recorded_and_the_run_is_in_the_percentiles_only() -> None:
    first, later = RecordedLoad(0.0, 2.0, 0.5), RecordedLoad(10.0, 0.0, 0.25)
    model = TraceModel("a", 10, 0.25, first, (later,), (RecordedRun(0.0, 0.125),))
    other = TraceModel("b", 10, 1.0)
    trace = trace_of([model, other], [(0.0, 0), (10.0, 1), (20.0, 0)])
    result = replay(trace, ReplayOptions(capacity_bytes=10))
    assert result.cold_time_s == pytest.approx(2.5 + 1.0 + 0.25, abs=0.01)  # and an unload each
    assert result.cold_p99_ms == pytest.approx(2625.0, abs=1.0)
    assert result.cold_p50_ms == pytest.approx(1000.0, abs=10.0)


def test_a_copy_is_not_evicted_while_a_run_holds_it() -> None:
    busy = TraceModel("a", 10, 1.0, runs=(RecordedRun(0.0, 5.0),))
    trace = trace_of([busy, TraceModel("b", 10, 1.0)], [(0.0, 0), (2.0, 1)])
    result = replay(trace, ReplayOptions(capacity_bytes=10))
    assert result.cold_time_s == pytest.approx(1.0 + (1.0 + 5.0 - 2.0) + 1.0, abs=0.01)


def test_what_does_not_fit_beside_another_has_it_evicted() -> None:
    trace = two_models((0.0, 0), (10.0, 1), (20.0, 0))
    result = replay(trace, ReplayOptions(capacity_bytes=10))
    assert (result.cold, result.loads, result.evictions) == (3, 3, 2)
    assert result.cold_time_s == pytest.approx(4.0, abs=0.01)  # and an unload each


def test_as_many_loads_as_the_limit_says_run_at_a_time() -> None:
    trace = two_models((0.0, 0), (0.0, 1))
    options = ReplayOptions(capacity_bytes=20, loads_concurrent_max=1)
    assert replay(trace, options).cold_time_s == pytest.approx(1.0 + 3.0)
    assert replay(trace, replace(options, loads_concurrent_max=2)).cold_time_s == pytest.approx(1.0 + 2.0)


def test_a_model_larger_than_a_pod_is_refused_and_not_counted_as_cold() -> None:
    result = replay(two_models((0.0, 0), (1.0, 0)), ReplayOptions(capacity_bytes=9))
    assert (result.cold, result.refused, result.cold_time_s) == (0, 2, 0.0)


def test_a_timer_s_model_is_prefetched_though_it_was_evicted_in_between() -> None:
    period_s = 100.0
    requests = [(call * period_s, 0) for call in range(20)]
    requests += [(call * period_s + 40.0 + call, 1) for call in range(20)]
    options = ReplayOptions(capacity_bytes=10, policy="hazard")
    without, prefetched = (
        replay(two_models(*requests), options),
        replay(two_models(*requests), replace(options, prefetch=True)),
    )
    assert without.prefetches == 0
    assert prefetched.prefetches_used >= 12
    assert prefetched.cold <= without.cold - 12


@pytest.mark.parametrize("limit", ["fetches_concurrent_max", "residency_min_s", "residency_override_wait_s"])
def test_limits_that_no_plan_asks_for_are_a_pods(limit: str) -> None:
    assert getattr(ReplayOptions(capacity_bytes=1), limit) == Settings.model_fields[limit].default


def test_models_move_only_from_the_pod_that_is_gone() -> None:
    names = [f"m{number}" for number in range(300)]
    for name in names:
        if home_of(name, 4) != 3:
            assert home_of(name, 3) == home_of(name, 4)
    assert {home_of(name, 4) for name in names} == {0, 1, 2, 3}


def test_several_pods_share_capacity_and_requests() -> None:
    trace = workload("zipf", 3, models=100, requests=3_000)
    one = ReplayOptions(capacity_bytes=trace.footprint_bytes // 2, policy="hazard")
    alone, three = replay(trace, one), replay(trace, replace(one, pods=3))
    assert alone.requests == three.requests == len(trace)
    assert max(held for _, held in three.memory) <= trace.footprint_bytes // 2
    with pytest.raises(ValueError, match="0 pods"):
        replay(trace, replace(one, pods=0))


@pytest.mark.parametrize("name", sorted(WORKLOADS))
def test_the_same_trace_and_options_give_the_same_result(name: str) -> None:
    options = ReplayOptions(capacity_bytes=4 * GB, policy="hazard", prefetch=True)
    assert replay(workload(name, 3, models=100, requests=3_000), options) == replay(
        workload(name, 3, models=100, requests=3_000), options
    )


@pytest.mark.parametrize("name", sorted(WORKLOADS))
def test_nobody_who_loads_on_demand_is_below_the_bound_and_the_clairvoyant_leads(name: str) -> None:
    trace = workload(name, 4, models=150, requests=5_000)
    capacity_bytes = max(trace.footprint_bytes // 4, 3 * GB)
    options = ReplayOptions(capacity_bytes=capacity_bytes)
    best_s = clairvoyant_cold_time_s(trace, capacity_bytes)
    assert best_s == clairvoyant(trace, options).cold_time_s
    assert pfoo_lower_s(trace, capacity_bytes) <= best_s
    for policy in ("lru", "gdsf", "hazard"):
        assert best_s < replay(trace, replace(options, policy=policy)).cold_time_s


def test_with_room_for_all_only_first_loads_are_cold() -> None:
    trace = two_models((0.0, 0), (10.0, 1), (20.0, 0), (30.0, 1))
    assert pfoo_lower_s(trace, 20) == pytest.approx(3.0)
    assert clairvoyant_cold_time_s(trace, 20) == pytest.approx(3.0)
    assert pfoo_lower_s(trace, 0) == pytest.approx(6.0)
