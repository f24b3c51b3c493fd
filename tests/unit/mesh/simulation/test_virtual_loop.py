"""Virtual time, and processes that freeze and die on it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

import pytest

from mesh.simulation.virtual_loop import Livelock, NothingLeft, Process, VirtualLoop


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    loop = VirtualLoop()
    yield loop
    loop.discard()


async def tell(log: list[tuple[float, str]], word: str, loop: VirtualLoop, every_s: float = 1.0) -> None:
    try:
        while True:
            await asyncio.sleep(every_s)
            log.append((round(loop.time(), 6), word))
    finally:
        log.append((round(loop.time(), 6), f"{word} says goodbye"))


def test_an_hour_passes_at_once(loop: VirtualLoop) -> None:
    began_s = time.perf_counter()
    loop.run(asyncio.sleep(3600))
    assert loop.time() == 3600
    assert time.perf_counter() - began_s < 1


def test_timers_of_one_instant_ring_in_the_order_in_which_they_were_set(loop: VirtualLoop) -> None:
    rung: list[int] = []

    async def main() -> None:
        for number in range(50):
            asyncio.get_running_loop().call_at(1.0, rung.append, number)
        await asyncio.sleep(2)

    loop.run(main())
    assert rung == list(range(50))


def test_a_timeout_ends_what_takes_longer(loop: VirtualLoop) -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await asyncio.sleep(6)
        return loop.time()

    assert loop.run(main()) == 5


def test_a_frozen_process_misses_nothing_and_is_late(loop: VirtualLoop) -> None:
    log: list[tuple[float, str]] = []

    async def main() -> None:
        process = Process(loop, "p")
        process.start(tell(log, "p", loop))
        await asyncio.sleep(1.5)
        process.freeze()
        await asyncio.sleep(3)
        process.thaw()
        await asyncio.sleep(1.2)

    loop.run(main())
    assert log == [(1.0, "p"), (4.5, "p"), (5.5, "p")]


def test_a_killed_process_says_nothing_more_not_even_goodbye(loop: VirtualLoop) -> None:
    log: list[tuple[float, str]] = []

    async def main() -> None:
        doomed, other = Process(loop, "doomed"), Process(loop, "other")
        doomed.start(tell(log, "doomed", loop))
        other.start(tell(log, "other", loop))
        await asyncio.sleep(1.5)
        doomed.kill()
        await asyncio.sleep(1)

    loop.run(main())
    assert log == [(1.0, "doomed"), (1.0, "other"), (2.0, "other")]


def test_what_a_process_starts_dies_with_it(loop: VirtualLoop) -> None:
    log: list[tuple[float, str]] = []

    async def parent() -> None:
        child = asyncio.create_task(tell(log, "child", loop))
        asyncio.get_running_loop().call_later(2, log.append, (2.0, "timer"))
        await child

    async def main() -> None:
        process = Process(loop, "p")
        process.start(parent())
        await asyncio.sleep(1.5)
        process.kill()
        await asyncio.sleep(3)

    loop.run(main())
    assert log == [(1.0, "child")]


def test_what_is_on_the_wire_arrives_though_its_sender_has_died(loop: VirtualLoop) -> None:
    arrived: list[str] = []

    async def sender() -> None:
        loop.world_later(1, arrived.append, "message")
        await asyncio.sleep(10)

    async def main() -> None:
        process = Process(loop, "p")
        process.start(sender())
        await asyncio.sleep(0.5)
        process.kill()
        await asyncio.sleep(1)

    loop.run(main())
    assert arrived == ["message"]


def test_an_answer_to_a_dead_process_wakes_nobody(loop: VirtualLoop) -> None:
    woken: list[str] = []

    async def main() -> None:
        process, answer = Process(loop, "p"), loop.create_future()

        async def waiting() -> None:
            woken.append(await answer)

        process.start(waiting())
        await asyncio.sleep(0.1)
        process.kill()
        answer.set_result("answer")
        await asyncio.sleep(0.1)

    loop.run(main())
    assert woken == []


def test_callbacks_without_end_are_noticed(loop: VirtualLoop) -> None:
    async def main() -> None:
        def again() -> None:
            asyncio.get_running_loop().call_soon(again)

        again()
        await asyncio.sleep(1)

    with pytest.raises(Livelock):
        loop.run(main())


def test_timers_that_set_themselves_again_for_now_are_noticed(loop: VirtualLoop) -> None:
    async def main() -> None:
        def again() -> None:
            asyncio.get_running_loop().call_later(0, again)

        again()
        await asyncio.sleep(1)

    with pytest.raises(Livelock):
        loop.run(main())


def test_a_timer_that_rings_a_rounding_error_early_rings_again_and_then_in_time(loop: VirtualLoop) -> None:
    since_s, lasts_s = 0.1, 0.2  # 0.1 + 0.2 - 0.1 < 0.2
    rung: list[float] = []

    async def main() -> None:
        def look() -> None:
            rung.append(loop.time())
            if loop.time() - since_s < lasts_s:
                loop.call_later(since_s + lasts_s - loop.time(), look)

        loop.call_at(since_s + lasts_s, look)
        await asyncio.sleep(1)

    loop.run(main())
    assert len(rung) < 5


def test_waiting_for_what_nothing_will_bring_is_noticed(loop: VirtualLoop) -> None:
    async def main() -> None:
        await loop.create_future()

    with pytest.raises(NothingLeft):
        loop.run(main())


def test_an_error_that_nobody_catches_is_kept(loop: VirtualLoop) -> None:
    def fail() -> None:
        raise RuntimeError("of a callback")

    async def main() -> None:
        asyncio.get_running_loop().call_soon(fail)
        await asyncio.sleep(1)

    loop.run(main())
    assert len(loop.mishaps) == 1
    assert "of a callback" in loop.mishaps[0]


def test_each_instant_ends_with_a_look_at_the_world() -> None:
    seen: list[float] = []
    looks: list[Callable[[], float]] = []
    loop = VirtualLoop(lambda: seen.append(looks[0]()))
    looks.append(loop.time)

    async def main() -> None:
        for _ in range(3):
            await asyncio.sleep(1)

    loop.run(main())
    loop.discard()
    assert seen == [0, 1, 2]
    assert loop.steps == 3


def test_many_cancelled_timers_take_no_room(loop: VirtualLoop) -> None:
    async def main() -> None:
        for _ in range(10_000):
            asyncio.get_running_loop().call_later(100, print).cancel()

    loop.run(main())
    assert len(loop._timers) < 2_000
