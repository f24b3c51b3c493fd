"""The rule by which a pod holds less while memory is short, and more again afterwards."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mesh.pressure import (
    Level,
    Pressure,
    PressureLimits,
    after_a_while,
    after_reading,
    after_running_out,
    calm,
    missing_room,
    shared_out,
)
from runtime_adapters.memory_reading import MemoryReading

MIB = 1 << 20
GIB = 1 << 30
LIMITS = PressureLimits()
QUIET = MemoryReading(
    limit_bytes=GIB,
    source="memory.max of control group /pod (version 2)",
    used_bytes=700 * MIB,
    working_set_bytes=600 * MIB,
    unreclaimable_bytes=400 * MIB,
    major_faults=0,
    refaults=1,
    stalled_us=0,
    stopped_us=0,
    oom_kills=0,
)
FULL_BYTES = 500 * MIB


class Box:
    """A pod that holds what it may, and the readings that it sees, one a second."""

    def __init__(self, used_bytes: int = FULL_BYTES) -> None:
        self.state: Pressure = calm(FULL_BYTES)
        self.reading = QUIET
        self.used_bytes = used_bytes
        self.now_s = 100.0

    def see(self, seconds: int = 1, **changes: int) -> Pressure:
        """Readings in which the counters grow by so much, and the rest stands as given."""
        for _ in range(seconds):
            counts = {
                name: getattr(self.reading, name) + changes.get(name, 0)
                for name in ("major_faults", "refaults", "stalled_us", "stopped_us")
            }
            levels = {name: value for name, value in changes.items() if name not in counts}
            now = replace(QUIET, **counts, **levels)
            self.now_s += 1.0
            self.state = after_reading(
                self.state,
                self.reading,
                now,
                elapsed_s=1.0,
                used_bytes=self.used_bytes,
                now_s=self.now_s,
                limits=LIMITS,
            )
            self.reading = now
            self.used_bytes = min(self.used_bytes, self.state.capacity_bytes)
        return self.state


THRASH = {"used_bytes": GIB - MIB, "major_faults": 500, "refaults": 500}


def test_a_full_page_cache_alone_is_no_pressure() -> None:
    box = Box()
    assert box.see(60, used_bytes=GIB - MIB).level is Level.CALM
    assert box.state.capacity_bytes == FULL_BYTES


def test_a_cold_load_reads_its_file_by_major_faults_and_is_no_pressure() -> None:
    assert Box().see(60, used_bytes=GIB - MIB, major_faults=2_000).level is Level.CALM


def test_faults_far_from_the_limit_have_other_causes() -> None:
    assert Box().see(60, major_faults=2_000, refaults=2_000).level is Level.CALM


def test_reclaim_that_hurts_lowers_the_capacity_by_a_tenth_and_again_while_it_goes_on() -> None:
    box = Box()
    assert box.see(2, **THRASH).level is Level.CALM, "one or two readings may be chance"
    assert box.see(1, **THRASH).level is Level.RECLAIM
    assert box.state.capacity_bytes == int(FULL_BYTES * 0.9)
    assert box.see(4, **THRASH).capacity_bytes == int(FULL_BYTES * 0.9), "its effect needs time to show"
    assert box.see(1, **THRASH).capacity_bytes == int(int(FULL_BYTES * 0.9) * 0.9)
    assert "500 major faults" in box.state.why
    assert box.state.episodes == 1


def test_stalls_count_where_faults_are_not_seen() -> None:
    assert Box().see(3, used_bytes=GIB - MIB, stalled_us=300_000).level is Level.RECLAIM


def test_a_kernel_that_counts_no_refaults_is_believed_by_its_faults() -> None:
    box = Box()
    box.reading = replace(QUIET, refaults=0)
    box.state = calm(FULL_BYTES)
    for count in range(1, 4):
        now = replace(QUIET, used_bytes=GIB - MIB, refaults=0, major_faults=500 * count)
        box.state = after_reading(
            box.state, box.reading, now, elapsed_s=1.0, used_bytes=FULL_BYTES, now_s=float(count), limits=LIMITS
        )
        box.reading = now
    assert box.state.level is Level.RECLAIM


def test_it_is_never_lowered_below_its_least_share() -> None:
    box = Box()
    box.see(600, **THRASH)
    assert box.state.capacity_bytes == int(FULL_BYTES * LIMITS.least_share)


def test_it_comes_back_in_steps_after_a_calm_while() -> None:
    box = Box()
    box.see(12, **THRASH)
    lowered_bytes = box.state.capacity_bytes
    assert lowered_bytes < FULL_BYTES * 0.82
    box.see(int(LIMITS.calm_for_s) - 1)
    assert (box.state.level, box.state.capacity_bytes) == (Level.REDUCED, lowered_bytes)
    box.see(3)
    assert box.state.capacity_bytes == lowered_bytes + int(FULL_BYTES * LIMITS.raise_share)
    assert box.state.why, "the reason stays until the capacity is back"
    box.see(3 * int(LIMITS.raise_every_s))
    assert (box.state.level, box.state.capacity_bytes, box.state.why) == (Level.CALM, FULL_BYTES, "")


def test_between_the_thresholds_it_neither_falls_nor_rises() -> None:
    box = Box()
    box.see(3, **THRASH)
    lowered_bytes = box.state.capacity_bytes
    box.see(300, used_bytes=GIB - MIB, major_faults=30, refaults=30)
    assert box.state.capacity_bytes == lowered_bytes
    assert box.state.episodes == 1


def test_it_does_not_come_back_into_room_that_is_not_there() -> None:
    box = Box()
    box.see(3, **THRASH)
    lowered_bytes = box.state.capacity_bytes
    tight_bytes = GIB - 2 * int(LIMITS.danger_share * GIB) - 1
    box.see(300, unreclaimable_bytes=tight_bytes)
    assert box.state.capacity_bytes <= lowered_bytes + 1


def test_near_the_limit_it_acts_at_once_by_what_is_missing_and_loads_nothing() -> None:
    box = Box()
    left_bytes = 20 * MIB
    state = box.see(1, unreclaimable_bytes=GIB - left_bytes)
    assert state.level is Level.DANGER
    assert state.loads_paused
    safe_bytes = 2 * int(LIMITS.danger_share * GIB)
    assert state.capacity_bytes == FULL_BYTES - (safe_bytes - left_bytes)
    assert "20 MiB left" in state.why


def test_danger_ends_only_at_a_safe_distance() -> None:
    box = Box()
    box.see(1, unreclaimable_bytes=GIB - 20 * MIB)
    danger_bytes = int(LIMITS.danger_share * GIB)
    assert box.see(1, unreclaimable_bytes=GIB - danger_bytes - MIB).level is Level.DANGER
    assert box.see(1, unreclaimable_bytes=GIB - 2 * danger_bytes - MIB).level is Level.REDUCED


def test_in_a_large_box_danger_is_no_share_of_it() -> None:
    now = replace(QUIET, limit_bytes=100 * GIB, unreclaimable_bytes=99 * GIB)
    state = after_reading(calm(80 * GIB), now, now, elapsed_s=1.0, used_bytes=50 * GIB, now_s=1.0, limits=LIMITS)
    assert state.level is Level.CALM


def test_a_framework_without_memory_shows_what_there_is() -> None:
    state = after_running_out(
        calm(FULL_BYTES), 300 * MIB, 50 * MIB, "no memory for a run", counted=False, now_s=1.0, limits=LIMITS
    )
    assert state.capacity_bytes == 250 * MIB
    assert state.why == "no memory for a run"


def test_one_such_report_counts_in_a_while_so_that_no_client_can_empty_the_pod() -> None:
    state = calm(FULL_BYTES)
    for number in range(100):
        now_s = 1.0 + number * 0.01
        state = after_running_out(
            state, state.capacity_bytes, 50 * MIB, "no memory", counted=False, now_s=now_s, limits=LIMITS
        )
    assert state.capacity_bytes == FULL_BYTES - 50 * MIB


def test_what_the_kernel_counts_holds_at_once_and_each_time() -> None:
    state = calm(FULL_BYTES)
    for _ in range(3):
        state = after_running_out(
            state, state.capacity_bytes, 50 * MIB, "no room", counted=True, now_s=1.0, limits=LIMITS
        )
    assert state.capacity_bytes == FULL_BYTES - 150 * MIB


def test_what_nobody_who_leaves_could_make_room_for_empties_no_pod() -> None:
    state = after_running_out(calm(FULL_BYTES), 300 * MIB, 400 * MIB, "no room", counted=True, now_s=1.0, limits=LIMITS)
    assert state == calm(FULL_BYTES)


def test_a_load_has_room_where_it_leaves_the_box_out_of_danger() -> None:
    danger_bytes = int(LIMITS.danger_share * GIB)
    left_bytes = 600 * MIB - danger_bytes + 24 * MIB  # of a GiB with 400 MiB in use
    assert missing_room(QUIET, left_bytes, LIMITS) == (0, "")
    missing_bytes, why = missing_room(QUIET, left_bytes + MIB, LIMITS)
    assert missing_bytes == MIB
    assert "memory.max" in why


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_a_device_without_readings_comes_back_with_time(share: float) -> None:
    state = after_running_out(
        calm(FULL_BYTES),
        int(FULL_BYTES * share),
        10 * MIB,
        "CUDA out of memory",
        counted=False,
        now_s=0.0,
        limits=LIMITS,
    )
    for second in range(1_000):
        state = after_a_while(state, now_s=float(second), limits=LIMITS)
    assert (state.level, state.capacity_bytes) == (Level.CALM, FULL_BYTES)


@pytest.mark.parametrize(
    ("capacity_bytes", "shares"),
    [(100, [60, 40]), (99, [60, 39]), (80, [60, 20]), (75, [55, 20]), (60, [50, 10]), (40, [40, 0]), (0, [0, 0])],
)
def test_memory_that_two_places_share_is_kept_by_the_first_and_grown_into_by_it(
    capacity_bytes: int, shares: list[int]
) -> None:
    assert shared_out(capacity_bytes, full=[60, 40], used=[50, 20]) == shares
