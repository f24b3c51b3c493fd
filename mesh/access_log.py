"""Who was asked for when: a CSV file that `hexcomb plan` replays.

One line per inference request that this pod answered, on the pod that ran it:

    time_s,tenant,model,outcome,latency_ms,size_bytes,load_s,fetch_s,wait_ms
    1795280947.633,default,iris-7,hit,0.412,,,,
    1795280948.101,default,wine-2,miss,31.207,182304,0.024118,0.003102,30.154

`time_s` is when the request came in, in Unix seconds. The last four stand on misses alone, since they are what a replay
must know of a model, and a hit adds nothing to it: what the copy takes, what fetching and loading it took, the fetch's
part in that (with what was prepared before the load), and how much of its latency the request waited for its copy.

A request costs one tuple and one append. Lines are formatted and written by a thread, once a second; when the disk is
slower than the requests, lines are dropped and counted, never requests held up. At `bytes_max` the file becomes
`<name>.1` (the one before it goes), so the log takes at most twice that. So does a file that has other columns, which
an earlier version of the pod wrote.

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

COLUMNS = ("time_s", "tenant", "model", "outcome", "latency_ms", "size_bytes", "load_s", "fetch_s", "wait_ms")
_HEADER = ",".join(COLUMNS) + "\n"
WRITTEN_EVERY_S = 1.0
WAITING_MAX = 200_000
"""Lines that wait for the disk, some 40 MB; further ones are dropped."""


class ColdStart(NamedTuple):
    """What a request met that found no copy."""

    size_bytes: int
    """What the copy takes, by the pod's books: its runs included."""
    load_s: float
    """What bringing it here took, the fetch included."""
    fetch_s: float
    wait_s: float
    """How long the request waited for it."""


class Access(NamedTuple):
    """One request that was answered."""

    at_s: float
    """When it came in, on the wall clock."""
    tenant: str
    model: str
    latency_s: float
    cold: ColdStart | None


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
        if _has_other_columns(path):
            _put_aside(path)
        _append(path, "")

    def answered(self, tenant: str, model: str, latency_s: float, cold: ColdStart | None = None) -> None:
        """A request was answered just now."""
        if len(self._waiting) >= WAITING_MAX:
            self._dropped += 1
            return
        self._waiting.append(Access(self._wall_clock() - latency_s, tenant, model, latency_s, cold))
        if self._writing is None:
            self._writing = asyncio.get_running_loop().create_task(self._write_soon())

    async def _write_soon(self) -> None:
        while self._waiting:  # more may have come while these were written
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
            _put_aside(self._path)
        _append(self._path, _formatted(lines))

    async def close(self) -> None:
        """Write what waits."""
        self._closing.set()
        while self._writing is not None:
            await self._writing


def _formatted(lines: list[Access]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for each in lines:
        cold = each.cold
        taken = (
            ("", "", "", "")
            if cold is None
            else (cold.size_bytes, f"{cold.load_s:.6f}", f"{cold.fetch_s:.6f}", f"{cold.wait_s * 1e3:.3f}")
        )
        outcome = "hit" if cold is None else "miss"
        writer.writerow((f"{each.at_s:.3f}", each.tenant, each.model, outcome, f"{each.latency_s * 1e3:.3f}", *taken))
    return text.getvalue()


def _append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8", newline="") as file:
        if file.tell() == 0:
            file.write(_HEADER)
        file.write(text)


def _has_other_columns(path: Path) -> bool:
    with suppress(FileNotFoundError), path.open(encoding="utf-8", errors="replace", newline="") as file:
        return file.readline(2 * len(_HEADER)) not in ("", _HEADER)
    return False


def _put_aside(path: Path) -> None:
    os.replace(path, path.with_name(path.name + ".1"))
