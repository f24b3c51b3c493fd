"""The calling end of a line between two pods: all calls of a turn of the loop in one piece.

Calls that wait when the line ends may have been begun at the other end; each is a broken line to its caller, who has
other pods to try. A line that the other end wants to end is ended once what is under way is answered.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable
from functools import partial
from math import inf

from mesh.transport.base import Heard, LineBroken, Metadata, Reply, ReplyWithTrailers, StatusCode, TransportError
from mesh.transport.deadlines import Deadlines
from mesh.transport.frames import VERSION, BadFrame, Frame, Kind, Packer, Unpacker
from mesh.transport.pipe import Outbox

_log = logging.getLogger(__name__)

_ANSWER_BYTES_MAX = 2**31 - 1
"""Whatever a pod may answer (`TransportLimits.response_bytes_max`)."""
_IDS = 2**32


class Calling:
    """One line: a `mesh.transport.pipe.PipeEnd`. Belongs to the event loop."""

    def __init__(self, address: str, hello: Metadata) -> None:
        """`hello`: what shows the other end who is calling."""
        self._address = address
        self._hello = hello
        self._loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[bool] = self._loop.create_future()
        """Whether the other end takes calls: it has said HELLO, or has gone before it did."""
        self.is_open = False
        """It takes calls now."""
        self._waiting: dict[int, Heard] = {}
        self._ids = itertools.count()
        self._parts: dict[int, list[bytes]] = {}
        """Of answers that have not come whole."""
        self._packer = Packer()
        self._unpacker = Unpacker(_ANSWER_BYTES_MAX)
        self._deadlines = Deadlines(self._too_late)
        self._out: Outbox

    @property
    def is_full(self) -> bool:
        """The other end does not read as fast as it is called."""
        return self._out.is_full

    # What comes out of the pipe ---------------------------------------------------------------------------------------

    def opened(self, outbox: Outbox) -> None:
        self._out = outbox
        self._out.add(self._packer.pack(Kind.HELLO, VERSION, metadata=self._hello))

    def received(self, data: bytes) -> None:
        try:
            for frame in self._unpacker.take(data):
                if frame.kind in (Kind.ANSWER, Kind.ERROR):
                    heard = self._waiting.pop(frame.id, None)
                    if self._parts:
                        frame = self._whole(frame)
                    if heard is not None:
                        self._deadlines.discard(frame.id)
                        heard(_outcome(frame))
                elif frame.kind == Kind.PART:
                    if frame.id in self._waiting:
                        self._parts.setdefault(frame.id, []).append(frame.body)
                elif frame.kind == Kind.HELLO:
                    if not self.ready.done():
                        self.is_open = True
                        self.ready.set_result(True)
                elif frame.kind == Kind.GOODBYE:
                    self.is_open = False
                else:
                    raise BadFrame(f"a frame of kind {frame.kind}, which does not belong here")
        except BadFrame as error:
            _log.warning("the line to %s is closed: %s", self._address, error)
            self.is_open = False
            self._out.abort()
        else:
            if not self.is_open and self.ready.done():
                self.close()

    def lost(self) -> None:
        self.is_open = False
        self._deadlines.close()
        if not self.ready.done():
            self.ready.set_result(False)
        self._parts.clear()
        waiting, self._waiting = self._waiting, {}
        for heard in waiting.values():
            heard(LineBroken(f"{self._address}: the line broke", sent=True))

    # What the pod wants -----------------------------------------------------------------------------------------------

    def begin(
        self, path: str, body: bytes | memoryview, metadata: Metadata, deadline_s: float | None, heard: Heard
    ) -> Callable[[], None]:
        """See `mesh.transport.base.Line`; only while `is_open`."""
        call_id = next(self._ids) % _IDS
        left_s = inf if deadline_s is None else deadline_s - time.monotonic()
        self._out.add(self._packer.pack(Kind.CALL, call_id, seconds=left_s, text=path, metadata=metadata, body=body))
        self._waiting[call_id] = heard
        if deadline_s is not None:
            self._deadlines.add(call_id, deadline_s)
        return partial(self._cancel, call_id)

    async def call(self, path: str, body: bytes | memoryview, metadata: Metadata, deadline_s: float | None) -> Reply:
        """See `mesh.transport.base.Line`; only while `is_open`."""
        answer: asyncio.Future[Reply] = self._loop.create_future()

        def heard(outcome: Reply | TransportError | LineBroken) -> None:
            if answer.done():
                pass  # the caller is being cancelled
            elif isinstance(outcome, Exception):
                answer.set_exception(outcome)
            else:
                answer.set_result(outcome)

        cancel = self.begin(path, body, metadata, deadline_s, heard)
        try:
            return await answer
        except asyncio.CancelledError:
            cancel()
            raise

    def close(self) -> None:
        """Take no more calls, and end the line once those under way are answered."""
        self.is_open = False
        if not self._waiting:
            self._out.close()

    def _too_late(self, call_id: int) -> None:
        heard = self._waiting.get(call_id)
        if heard is not None:
            self._cancel(call_id)
            message = f"no answer from {self._address} before the deadline"
            heard(TransportError(StatusCode.DEADLINE_EXCEEDED, message))

    def _cancel(self, call_id: int) -> None:
        if self._waiting.pop(call_id, None) is not None:
            self._parts.pop(call_id, None)
            self._deadlines.discard(call_id)
            self._out.add(self._packer.pack(Kind.CANCEL, call_id))
            if not self.is_open:
                self.close()

    def _whole(self, frame: Frame) -> Frame:
        parts = self._parts.pop(frame.id, None)
        return frame if parts is None else frame._replace(body=b"".join((*parts, frame.body)))


def _outcome(frame: Frame) -> Reply | TransportError:
    trailers = tuple((key, value) for key, value in frame.metadata if isinstance(value, str)) if frame.metadata else ()
    if frame.kind == Kind.ANSWER:
        return ReplyWithTrailers(frame.body, trailers) if trailers else frame.body
    retry_after_s = None if frame.seconds == inf else frame.seconds
    return TransportError(StatusCode(frame.status), frame.text, retry_after_s, trailers)
