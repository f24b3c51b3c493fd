"""One piece of work for many waiters.

The first who asks for a key starts the work, the others join it. Each waits as long as its own deadline allows. One
who gives up, or is cancelled, does not disturb the rest; when the last one has left, the work is told to stop, and it
ends at its next check. Work that is stopping is not joined: a newcomer waits until it has ended and starts afresh,
because two workers must not write the same files.

A result may hold something for its waiters (a reference). `let_go` is called once per result, after the last waiter
has taken what it needs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from runtime_adapters.artifacts.download import Stop
from runtime_adapters.artifacts.errors import FetchTimedOut

K = TypeVar("K")
V = TypeVar("V")
T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Flight(Generic[V]):
    task: asyncio.Task[V]
    stop: Stop
    waiters: int = 0
    ended: bool = False


class SingleFlight(Generic[K, V]):
    """Owned by one event loop."""

    def __init__(self, timeout_s: float, let_go: Callable[[V], None]) -> None:
        self._timeout_s = timeout_s
        self._let_go = let_go
        self._flights: dict[K, _Flight[V]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    async def join(
        self,
        key: K,
        work: Callable[[Stop], Coroutine[Any, Any, V]],
        take: Callable[[V], T],
        wait_until_s: float | None = None,
    ) -> T:
        """Wait for the work under `key`, starting it if need be, and `take` this waiter's part of its result.

        Raises what the work raises, and FetchTimedOut at `wait_until_s` (on the loop's clock).
        """
        while (flight := self._flights.get(key)) is not None and flight.stop.wanted.is_set():
            await _until({flight.task}, wait_until_s)
        if flight is None:
            flight = self._start(key, work)
        flight.waiters += 1
        try:
            await _until({flight.task}, wait_until_s)
            return take(flight.task.result())
        finally:
            flight.waiters -= 1
            if flight.waiters == 0:
                self._abandon(flight)

    async def stop_all(self) -> None:
        """Tell all work to stop, and wait until it has."""
        flights = list(self._flights.values())
        for flight in flights:
            flight.stop.wanted.set()
        if flights:
            await asyncio.wait({flight.task for flight in flights})

    def _start(self, key: K, work: Callable[[Stop], Coroutine[Any, Any, V]]) -> _Flight[V]:
        stop = Stop(deadline_s=time.monotonic() + self._timeout_s)
        flight = _Flight(asyncio.get_running_loop().create_task(work(stop)), stop)
        self._flights[key] = flight
        flight.task.add_done_callback(lambda _: self._ended(key, flight))
        return flight

    def _ended(self, key: K, flight: _Flight[V]) -> None:
        del self._flights[key]
        flight.ended = True
        if flight.waiters == 0:
            self._release_result(flight)

    def _abandon(self, flight: _Flight[V]) -> None:
        flight.stop.wanted.set()
        # A flight that has not ended lets go in its callback.
        if flight.ended:
            self._release_result(flight)

    def _release_result(self, flight: _Flight[V]) -> None:
        if not flight.task.cancelled() and flight.task.exception() is None:
            self._let_go(flight.task.result())


async def _until(tasks: set[asyncio.Task[Any]], wait_until_s: float | None) -> None:
    remaining_s = None if wait_until_s is None else max(0.0, wait_until_s - asyncio.get_running_loop().time())
    done, _ = await asyncio.wait(tasks, timeout=remaining_s)
    if not done:
        raise FetchTimedOut("fetch did not end before the caller's deadline; ask again with a longer one")


async def in_thread(executor: Executor, stop: Stop, work: Callable[..., T], *arguments: object) -> T:
    """Run what blocks; when this task is cancelled, tell it to stop and wait until it has."""
    future = asyncio.get_running_loop().run_in_executor(executor, partial(work, *arguments))
    return await _finish_despite_cancel(future, stop)


async def _finish_despite_cancel(awaitable: Awaitable[T], stop: Stop) -> T:
    """Await work on a thread; when this task is cancelled, tell the thread to stop and wait until it has."""
    future = asyncio.ensure_future(awaitable)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        stop.wanted.set()
        await asyncio.wait({future})
        if not future.cancelled():
            future.exception()
        raise
