"""The answering end of a line between two pods: frames with calls come in, frames with answers go out.

Calls that arrived together are handed over together (`mesh.transport.dispatch`), and what they were answered at once
leaves in one piece. Each call passes the same checks as one that came over gRPC: limits, admission, and in its handler
whether it shows this pod's key. The line itself is opened to callers only that show it; who does not do so soon, and
in few words, is hung up on.

When the line is lost, whoever called over it has gone: what runs for them is cancelled. When the pod stops, it says
GOODBYE once all is answered, and the caller ends the line when it has the answers; what came in meanwhile is refused,
not lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from math import inf

from mesh.transport.admission import Admission
from mesh.transport.base import (
    Call,
    Reply,
    ReplyWithTrailers,
    Routes,
    StatusCode,
    TransportError,
    TransportLimits,
)
from mesh.transport.deadlines import Deadlines
from mesh.transport.dispatch import Dispatch, Method, methods_of
from mesh.transport.frames import CALL_BYTES_MAX, PART_BYTES, VERSION, BadFrame, Frame, Kind, Packer, Unpacker
from mesh.transport.pipe import Outbox
from mesh.transport.refusals import as_transport_error, response_too_large, sendable

_log = logging.getLogger(__name__)

PEER = "pod"
"""`Call.peer` of what comes over a line: which pod it is says the call itself."""
GREETED_WITHIN_S = 5.0
"""A line whose caller has not shown this pod's key by then is ended."""


