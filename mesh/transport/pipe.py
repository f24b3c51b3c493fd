"""The stream of bytes under a line between two pods, and what is written to it in one go.

One long-lived socket per pair of pods and direction of calling: a unix socket on one host, else TCP. A peer that
vanishes without a word is noticed by the kernel, which gives a connection up when what was sent is not acknowledged;
that the peer's process stands still is for the probes to find out (`mesh.routing.probes`).
"""

from __future__ import annotations

import asyncio
import socket
from typing import Protocol, cast

UNACKNOWLEDGED_MAX_S = 10
"""A connection is given up when the other machine has not even said that it got what was sent."""
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

    def __init__(self, end: PipeEnd) -> None:
        self._end = end
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        _set_keepalive(transport.get_extra_info("socket"))
        self._end.opened(Outbox(cast(asyncio.WriteTransport, transport)))

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

    def add(self, frame: tuple[bytes | memoryview, ...]) -> None:
        """Send this, in pieces, at the end of this turn."""
        if not self._pieces:
            self._loop.call_soon(self.flush)
        self._pieces += frame

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
        self._stream.close()


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
