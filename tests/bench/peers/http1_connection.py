"""One HTTP/1.1 connection of the load generator, for servers without gRPC: one request at a time, kept alive.

A request's bytes are made beforehand, head and all. Of an answer it reads the status, `content-length` or chunks, and
the body. An answer that is not 200 comes out as one of no bytes, which is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence

from tests.bench.peers.answers import Finished, LoadFailed
from tests.bench.peers.line import Line


class Http1Connection(Line):
    """Posts the given requests, whole with their heads."""

    def __init__(self, address: tuple[str, int], requests: Sequence[bytes]) -> None:
        super().__init__(address)
        self.set_nonblocking()
        self._requests = requests
        self._begun: tuple[float, int] | None = None
        self._received = bytearray()

    @property
    def room(self) -> int:
        """Requests that may be started now: one or none."""
        return 0 if self._begun else 1

    @property
    def in_flight(self) -> int:
        """Requests that have not ended: one or none."""
        return 1 if self._begun else 0

    def start(self, request: int, begun_s: float) -> None:
        """Begin that request."""
        self._begun = (begun_s, request)
        self.send(self._requests[request])

    def finished(self) -> list[Finished]:
        """The request that ended, if it did. Raises LoadFailed when the server is gone."""
        received = self.receive()
        if not received:
            return []
        if self._begun is None:
            raise LoadFailed("the server answers what nobody asked")
        self._received += received
        body = _body_of(self._received)
        if body is None:
            return []
        begun_s, request = self._begun
        self._begun = None
        self._received.clear()
        return [(begun_s, request, body)]


def _body_of(received: bytearray) -> bytes | None:
    """The body of a whole answer, empty unless its status is 200; None while bytes are missing."""
    head_end = received.find(b"\r\n\r\n")
    if head_end < 0:
        return None
    head = bytes(received[:head_end]).lower()
    begin = head_end + 4
    length_at = head.find(b"\r\ncontent-length:")
    if length_at >= 0:
        size_bytes = int(head[length_at + 17 :].split(b"\r\n", 1)[0])
        if len(received) < begin + size_bytes:
            return None
        body = bytes(received[begin : begin + size_bytes])
    elif b"\r\ntransfer-encoding: chunked" in head:
        if not received.endswith(b"0\r\n\r\n"):
            return None
        body = _unchunked(received, begin)
    else:
        raise LoadFailed(f"an answer without a length: {head[:200]!r}")
    return body if head.startswith((b"http/1.1 200", b"http/1.0 200")) else b""


def _unchunked(received: bytearray, position: int) -> bytes:
    body = b""
    while True:
        line_end = received.index(b"\r\n", position)
        size_bytes = int(received[position:line_end], 16)
        if size_bytes == 0:
            return body
        body += received[line_end + 2 : line_end + 2 + size_bytes]
        position = line_end + 4 + size_bytes
