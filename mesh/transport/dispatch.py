"""Calls that arrived together, and their handlers: what is the same for every way on which calls come in batches.

Those of one method go to its quick handler together, if it has one; what that leaves gets a task each, but for
calls whose answers come from elsewhere (`Later`): those are only kept in mind. How a call is
answered on the wire is the caller's (`answer`, `fail`), by whatever number it knows the call.

Belongs to the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mesh.transport.admission import Admission, Running
from mesh.transport.base import (
    Call,
    Later,
    Outcome,
    QuickHandler,
    Reply,
    ReplyWithTrailers,
    Routes,
    StatusCode,
    TransportError,
    TransportLimits,
    UnaryHandler,
)
from mesh.transport.refusals import as_transport_error, gave_up


@dataclass(frozen=True, slots=True, eq=False)
class Method:
    """A unary method of ours."""

    path: str
    handler: UnaryHandler
    quick: QuickHandler | None


def methods_of(routes: Routes) -> list[Method]:
    """All unary methods."""
    return [Method(path, handler, routes.quick.get(path)) for path, handler in routes.unary.items()]


@dataclass(slots=True, eq=False)
class _Promised:
    """A call whose answer comes later: what is counted, and can be cancelled, like a task."""

    dispatch: Dispatch
    call_id: int
    method: Method
    call: Call
    later: Later

    def cancel(self) -> None:
        self.dispatch._give_up(self)

    def hear(self, outcome: Outcome) -> None:
        self.dispatch._settle(self, outcome)


class Dispatch:
    """The calls of one port, or of one line."""

    def __init__(
        self,
        admission: Admission,
        limits: TransportLimits,
        answer: Callable[[int, Reply], None],
        fail: Callable[[int, TransportError], None],
    ) -> None:
        self._admission = admission
        self._limits = limits
        self._answer = answer
        self._fail = fail
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._promised: dict[int, _Promised] = {}

    def __contains__(self, call_id: object) -> bool:
        """Whether this call is not answered yet, and will be."""
        return call_id in self._tasks or call_id in self._promised

    def refusal(self, body_bytes: int) -> TransportError | None:
        """Why a call with such a body is not let in; None: it is."""
        limit_bytes = self._limits.message_bytes_max
        if body_bytes > limit_bytes:
            return TransportError(
                StatusCode.RESOURCE_EXHAUSTED,
                f"the request has {body_bytes} bytes, above the limit of {limit_bytes}; send less at once",
            )
        return self._admission.refusal(body_bytes)

    def take(self, arrived: Iterable[tuple[int, Method, Call]]) -> None:
        """Answer calls that were not refused, now or by tasks."""
        together: dict[Method, list[tuple[int, Call]]] = {}
        for call_id, method, call in arrived:
            if method.quick is None:
                self._begin(call_id, method.path, method.handler, call)
            else:
                together.setdefault(method, []).append((call_id, call))
        for method, calls in together.items():
            assert method.quick is not None
            for (call_id, call), reply in zip(calls, method.quick([call for _, call in calls]), strict=True):
                if isinstance(reply, (bytes, ReplyWithTrailers)):  # a union would be made anew each time
                    self._answer(call_id, reply)
                elif isinstance(reply, Later):
                    self._await(call_id, method, call, reply)
                elif isinstance(reply, Exception):
                    self._fail(call_id, as_transport_error(method.path, reply))
                else:
                    self._begin(call_id, method.path, reply or method.handler, call)

    def cancel(self, call_id: int) -> None:
        """The client has gone, or its deadline has passed."""
        running: Running | None = self._tasks.get(call_id)
        running = running or self._promised.get(call_id)
        if running is not None:
            running.cancel()

    def cancel_all(self) -> None:
        """Every client has gone."""
        running: list[Running] = [*self._tasks.values(), *self._promised.values()]
        for each in running:
            each.cancel()

    def _await(self, call_id: int, method: Method, call: Call, later: Later) -> None:
        """Answer the call when its answer is there."""
        size_bytes = len(call.body)
        error = self._admission.refusal(size_bytes)
        if error is not None:
            later.cancel()
            self._fail(call_id, error)
            return
        promised = _Promised(self, call_id, method, call, later)
        self._promised[call_id] = promised
        self._admission.enter(promised, size_bytes)
        later.heard_by(promised.hear)

    def _settle(self, promised: _Promised, outcome: Outcome) -> None:
        """Its answer is there."""
        self._end(promised)
        call_id, path = promised.call_id, promised.method.path
        if isinstance(outcome, (bytes, ReplyWithTrailers)):
            self._answer(call_id, outcome)
        elif isinstance(outcome, Exception):
            self._fail(call_id, as_transport_error(path, outcome))
        else:
            self._begin(call_id, path, outcome, promised.call)

    def _end(self, promised: _Promised) -> None:
        del self._promised[promised.call_id]
        self._admission.leave(promised, len(promised.call.body))

    def _give_up(self, promised: _Promised) -> None:
        """Its client has gone, or the grace is over."""
        self._end(promised)
        promised.later.cancel()
        if self._admission.ending:
            self._fail(promised.call_id, self._admission.stopped())

    def _begin(self, call_id: int, path: str, handler: UnaryHandler, call: Call) -> None:
        size_bytes = len(call.body)
        error = self._admission.refusal(size_bytes)  # the calls before it in this batch may have taken the room
        if error is not None:
            self._fail(call_id, error)
            return
        task = asyncio.get_running_loop().create_task(self._serve(call_id, path, handler, call))
        call.abandoned = lambda: task.cancelling() > 0 or task.done()
        self._tasks[call_id] = task
        self._admission.enter(task, size_bytes)

        def ended(_: asyncio.Task[None]) -> None:
            del self._tasks[call_id]
            self._admission.leave(task, size_bytes)
            if task.cancelled() and self._admission.ending:
                self._fail(call_id, self._admission.stopped())
            elif task.cancelled() and not task.cancelling():  # else it is the client that has gone
                self._fail(call_id, gave_up(path))

        task.add_done_callback(ended)

    async def _serve(self, call_id: int, path: str, handler: UnaryHandler, call: Call) -> None:
        try:
            self._answer(call_id, await handler(call))
        except Exception as failure:
            self._fail(call_id, as_transport_error(path, failure))
