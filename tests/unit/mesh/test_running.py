"""Where a model runs: on the loop when that is cheaper, on threads otherwise, and held until its run has ended."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mesh.batching.joining import Request
from mesh.batching.run_place import HANDOVER_S
from mesh.resident import SMALL_RUN_BYTES, Resident
from mesh.running import INLINE_BYTES_MAX, Runner
from runtime_adapters.base import CPU, Size

QUICK_S, SLOW_S = HANDOVER_S / 10, HANDOVER_S * 10


class Model:
    """Answers on whatever thread it is called; a test may make it wait or fail."""

    def __init__(self) -> None:
        self.threads: list[str] = []
        self.entered = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.at_once = self.at_once_max = 0

    def infer(self, inputs: Any, outputs: Any) -> Any:
        self.threads.append(threading.current_thread().name)
        self.at_once += 1
        self.at_once_max = max(self.at_once_max, self.at_once)
        self.entered.release()
        assert self.gate.wait(10)
        self.at_once -= 1
        if self.error is not None:
            raise self.error
        return dict(inputs)


class Pins:
    count = 0


def resident(model: Model, pins: Pins, run_s: float = SLOW_S, *, isolated: bool = False) -> Resident:
    def add(by: int) -> Callable[[Any], None]:
        def change(_: Any) -> None:
            pins.count += by

        return change

    nothing: Any = None
    unused: Any = SimpleNamespace(pins=0)
    return Resident(
        copy=unused,
        model=model,  # type: ignore[arg-type]
        format="fake",
        checker=nothing,
        meter=SimpleNamespace(ran=lambda requests: None),  # type: ignore[arg-type]
        artifact=nothing,
        device=CPU,
        size=Size(1),
        estimated_bytes=1,
        declared_bytes=None,
        run_s=run_s,
        load_s=0.0,
        isolated=isolated,
        pin=add(1),
        unpin=add(-1),
    )


@pytest.fixture
def queued() -> list[float]:
    return []


@pytest.fixture
def runner(queued: list[float]) -> Any:
    made = Runner(1, 4, queued.append)
    yield made
    made.close()


INPUTS = {"x": np.zeros(1, np.float32)}


def request() -> Request:
    return Request(INPUTS, (), 4)


@pytest.mark.parametrize(
    ("run_s", "request_bytes", "isolated", "inline"),
    [
        (QUICK_S, 100, False, True),
        (SLOW_S, 100, False, False),
        (QUICK_S, SMALL_RUN_BYTES, False, True),
        (QUICK_S, SMALL_RUN_BYTES + 1, False, False),
        (QUICK_S, 100, True, False),
    ],
)
async def test_only_small_requests_for_quick_models_of_this_process_run_on_the_loop(
    runner: Runner, run_s: float, request_bytes: int, isolated: bool, inline: bool
) -> None:
    assert runner.runs_inline(resident(Model(), Pins(), run_s, isolated=isolated), request_bytes) is inline


async def test_a_model_that_turns_out_slow_leaves_the_loop(runner: Runner) -> None:
    model = Model()
    copy = resident(model, Pins(), QUICK_S)
    model.infer = lambda inputs, outputs: (sum(range(40_000)), dict(inputs))[1]  # type: ignore[method-assign]
    for _ in range(100):
        if not runner.runs_inline(copy, 100):
            break
        runner.run_inline(copy, INPUTS, (), 100)
    assert not runner.runs_inline(copy, 100)


async def test_larger_requests_come_to_the_loop_when_they_have_proved_quick_and_the_largest_never(
    runner: Runner,
) -> None:
    copy = resident(Model(), Pins(), QUICK_S)
    large, other = 50_000, 500_000
    for _ in range(1000):
        if runner.runs_inline(copy, large):
            break
        await runner.run_in_thread(copy, Request(INPUTS, (), large))
    assert runner.runs_inline(copy, large)
    assert not runner.runs_inline(copy, other), "ten times as large"
    for _ in range(100):
        await runner.run_in_thread(copy, Request(INPUTS, (), INLINE_BYTES_MAX + 1))
    assert not runner.runs_inline(copy, INLINE_BYTES_MAX + 1)


async def test_a_run_on_a_thread_holds_the_copy_until_it_ends(runner: Runner, queued: list[float]) -> None:
    model, pins = Model(), Pins()
    model.gate.clear()
    copy = resident(model, pins)
    running = asyncio.ensure_future(runner.run_in_thread(copy, request()))
    await asyncio.to_thread(model.entered.acquire)
    assert pins.count == 1
    model.gate.set()
    assert (await running)["x"] is INPUTS["x"]
    assert pins.count == 0
    assert model.threads[0].startswith("infer")
    assert len(queued) == 1


async def test_a_caller_that_leaves_does_not_let_go_of_a_copy_that_still_runs(runner: Runner) -> None:
    model, pins = Model(), Pins()
    model.gate.clear()
    running = asyncio.ensure_future(runner.run_in_thread(resident(model, pins), request()))
    await asyncio.to_thread(model.entered.acquire)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert pins.count == 1, "the copy could be unloaded under its run"
    model.gate.set()
    after = Model()
    await runner.run_in_thread(resident(after, Pins()), request())  # the pool has one thread, so the first has ended
    assert pins.count == 0


async def test_an_error_of_the_model_reaches_the_caller_and_the_copy_is_let_go(runner: Runner) -> None:
    model, pins = Model(), Pins()
    model.error = ValueError("no")
    with pytest.raises(ValueError, match="no"):
        await runner.run_in_thread(resident(model, pins), request())
    assert pins.count == 0


async def test_an_isolated_model_that_thinks_keeps_no_thread_from_the_others(runner: Runner) -> None:
    slow, quick = Model(), Model()
    slow.gate.clear()
    copy = resident(slow, Pins(), isolated=True)
    thinking = [asyncio.ensure_future(runner.run_in_thread(copy, request())) for _ in range(20)]
    await asyncio.to_thread(slow.entered.acquire)
    await asyncio.wait_for(runner.run_in_thread(resident(quick, Pins()), request()), 5)
    await asyncio.wait_for(runner.run_in_thread(resident(quick, Pins(), isolated=True), request()), 5)
    slow.gate.set()
    await asyncio.gather(*thinking)
    assert slow.at_once_max == 1, "one process runs one request at a time"


async def test_a_caller_that_leaves_takes_its_run_out_of_the_queue(runner: Runner) -> None:
    busy, waiting, pins = Model(), Model(), Pins()
    busy.gate.clear()
    first = asyncio.ensure_future(runner.run_in_thread(resident(busy, Pins()), request()))
    await asyncio.to_thread(busy.entered.acquire)
    copy = resident(waiting, pins)
    queued = [asyncio.ensure_future(runner.run_in_thread(copy, request())) for _ in range(20)]
    await asyncio.sleep(0)
    assert copy.lane is not None
    assert len(copy.lane.waiting) == 20
    for caller in queued:
        caller.cancel()
    await asyncio.gather(*queued, return_exceptions=True)
    assert not copy.lane.waiting
    assert pins.count == 0, "the copy is held for runs that nobody waits for"
    busy.gate.set()
    await first
    await runner.run_in_thread(copy, request())
    assert len(waiting.threads) == 1, "runs that nobody waits for took the threads"


async def test_callers_that_leave_an_isolated_model_do_not_spread_it_over_the_threads(runner: Runner) -> None:
    slow, quick, pins = Model(), Model(), Pins()
    slow.gate.clear()
    copy = resident(slow, pins, isolated=True)
    for _ in range(8):  # of 4 threads
        caller = asyncio.ensure_future(runner.run_in_thread(copy, request()))
        await asyncio.sleep(0.01)
        caller.cancel()
        await asyncio.gather(caller, return_exceptions=True)
    await asyncio.wait_for(runner.run_in_thread(resident(quick, Pins(), isolated=True), request()), 5)
    assert len(slow.threads) == slow.at_once_max == 1
    slow.gate.set()
    await asyncio.wait_for(runner.run_in_thread(copy, request()), 5)
    assert pins.count == 0
