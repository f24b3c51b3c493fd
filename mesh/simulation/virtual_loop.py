"""An asyncio event loop on which time costs nothing, and whose processes can be frozen and killed.

**Time** stands still while callbacks run. When nothing is left to run now, it jumps to the next timer: an hour of
timeouts passes in as many callbacks as it has timers. One timer at a time is taken, those of the same instant in the
order in which they were set, so a run is a function of its seed alone.

**Processes.** One loop carries a whole pool. Whatever a pod's code schedules (a task's step, a timer, a future's
callback) carries the context that it was scheduled in, and that context says whose it is. So the loop can do to a pod
what the kernel does to a process: freeze it (its callbacks are put aside, and run when it thaws: SIGSTOP, or a long
pause) or kill it (they never run: no `finally`, no farewell; kill -9). What belongs to no process is the world: wires,
the store, the clients.

**Steps.** Each timer that fires is one step: a message that arrives, a load that ends, a timeout, a fault. After each
step and all that follows from it at the same instant `on_quiet` is called; checkers look at the world there.

Deliberately absent: sockets, threads, signals. What is handed to an executor is done at once; what needs time, a
socket or a thread of its own must be given a stand-in.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import heapq
import itertools
import traceback
from collections import deque
from collections.abc import Callable, Coroutine
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakSet

T = TypeVar("T")

CALLBACKS_PER_INSTANT_MAX = 200_000
"""More callbacks than this while time hardly moves are a loop without end."""
INSTANT_S = 1e-3
TICK_S = 1e-9
"""What a timer takes that is due at once. Time that stood quite still would let whoever sets a timer again, because it
rang a rounding error too early, do so for ever."""
_PURGE_MIN = 512
"""Cancelled timers are removed once there are this many and they are half of all."""


class Livelock(Exception):
    """Callbacks schedule callbacks, and time does not move."""


class NothingLeft(Exception):
    """Something is still waited for, and no timer will ever wake it."""


class Life(Enum):
    """What the kernel would say of a process."""

    RUNNING = "running"
    FROZEN = "frozen"
    DEAD = "dead"


class Process:
    """Whose callbacks these are. `start` runs a coroutine as this process."""

    __slots__ = ("_context", "_loop", "life", "name", "parked", "tasks")

    def __init__(self, loop: VirtualLoop, name: str) -> None:
        self.name = name
        self.life = Life.RUNNING
        self.parked: list[asyncio.Handle] = []
        """What came due while it was frozen."""
        self.tasks: WeakSet[asyncio.Task[Any]] = WeakSet()
        self._loop = loop
        self._context = contextvars.Context()
        self._context.run(_PROCESS.set, self)

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task of this process."""
        return self._loop.create_task(work, context=self._context.copy())

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run a function now, as this process: what it schedules belongs to it. Only while it is running."""
        return self._context.copy().run(function, *arguments)

    def freeze(self) -> None:
        """From now on nothing of it runs."""
        if self.life is Life.RUNNING:
            self.life = Life.FROZEN

    def thaw(self) -> None:
        """It goes on; what came due meanwhile runs now, in its order."""
        if self.life is Life.FROZEN:
            self.life = Life.RUNNING
            parked, self.parked = self.parked, []
            self._loop.run_now(parked)

    def kill(self) -> None:
        """It is gone, at once and without a word."""
        if self.life is not Life.DEAD:
            self.life = Life.DEAD
            self._loop.bury(self)


class _Handle(asyncio.Handle):
    """asyncio's, made without asking whether the loop is being debugged: one is made for each callback."""

    __slots__ = ()

    def __init__(
        self,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        loop: asyncio.AbstractEventLoop,
        context: contextvars.Context | None,
    ) -> None:
        self._context = contextvars.copy_context() if context is None else context
        self._loop = loop
        self._callback = callback
        self._args = args
        self._cancelled = False
        self._repr = None
        self._source_traceback = None


_PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar("hexcomb_process", default=None)


