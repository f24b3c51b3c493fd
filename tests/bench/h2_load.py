"""A load generator for unary gRPC that costs little: HTTP/2 frames made once, compared as bytes when they come back.

A gRPC client in Python takes 70 µs and more per call, several times what the server measured with it takes; then the
client is what is measured. Here a request is a frame that was built beforehand with another stream number in it, a
round's requests leave in one `send`, and of an answer only the frames' headers and the message's bytes are looked at:
5 to 15 µs per call, the more in flight the fewer. No HPACK is decoded: an answer is right if its message is the
expected one, byte for byte, and wrong if anything else, or nothing, came before the end of its stream.

Deliberately absent: TLS, messages that do not fit a frame (16 KiB) or the server's first window.
"""

from __future__ import annotations

import selectors
import socket
import struct
import time
from dataclasses import dataclass, field

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_WINDOW_MAX = 2**31 - 1
_WINDOW_FIRST = 65_535
_FRAME_BYTES_MAX = 16_384
_READ_BYTES = 1 << 18
_HEADER = struct.Struct(">HBBBI")


class LoadFailed(Exception):
    """The server does not answer as it should; the message says how."""


@dataclass(slots=True)
class Load:
    """What a load came to."""

    answered: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0
    """Of the generator."""
    latencies_s: list[float] = field(default_factory=list)

    def percentile_ms(self, share: float) -> float:
        """Of the latencies, by nearest rank."""
        ordered = sorted(self.latencies_s)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1e3


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return _HEADER.pack(len(payload) >> 8, len(payload) & 0xFF, kind, flags, stream) + payload


def _literal(text: str) -> bytes:
    encoded = text.encode()
    if len(encoded) > 126:
        raise ValueError(f"{text!r} is too long for this encoder")
    return bytes((len(encoded),)) + encoded


def _header_block(path: str, authority: str) -> bytes:
    """Literal fields that no table remembers, so that the same bytes do for each request."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": authority,
        "te": "trailers",
        "content-type": "application/grpc",
        "user-agent": "hexcomb-bench",
    }
    return b"".join(b"\0" + _literal(name) + _literal(value) for name, value in fields.items())


class _Connection:
    """One connection with so many requests in flight."""

    def __init__(self, port: int, path: str, message: bytes, streams: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        data = b"\0" + struct.pack(">I", len(message)) + message
        if len(data) > _FRAME_BYTES_MAX:
            raise ValueError("the request does not fit a frame")
        headers = _frame(_HEADERS, _END_HEADERS, 0, _header_block(path, f"127.0.0.1:{port}"))
        body = _frame(_DATA, _END_STREAM, 0, data)
        # A frame's stream number is the last four bytes of its nine-byte header.
        self._parts = (headers[:5], headers[9:] + body[:5], body[9:])
        self._request_bytes = len(data)
        self._streams = streams
        self._next_stream = 1
        self._window = _WINDOW_FIRST
        self._due = streams
        self._begun_s: dict[int, float] = {}
        self._received: dict[int, bytes] = {}
        self._pending = b""
        settings = struct.pack(">HI", 4, _WINDOW_MAX)
        self._socket.sendall(
            _PREFACE
            + _frame(_SETTINGS, 0, 0, settings)
            + _frame(_WINDOW, 0, 0, struct.pack(">I", _WINDOW_MAX - _WINDOW_FIRST))
        )

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    @property
    def in_flight(self) -> int:
        return len(self._begun_s)

    def send(self) -> None:
        """As many requests as are due and the window lets pass."""
        count = min(self._due, self._window // self._request_bytes)
        if count <= 0:
            return
        before, between, after = self._parts
        now_s = time.perf_counter()
        stream = self._next_stream
        out = bytearray()
        for _ in range(count):
            number = stream.to_bytes(4)
            out += before
            out += number
            out += between
            out += number
            out += after
            self._begun_s[stream] = now_s
            stream += 2
        self._next_stream = stream
        self._due -= count
        self._window -= count * self._request_bytes
        self._socket.sendall(out)

    def receive(self, expected: bytes, load: Load, *, more: bool) -> None:
        """Read what is there, and count answers. `more`: each makes another request due."""
        read = self._socket.recv(_READ_BYTES)
        if not read:
            raise LoadFailed("the server closed a connection")
        buffer = self._pending + read
        at, end = 0, len(buffer)
        now_s = time.perf_counter()
        while end - at >= 9:
            high, low, kind, flags, stream = _HEADER.unpack_from(buffer, at)
            begin = at + 9
            at = begin + (high << 8 | low)
            if at > end:
                at = begin - 9
                break
            if kind == _DATA:
                self._received[stream] = self._received.get(stream, b"") + buffer[begin:at]
            elif kind == _HEADERS:
                if flags & _END_STREAM:
                    if self._received.pop(stream, b"") != expected:
                        raise LoadFailed(f"stream {stream} was not answered as the first request was")
                    load.latencies_s.append(now_s - self._begun_s.pop(stream))
                    load.answered += 1
                    self._due += more
            else:
                self._control(kind, flags, stream, buffer[begin:at])
        self._pending = buffer[at:]

    def _control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _WINDOW and stream == 0:
            self._window += struct.unpack(">I", payload)[0]
        elif kind == _SETTINGS and not flags & _ACK:
            self._socket.sendall(_frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _PING and not flags & _ACK:
            self._socket.sendall(_frame(_PING, _ACK, 0, payload))
        elif kind in (_RESET, _GOAWAY):
            raise LoadFailed(f"the server ended stream {stream} (frame {kind})")


def run_load(
    port: int, path: str, message: bytes, seconds: float, connections: int, streams: int, answer: bytes
) -> Load:
    """Keep `streams` requests in flight on each connection for so long. `answer` is what each must be answered with.

    Raises LoadFailed.
    """
    expected = b"\0" + struct.pack(">I", len(answer)) + answer
    load = Load()
    lines = [_Connection(port, path, message, streams) for _ in range(connections)]
    with selectors.DefaultSelector() as selector:
        for line in lines:
            selector.register(line, selectors.EVENT_READ)
            line.send()
        began_s, cpu_began_s = time.perf_counter(), time.process_time()
        while True:
            more = time.perf_counter() - began_s < seconds
            if not more and not any(line.in_flight for line in lines):
                break
            ready = selector.select(timeout=10)
            if not ready:
                raise LoadFailed("the server said nothing for ten seconds")
            for key, _ in ready:
                line = key.fileobj
                assert isinstance(line, _Connection)
                line.receive(expected, load, more=more)
                if more:
                    line.send()
        load.seconds, load.cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_began_s
    for line in lines:
        line.close()
    return load
