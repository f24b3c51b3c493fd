"""Slow work beside the event loop, on a thread of its own.

Not a pool: a framework that hangs in a load would keep a pool's thread for ever, and after a few of those nothing would
load. A thread costs a tenth of a millisecond to start, which no load notices.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class InThread(Protocol):
    """`in_thread`, or what stands in for it where time is simulated."""

    def __call__(self, name: str, work: Callable[..., T], *arguments: Any) -> asyncio.Future[T]: ...


def in_thread(name: str, work: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
    """Run on a thread of its own: a load that hangs must not use up a pool that other loads need."""
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

    threading.Thread(target=run, name=f"hexcomb-{name}", daemon=True).start()
    return future
