"""A control group with a real memory limit, where this machine lets one be made, so that the kernel really kills.

Root on a machine with control groups (v1 or v2) can; most containers cannot, and then there is None and the caller
says so.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from runtime_adapters.cgroups import counters, groups

_NUMBERS = itertools.count()
_REMOVE_TRIES = 200
_REMOVE_PAUSE_S = 0.05


@dataclass(frozen=True, slots=True)
class MemoryGroup:
    """One such group."""

    directory: Path
    home: Path
    """Where this process was before."""
    version: int

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """What is started inside lives in the group, and this process does meanwhile."""
        _move(self.directory)
        try:
            yield
        finally:
            _move(self.home)

    def limit(self, limit_bytes: int) -> None:
        """From now on no more than this. Raises OSError when more is in use that cannot be taken back."""
        (self.directory / _limit_file(self.version)).write_text(str(limit_bytes))

    @property
    def unreclaimable_bytes(self) -> int:
        """What is in use and no file's page."""
        prefix, usage = ("total_", "memory.usage_in_bytes") if self.version == 1 else ("", "memory.current")
        stat = counters(self.directory / "memory.stat")
        files_bytes = stat.get(f"{prefix}active_file", 0) + stat.get(f"{prefix}inactive_file", 0)
        return int((self.directory / usage).read_text()) - files_bytes

    @property
    def oom_kills(self) -> int:
        """Processes that the kernel killed in it."""
        name = "memory.oom_control" if self.version == 1 else "memory.events"
        return counters(self.directory / name).get("oom_kill", 0)

    @property
    def peak_bytes(self) -> int:
        """The most that was ever used, page cache included; 0 where the kernel does not say."""
        name = "memory.max_usage_in_bytes" if self.version == 1 else "memory.peak"
        try:
            return int((self.directory / name).read_text())
        except (OSError, ValueError):
            return 0


@contextlib.contextmanager
def memory_group(limit_bytes: int, name: str) -> Iterator[MemoryGroup | None]:
    """A group below this process's own, without swap where that can be said; None where none can be made."""
    own = groups("memory")
    made = (
        _make(own[0].directory, own[0].version, limit_bytes, f"{name}-{os.getpid()}-{next(_NUMBERS)}") if own else None
    )
    try:
        yield made
    finally:
        if made is not None:
            _remove(made.directory)


def _make(home: Path, version: int, limit_bytes: int, name: str) -> MemoryGroup | None:
    directory = home / name
    try:
        directory.mkdir()
    except OSError:
        return None
    made = MemoryGroup(directory, home, version)
    try:
        made.limit(limit_bytes)
        with made.entered():
            pass
    except OSError:
        _remove(directory)
        return None
    return made


def _limit_file(version: int) -> str:
    return "memory.limit_in_bytes" if version == 1 else "memory.max"


def _move(directory: Path) -> None:
    (directory / "cgroup.procs").write_text(str(os.getpid()))


def _remove(directory: Path) -> None:
    for _ in range(_REMOVE_TRIES):  # processes that have ended may be counted for a moment
        try:
            directory.rmdir()
        except OSError:
            time.sleep(_REMOVE_PAUSE_S)
        else:
            return
