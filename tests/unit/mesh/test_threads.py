"""Work beside the event loop: on threads that are kept, of which there are as many as there is work."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from queue import SimpleQueue

import pytest

from mesh import threads
from mesh.threads import IDLE_MAX, in_thread

LONG_S = 10


@pytest.fixture(autouse=True)
def nobody_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test begins without kept threads."""
    monkeypatch.setattr(threads, "_idle", [])


async def test_work_after_work_is_done_by_kept_threads() -> None:
    seen = set()
    for _ in range(50):
        seen.add(await in_thread("look", threading.get_ident))
    assert len(seen) <= IDLE_MAX + 1


async def test_a_thread_is_called_after_the_work_that_it_does() -> None:
    assert await in_thread("look", lambda: threading.current_thread().name) == "hexcomb-look"
    assert await in_thread("load", lambda: threading.current_thread().name) == "hexcomb-load"


async def test_work_that_hangs_keeps_nobody_waiting() -> None:
    go_on = threading.Event()
    hanging = [in_thread("hang", go_on.wait, LONG_S) for _ in range(3 * IDLE_MAX)]
    assert await asyncio.wait_for(in_thread("quick", lambda: "done"), LONG_S) == "done"
    go_on.set()
    assert all(await asyncio.gather(*hanging))


async def test_after_a_rush_only_a_few_threads_are_kept() -> None:
    count = 3 * IDLE_MAX
    together = threading.Barrier(count)

    def work() -> threading.Thread:
        together.wait(LONG_S)
        return threading.current_thread()

    crowd = await asyncio.gather(*(in_thread("rush", work) for _ in range(count)))
    until_s = time.monotonic() + LONG_S
    while (alive := [thread for thread in crowd if thread.is_alive()])[2 * IDLE_MAX :] and time.monotonic() < until_s:
        alive[0].join(0.01)
    assert len(alive) <= 2 * IDLE_MAX


async def test_an_error_is_the_callers() -> None:
    with pytest.raises(ZeroDivisionError):
        await in_thread("fail", lambda: 1 / 0)
    with pytest.raises(SystemExit):
        await in_thread("exit", exec, "raise SystemExit")
    assert await in_thread("after", lambda: 1) == 1


async def test_what_work_was_about_is_let_go_of() -> None:
    class Model:
        pass

    model = Model()
    gone = weakref.ref(model)
    await in_thread("unload", id, model)
    del model
    for _ in range(100):
        gc.collect()
        if gone() is None:
            return
        await in_thread("other", lambda: None)
    pytest.fail("it is still there")


async def test_work_is_done_where_no_spare_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = threads._begin_thread()
    threads._idle.append(begun)
    tried: SimpleQueue[bool] = SimpleQueue()

    def refused() -> SimpleQueue[tuple[str, object]]:
        tried.put(True)
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threads, "_begin_thread", refused)
    assert await in_thread("last", lambda: "done") == "done"
    assert tried.get(timeout=LONG_S)


async def test_a_caller_that_left_is_not_answered() -> None:
    go_on = threading.Event()
    left = in_thread("slow", go_on.wait, LONG_S)
    left.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await left
    assert await in_thread("next", lambda: "done") == "done"
