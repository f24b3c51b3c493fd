"""Running a model: on the event loop when that is quicker than handing it to a thread, else on a bounded pool.

A hand-over to a worker thread and back costs roughly `HANDOVER_S` of everybody's time. A tiny model runs in a tenth of
that, so its runs stay on the loop, where they hold up other requests for less time than the hand-over would. What a
copy costs is measured, not guessed: an exponentially weighted mean of its own runs, seeded at warm-up. Only small
requests qualify, since the mean says nothing about a request a thousand times the usual size.

A run cannot be interrupted: when its client goes away, the pin on the copy stays until the run returns.

Deliberately absent: batching of requests that arrive together.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from mesh.resident import Resident
from runtime_adapters.base import Array, Tensors

HANDOVER_S = 60e-6
"""Loop -> thread -> loop: 30 to 62 µs at the median of several runs on two cores (`make bench`, request_cost)."""
INLINE_BYTES_MAX = 4096
"""Requests larger than this always go to a thread: the mean run time was learned on small ones."""


class Runs(Protocol):
    """Whatever runs models: `Runner`, or what stands in for it where time is simulated."""

    def runs_inline(self, resident: Resident, request_bytes: int) -> bool:
        """Whether to call `run_inline`, and not `run_in_thread`."""

    def run_inline(self, resident: Resident, inputs: Tensors, outputs: Sequence[str]) -> dict[str, Array]:
        """Run here and now."""

    async def run_in_thread(self, resident: Resident, inputs: Tensors, outputs: Sequence[str]) -> dict[str, Array]:
        """Run beside the loop; a run that has begun keeps its pin until it ends."""

    def close(self) -> None:
        """Take no more work."""


class Runner:
    """Runs copies for the event loop that owns them.

    Copies in this process share `threads`, since each run takes a core. Copies in subprocesses have threads apart,
    which only wait for pipes: a custom model that thinks for a minute must not keep a thread from the others. Each
    such copy has one run at a time, and its further requests queue on the loop, not on threads.
    """

    def __init__(self, threads: int, isolated_threads: int, observe_queue_s: Callable[[float], None]) -> None:
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="infer")
        self._isolated_pool = ThreadPoolExecutor(max_workers=isolated_threads, thread_name_prefix="infer-isolated")
        self._observe_queue_s = observe_queue_s

    def runs_inline(self, resident: Resident, request_bytes: int) -> bool:
        """Whether a request of this size is cheaper on the loop than on a thread."""
        return resident.run_s < HANDOVER_S and request_bytes <= INLINE_BYTES_MAX and resident.turn is None

    def run_inline(self, resident: Resident, inputs: Tensors, outputs: Sequence[str]) -> dict[str, Array]:
        """Run here and now, on the event loop's thread."""
        began = time.perf_counter()
        result = resident.model.infer(inputs, outputs)
        resident.ran(0.0, time.perf_counter() - began)
        return result

    async def run_in_thread(self, resident: Resident, inputs: Tensors, outputs: Sequence[str]) -> dict[str, Array]:
        """Run on a worker thread. Cancelling the caller takes its run out of the queue; one that has begun goes on,
        and keeps its pin, and its turn, until it ends."""
        queued = time.perf_counter()
        pool, turn = self._pool, resident.turn
        if turn is not None:
            await turn.acquire()
            pool = self._isolated_pool

        def run() -> tuple[dict[str, Array], float, float]:
            began = time.perf_counter()
            result = resident.model.infer(inputs, outputs)
            return result, began - queued, time.perf_counter() - began

        def ended(run_ended: asyncio.Future[Any] | None) -> None:
            resident.let_go()
            if turn is not None:
                turn.release()
            if run_ended is not None and not run_ended.cancelled():
                run_ended.exception()  # seen, even if the caller has left

        resident.hold()
        try:
            job = pool.submit(run)
        except RuntimeError:  # the pod is stopping
            ended(None)
            raise
        future = asyncio.wrap_future(job)
        future.add_done_callback(ended)
        try:
            result, queued_s, run_s = await asyncio.shield(future)
        except asyncio.CancelledError:
            job.cancel()  # without effect once it has begun
            raise
        self._observe_queue_s(queued_s)
        resident.ran(queued_s, run_s)
        return result

    def close(self) -> None:
        """Stop taking work; threads end when their runs do."""
        for pool in (self._pool, self._isolated_pool):
            pool.shutdown(wait=False, cancel_futures=True)
