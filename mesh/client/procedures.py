"""What takes several calls: the calls of a procedure one after the other, without network and clock.

A procedure is a generator. It yields an operation, which the blocking or the asyncio client carries out and answers, or
a pause; an error is thrown into it where it waits. So what is asked next is decided here once for both clients.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, TypeVar

from mesh.client import operations
from mesh.client.attempts import Pause
from mesh.client.errors import DeadlineExceeded, HexcombError, Refused, Unavailable
from mesh.client.operations import Operation
from mesh.transport.base import StatusCode
from mesh.wire.generated import mmesh_pb2

Answer = TypeVar("Answer")
Procedure = Generator[Operation[Any] | Pause, Any, Answer]

READY_POLL_S = 0.1
"""Between two questions whether a server is ready: it is asked once per cold start, so soon rather than seldom."""


def wait_ready(model: str, deadline_s: float, clock: Callable[[], float]) -> Procedure[None]:
    """Until a pod is ready and, if one is named, the model is loaded. `deadline_s` is on `clock`.

    A pod that is not there yet is waited for; a model that cannot be loaded is an error as soon as that is known.
    """
    waits_for = "it says that it is not ready"
    while True:
        try:
            ready: bool = yield operations.server_ready()
            if ready and model:
                status: mmesh_pb2.ModelStatusInfo = yield operations.ensure_loaded(model, wait=True)
                if status.status == mmesh_pb2.ModelStatusInfo.LOADING_FAILED:
                    why = "; ".join(status.errors) or "no pod says why"
                    raise Refused(f"model {model!r} cannot be loaded: {why}", StatusCode.FAILED_PRECONDITION)
                ready = status.status == mmesh_pb2.ModelStatusInfo.LOADED
                waits_for = f"model {model!r} is not loaded"
            if ready:
                return
        except (Unavailable, DeadlineExceeded) as error:
            waits_for = error.message
        if clock() + READY_POLL_S >= deadline_s:
            raise DeadlineExceeded(f"not ready in time: {waits_for}", StatusCode.DEADLINE_EXCEEDED)
        yield Pause(READY_POLL_S)


def step(procedure: Procedure[Answer], outcome: Any) -> Operation[Any] | Pause:
    """Tell it what came of its last step, and have the next one. Raises StopIteration with its answer, and what it
    raises."""
    return procedure.throw(outcome) if isinstance(outcome, HexcombError) else procedure.send(outcome)
