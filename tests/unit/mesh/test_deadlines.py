"""Deadlines of many calls, kept by one timer."""

from __future__ import annotations

import asyncio
import time

from mesh.transport.deadlines import Deadlines


async def test_calls_are_due_at_their_deadlines_whatever_the_order_they_came_in() -> None:
    due: list[int] = []
    all_due = asyncio.Event()

    def on_due(call_id: int) -> None:
        due.append(call_id)
        if len(due) == 3:
            all_due.set()

    deadlines = Deadlines(on_due)
    now_s = time.monotonic()
    for call_id, in_s in ((1, 0.06), (2, 0.02), (3, 3600.0), (4, 0.04), (5, 0.03)):
        deadlines.add(call_id, now_s + in_s)
    deadlines.discard(5)
    async with asyncio.timeout(20):
        await all_due.wait()
    assert due == [2, 4, 1]
    assert time.monotonic() >= now_s + 0.06
    deadlines.close()


async def test_a_deadline_that_has_passed_is_due_at_once_and_a_closed_one_never() -> None:
    due: asyncio.Queue[int] = asyncio.Queue()
    deadlines = Deadlines(due.put_nowait)
    deadlines.add(1, time.monotonic() - 1)
    async with asyncio.timeout(20):
        assert await due.get() == 1
    deadlines.add(2, time.monotonic())
    deadlines.close()
    deadlines.add(3, time.monotonic())
    async with asyncio.timeout(20):
        assert await due.get() == 3
