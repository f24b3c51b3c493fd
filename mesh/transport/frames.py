"""What travels on the line between two pods: calls one way, answers the other, many of them in one piece.

gRPC's own client takes as much processor time over a forwarded call as the pod that answers it. What costs is not the
bytes but that every call is a stream of its own: headers packed and unpacked, a task, a wake-up on either side. On a
line between two pods calls are therefore frames in one lasting stream of bytes, and all that came up in one turn of
the event loop is written, and read, at once.

A frame is a head and up to three parts, of which any may be empty:

    kind  status  id  seconds | text | metadata | body
    HELLO                      metadata          the caller's first word, and who it is; then the other's
    CALL          seconds path metadata body     how long until the deadline; infinite: there is none
    CANCEL                                       the caller has gone, or its deadline has passed
    PART                                body     a piece of a large answer; the last one is in the ANSWER
    ANSWER                     trailers body
    ERROR  status seconds text trailers          how long to wait before another try; infinite: no hint
    GOODBYE                                      the answering side takes no more calls on this line

Ids are the caller's; a HELLO has the version for one. Metadata are the same with nearly every call between two pods,
so both sides remember what they packed and unpacked last.

Deliberately absent: sockets, tasks, and what a call means. Also windows: a frame is sent whole, and the one behind it
waits. Large calls therefore take another way (`mesh.transport.batched_line`), and large answers go in parts, between
which others leave: a probe that waited behind one would find its pod dead.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from math import inf
from typing import NamedTuple

from mesh.transport.base import Metadata

VERSION = 1
_HEAD = struct.Struct("<BBIdIII")
HEAD_BYTES = _HEAD.size
CALL_BYTES_MAX = 256 * 1024
"""The body of a call."""
PART_BYTES = 256 * 1024
"""Answers with a larger body go in parts of so much."""
TEXT_BYTES_MAX = 16 * 1024
"""Of a path, or of an error's message, which the sender has cut to an eighth of that."""
METADATA_BYTES_MAX = 64 * 1024
"""Transports let in 16 KiB of a client's metadata (`TransportLimits`); pods add a few hundred bytes."""
_ENTRY = struct.Struct("<HI")
_BINARY = 0x8000
"""In an entry's length of key: the value is bytes, not text."""
_KEY_BYTES_MAX = _BINARY - 1
_KNOWN_MAX = 1024
_KNOWN_BYTES_MAX = 1024
"""How many packed metadata are remembered, and how long the longest of them: some 2 MiB in all."""


class BadFrame(Exception):
    """What came is no frame of this version, or one above the limits. The line is of no use any more."""


class Kind(IntEnum):
    """What a frame is."""

    HELLO = 1
    CALL = 2
    CANCEL = 3
    ANSWER = 4
    ERROR = 5
    GOODBYE = 6
    PART = 7


class Frame(NamedTuple):
    """One frame, as it was read."""

    kind: int
    status: int
    id: int
    seconds: float
    text: str
    metadata: Metadata
    body: bytes


class Packer:
    """Makes frames. One per direction of a line."""

    def __init__(self) -> None:
        self._known: dict[Metadata, bytes] = {}

    def pack(
        self,
        kind: Kind,
        call_id: int,
        *,
        status: int = 0,
        seconds: float = inf,
        text: str = "",
        metadata: Metadata = (),
        body: bytes | memoryview = b"",
    ) -> tuple[bytes | memoryview, ...]:
        """A frame, in pieces to be joined with those of others. Raises ValueError for metadata that no frame holds."""
        packed = b""
        if metadata:
            known = self._known.get(metadata)
            packed = self._pack_metadata(metadata) if known is None else known
        line = text.encode()
        head = _HEAD.pack(kind, status, call_id, seconds, len(line), len(packed), len(body))
        return (head, line, packed, body)

    def _pack_metadata(self, metadata: Metadata) -> bytes:
        packed = _packed(metadata)
        if len(packed) <= _KNOWN_BYTES_MAX:
            if len(self._known) >= _KNOWN_MAX:
                self._known.clear()
            self._known[metadata] = packed
        return packed


