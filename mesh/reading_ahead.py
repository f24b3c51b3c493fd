"""Reading a model's file while it is being fetched, where its adapter can (`runtime_adapters.base.ReadsWhileFetched`).

A link leaves a processor idle that the check of a text file then takes as long again. So each piece is handed to the
adapter on the thread that fetches, and when the last one has come, what is left of `prepare` is to write the form.

What was heard is used only if it was the whole file, in order, in this one fetch. A transfer that began anew, one that
somebody else had begun, content that was here already: then the file is read as ever.

Deliberately absent: files whose format is detected once they are here, archives, and copies in processes of their own.
"""

from __future__ import annotations

import logging

from runtime_adapters.artifacts.fetch import Artifact
from runtime_adapters.base import Reading

log = logging.getLogger("hexcomb.staging")

READ_AHEAD_BYTES_MAX = 64 << 20
"""Of one file. A larger one is read when it is prepared, which asks first whether the box has room for it."""


class ReadingAhead:
    """One file on its way. Heard by one thread at a time; asked when it has come."""

    def __init__(self, reading: Reading) -> None:
        self._reading: Reading | None = reading
        self._taken_bytes = 0

    def hear(self, offset: int, piece: bytes) -> None:
        """A piece of the file, which begins at `offset`."""
        if self._reading is None:
            return
        if offset != self._taken_bytes or offset + len(piece) > READ_AHEAD_BYTES_MAX:
            self._reading = None
            return
        self._taken_bytes += len(piece)
        try:
            self._reading.take(piece)
        except Exception:  # a defect of the adapter, or no memory: no reason to fetch the file again
            log.exception("a file could not be read while it came; it is read when it is prepared")
            self._reading = None

    def all_of(self, artifact: Artifact) -> Reading | None:
        """What was read, if it is this artifact."""
        whole = self._taken_bytes == artifact.size_bytes == artifact.fetched_bytes
        return self._reading if whole and not artifact.form else None
