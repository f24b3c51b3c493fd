"""Threads that stay: started when they are needed, and ended when they are closed and done."""

from __future__ import annotations

import threading
from queue import SimpleQueue

import pytest

from mesh.threads import Workers

LONG_S = 10


def test_no_more_threads_start_than_are_busy_at_a_time() -> None:
    workers, seen = Workers(3, "test-few"), SimpleQueue[str]()
    for _ in range(20):
        workers.submit(lambda: seen.put(threading.current_thread().name), busy=1)
    assert {seen.get(timeout=LONG_S) for _ in range(20)} == {"test-few-0"}
    both = threading.Barrier(2)
    for busy in (1, 2):
        workers.submit(lambda: seen.put(f"{both.wait(LONG_S) >= 0}"), busy)
    assert [seen.get(timeout=LONG_S) for _ in range(2)] == ["True", "True"]
    workers.close()


def test_work_that_fails_takes_no_thread_with_it(caplog: pytest.LogCaptureFixture) -> None:
    workers, seen = Workers(1, "test-broken"), SimpleQueue[int]()
    workers.submit(lambda: 1 / 0, busy=1)
    workers.submit(lambda: seen.put(1), busy=1)
    assert seen.get(timeout=LONG_S) == 1
    assert "test-broken-0" in caplog.text
    workers.close()


def test_closed_workers_finish_what_they_have_and_end() -> None:
    workers, seen, gate = Workers(1, "test-closed"), SimpleQueue[int](), threading.Event()
    workers.submit(lambda: gate.wait(LONG_S), busy=1)
    workers.submit(lambda: seen.put(1), busy=1)
    workers.close()
    (worker,) = (thread for thread in threading.enumerate() if thread.name == "test-closed-0")
    (last,) = (thread for thread in threading.enumerate() if thread.name == "test-closed-last")
    assert worker.is_alive()
    assert not last.daemon
    gate.set()
    last.join(LONG_S)
    assert not worker.is_alive()
    assert seen.get(timeout=LONG_S) == 1
