"""Whose time a process takes: its event loop's, its HTTP/2 threads', or that of others; and how often they switch.

What the kernel counts for each thread. Shares and switches per request are the figures: they hold on a busy machine,
where times do not.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

LOOP, HTTP2, OTHERS = "event loop", "HTTP/2", "other threads"
_HTTP2_THREADS = "grpc-native"


@dataclass(frozen=True, slots=True)
class ThreadTimes:
    """Of some processes, by kind of thread."""

    cpu_s: Counter[str]
    switches: int
    """Of all threads: how often one waited for something, or was made to wait for another."""

    def __sub__(self, before: ThreadTimes) -> ThreadTimes:
        cpu_s = Counter({kind: seconds - before.cpu_s[kind] for kind, seconds in self.cpu_s.items()})
        return ThreadTimes(cpu_s, self.switches - before.switches)

    @property
    def total_s(self) -> float:
        """Of all kinds."""
        return sum(self.cpu_s.values())


def thread_times_of(pids: Sequence[int]) -> ThreadTimes:
    """Since they started; threads that have ended count nothing."""
    cpu_s: Counter[str] = Counter()
    switches = 0
    for pid in pids:
        for directory in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                name = (directory / "comm").read_text()
                kind = LOOP if directory.name == str(pid) else HTTP2 if name.startswith(_HTTP2_THREADS) else OTHERS
                cpu_s[kind] += int((directory / "schedstat").read_text().split()[0]) / 1e9
                for line in (directory / "status").read_text().splitlines():
                    if "ctxt_switches" in line:
                        switches += int(line.rpartition(":")[2])
    return ThreadTimes(cpu_s, switches)