class Unpacker:
    """Finds the frames in a stream of bytes. One per direction of a line."""

    def __init__(self, body_bytes_max: int) -> None:
        """`body_bytes_max`: a frame with a larger body is an error."""
        self.body_bytes_max = body_bytes_max
        self._pieces: list[bytes] = []
        self._kept_bytes = 0
        self._needed_bytes = HEAD_BYTES
        """Of the frame that has begun: fewer bytes are not looked at again."""
        self._known: dict[bytes, Metadata] = {}

    def take(self, data: bytes) -> list[Frame]:
        """The frames that are complete with these bytes. Raises BadFrame."""
        if self._pieces:
            self._pieces.append(data)
            self._kept_bytes += len(data)
            if self._kept_bytes < self._needed_bytes:
                return []
            data = b"".join(self._pieces)
            self._pieces.clear()
        frames: list[Frame] = []
        position, size = 0, len(data)
        self._needed_bytes = HEAD_BYTES
        while size - position >= HEAD_BYTES:
            kind, status, call_id, seconds, text_bytes, metadata_bytes, body_bytes = _HEAD.unpack_from(data, position)
            text_at = position + HEAD_BYTES
            metadata_at = text_at + text_bytes
            body_at = metadata_at + metadata_bytes
            end = body_at + body_bytes
            if body_bytes > self.body_bytes_max or metadata_bytes > METADATA_BYTES_MAX or text_bytes > TEXT_BYTES_MAX:
                raise BadFrame(f"a frame of {text_bytes} + {metadata_bytes} + {body_bytes} bytes, above the limits")
            if end > size:
                self._needed_bytes = end - position
                break
            if metadata_bytes:
                packed = data[metadata_at:body_at]
                metadata = self._known.get(packed)
                if metadata is None:
                    metadata = self._unpack_metadata(packed)
            else:
                metadata = ()
            try:
                text = data[text_at:metadata_at].decode()
            except UnicodeDecodeError as error:
                raise BadFrame("a frame's text is not UTF-8") from error
            frames.append(Frame(kind, status, call_id, seconds, text, metadata, data[body_at:end]))
            position = end
        if position < size:
            self._pieces.append(data[position:])
        self._kept_bytes = size - position
        return frames

    def _unpack_metadata(self, packed: bytes) -> Metadata:
        metadata = _unpacked(packed)
        if len(packed) <= _KNOWN_BYTES_MAX:
            if len(self._known) >= _KNOWN_MAX:
                self._known.clear()
            self._known[packed] = metadata
        return metadata


def _packed(metadata: Metadata) -> bytes:
    pieces: list[bytes] = []
    for key, value in metadata:
        name = key.encode()
        if len(name) > _KEY_BYTES_MAX:
            raise ValueError(f"a metadata key of {len(name)} bytes")
        content, mark = (value.encode(), 0) if isinstance(value, str) else (value, _BINARY)
        pieces += (_ENTRY.pack(len(name) | mark, len(content)), name, content)
    packed = b"".join(pieces)
    if len(packed) > METADATA_BYTES_MAX:
        raise ValueError(f"metadata of {len(packed)} bytes, above the limit of {METADATA_BYTES_MAX}")
    return packed


def _unpacked(packed: bytes) -> Metadata:
    entries: list[tuple[str, str | bytes]] = []
    position = 0
    try:
        while position < len(packed):
            marked_bytes, value_bytes = _ENTRY.unpack_from(packed, position)
            name_at = position + _ENTRY.size
            value_at = name_at + (marked_bytes & _KEY_BYTES_MAX)
            position = value_at + value_bytes
            if position > len(packed):
                raise BadFrame("a metadata entry is longer than what holds it")
            value = packed[value_at:position]
            entries.append((packed[name_at:value_at].decode(), value if marked_bytes & _BINARY else value.decode()))
    except (struct.error, UnicodeDecodeError) as error:
        raise BadFrame("metadata that cannot be read") from error
    return tuple(entries)
