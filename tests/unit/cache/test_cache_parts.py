"""The small parts under the machine: byte vectors, timers, the memory of failures, the transition table."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.failures import FailureMemory
from cache.ledger import Ledger, Oversold
from cache.limits import CacheLimits
from cache.profiles import Profiles
from cache.timers import Alarm, Timers
from cache.transitions import TRANSITIONS
from cache.types import NO_BYTES, Bytes, CopyState, ModelKey, Place, RefusalKind

CPU = Place("device", "cpu")
GPU = Place("device", "cuda:0")
LIMITS = CacheLimits(capacity=Bytes.of(CPU, 100))
KEY = ModelKey("default", "a")
VECTORS = st.builds(
    lambda cpu, gpu: Bytes.from_mapping({CPU: cpu, GPU: gpu}), st.integers(-50, 50), st.integers(-50, 50)
)


@given(VECTORS, VECTORS)
def test_byte_vectors_add_and_compare_place_by_place(left: Bytes, right: Bytes) -> None:
    assert left + right == right + left
    assert (left + right) - right == left
    assert (left <= right) == all(left[place] <= right[place] for place in (CPU, GPU))
    for place in (CPU, GPU):
        assert left.at_least(right)[place] == max(left[place], right[place])
        assert left.at_most(right)[place] == min(left[place], right[place])
        assert left.missing_from(right)[place] == (max(0, left[place] - right[place]) if left[place] > 0 else 0)
    assert Bytes.sum([left, right]) == left + right
    assert left - left == NO_BYTES


def test_what_is_overdrawn_in_one_place_does_not_matter_to_a_need_elsewhere() -> None:
    assert not Bytes.of(GPU, 5).missing_from(Bytes.from_mapping({CPU: -10, GPU: 5}))


def test_a_ledger_refuses_to_be_oversold_and_stays_as_it_was() -> None:
    ledger = Ledger(Bytes.of(CPU, 100))
    ledger.charge(1, Bytes.of(CPU, 60))
    with pytest.raises(Oversold, match="1 B on device:cpu"):
        ledger.charge(2, Bytes.of(CPU, 41))
    ledger.charge(1, Bytes.of(CPU, 100))
    ledger.charge(1, NO_BYTES)
    assert ledger.free == ledger.capacity
    ledger.validate()


def test_alarms_ring_once_in_order_and_can_be_moved_and_cancelled() -> None:
    timers = Timers()
    for subject_id, at_s in enumerate([5.0, 3.0, 4.0, 9.0]):
        timers.set(Alarm("test", subject_id), at_s)
    timers.set(Alarm("test", 0), 1.0)
    timers.set(Alarm("test", 1), 6.0)
    timers.set_no_later(Alarm("test", 1), 7.0)
    timers.cancel(Alarm("test", 2))
    assert timers.next_at_s() == 1.0
    assert [alarm.subject_id for alarm in timers.take_due(6.0)] == [0, 1]
    assert timers.take_due(6.0) == []
    assert timers.next_at_s() == 9.0


def test_cancelled_alarms_do_not_pile_up() -> None:
    timers = Timers()
    for subject_id in range(10_000):
        timers.set(Alarm("test", subject_id), 1000.0 + subject_id)
        timers.cancel(Alarm("test", subject_id))
    assert len(timers._heap) < 200


def test_the_count_of_failures_outlives_their_pause_but_not_for_ever() -> None:
    memory = FailureMemory(LIMITS)
    memory.record(KEY, RefusalKind.LOAD_FAILED_TRANSIENT, "no answer", 0.0)
    assert memory.refusal(KEY, 0.5) is not None
    assert memory.refusal(KEY, 1.0) is None
    refusal = memory.record(KEY, RefusalKind.LOAD_FAILED_TRANSIENT, "no answer", 1.0)
    assert refusal.retry_after_s == 2.0
    assert memory.get(KEY, 1000.0) is None


def test_the_memory_of_failures_is_bounded() -> None:
    memory = FailureMemory(replace(LIMITS, failures_remembered_max=2))
    for number in range(5):
        memory.record(ModelKey("t", str(number)), RefusalKind.LOAD_FAILED_PERMANENT, "corrupt", 0.0)
    remembered = [number for number in range(5) if memory.get(ModelKey("t", str(number)), 0.0)]
    assert remembered == [3, 4]


def test_load_times_are_averaged_with_the_newest_weighing_more() -> None:
    profiles = Profiles(replace(LIMITS, load_time_default_s=7.0, load_time_weight=0.5))
    assert profiles.load_time_s(KEY) == 7.0
    profiles.loaded(KEY, 1.5, 0.5)
    profiles.loaded(KEY, 3.0, 1.0)
    assert profiles.load_time_s(KEY) == 3.0


def test_the_first_fetch_of_a_model_is_no_part_of_what_bringing_it_back_takes() -> None:
    profiles = Profiles(replace(LIMITS, load_time_weight=0.5))
    assert profiles.return_time_s(KEY) == 0.0
    profiles.loaded(KEY, 30.0, 1.0)
    assert profiles.return_time_s(KEY) == 1.0
    profiles.loaded(KEY, 0.5, 1.5)
    assert profiles.return_time_s(KEY) == 1.5


def test_every_state_can_be_reached_and_left() -> None:
    reached = {CopyState.QUEUED} | set(TRANSITIONS.values())
    left = {state for state, _ in TRANSITIONS}
    assert reached == set(CopyState)
    assert left == set(CopyState) - {CopyState.GONE}