class Exchange:
    """All lines on which other pods call this one. Belongs to the event loop."""

    def __init__(
        self, routes: Routes, limits: TransportLimits, admission: Admission, admit: Callable[[Call], object]
    ) -> None:
        """`admission`: of the transport beside it; a limit counts the calls of both. `admit`: see `PeerDoor`."""
        self.admit = admit
        self.methods = {method.path: method for method in methods_of(routes)}
        self.limits = limits
        self.admission = admission
        self.lines: set[Answering] = set()
        self._none = asyncio.Event()
        self._none.set()

    def joined(self, line: Answering) -> None:
        """A caller has opened a line."""
        self.lines.add(line)
        self._none.clear()

    def left(self, line: Answering) -> None:
        """It has ended."""
        self.lines.discard(line)
        if not self.lines:
            self._none.set()

    async def say_goodbye(self, wait_s: float, sending_s: float) -> None:
        """Nothing is taken any more: have the callers end their lines, and end those that are left after `wait_s`.

        `sending_s`: how long those may take instead to which answers are still being sent.
        """
        for line in list(self.lines):
            line.say_goodbye()
        await self._wait_none(wait_s)
        for line in list(self.lines):
            if not line.has_unsent:
                line.close()
        await self._wait_none(sending_s - wait_s)
        for line in list(self.lines):
            line.close()

    async def _wait_none(self, wait_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._none.wait()


class Answering:
    """One line: a `mesh.transport.pipe.PipeEnd`. Belongs to the event loop."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._is_admitted = False
        self._packer = Packer()
        self._unpacker = Unpacker(0)  # until the caller is known
        self._dispatch = Dispatch(exchange.admission, exchange.limits, self._answer, self._fail)
        self._deadlines = Deadlines(self._dispatch.cancel)
        self._out: Outbox
        self._greeting: asyncio.TimerHandle

    @property
    def has_unsent(self) -> bool:
        """Whether the caller has still to read what it was answered."""
        return self._out.has_unsent

    def opened(self, outbox: Outbox) -> None:
        self._out = outbox
        self._greeting = asyncio.get_running_loop().call_later(GREETED_WITHIN_S, outbox.abort)
        self._exchange.joined(self)

    def received(self, data: bytes) -> None:
        try:
            self._take(self._unpacker.take(data))
        except (BadFrame, TransportError) as error:
            _log.warning("a line from another pod is closed: %s", error)
            self._out.abort()
        self._out.flush()

    def lost(self) -> None:
        self._greeting.cancel()
        self._deadlines.close()
        self._dispatch.cancel_all()
        self._exchange.left(self)

    def say_goodbye(self) -> None:
        """Have the caller end the line."""
        self._out.add(self._packer.pack(Kind.GOODBYE, 0))

    def close(self) -> None:
        """End the line."""
        self._out.close()

    def _take(self, frames: list[Frame]) -> None:
        arrived: list[tuple[int, Method, Call]] = []
        cancelled: list[int] = []
        now_s = time.monotonic()
        for kind, _, call_id, seconds, path, metadata, body in frames:
            if kind == Kind.CALL and self._is_admitted:
                method = self._exchange.methods.get(path)
                if method is None:
                    unknown = f"{path[:200]} is not served here"
                    self._fail(call_id, TransportError(StatusCode.UNIMPLEMENTED, unknown))
                    continue
                refusal = self._dispatch.refusal(len(body))
                if refusal is not None:
                    self._fail(call_id, refusal)
                    continue
                deadline_s = None if seconds == inf else now_s + seconds
                arrived.append((call_id, method, Call(path, body, metadata, deadline_s, PEER)))
            elif kind == Kind.CANCEL:
                cancelled.append(call_id)
            elif kind == Kind.HELLO and not self._is_admitted:
                self._admit(call_id, Call("a line", b"", metadata, peer=PEER))
            else:
                raise BadFrame(f"a frame of kind {kind}, which does not belong here")
        if arrived:
            try:
                self._dispatch.take(arrived)
            except Exception as defect:  # ours: it must cost neither these calls their answers nor others the line
                error = as_transport_error("a batch of calls", defect)
                for call_id, *_ in arrived:
                    if call_id not in self._dispatch:
                        self._fail(call_id, error)  # without effect on those that were answered
            for call_id, _, call in arrived:
                if call.deadline_s is not None and call_id in self._dispatch:
                    self._deadlines.add(call_id, call.deadline_s)
        for call_id in cancelled:
            self._out.drop_parts(call_id)
            self._deadlines.discard(call_id)
            self._dispatch.cancel(call_id)

    def _admit(self, version: int, hello: Call) -> None:
        if version != VERSION:
            raise BadFrame(f"version {version} of what pods say to one another, and here it is {VERSION}")
        self._exchange.admit(hello)
        self._is_admitted = True
        self._greeting.cancel()
        self._unpacker.body_bytes_max = CALL_BYTES_MAX
        self._out.add(self._packer.pack(Kind.HELLO, VERSION))

    def _answer(self, call_id: int, reply: Reply) -> None:
        self._deadlines.discard(call_id)
        body, trailers = (reply.body, reply.trailers) if isinstance(reply, ReplyWithTrailers) else (reply, ())
        limit_bytes = self._exchange.limits.response_bytes_max
        if len(body) > limit_bytes:
            self._fail(call_id, response_too_large(len(body), limit_bytes))
            return
        ahead_bytes = max(0, len(body) - 1) // PART_BYTES * PART_BYTES
        last = memoryview(body)[ahead_bytes:] if ahead_bytes else body
        try:
            frame = self._packer.pack(Kind.ANSWER, call_id, metadata=trailers, body=last)
        except ValueError as error:  # what the handler gave is no metadata
            self._fail(call_id, as_transport_error("trailing metadata", error))
            return
        if ahead_bytes:
            self._out.add_in_parts(call_id, self._parts(call_id, memoryview(body)[:ahead_bytes], frame))
        else:
            self._out.add(frame)

    def _parts(
        self, call_id: int, ahead: memoryview, last: tuple[bytes | memoryview, ...]
    ) -> Iterator[tuple[bytes | memoryview, ...]]:
        for at in range(0, len(ahead), PART_BYTES):
            yield self._packer.pack(Kind.PART, call_id, body=ahead[at : at + PART_BYTES])
        yield last

    def _fail(self, call_id: int, error: TransportError) -> None:
        self._deadlines.discard(call_id)
        seconds = inf if error.retry_after_s is None else error.retry_after_s
        status, message = int(error.status), sendable(error.message)
        try:
            frame = self._packer.pack(
                Kind.ERROR, call_id, status=status, seconds=seconds, text=message, metadata=error.trailers
            )
        except ValueError:
            _log.warning("the trailing metadata of an error cannot be sent: %.200r", error.trailers)
            frame = self._packer.pack(Kind.ERROR, call_id, status=status, seconds=seconds, text=message)
        self._out.add(frame)
