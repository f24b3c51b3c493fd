"""One HTTP/2 connection of the load generator, for gRPC unary calls with bodies that were made beforehand.

A gRPC library would cost more per request than the servers that are measured, so this speaks just enough of RFC 9113
by hand: a request is a HEADERS and a DATA frame whose bytes are known but for the stream's number; an answer is the
DATA of its stream. Flow control is kept in both directions, large bodies are cut into frames, PING and SETTINGS are
acknowledged.

Deliberately absent: HPACK. Requests are written without indexing, and answers are judged by their messages: a gRPC
call that fails sends none, so it comes out as an answer of no bytes, which is wrong whatever the status says.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from tests.bench.peers.answers import Finished, LoadFailed
from tests.bench.peers.line import Line

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_FRAME = struct.Struct(">HBBBI")
_FRAME_HEAD_BYTES = 9
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS, _PADDED = 0x1, 0x1, 0x4, 0x8
_HEADER_TABLE_SIZE, _MAX_CONCURRENT_STREAMS, _INITIAL_WINDOW_SIZE, _MAX_FRAME_SIZE = 1, 3, 4, 5
_WINDOW_MAX = 2**31 - 1
_WINDOW_REFILL_BYTES = 2**30
_DEFAULT_WINDOW_BYTES = 65_535
_DEFAULT_FRAME_BYTES = 16_384
_GRPC_PREFIX_BYTES = 5


@dataclass(slots=True)
class _Stream:
    begun_s: float
    request: int
    message: bytes | bytearray = b""
    """Data as it comes: the gRPC prefix, then the message. Bytes while there is one piece, as nearly always."""


@dataclass(slots=True)
class _Upload:
    """A body that did not fit the windows at once."""

    stream: int
    rest: memoryview
    window_bytes: int


class Http2Connection(Line):
    """Calls one gRPC method. `streams_max` is how many calls may be in flight."""

    def __init__(self, address: tuple[str, int], path: str, messages: Sequence[bytes], streams_max: int) -> None:
        super().__init__(address)
        block = _header_block(
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", f"{address[0]}:{address[1]}"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("user-agent", "hexcomb-bench"),
        )
        self._headers_head = _head(len(block), _HEADERS, _END_HEADERS)
        self._block = block
        self._bodies = [b"\0" + len(message).to_bytes(4, "big") + message for message in messages]
        self._middles = [block + _head(len(body) & 0xFFFFFF, _DATA, _END_STREAM) for body in self._bodies]
        self._streams: dict[int, _Stream] = {}
        self._uploads: deque[_Upload] = deque()
        self._next_stream = 1
        self._peer_window_bytes = _DEFAULT_WINDOW_BYTES
        self._stream_window_bytes = _DEFAULT_WINDOW_BYTES
        self._frame_bytes_max = _DEFAULT_FRAME_BYTES
        self._streams_max = streams_max
        self._received_bytes = 0
        self._unparsed = b""
        self._out: list[bytes | memoryview] = []
        self._greet()

    @property
    def room(self) -> int:
        """Calls that may be started now."""
        return self._streams_max - len(self._streams)

    @property
    def in_flight(self) -> int:
        """Calls that have not ended."""
        return len(self._streams)

    def start(self, request: int, begun_s: float) -> None:
        """Begin the call with that message; `flush` sends it."""
        number = self._next_stream
        self._next_stream = number + 2
        self._streams[number] = _Stream(begun_s, request)
        stream = number.to_bytes(4, "big")
        body = self._bodies[request]
        size_bytes = len(body)
        at_once_bytes = min(self._frame_bytes_max, self._peer_window_bytes, self._stream_window_bytes)
        if size_bytes <= at_once_bytes and not self._uploads:
            self._peer_window_bytes -= size_bytes
            self._out += (self._headers_head, stream, self._middles[request], stream, body)
            return
        self._out += (self._headers_head, stream, self._block)
        self._uploads.append(_Upload(number, memoryview(body), self._stream_window_bytes))
        self._upload()

    def flush(self) -> None:
        """Send what was started, as far as the socket takes it."""
        super().flush()
        while self._out and not self.wants_to_send:
            data = b"".join(self._out)
            self._out.clear()
            self.send(data)

    def finished(self) -> list[Finished]:
        """The calls that ended. Raises LoadFailed when the server is gone."""
        received = self.receive()
        if not received:
            return []
        data = self._unparsed + received if self._unparsed else received
        finished: list[Finished] = []
        position, size = 0, len(data)
        streams = self._streams
        while size - position >= _FRAME_HEAD_BYTES:
            high, low, kind, flags, number = _FRAME.unpack_from(data, position)
            begin = position + _FRAME_HEAD_BYTES
            end = begin + (high << 8 | low)
            if end > size:
                break
            position = end
            if kind == _DATA:
                if flags & _PADDED:
                    raise LoadFailed("the server pads its frames, which this client does not read")
                self._received_bytes += end - begin
                stream = streams.get(number)
                if stream is not None:
                    if not stream.message:
                        stream.message = data[begin:end]
                    else:
                        if isinstance(stream.message, bytes):
                            stream.message = bytearray(stream.message)
                        stream.message += data[begin:end]
            elif kind != _HEADERS:
                self._control(kind, flags, number, data[begin:end], finished)
                continue
            if flags & _END_STREAM:
                stream = streams.pop(number, None)
                if stream is not None:
                    finished.append((stream.begun_s, stream.request, bytes(stream.message[_GRPC_PREFIX_BYTES:])))
        self._unparsed = data[position:]
        if self._received_bytes > _WINDOW_REFILL_BYTES:
            self._out.append(_frame(_WINDOW_UPDATE, 0, 0, self._received_bytes.to_bytes(4, "big")))
            self._received_bytes = 0
        return finished

    def _greet(self) -> None:
        settings = _setting(_HEADER_TABLE_SIZE, 4096) + _setting(_INITIAL_WINDOW_SIZE, _WINDOW_MAX)
        opened = (_WINDOW_MAX - _DEFAULT_WINDOW_BYTES).to_bytes(4, "big")
        self._out += (_PREFACE, _frame(_SETTINGS, 0, 0, settings), _frame(_WINDOW_UPDATE, 0, 0, opened))
        self.flush()
        # The server's settings come first; with them the limits that requests must keep are known.
        self.finished()
        self.flush()
        self.set_nonblocking()

    def _control(self, kind: int, flags: int, number: int, payload: bytes, finished: list[Finished]) -> None:
        if kind == _SETTINGS:
            if not flags & _ACK:
                self._take_settings(payload)
                self._out.append(_frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _PING:
            if not flags & _ACK:
                self._out.append(_frame(_PING, _ACK, 0, payload))
        elif kind == _WINDOW_UPDATE:
            self._widen(number, int.from_bytes(payload, "big"))
        elif kind == _RST_STREAM:
            stream = self._streams.pop(number, None)
            if stream is not None:
                finished.append((stream.begun_s, stream.request, b""))
        elif kind == _GOAWAY:
            raise LoadFailed(f"the server sent GOAWAY, code {int.from_bytes(payload[4:8], 'big')}: {payload[8:]!r}")

    def _take_settings(self, payload: bytes) -> None:
        for name, value in struct.iter_unpack(">HI", payload):
            if name == _INITIAL_WINDOW_SIZE:
                for upload in self._uploads:
                    upload.window_bytes += value - self._stream_window_bytes
                self._stream_window_bytes = value
            elif name == _MAX_FRAME_SIZE:
                self._frame_bytes_max = value
            elif name == _MAX_CONCURRENT_STREAMS:
                self._streams_max = min(self._streams_max, value)
        self._upload()

    def _widen(self, number: int, by_bytes: int) -> None:
        if number == 0:
            self._peer_window_bytes += by_bytes
        for upload in self._uploads:
            if upload.stream == number:
                upload.window_bytes += by_bytes
        self._upload()

    def _upload(self) -> None:
        """Cut waiting bodies into frames, one after the other, as far as the windows go."""
        waiting: deque[_Upload] = deque()
        while self._uploads:
            upload = self._uploads.popleft()
            stream = upload.stream.to_bytes(4, "big")
            while upload.rest:
                size_bytes = min(len(upload.rest), self._frame_bytes_max, self._peer_window_bytes, upload.window_bytes)
                if size_bytes <= 0:
                    waiting.append(upload)
                    break
                last = size_bytes == len(upload.rest)
                self._out += (_head(size_bytes, _DATA, _END_STREAM if last else 0), stream, upload.rest[:size_bytes])
                upload.rest = upload.rest[size_bytes:]
                upload.window_bytes -= size_bytes
                self._peer_window_bytes -= size_bytes
        self._uploads = waiting


def _head(size_bytes: int, kind: int, flags: int) -> bytes:
    """A frame's first five bytes; the stream's number follows."""
    return size_bytes.to_bytes(3, "big") + bytes((kind, flags))


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return _head(len(payload), kind, flags) + stream.to_bytes(4, "big") + payload


def _setting(name: int, value: int) -> bytes:
    return struct.pack(">HI", name, value)


def _header_block(*fields: tuple[str, str]) -> bytes:
    """Literal fields without indexing (RFC 7541, 6.2.2), no Huffman code: the same bytes on every connection."""
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in fields)


def _text(value: str) -> bytes:
    if len(value) >= 127:
        raise ValueError(f"a header of {len(value)} characters; write its length in more than one byte first")
    return bytes((len(value),)) + value.encode()
