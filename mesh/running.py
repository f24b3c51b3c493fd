"""Running models: on the event loop when that is quicker than handing it to a thread, else on threads, by turns.

A hand-over to a worker thread and back costs roughly `HANDOVER_S` of everybody's time. A tiny model runs in a tenth of
that, so its runs stay on the loop, where they hold up other requests for less time than the hand-over would. What a
copy's runs cost is measured, not guessed (`mesh.batching.run_place`), on requests of about the same size: on small
ones it says nothing about one a thousand times as large.

All else waits in its copy's lane (`mesh.batching.lane`) until a thread is free, and what has gathered there by then
runs together, where the model allows it. Whose turn it is among models is decided by time (`mesh.batching.turns`).
Waiting on the loop, and not in a pool's queue, is what lets requests be joined, put in order by their deadlines, and
taken out when their callers leave.

Threads come in groups. Copies in this process share one, since each run takes a core. Each GPU has one thread and one
run at a time: what two runs at once would gain there, one batch gains without two contexts. Copies in subprocesses
have threads apart, which only wait for pipes: a custom model that thinks for a minute must not keep a thread from the
others; each such copy has one run at a time.

A run cannot be interrupted: when its clients go away, the pin on the copy stays until the run returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Protocol

from cachetools import LRUCache

from mesh.batching.joining import Answer, Ran, Request, aligned, rows_of, run_together, shape_of_joined
from mesh.batching.lane import Lane, Learned
from mesh.batching.queue import plan_batch
from mesh.batching.row_wise import Verdict
from mesh.batching.run_place import HANDOVER_S
from mesh.batching.sizing import Sizing
from mesh.batching.trial import try_model
from mesh.batching.turns import Turns
from mesh.known_sizes import NOTHING, Loadable
from mesh.resident import SMALL_RUN_BYTES, Resident
from mesh.threads import Workers
from runtime_adapters.base import Array, Device, Tensors
from runtime_adapters.errors import ModelCrashed
from runtime_adapters.external import ExternalModel

INLINE_BYTES_MAX = 1 << 20
"""Requests larger than this always go to a thread: there are few of them, and they wait for their bytes anyway."""
BESIDE_THREADS = 64
"""That wait for one server beside the pod: they do nothing else."""
REMEMBERED_MAX = 10_000
"""Contents of which it is remembered whether, and in what sizes, they run together; about 1 KB each."""


class TooLate(Exception):
    """The deadline passes before the request's run could end. Clients see DEADLINE_EXCEEDED."""


class CopyGone(Exception):
    """The copy died, under another request, before this one ran."""


class Runs(Protocol):
    """Whatever runs models: `Runner`, or what stands in for it where time is simulated."""

    def runs_inline(self, resident: Resident, request_bytes: int) -> bool:
        """Whether to call `run_inline`, and not `run_in_thread`."""

    def run_inline(
        self, resident: Resident, inputs: Tensors, outputs: Sequence[str], request_bytes: int
    ) -> dict[str, Array]:
        """Run here and now."""

    def gathers(self, resident: Resident) -> bool:
        """Whether to call `run_inline_together` for several requests."""

    def run_inline_together(self, resident: Resident, requests: Sequence[Request]) -> list[Answer]:
        """Run requests that arrived together here and now, each of which `runs_inline`; an answer for each."""

    async def run_in_thread(self, resident: Resident, request: Request) -> dict[str, Array]:
        """Run beside the loop, perhaps together with others; a run that has begun keeps its pin until it ends.

        Raises what the model raises, TooLate, CopyGone.
        """

    def learned_of(self, resident: Resident) -> Learned | None:
        """What is known of running this copy's requests together; None: nothing yet."""

    def close(self) -> None:
        """Take no more work."""


_Answer = asyncio.Future[dict[str, Array]]


@dataclass(slots=True, eq=False)
class _Group:
    """Threads, and the copies that wait for them."""

    workers: Workers
    free: int
    by_cpu: bool
    """What a run costs is its thread's processor time, not how long it lasts."""
    turns: Turns[_CopyLane] = field(default_factory=Turns)
    is_due: bool = False
    """Its threads are given out at the end of this turn of the loop."""

    def submit(self, work: Callable[[], None]) -> None:
        """On a thread that was taken from `free` before."""
        self.workers.submit(work, self.workers.count - self.free)


