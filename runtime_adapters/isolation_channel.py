"""Control messages between a pod and one isolated copy: length-prefixed JSON over a socket pair.

The other end may be hostile: it runs code that came with a model. So nothing here can run code when it is read
(no pickle), each message has a size limit, and each wait has a deadline. Tensors do not travel here; they lie in
shared memory (`runtime_adapters.shared_tensors`) and a message only says where.

A message is four bytes of length, little-endian, and that many bytes of JSON, which must be an object. JSON and not
something denser: a message is a few hundred bytes, its encoding takes microseconds beside a switch of processes, and
a person can read it in strace.

Deliberately absent: concurrency. One owner sends, then receives.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Mapping
from typing import Any

MESSAGE_BYTES_MAX = 16 << 20
"""Limit of one message. Metadata of a model with 10,000 inputs takes about 1 MB."""

_LENGTH = struct.Struct("<I")
_RECEIVE_BYTES = 1 << 16
_SHORTEST_WAIT_S = 1e-3
"""A socket timeout of 0 would mean "do not block", which reads as another error."""


class ChannelClosed(Exception):
    """The other end is gone."""


class ChannelTimedOut(Exception):
    """The other end did not answer (or did not take the message) before the deadline."""


class MalformedMessage(Exception):
    """The other end sent something that is no message."""


class Channel:
    """One end. Deadlines are moments on `time.monotonic()`; None waits for ever."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    def send(self, message: Mapping[str, Any], deadline_s: float | None = None) -> None:
        payload = json.dumps(message, separators=(",", ":")).encode()
        if len(payload) > MESSAGE_BYTES_MAX:
            raise MalformedMessage(f"a message of {len(payload):,} bytes; allowed are {MESSAGE_BYTES_MAX:,}")
        self._wait_until(deadline_s)
        try:
            self._socket.sendall(_LENGTH.pack(len(payload)) + payload)
        except TimeoutError as error:
            raise ChannelTimedOut from error
        except OSError as error:
            raise ChannelClosed from error

    def receive(self, deadline_s: float | None = None) -> dict[str, Any]:
        (length,) = _LENGTH.unpack(self._receive_exactly(_LENGTH.size, deadline_s))
        if length > MESSAGE_BYTES_MAX:
            raise MalformedMessage(f"a message of {length:,} bytes; allowed are {MESSAGE_BYTES_MAX:,}")
        payload = self._receive_exactly(length, deadline_s)
        try:
            message = json.loads(payload)
        except (ValueError, RecursionError) as error:
            raise MalformedMessage("a message that is not JSON") from error
        if not isinstance(message, dict):
            raise MalformedMessage(f"a message that is a {type(message).__name__}, not an object")
        return message

    def close(self) -> None:
        self._socket.close()

    def _receive_exactly(self, length: int, deadline_s: float | None) -> bytes:
        received = bytearray()
        while len(received) < length:
            self._wait_until(deadline_s)
            try:
                piece = self._socket.recv(min(_RECEIVE_BYTES, length - len(received)))
            except TimeoutError as error:
                raise ChannelTimedOut from error
            except OSError as error:
                raise ChannelClosed from error
            if not piece:
                raise ChannelClosed
            received += piece
        return bytes(received)

    def _wait_until(self, deadline_s: float | None) -> None:
        if deadline_s is None:
            self._socket.settimeout(None)
            return
        remaining_s = deadline_s - time.monotonic()
        if remaining_s <= 0:
            raise ChannelTimedOut
        self._socket.settimeout(max(remaining_s, _SHORTEST_WAIT_S))
