"""Keys that need a look: none lost, none twice in hand, failures put off."""

from __future__ import annotations

import asyncio
import random

from controller.back_off import BackOff
from controller.work_queue import WorkQueue


def quick() -> BackOff:
    return BackOff(base_s=0.001, limit_s=0.004)


async def test_a_key_that_is_added_twice_is_taken_once() -> None:
    queue: WorkQueue[str] = WorkQueue(quick)
    for key in ("a", "b", "a"):
        queue.add(key)
    assert [await queue.take(), await queue.take()] == ["a", "b"]
    assert len(queue) == 0


async def test_a_key_that_changes_while_it_is_in_hand_is_taken_again_and_not_before() -> None:
    queue: WorkQueue[str] = WorkQueue(quick)
    queue.add("a")
    key = await queue.take()
    queue.add("a")
    assert len(queue) == 0
    queue.done(key)
    assert await queue.take() == "a"


async def test_of_two_times_the_nearer_counts() -> None:
    queue: WorkQueue[str] = WorkQueue(quick)
    queue.add_after("a", 3600.0)
    queue.add_after("a", 0.001)
    queue.add_after("a", 3600.0)
    assert await asyncio.wait_for(queue.take(), 30) == "a"


async def test_a_change_comes_before_the_time_that_a_key_was_put_off_to() -> None:
    queue: WorkQueue[str] = WorkQueue(quick)
    queue.add_after("a", 3600.0)
    queue.add("a")
    assert await asyncio.wait_for(queue.take(), 30) == "a"


async def test_what_fails_comes_back_and_others_do_not_wait_for_it() -> None:
    queue: WorkQueue[str] = WorkQueue(quick)
    queue.add("bad")
    assert await queue.take() == "bad"
    assert queue.failed("bad") > 0
    queue.add("good")
    assert await queue.take() == "good"
    assert queue.failing == 1
    assert await asyncio.wait_for(queue.take(), 30) == "bad"
    queue.done("bad")
    assert queue.failing == 0


async def test_a_server_that_says_how_long_to_wait_is_heeded() -> None:
    queue: WorkQueue[str] = WorkQueue(quick)
    queue.add("a")
    await queue.take()
    assert queue.failed("a", at_least_s=7.0) == 7.0


def test_waits_grow_to_the_limit_and_begin_anew_after_a_success() -> None:
    back_off = BackOff(base_s=1.0, limit_s=5.0, random=random.Random(3))
    waits = [back_off.next_s() for _ in range(5)]
    for wait_s, longest_s in zip(waits, (1.0, 2.0, 4.0, 5.0, 5.0), strict=True):
        assert longest_s / 2 <= wait_s <= longest_s
    back_off.reset()
    assert back_off.next_s() <= 1.0
