"""A pod's life: in which order its start, its draining and its stop follow one another."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mesh.process import live


class Steps:
    """A node that tells what it does. Ending a step early takes it a few turns of the loop, as sockets do."""

    def __init__(self, *, start_ends: bool = True, fails: Exception | None = None) -> None:
        self.stop_wanted = asyncio.Event()
        self.told: list[str] = []
        self._start_ends = start_ends
        self._fails = fails
        self.drained = asyncio.Event()

    async def _step(self, name: str, end: asyncio.Event | None) -> None:
        self.told.append(name)
        try:
            if end is not None:
                await end.wait()
        finally:
            for _ in range(3):
                await asyncio.sleep(0)
            self.told.append(f"{name} ended")

    async def start(self) -> None:
        await self._step("start", None if self._start_ends else asyncio.Event())
        if self._fails is not None:
            raise self._fails

    async def drain(self) -> None:
        await self._step("drain", self.drained)

    async def stop(self) -> None:
        await self._step("stop", None)


async def turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


WHOLE = ["start", "start ended", "drain", "drain ended", "stop", "stop ended"]


async def test_a_start_that_is_not_through_ends_before_anything_is_stopped() -> None:
    node: Any = Steps(start_ends=False)
    running = asyncio.create_task(live(node, asyncio.Event()))
    await turns()
    assert node.told == ["start"]
    node.stop_wanted.set()
    node.drained.set()
    await running
    assert node.told == WHOLE


async def test_a_second_signal_ends_the_draining_before_the_stop() -> None:
    node: Any = Steps()
    hurry = asyncio.Event()
    running = asyncio.create_task(live(node, hurry))
    await turns()
    node.stop_wanted.set()
    await turns()
    assert node.told == WHOLE[:3]
    hurry.set()
    await running
    assert node.told == WHOLE


async def test_a_start_that_fails_is_told_and_what_had_started_is_stopped() -> None:
    node: Any = Steps(fails=OSError("the port is taken"))
    with pytest.raises(OSError, match="taken"):
        await live(node, asyncio.Event())
    assert node.told == ["start", "start ended", "stop", "stop ended"]
    assert asyncio.all_tasks() == {asyncio.current_task()}
