"""Who was asked for when: a CSV file that `hexcomb plan` replays.

One line per inference request that this pod answered, on the pod that ran it:

    time_s,tenant,model,outcome,latency_ms,size_bytes,load_s
    1795280947.633,default,iris-7,hit,0.412,,
    1795280948.101,default,wine-2,miss,31.207,182304,0.024

`time_s` is when the request came in, in Unix seconds. `size_bytes` and `load_s` (what the copy takes, and what fetching
and loading it took) stand on misses alone: they are what a replay must know of a model, and a hit adds nothing to it.

A request costs one tuple and one append. Lines are formatted and written by a thread, once a second; when the disk is
slower than the requests, lines are dropped and counted, never requests held up. At `bytes_max` the file becomes
`<name>.1` (the one before it goes), so the log takes at most twice that.

Deliberately absent: requests that failed or were refused (they ran nothing), and what was in them.
"""

from __future__ import annotations

import asyncio
import csv
import io
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from mesh.threads import InThread, in_thread

log = logging.getLogger("hexcomb.access")

COLUMNS = ("time_s", "tenant", "model", "outcome", "latency_ms", "size_bytes", "load_s")
WRITTEN_EVERY_S = 1.0
WAITING_MAX = 200_000
"""Lines that wait for the disk, some 40 MB; further ones are dropped."""


class Access(NamedTuple):
    """One request that was answered."""

    at_s: float
    """When it came in, on the wall clock."""
    tenant: str
    model: str
    latency_s: float
    cold: bool
    size_bytes: int
    load_s: float


class AccessLog:
    """Belongs to the event loop."""

    def __init__(
        self,
        path: Path,
        *,
        bytes_max: int,
        wall_clock: Callable[[], float] = time.time,
        in_thread: InThread = in_thread,
    ) -> None:
        """Raises OSError when the file cannot be written."""
        self._path = path
        self._bytes_max = bytes_max
        self._wall_clock = wall_clock
        self._in_thread = in_thread
        self._waiting: list[Access] = []
        self._dropped = 0
        self._writing: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        path.parent.mkdir(parents=True, exist_ok=True)
        _append(path, "")

    def answered(
        self, tenant: str, model: str, latency_s: float, *, cold: bool, size_bytes: int, load_s: float
    ) -> None:
        """A request was answered just now."""
        if len(self._waiting) >= WAITING_MAX:
            self._dropped += 1
            return
        self._waiting.append(Access(self._wall_clock() - latency_s, tenant, model, latency_s, cold, size_bytes, load_s))
        if self._writing is None:
            self._writing = asyncio.get_running_loop().create_task(self._write_soon())

    async def _write_soon(self) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), WRITTEN_EVERY_S)
        await self._write()
        self._writing = None

    async def _write(self) -> None:
        lines, self._waiting = self._waiting, []
        dropped, self._dropped = self._dropped, 0
        if dropped:
            log.warning("the disk of %s is slower than the requests: %d lines were dropped", self._path, dropped)
        if lines:
            try:
                await self._in_thread("access-log", self._keep, lines)
            except OSError as error:
                log.warning("%d lines of the access log were lost: %s", len(lines), error)

    def _keep(self, lines: list[Access]) -> None:
        if self._path.exists() and self._path.stat().st_size >= self._bytes_max:
            os.replace(self._path, self._path.with_name(self._path.name + ".1"))
        _append(self._path, _formatted(lines))

    async def close(self) -> None:
        """Write what waits."""
        self._closing.set()
        while self._writing is not None:
            await self._writing
            await self._write()


def _formatted(lines: list[Access]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for each in lines:
        writer.writerow(
            (
                f"{each.at_s:.3f}",
                each.tenant,
                each.model,
                "miss" if each.cold else "hit",
                f"{each.latency_s * 1e3:.3f}",
                each.size_bytes if each.cold else "",
                f"{each.load_s:.6f}" if each.cold else "",
            )
        )
    return text.getvalue()


def _append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8", newline="") as file:
        if file.tell() == 0:
            file.write(",".join(COLUMNS) + "\n")
        file.write(text)
