"""A process that outlives the demo, or a test, by a moment, and ends what that one started.

Whoever starts servers ends them; but not after a SIGKILL of its own. So the guardian holds the reading end of a pipe:
when the other end closes without a word, it kills every process that it was told of, with all of their group.

A process is known by its id and the moment of its start, so a number that was given anew is not mistaken for it.
Needs Linux's /proc; elsewhere there is no guardian, and nothing else changes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

_GOODBYE = "goodbye"


class Guardian:
    """Runs until `dismiss`, or until this process ends."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        if Path("/proc/self/stat").exists():
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__], stdin=subprocess.PIPE, text=True, start_new_session=True
            )

    def watch(self, pid: int) -> None:
        """This process, a leader of its group, ends with us at the latest."""
        self._say(f"{pid} {_started(pid)}")

    def dismiss(self) -> None:
        """All has been ended in order, or is meant to stay."""
        self._say(_GOODBYE)
        if self._process is not None:
            assert self._process.stdin is not None
            with contextlib.suppress(OSError):
                self._process.stdin.close()
            self._process.wait()
            self._process = None

    def _say(self, line: str) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            with contextlib.suppress(OSError):
                self._process.stdin.write(line + "\n")
                self._process.stdin.flush()


def _started(pid: int) -> str:
    """When the process was started, in the kernel's ticks; empty when it has gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[19]


def _wait_and_kill() -> None:
    watched: list[tuple[int, str]] = []
    for line in sys.stdin:
        if line.strip() == _GOODBYE:
            return
        pid, _, started = line.strip().partition(" ")
        watched.append((int(pid), started))
    for pid, started in watched:
        if started and _started(pid) == started:
            with contextlib.suppress(OSError):
                os.killpg(pid, signal.SIGKILL)


if __name__ == "__main__":
    _wait_and_kill()
