"""One TCP connection of the load generator, whatever is spoken on it: bytes out as they fit, bytes in as they come.

It is opened blocking, for a greeting, and made non-blocking by whoever is done with that.
"""

from __future__ import annotations

import socket

from tests.bench.peers.answers import LoadFailed

CONNECT_TIMEOUT_S = 10.0
_RECEIVED_BYTES_MAX = 1 << 20


class Line:
    """A connection to a server. All methods raise LoadFailed when the server is gone."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._unsent: memoryview | None = None
        try:
            self._socket = socket.create_connection(address, timeout=CONNECT_TIMEOUT_S)
        except OSError as error:
            raise LoadFailed(f"the server does not take connections: {error}") from error
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def set_nonblocking(self) -> None:
        """From now on nothing waits."""
        self._socket.setblocking(False)

    def fileno(self) -> int:
        """Of the socket."""
        return self._socket.fileno()

    def close(self) -> None:
        """Drop the connection with all that is in flight."""
        self._socket.close()

    @property
    def wants_to_send(self) -> bool:
        """Whether bytes wait for the socket to take them."""
        return self._unsent is not None

    def send(self, data: bytes) -> None:
        """Send this, as far as the socket takes it; only when nothing waits to be sent."""
        self._unsent = memoryview(data)
        self._push()

    def flush(self) -> None:
        """Send what waits, as far as the socket takes it."""
        self._push()

    def _push(self) -> None:
        while self._unsent is not None:
            try:
                sent = self._socket.send(self._unsent)
            except BlockingIOError:
                return
            except OSError as error:
                raise LoadFailed(f"the server closed the connection: {error}") from error
            self._unsent = self._unsent[sent:] if sent < len(self._unsent) else None

    def receive(self) -> bytes:
        """What is there; empty: nothing yet."""
        try:
            received = self._socket.recv(_RECEIVED_BYTES_MAX)
        except BlockingIOError:
            return b""
        except OSError as error:
            raise LoadFailed(f"the server closed the connection: {error}") from error
        if not received:
            raise LoadFailed("the server closed the connection")
        return received
