"""The directory that a disk tier lies in: one process at a time has it, and what leaves it goes through its trash.

What is made, is made in `staging/` and becomes visible by one rename; what leaves is renamed into `trash/`, which is
quick, and deleted there, which is not. Whoever dies in between leaves both to the next start.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import BinaryIO

from runtime_adapters.artifacts.download import disk_errors
from runtime_adapters.artifacts.errors import BadStorageConfig

_SECTIONS = ("content", "prepared", "shared", "partial", "staging", "trash")


class DiskDirectory:
    """One process's own. Methods that wait are coroutines; the rest are quick file calls."""

    def __init__(self, root: Path, housekeeping: Executor) -> None:
        """Raises BadStorageConfig where another process has it."""
        self._root = root.absolute()
        self._housekeeping = housekeeping
        self._numbers = iter(range(1, 1 << 62))
        with disk_errors():
            for section in _SECTIONS:
                (self._root / section).mkdir(parents=True, exist_ok=True)
            self._lock = _lock(self._root / "lock")

    def close(self) -> None:
        """Let another process have it."""
        self._lock.close()

    def path(self, key: str) -> Path:
        """Where an entry lies."""
        return self._root / key

    def section(self, name: str) -> Iterator[Path]:
        """What lies in a section."""
        return (self._root / name).iterdir()

    @property
    def staging(self) -> Path:
        """Where things are made; what lies there goes at the next start."""
        return self._root / "staging"

    def stage(self) -> Path:
        """A new empty directory on the same file system."""
        path = self.staging / self._next_name()
        with disk_errors():
            path.mkdir()
        return path

    def to_trash(self, path: Path) -> Path | None:
        """Out of sight, at once; None if nothing was there. `discard` deletes it."""
        trashed = self._root / "trash" / self._next_name()
        with disk_errors():
            try:
                os.rename(path, trashed)
            except FileNotFoundError:
                return None
        return trashed

    async def discard(self, trashed: Path) -> None:
        """Delete what is in the trash."""
        work = partial(shutil.rmtree, trashed, ignore_errors=True)
        await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._housekeeping, work))

    async def drop(self, path: Path) -> None:
        """Delete something that is not an entry (a staging directory, a partial download)."""
        trashed = self.to_trash(path)
        if trashed is not None:
            await self.discard(trashed)

    def _next_name(self) -> str:
        return f"{os.getpid()}-{next(self._numbers)}"


def remove(path: Path) -> None:
    """Delete a file or a directory, where somebody waits for that. Blocking."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def files_below(directory: Path) -> list[Path]:
    """All files of a directory, in a fixed order within each."""
    return [Path(inside) / name for inside, _, names in os.walk(directory) for name in sorted(names)]


def sync_file(path: Path) -> None:
    """Bring a file to the platter. Blocking."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _lock(path: Path) -> BinaryIO:
    # A record lock: unlike flock's, a forked worker process does not inherit it and keep it.
    file = path.open("ab")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise BadStorageConfig(
            f"data directory {str(path.parent)!r} is in use by another process; give each pod its own --data-dir"
        ) from None
    return file
