"""A run with many answers: made on a thread of its own, taken by the event loop as fast as it likes.

The thread runs ahead of whoever takes the answers by a few, then waits. When nobody takes them any more, it ends after
its next answer: a model cannot be interrupted in between. Until then the copy stays pinned.

Deliberately absent: sharing of runs, and of copies: a copy in a process of its own has one run at a time, and others
wait for the whole stream. More copies run more streams.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Sequence

from mesh.resident import Resident
from mesh.threads import in_thread
from runtime_adapters.base import Array, Streaming, Tensors

AHEAD_MAX = 8
"""Answers that wait to be taken."""


async def answers_of(
    resident: Resident, inputs: Tensors, outputs: Sequence[str]
) -> AsyncGenerator[dict[str, Array], None]:
    """The answers of one run on a pinned copy, whose pin is given back when the run has ended. Raises what the model
    raises."""
    model = resident.model
    assert isinstance(model, Streaming)
    loop = asyncio.get_running_loop()
    taken: asyncio.Queue[dict[str, Array] | None] = asyncio.Queue()
    room = threading.Semaphore(AHEAD_MAX)
    stop = threading.Event()

    def run() -> None:
        with contextlib.closing(model.infer_stream(inputs, outputs)) as answers:
            for answer in answers:
                room.acquire()
                if stop.is_set():
                    return
                loop.call_soon_threadsafe(taken.put_nowait, answer)

    def ended(future: asyncio.Future[None]) -> None:
        resident.let_go()
        future.exception()  # it is told to whoever waits, if anybody does
        taken.put_nowait(None)

    running = in_thread("stream", run)
    running.add_done_callback(ended)
    try:
        while (answer := await taken.get()) is not None:
            room.release()
            yield answer
        running.result()
    finally:
        stop.set()
        room.release()