class VirtualLoop(asyncio.BaseEventLoop):
    """The loop. Build it, `run` a coroutine on it, `discard` it."""

    _stopping: bool

    def __init__(self, on_quiet: Callable[[], None] | None = None) -> None:
        super().__init__()
        self.steps = 0
        """Timers that fired for somebody who was alive."""
        self.mishaps: list[str] = []
        """What callbacks and tasks raised and nobody caught."""
        self._now_s = 0.0
        self._instant_ends_s = 0.0
        self._callbacks = 0
        """That ran in this instant."""
        self._soon: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._timer_ids = itertools.count()
        self._cancelled_timers = 0
        self._world = contextvars.Context()
        self._on_quiet = on_quiet
        self._tasks: WeakSet[asyncio.Task[Any]] = WeakSet()
        self._buried: list[asyncio.Task[Any]] = []
        self._discarded = False
        self.set_exception_handler(self._note_mishap)

    # What asyncio asks of a loop ------------------------------------------------------------------------------------

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now_s

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """At this instant, after what is scheduled already."""
        handle = _Handle(callback, args, self, context)
        if not self._discarded:
            self._soon.append(handle)
        return handle

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """As `call_soon`: there is one thread."""
        return self.call_soon(callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """At `when`, or now if that has passed."""
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        if not self._discarded:
            heapq.heappush(self._timers, (when, next(self._timer_ids), handle))
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """In `delay` seconds."""
        return self.call_at(self._now_s + delay, callback, *args, context=context)

    def create_task(  # type: ignore[override]
        self,
        coro: Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[T]:
        """A task of whoever calls, or of whom the context belongs to."""
        task = asyncio.Task(coro, loop=self, name=name, context=context)
        process = _PROCESS.get() if context is None else context.get(_PROCESS)
        (self._tasks if process is None else process.tasks).add(task)
        return task

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """There are no threads here: it is done at once, and takes no time."""
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        self._cancelled_timers += 1
        if self._cancelled_timers > _PURGE_MIN and 2 * self._cancelled_timers > len(self._timers):
            self._timers = [timer for timer in self._timers if not timer[2].cancelled()]
            heapq.heapify(self._timers)
            self._cancelled_timers = 0

    def _run_once(self) -> None:
        """Everything at this instant; then the checkers; then on to the next instant."""
        soon = self._soon
        while soon:
            handle = soon.popleft()
            if handle._cancelled:
                continue
            process = handle._context.get(_PROCESS)  # type: ignore[attr-defined]
            if process is not None and process.life is not Life.RUNNING:
                if process.life is Life.FROZEN:
                    process.parked.append(handle)
                continue
            handle._run()
            if self._stopping:
                return
            self._callbacks += 1
            if self._callbacks > CALLBACKS_PER_INSTANT_MAX:
                raise Livelock(
                    f"{CALLBACKS_PER_INSTANT_MAX:,} callbacks ran at {self._now_s:.6f} s and more are waiting; "
                    f"the last was {handle!r}"
                )
        if self._on_quiet is not None:
            self._on_quiet()
        self._take_next_timer()

    def _take_next_timer(self) -> None:
        timers = self._timers
        while timers:
            when_s, _, handle = heapq.heappop(timers)
            if handle._cancelled:
                self._cancelled_timers -= 1
                continue
            process = handle._context.get(_PROCESS)  # type: ignore[attr-defined]
            if process is not None and process.life is Life.DEAD:
                continue
            self._now_s = when_s if when_s > self._now_s else self._now_s + TICK_S
            if self._now_s > self._instant_ends_s:
                self._instant_ends_s = self._now_s + INSTANT_S
                self._callbacks = 0
            self.steps += 1
            self._soon.append(handle)
            return
        raise NothingLeft(f"at {self._now_s:.3f} s no timer is left, and the run has not ended")

    # The world, processes, the end ----------------------------------------------------------------------------------

    def world_later(self, delay_s: float, callback: Callable[..., object], *arguments: Any) -> asyncio.TimerHandle:
        """A timer of the world, whoever sets it: what is on a wire arrives even if its sender has died."""
        return self.call_at(self._now_s + delay_s, callback, *arguments, context=self._world)

    def world_start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task of the world, whoever starts it."""
        return self.create_task(work, context=contextvars.Context())

    def run_now(self, handles: list[asyncio.Handle]) -> None:
        """Callbacks that waited for their process."""
        self._soon.extend(handles)

    def bury(self, process: Process) -> None:
        """Keep what a dead process leaves: a task that is collected would run its `finally` blocks."""
        self._buried.extend(process.tasks)
        process.tasks.clear()
        process.parked.clear()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run the world until `work` is done."""
        return self.run_until_complete(self.create_task(work))

    def discard(self) -> None:
        """The run is over: drop everything, letting nothing of it act any more."""
        self._discarded = True
        tasks = [*asyncio.all_tasks(self), *self._buried]
        self._soon.clear()
        self._timers.clear()
        asyncio.events._set_running_loop(self)
        try:
            for task in tasks:
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                with contextlib.suppress(BaseException):  # its `finally` blocks find a world that is gone
                    task.get_coro().close()
        finally:
            asyncio.events._set_running_loop(None)
        self._buried.clear()
        self.close()

    def _note_mishap(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if self._discarded:
            return
        error = context.get("exception")
        if error is None:
            self.mishaps.append(str(context))
            return
        places = traceback.extract_tb(error.__traceback__)
        where = " < ".join(f"{Path(place.filename).name}:{place.lineno}" for place in reversed(places[-3:]))
        self.mishaps.append(f"{context.get('message')}: {error!r} at {where}")
