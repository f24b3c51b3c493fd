"""Looking at the box before something large begins."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from mesh.room import check_room, room_for
from runtime_adapters.errors import NoRoom
from runtime_adapters.memory_reading import MemoryReading

MIB = 1 << 20
GIB = 1 << 30
HALF_FULL = MemoryReading(GIB, "memory.max of control group /pod", GIB, GIB, GIB // 2, 0, 0, 0, 0, 0)


def test_what_would_lead_into_danger_is_told_with_what_is_missing() -> None:
    check_room(400 * MIB, lambda: HALF_FULL)
    with pytest.raises(NoRoom, match=r"memory\.max") as caught:
        check_room(500 * MIB, lambda: HALF_FULL)
    assert caught.value.missing_bytes == pytest.approx(28.96 * MIB, abs=MIB / 10)


def test_small_things_and_unwatched_boxes_are_not_looked_at() -> None:
    full = replace(HALF_FULL, unreclaimable_bytes=GIB)
    check_room(1000, lambda: full)
    check_room(GIB, None)
    with room_for(GIB, None):
        pass


def test_two_that_need_a_good_part_of_what_is_left_run_one_after_the_other() -> None:
    running, most = [0], [0]
    guard = threading.Lock()
    ready = threading.Barrier(3)

    def take() -> None:
        ready.wait()
        with room_for(200 * MIB, lambda: HALF_FULL):
            with guard:
                running[0] += 1
                most[0] = max(most[0], running[0])
            with guard:
                running[0] -= 1

    threads = [threading.Thread(target=take) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1


def test_where_there_is_plenty_nobody_waits_for_anybody() -> None:
    with room_for(10 * MIB, lambda: HALF_FULL):
        done = threading.Event()

        def beside() -> None:
            with room_for(10 * MIB, lambda: HALF_FULL):
                done.set()

        thread = threading.Thread(target=beside)
        thread.start()
        assert done.wait(10.0)
        thread.join()


def test_who_finds_no_room_lets_the_next_one_look() -> None:
    for _ in range(3):
        with pytest.raises(NoRoom), room_for(600 * MIB, lambda: HALF_FULL):
            pass
