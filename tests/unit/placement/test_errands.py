"""What is sent out is not waited for, is not sent twice at once, and takes nobody down when it fails."""

from __future__ import annotations

import asyncio
import logging

import pytest

from placement.errands import Errands
from placement.errors import StoreUnavailable


async def test_one_errand_at_a_time_about_the_same() -> None:
    errands, gate, done = Errands(), asyncio.Event(), []

    async def work(which: int) -> None:
        await gate.wait()
        done.append(which)

    assert errands.send("a", work(1))
    assert not errands.send("a", work(2))
    assert errands.send("b", work(3))
    assert "a" in errands
    gate.set()
    await errands.settled()
    assert done == [1, 3]
    assert "a" not in errands
    assert errands.send("a", work(4))
    await errands.settled()
    assert done == [1, 3, 4]


async def test_a_failure_is_logged_and_the_errand_may_be_sent_again(caplog: pytest.LogCaptureFixture) -> None:
    errands = Errands()

    async def fail(error: Exception) -> None:
        raise error

    with caplog.at_level(logging.INFO):
        errands.send("a", fail(StoreUnavailable("away")))
        errands.send("b", fail(RuntimeError("a bug")))
        await errands.settled()
    levels = {record.levelname: record.message for record in caplog.records}
    assert "a is tried again later: away" in levels["INFO"]
    assert "b failed" in levels["ERROR"]
    assert len(errands) == 0


async def test_closing_breaks_off_what_does_not_end_in_time() -> None:
    errands = Errands()
    broken_off = asyncio.Event()

    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            broken_off.set()

    errands.send("a", hang())
    await asyncio.sleep(0)
    await errands.close(within_s=0.0)
    assert broken_off.is_set()
    assert len(errands) == 0
