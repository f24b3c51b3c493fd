"""Calls that arrived together, and their handlers: what is the same for every way on which calls come in batches.

Those of one method go to its quick handler together, if it has one; what that leaves gets a task each. How a call is
answered on the wire is the caller's (`answer`, `fail`), by whatever number it knows the call.

Belongs to the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mesh.transport.admission import Admission
from mesh.transport.base import (
    Call,
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

    def __contains__(self, call_id: object) -> bool:
        """Whether a task answers this call."""
        return call_id in self._tasks

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
                if isinstance(reply, bytes | ReplyWithTrailers):
                    self._answer(call_id, reply)
                elif isinstance(reply, Exception):
                    self._fail(call_id, as_transport_error(method.path, reply))
                else:
                    self._begin(call_id, method.path, reply or method.handler, call)

    def cancel(self, call_id: int) -> None:
        """The client has gone, or its deadline has passed."""
        task = self._tasks.get(call_id)
        if task is not None:
            task.cancel()

    def cancel_all(self) -> None:
        """Every client has gone."""
        for task in list(self._tasks.values()):
            task.cancel()

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
