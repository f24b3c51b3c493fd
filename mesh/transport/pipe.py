"""The stream of bytes under a line between two pods, and what is written to it in one go.

One long-lived socket per pair of pods and direction of calling: a unix socket on one host, else TCP. A peer that
vanishes without a word is noticed by the kernel, which gives a connection up when what was sent is not acknowledged;
that the peer's process stands still is for the probes to find out (`mesh.routing.probes`).

What the other side is slow to read waits here, up to a limit. Beyond it the calling side sends its calls another way,
and the answering side reads no more of them: so neither fills its memory with what nobody takes.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import Protocol, cast

UNACKNOWLEDGED_MAX_S = 10
"""A connection is given up when the other machine has not even said that it got what was sent."""
UNSENT_BYTES_MAX = 4 * 1024 * 1024
"""Of what has been written and not been read by the other side. Behind so much a small frame waits some 30 ms on a
network of 1 Gbit/s, a twentieth of what a probe may take."""
_KEEPALIVE_AFTER_S, _KEEPALIVE_EVERY_S, _KEEPALIVE_TIMES = 15, 5, 3
"""So a silent connection is looked after, and given up when the other machine does not answer."""


class PipeEnd(Protocol):
    """Whoever is told what comes out of a stream. Raises nothing."""

    def opened(self, outbox: Outbox) -> None:
        """There is a stream, and this is the way into it."""

    def received(self, data: bytes) -> None:
        """So much has come."""

    def lost(self) -> None:
        """The stream has ended, here or there: nothing comes any more. Called once."""


class SocketPipe(asyncio.Protocol):
    """A stream over a socket, for either side."""

    def __init__(self, end: PipeEnd, *, reads_when_full: bool = True) -> None:
        """`reads_when_full`: go on reading when the other side does not."""
        self._end = end
        self._reads_when_full = reads_when_full
        self._outbox: Outbox | None = None
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stream = cast(asyncio.Transport, transport)  # not so by its class on uvloop
        _set_keepalive(stream.get_extra_info("socket"))
        stream.set_write_buffer_limits(high=UNSENT_BYTES_MAX)
        self._stream = stream
        self._outbox = Outbox(stream)
        self._end.opened(self._outbox)

    def pause_writing(self) -> None:
        self._set_full(True)

    def resume_writing(self) -> None:
        self._set_full(False)

    def _set_full(self, is_full: bool) -> None:
        assert self._outbox is not None
        self._outbox.set_full(is_full)
        if not self._reads_when_full and not self._stream.is_closing():
            if is_full:
                self._stream.pause_reading()
            else:
                self._stream.resume_reading()

    def abort(self) -> None:
        """End the stream, if there is one, whatever is on its way."""
        if self._outbox is not None:
            self._outbox.abort()

    def data_received(self, data: bytes) -> None:
        self._end.received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end.lost()
        if not self.ended.done():
            self.ended.set_result(None)


class Outbox:
    """Frames that are to be sent: those of one turn of the loop are written at once. After the end they go nowhere."""

    def __init__(self, stream: asyncio.WriteTransport) -> None:
        self._stream = stream
        self._loop = asyncio.get_running_loop()
        self._pieces: list[bytes | memoryview] = []
        self._trains: dict[int, Iterator[tuple[bytes | memoryview, ...]]] = {}
        self._sends_parts = False
        self.is_full = False
        """More than `UNSENT_BYTES_MAX` have not been read by the other side."""

    @property
    def has_unsent(self) -> bool:
        """Whether anything that was added is still here."""
        return bool(self._pieces or self._trains or self._stream.get_write_buffer_size())

    def add(self, frame: tuple[bytes | memoryview, ...]) -> None:
        """Send this, in pieces, at the end of this turn."""
        if not self._pieces:
            self._loop.call_soon(self.flush)
        self._pieces += frame

    def add_in_parts(self, call_id: int, frames: Iterator[tuple[bytes | memoryview, ...]]) -> None:
        """Send these one by one as the other side reads them, others between them."""
        self._trains[call_id] = frames
        self._send_parts_soon()

    def drop_parts(self, call_id: int) -> None:
        """Nobody wants the rest of them."""
        self._trains.pop(call_id, None)

    def set_full(self, is_full: bool) -> None:
        """Whether more than `UNSENT_BYTES_MAX` are on their way."""
        self.is_full = is_full
        if not is_full:
            self._send_parts_soon()

    def _send_parts_soon(self) -> None:
        if self._trains and not self._sends_parts:
            self._sends_parts = True
            self._loop.call_soon(self._send_part)

    def _send_part(self) -> None:
        """One of those that wait, in turn: one per turn of the loop."""
        self._sends_parts = False
        if self._stream.is_closing():
            self._trains.clear()
        if not self._trains or self.is_full:
            return
        call_id = next(iter(self._trains))
        frames = self._trains.pop(call_id)
        frame = next(frames, None)
        if frame is not None:
            self._trains[call_id] = frames
            self._pieces += frame
            self.flush()
        self._send_parts_soon()

    def flush(self) -> None:
        """Send it now."""
        if self._pieces:
            data = b"".join(self._pieces)
            self._pieces.clear()
            if not self._stream.is_closing():
                self._stream.write(data)

    def close(self) -> None:
        """End the stream, once all is sent. The end at this side hears `lost`, too."""
        self.flush()
        self._trains.clear()
        self._stream.close()

    def abort(self) -> None:
        """End the stream, whatever has not been sent. The end at this side hears `lost`, too."""
        self._pieces.clear()
        self._trains.clear()
        self._stream.abort()


def _set_keepalive(connected: socket.socket) -> None:
    if connected.family == socket.AF_UNIX:
        return
    options = (
        ("TCP_USER_TIMEOUT", UNACKNOWLEDGED_MAX_S * 1000),
        ("TCP_KEEPIDLE", _KEEPALIVE_AFTER_S),
        ("TCP_KEEPINTVL", _KEEPALIVE_EVERY_S),
        ("TCP_KEEPCNT", _KEEPALIVE_TIMES),
    )
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in options:
        number = getattr(socket, name, None)  # Linux has all of them
        if number is not None:
            connected.setsockopt(socket.IPPROTO_TCP, number, value)
