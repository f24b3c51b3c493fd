"""The resident set of the server, seen from outside: sampled, and its highest kept.

What the server says of its own memory is its ledger; this is what the kernel says. Samples are 50 ms apart: loads
take milliseconds, so a spike may fall between two, but memory that stays is seen.
"""

from __future__ import annotations

import threading

import psutil

SAMPLE_EVERY_S = 0.05


class ResidentSetWatch:
    """Watches one process from a thread until it ends or `stop` is called."""

    def __init__(self, pid: int, *, sample_every_s: float = SAMPLE_EVERY_S) -> None:
        self._process = psutil.Process(pid)
        self._every_s = sample_every_s
        self._stopped = threading.Event()
        self._peak_bytes = 0
        self._thread = threading.Thread(target=self._watch, name="resident-set", daemon=True)

    def start(self) -> None:
        """Begin to sample."""
        self._thread.start()

    def stop(self) -> None:
        """Take a last sample and end."""
        self._stopped.set()
        self._thread.join()

    @property
    def peak_bytes(self) -> int:
        """The largest sample since the start."""
        return self._peak_bytes

    def now_bytes(self) -> int:
        """One sample; 0 when the process has gone."""
        try:
            return int(self._process.memory_info().rss)
        except psutil.Error:
            return 0

    def _watch(self) -> None:
        while True:
            self._peak_bytes = max(self._peak_bytes, self.now_bytes())
            if self._stopped.wait(self._every_s):
                self._peak_bytes = max(self._peak_bytes, self.now_bytes())
                return
