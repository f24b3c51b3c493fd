"""Work beside the event loop.

Slow work gets a thread to itself (`in_thread`). Not one of a pool's few: a framework that hangs in a load would keep it
for ever, and after a few of those nothing would load. So there are as many threads as there is work, and some that have
done theirs are kept for the next. Whoever starts a thread waits until it runs, and then, since it has Python's lock by
then, for up to 5 ms more: the event loop stood still three times for each model that was loaded in place of another. A
kept thread is only told; and one that has work sees to it that another is there to be told, so that the loop hardly
ever starts any.

Runs of models get `Workers`: threads that stay. `ThreadPoolExecutor` does more than is needed for each piece of work (a
future with a lock of its own, two semaphores), since it does not know who counts them; here the caller does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

_log = logging.getLogger("hexcomb.threads")


class InThread(Protocol):
    """`in_thread`, or what stands in for it where time is simulated."""

    def __call__(self, name: str, work: Callable[..., T], *arguments: Any) -> asyncio.Future[T]: ...


def in_thread(name: str, work: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
    """Run on a thread that has nothing else to do: a load that hangs must not use up a pool that other loads need."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result: T | None = None
        problem: BaseException | None = None
        try:
            result = work(*arguments)
        except BaseException as error:
            problem = error
        with contextlib.suppress(RuntimeError):  # the loop was closed while the thread ran
            loop.call_soon_threadsafe(settle, result, problem)

    _tell(f"hexcomb-{name}", run)
    return future


IDLE_MAX = 8
"""Threads without work that are kept: 100 KB of memory each. Nearly always two are enough."""

_Told = tuple[str, Callable[[], None]]
_idle: list[SimpleQueue[_Told]] = []
"""Where threads without work listen, the last to have had some at the end."""


def _tell(name: str, work: Callable[[], None]) -> None:
    try:
        listening = _idle.pop()
    except IndexError:
        listening = _begin_thread()
    listening.put((name, work))


def _begin_thread() -> SimpleQueue[_Told]:
    listening: SimpleQueue[_Told] = SimpleQueue()
    threading.Thread(target=_listen, args=(listening,), name="hexcomb-idle", daemon=True).start()
    return listening


def _listen(listening: SimpleQueue[_Told]) -> None:
    thread = threading.current_thread()
    while True:
        thread.name, work = listening.get()
        if not _idle:
            with contextlib.suppress(RuntimeError):  # there may be no more of them: then the loop will find out
                _idle.append(_begin_thread())
        work()
        del work  # or it would keep what the work was about until there is more
        thread.name = "hexcomb-idle"
        if len(_idle) >= IDLE_MAX:
            return
        _idle.append(listening)


class Workers:
    """At most `count` threads, each of which starts when it is first needed. One thread hands them their work."""

    def __init__(self, count: int, name: str) -> None:
        self.count = count
        self._name = name
        self._work: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def submit(self, work: Callable[[], object], busy: int) -> None:
        """Have one of them do it; what it raises is logged. `busy`: how many are at work then, this one's included: at
        most `count`."""
        if len(self._threads) < busy:
            name = f"{self._name}-{len(self._threads)}"
            thread = threading.Thread(target=_work_through, args=(self._work,), name=name, daemon=True)
            self._threads.append(thread)
            thread.start()
        self._work.put(work)

    def close(self) -> None:
        """Each ends when it has no more work. Python waits for that at its end, since frameworks crash when their
        libraries are unloaded under a run."""
        for _ in self._threads:
            self._work.put(None)
        if self._threads:
            threading.Thread(target=_join, args=(self._threads,), name=f"{self._name}-last").start()


def _work_through(queue: SimpleQueue[Callable[[], object] | None]) -> None:
    while (work := queue.get()) is not None:
        try:
            work()
        except BaseException:
            _log.exception("work on %s failed", threading.current_thread().name)
        del work  # or it would keep what the work was about until there is more


def _join(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join()
