"""What a server's processes use, as the kernel counts it.

A server's processes are found by a mark in their environment, which children inherit, rather than by parentage: Ray's
daemons outlive who started them.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Sequence
from pathlib import Path

MARK = "BENCH_SERVER_MARK"
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def marked_pids(mark: str) -> tuple[int, ...]:
    """The processes that were started with this mark, and their children."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            with contextlib.suppress(OSError):
                if wanted in (directory / "environ").read_bytes().split(b"\0"):
                    found.append(int(directory.name))
    return tuple(found)


def cpu_s_of(pids: Sequence[int]) -> float:
    """User and system time of these processes, and of their children that ended; those that are gone count nothing."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            stat = Path(f"/proc/{pid}/stat").read_text()
            ticks += sum(int(field) for field in stat.rpartition(")")[2].split()[11:15])
    return ticks * _TICK_S


def proportional_bytes_of(pids: Sequence[int]) -> int:
    """Pss: memory of these processes, pages that several share counted once."""
    kilobytes = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
            kilobytes += int(found[1]) if found else 0
    return kilobytes * 1024


def kill_marked(mark: str) -> None:
    """SIGKILL to all that is left of a server."""
    for pid in marked_pids(mark):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
