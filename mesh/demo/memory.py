"""The resident sets of the servers, seen from outside: sampled, and the highest kept.

What a server says of its own memory is its ledger; this is what the kernel says. Samples are 50 ms apart: loads take
milliseconds, so a spike may fall between two, but memory that stays is seen.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import psutil

SAMPLE_EVERY_S = 0.05
RESIDENT_SET_BAR = 1.1
"""The resident set may be this much above what the server weighs without models plus its capacity."""


@dataclass(frozen=True, slots=True)
class ServerMemory:
    """One server."""

    name: str
    baseline_rss_bytes: int
    """Without models."""
    peak_rss_bytes: int
    capacity_bytes: int

    @property
    def rss_limit_bytes(self) -> int:
        """What the resident set may not exceed."""
        return int(RESIDENT_SET_BAR * (self.baseline_rss_bytes + self.capacity_bytes))


class ResidentSets:
    """Watches servers from a thread until `stop` is called."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._processes: dict[str, psutil.Process] = {}
        self._baseline_bytes: dict[str, int] = {}
        self._peak_bytes: dict[str, int] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="resident-sets", daemon=True)
        self._thread.start()

    def watch(self, name: str, pid: int) -> None:
        """Begin to sample this process. What it weighs now is the server's baseline, unless it had one in a life
        before."""
        process = psutil.Process(pid)
        with self._lock:
            self._processes[name] = process
            self._baseline_bytes.setdefault(name, _resident_bytes(process))

    def stop(self) -> None:
        """Take a last sample and end."""
        self._stopped.set()
        self._thread.join()

    def peaks(self, capacity_bytes: int) -> tuple[ServerMemory, ...]:
        """What was found, of servers with this capacity each."""
        with self._lock:
            return tuple(
                ServerMemory(name, baseline_bytes, self._peak_bytes.get(name, 0), capacity_bytes)
                for name, baseline_bytes in self._baseline_bytes.items()
            )

    def _watch(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._stopped.wait(SAMPLE_EVERY_S)
            with self._lock:
                for name, process in self._processes.items():
                    self._peak_bytes[name] = max(self._peak_bytes.get(name, 0), _resident_bytes(process))


def _resident_bytes(process: psutil.Process) -> int:
    """0 when the process has gone."""
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0
