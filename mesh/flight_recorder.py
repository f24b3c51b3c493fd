"""What ran when the process died: a few bytes per loaded model, in a file that outlives the process.

A model's native code can end the process in the middle of a run, and no handler of ours gets to say which model it
was. So each copy in this process has a slot in a memory-mapped file, and its byte says whether requests hold the copy.
Writing the byte costs some tens of nanoseconds; the kernel keeps it when the process dies, whatever the signal. The
next process in the same data directory reads who was in use, and tells the pool.

A model that was merely in use when the process was killed from outside is named as well: one such death proves
nothing, and the pool acts on the second (`placement.policy.quarantine`).

Format: a header line of JSON (version, pod, incarnation), then slots of `SLOT_BYTES`: one byte in use, two bytes
length, the name as UTF-8 JSON. A clean stop removes the file.

A process that is killed, starts again and fails on the way (its port is taken, the store is away) has told nobody yet.
So a new recorder does not write over the file that it finds, but moves it aside, where it stays until the pool has
been told (`forget_last`), through as many starts as that takes.

Deliberately absent: loads (their intents lie in the store before they begin), machines that die with their disks
(the pods that had forwarded requests to them know).
"""

from __future__ import annotations

import json
import logging
import mmap
import os
from dataclasses import dataclass
from pathlib import Path

from cache.types import ModelKey

log = logging.getLogger("hexcomb.flight")

SLOT_BYTES = 512
"""Copies with longer names go unrecorded."""
HEADER_BYTES = 4096
SLOTS = 16_384
"""Copies in this process that can be recorded at once; the file is sparse. Further ones go unrecorded."""
FILE_NAME = "flight-recorder"
PREVIOUS_NAME = "flight-recorder.previous"
"""Of a process whose end has not been told yet."""


@dataclass(frozen=True, slots=True)
class LastFlight:
    """What the process before this one left behind."""

    pod: str
    incarnation: str
    in_use: tuple[ModelKey, ...]


class FlightRecorder:
    """The file of this process. Belongs to the event loop; `in_use` is written on every hit."""

    def __init__(self, directory: Path, pod: str, incarnation: str) -> None:
        """Moves what the process before this one left aside. Raises OSError when the file cannot be written."""
        self._path = directory / FILE_NAME
        self._previous_path = directory / PREVIOUS_NAME
        if self._path.exists() and not self._previous_path.exists():
            self._path.rename(self._previous_path)
        size = HEADER_BYTES + SLOTS * SLOT_BYTES
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.ftruncate(descriptor, size)
            self.bytes = mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)
        header = json.dumps({"v": 1, "pod": pod, "incarnation": incarnation}).encode() + b"\n"
        self.bytes[: len(header)] = header
        self._free = list(range(SLOTS - 1, 0, -1))
        """Slot 0 is written by copies that have none, and never read."""

    def take(self, key: ModelKey) -> int:
        """A slot for a copy: the position of its byte in `bytes`."""
        name = json.dumps([key.tenant, key.model_id, key.generation]).encode()
        if not self._free or len(name) > SLOT_BYTES - 3:
            return HEADER_BYTES
        position = HEADER_BYTES + self._free.pop() * SLOT_BYTES
        self.bytes[position + 1 : position + 3 + len(name)] = len(name).to_bytes(2, "big") + name
        self.bytes[position] = 0
        return position

    def give_back(self, position: int) -> None:
        """The copy has gone, perhaps after the pod had stopped."""
        if position > HEADER_BYTES and not self.bytes.closed:
            self.bytes[position : position + 3] = b"\0\0\0"
            self._free.append((position - HEADER_BYTES) // SLOT_BYTES)

    def forget_last(self) -> None:
        """The pool has been told of the flight before this one."""
        self._previous_path.unlink(missing_ok=True)

    def close(self) -> None:
        """A clean end: nothing to tell the next process."""
        self._path.unlink(missing_ok=True)
        self.bytes.close()


def read_last_flight(directory: Path) -> LastFlight | None:
    """What the last process in this data directory left there, of those that the pool was not told of; None after a
    clean end. Damage is no error."""
    path = directory / PREVIOUS_NAME
    if not path.exists():
        path = directory / FILE_NAME
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _read(content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if not isinstance(error, FileNotFoundError):
            log.warning("the flight recorder of the process before this one is ignored: %s", error)
        return None


def _read(content: mmap.mmap) -> LastFlight | None:
    header = json.loads(content[:HEADER_BYTES].partition(b"\n")[0])
    if header["v"] != 1:
        return None
    in_use = []
    for position in range(HEADER_BYTES + SLOT_BYTES, len(content) - 3, SLOT_BYTES):
        length = int.from_bytes(content[position + 1 : position + 3], "big")
        if content[position] and length:
            tenant, model_id, generation = json.loads(content[position + 3 : position + 3 + length])
            in_use.append(ModelKey(str(tenant), str(model_id), int(generation)))
    return LastFlight(str(header["pod"]), str(header["incarnation"]), tuple(in_use))