@dataclass(slots=True, eq=False)
class _CopyLane(Lane[_Answer]):
    """A lane, whose it is, and who runs it."""

    resident: Resident = field(kw_only=True)
    loadable: Loadable = field(kw_only=True)
    """What `learned` is about."""
    group: _Group = field(kw_only=True)
    look_again: asyncio.TimerHandle | None = None
    """While requests are kept for company."""


class Runner:
    """Runs copies for the event loop that owns them."""

    def __init__(
        self,
        threads: int,
        isolated_threads: int,
        observe_queue_s: Callable[[float], None],
        *,
        runs_per_model_max: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`runs_per_model_max`: at a time; None: as many as there are threads. `clock` is that of deadlines."""
        self._here = _group(threads, "infer", by_cpu=True)
        self._isolated = _group(isolated_threads, "infer-isolated")
        self._devices: dict[Device, _Group] = {}
        self._runs_max = min(threads, runs_per_model_max or threads)
        self._observe_queue_s = observe_queue_s
        self._clock = clock
        self._learned: LRUCache[Loadable, Learned] = LRUCache(maxsize=REMEMBERED_MAX)
        self._closed = False

    # On the loop --------------------------------------------------------------------------------------------

    def runs_inline(self, resident: Resident, request_bytes: int) -> bool:
        """Whether a request of this size is cheaper on the loop than on a thread."""
        return (
            request_bytes <= INLINE_BYTES_MAX
            and resident.place_of(request_bytes).on_loop
            and not resident.isolated
            and resident.device.kind == "cpu"
        )

    def run_inline(
        self, resident: Resident, inputs: Tensors, outputs: Sequence[str], request_bytes: int
    ) -> dict[str, Array]:
        """Run here and now, on the event loop's thread. Processor time tells what that costs: a framework lets go of
        Python's lock for its run, and whoever takes it meanwhile may hold it for milliseconds."""
        place = resident.place_of(request_bytes)
        clock = time.thread_time if place.measured else time.perf_counter
        began_s = clock()
        try:
            result = resident.model.infer(inputs if request_bytes <= SMALL_RUN_BYTES else aligned(inputs), outputs)
        finally:
            seconds = clock() - began_s
            place.ran_on_loop(seconds)
        resident.ran(0.0, seconds, rows=rows_of(inputs) if resident.rules.rows_max > 1 else 0)
        return result

    def gathers(self, resident: Resident) -> bool:
        """Whether requests for this copy that arrive together share runs, or may come to."""
        return self._lane(resident).gathers

    def run_inline_together(self, resident: Resident, requests: Sequence[Request]) -> list[Answer]:
        """Requests that arrived together, each of which `runs_inline`: here and now, in as few runs as the model
        allows. An answer for each, in their order. Deadlines play no part: all this takes less than a hand-over."""
        lane = self._lane(resident)
        if lane.trial_is_due(requests):
            self._try(lane)
        answers: dict[Request, Answer] = {}
        waiting = dict.fromkeys(requests)
        while waiting:
            began_s = self._clock()
            batch = plan_batch(waiting, lane.limits(waiting), lane.learned.sizing.predicted_s, began_s).batch
            ran = run_together(resident.model.infer, batch)
            size_bytes = sum(request.size_bytes for request in batch) // len(batch)
            resident.place_of(size_bytes).ran_on_loop(ran.cpu_s, len(batch))
            self._account(lane, batch, ran, queued_s=0.0, others_wait=len(requests) > 1)
            for request, answer in zip(batch, ran.answers, strict=True):
                answers[request] = answer
                del waiting[request]
        return [answers[request] for request in requests]

    # On threads ---------------------------------------------------------------------------------------------

    async def run_in_thread(self, resident: Resident, request: Request) -> dict[str, Array]:
        """Run on a worker thread, with others that wait for the same copy. Cancelling the caller takes its request
        out of the queue; a run that has begun goes on, and keeps its pin until it ends.

        Raises what the model raises, TooLate, CopyGone, and RuntimeError once the pod is stopping."""
        if self._closed:
            raise RuntimeError("the pod is stopping: nothing runs any more")
        if resident.died:
            raise CopyGone
        lane = self._lane(resident)
        request.arrived_s = self._clock()
        answer: _Answer = asyncio.get_running_loop().create_future()
        lane.waiting[request] = answer
        if lane.running or len(lane.waiting) > 1 or len(lane.group.turns) or not lane.group.free:
            self._offer(lane)
        else:
            self._next_run(lane)
        try:
            return await answer
        except asyncio.CancelledError:
            request.gone = True
            lane.waiting.pop(request, None)
            raise

    def learned_of(self, resident: Resident) -> Learned | None:
        """See `Runs`."""
        return self._learned.get(resident.loadable) if resident.lane is None else self._lane(resident).learned

    def close(self) -> None:
        """Stop taking work; threads end when their runs do."""
        self._closed = True
        for group in (self._here, self._isolated, *self._devices.values()):
            group.workers.close()

    def _lane(self, resident: Resident) -> _CopyLane:
        lane, loadable = resident.lane, resident.loadable
        if not isinstance(lane, _CopyLane):
            group, runs_max = self._group_of(resident)
            learned = self._known(loadable)
            lane = _CopyLane(resident.rules, learned, runs_max, resident=resident, loadable=loadable, group=group)
            resident.lane = lane
        elif lane.loadable is not loadable:  # it answered from what was fetched, and does so no more
            lane.learned, lane.loadable = self._known(loadable), loadable
        return lane

    def _known(self, loadable: Loadable) -> Learned:
        learned = self._learned.get(loadable)
        if learned is None:
            learned = Learned(Sizing(HANDOVER_S))
            if loadable != NOTHING:
                self._learned[loadable] = learned
        return learned

    def _group_of(self, resident: Resident) -> tuple[_Group, int]:
        """The threads that a copy runs on, and how many of its runs may run at a time."""
        if resident.isolated:
            return self._isolated, 1
        if resident.device.kind == "cpu":
            return self._here, self._runs_max
        if isinstance(resident.model, ExternalModel):
            beside = self._devices.get(resident.device)
            if beside is None:
                beside = self._devices[resident.device] = _group(BESIDE_THREADS, f"infer-{resident.device}")
            return beside, resident.model.runs_max
        group = self._devices.get(resident.device)
        if group is None:
            group = self._devices[resident.device] = _group(1, f"infer-{resident.device}")
        return group, 1

    # Turns --------------------------------------------------------------------------------------------------

    def _offer(self, lane: _CopyLane) -> None:
        """It may have something to run. Threads are given out in the next turn of the loop, so that what arrives
        together runs together."""
        if lane.may_run and not lane.waits_for_turn:
            lane.waits_for_turn = True
            lane.group.turns.wait(lane, lane.clock_s)
        group = lane.group
        if group.free and len(group.turns) and not group.is_due:
            group.is_due = True
            asyncio.get_running_loop().call_soon(self._give_out, group)

    def _give_out(self, group: _Group) -> None:
        group.is_due = False
        while group.free and not self._closed and (turn := group.turns.next()) is not None:
            lane, clock_s = turn
            lane.clock_s = clock_s
            lane.waits_for_turn = False
            if lane.may_run:  # those who waited may have left
                self._next_run(lane)
            if lane.may_run and lane.look_again is None:
                lane.waits_for_turn = True
                group.turns.wait(lane, lane.clock_s)

    def _next_run(self, lane: _CopyLane) -> None:
        now_s = self._clock()
        if lane.trial_is_due(lane.waiting):
            self._try(lane)
            return
        if lane.look_again is not None:
            lane.look_again.cancel()
            lane.look_again = None
        plan = lane.plan(now_s)
        for late, answer in zip(plan.late, lane.take(plan.late), strict=True):
            _settle(answer, _too_late(now_s, late))
        if plan.batch:
            self._begin(lane, plan.batch, lane.take(plan.batch))
        elif plan.wait_until_s < inf:
            loop = asyncio.get_running_loop()
            lane.look_again = loop.call_later(max(0.0, plan.wait_until_s - now_s), self._look_again, lane)

    def _look_again(self, lane: _CopyLane) -> None:
        lane.look_again = None
        self._offer(lane)

    def _begin(self, lane: _CopyLane, batch: tuple[Request, ...], callers: list[_Answer]) -> None:
        infer, loop = lane.resident.model.infer, asyncio.get_running_loop()
        predicted_s = lane.learned.sizing.predicted_s(sum(request.rows for request in batch) or 1)
        lane.clock_s += predicted_s

        def run() -> None:
            began_s = self._clock()
            ran = run_together(infer, batch)
            with contextlib.suppress(RuntimeError):  # the loop has ended before the run
                loop.call_soon_threadsafe(ended, began_s, ran)

        def ended(began_s: float, ran: Ran) -> None:
            lane.clock_s += ran.run_s - predicted_s
            queued_s = 0.0
            for request, caller, answer in zip(batch, callers, ran.answers, strict=True):
                queued_s += began_s - request.arrived_s
                self._observe_queue_s(began_s - request.arrived_s)
                _settle(caller, answer)
            size_bytes = sum(request.size_bytes for request in batch) // len(batch)
            if size_bytes <= INLINE_BYTES_MAX and not batch[0].unusual:
                cost_s = (ran.cpu_s if lane.group.by_cpu else ran.run_s) / len(batch)
                lane.resident.place_of(size_bytes).ran_on_thread(cost_s)
            self._account(lane, batch, ran, queued_s, others_wait=bool(lane.waiting))
            if isinstance(ran.answers[0], ModelCrashed):
                for caller in lane.take(list(lane.waiting)):
                    _settle(caller, CopyGone())
            self._leave(lane)

        self._enter(lane)
        lane.group.submit(run)

    def _try(self, lane: _CopyLane) -> None:
        """Find out on a thread, if one is free, whether the model's rows may share a run."""
        if not lane.group.free or lane.running >= lane.runs_max:
            return
        model, learned, loop = lane.resident.model, lane.learned, asyncio.get_running_loop()
        rows, clock = learned.answered, time.thread_time if lane.group.by_cpu else time.perf_counter

        def run() -> None:
            found = try_model(model, rows, lane.rules.rows_max, clock)
            with contextlib.suppress(RuntimeError):  # the loop has ended before the trial
                loop.call_soon_threadsafe(ended, *found)

        def ended(verdict: Verdict, alone_s: list[float]) -> None:
            learned.tried(verdict, alone_s)
            if alone_s:
                lane.resident.place.costs_at_most(min(alone_s))
            lane.is_trying = False
            self._leave(lane)

        lane.is_trying = True
        self._enter(lane)
        lane.group.submit(run)

    def _enter(self, lane: _CopyLane) -> None:
        lane.resident.hold()
        lane.running += 1
        lane.group.free -= 1

    def _leave(self, lane: _CopyLane) -> None:
        lane.running -= 1
        lane.group.free += 1
        lane.resident.let_go()
        self._offer(lane)

    def _account(
        self, lane: _CopyLane, batch: Sequence[Request], ran: Ran, queued_s: float, *, others_wait: bool
    ) -> None:
        """`queued_s`: of all of them together."""
        resident = lane.resident
        if batch[0].unusual:
            resident.meter.ran(len(batch))
            return
        cost_s = ran.cpu_s if lane.group.by_cpu else ran.run_s
        lane.ran(batch, ran, cost_s, others_wait=others_wait)
        resident.meter.ran(len(batch))
        answered = sum(not isinstance(answer, Exception) for answer in ran.answers)
        if answered:
            rows = sum(request.rows for request in batch) if resident.rules.rows_max > 1 else 0
            resident.ran(queued_s, ran.run_s, answered, rows=rows)
        if len(batch) > 1:
            size_bytes = sum(request.size_bytes for request in batch)
            if size_bytes > resident.request_bytes_max:
                resident.larger_request(shape_of_joined(batch, size_bytes))


def _group(threads: int, name: str, *, by_cpu: bool = False) -> _Group:
    return _Group(Workers(threads, name), threads, by_cpu)


def _settle(caller: _Answer, answer: Answer) -> None:
    if caller.done():  # it has left
        return
    if isinstance(answer, Exception):
        caller.set_exception(answer)
    else:
        caller.set_result(answer)


def _too_late(now_s: float, request: Request) -> TooLate:
    left_s = (request.deadline_s or now_s) - now_s
    return TooLate(
        f"the deadline passes in {max(0.0, left_s) * 1e3:.0f} ms, before a run of this model can end; allow more time"
    )
