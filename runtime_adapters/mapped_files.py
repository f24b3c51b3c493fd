"""Files held in RAM: mapped, read once, and locked there if this process may.

For weights that a framework reads from files by itself, a tier in RAM is their pages in the kernel's cache, where one
copy serves every model that shares the file. Locking (`mlock`) keeps the kernel from giving those pages away; where
the limit on locked memory (RLIMIT_MEMLOCK; often 8 MiB in containers) forbids that, they are what the kernel drops
first under pressure, and the next reader waits for the disk.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from runtime_adapters.base import Array

_PAGE_BYTES = mmap.PAGESIZE

Lock = Callable[[int, int], bool]


def _lock(address: int, size_bytes: int) -> bool:
    return bool(ctypes.CDLL(None).mlock(ctypes.c_void_p(address), ctypes.c_size_t(size_bytes)) == 0)


class MappedFiles:
    """Some files in RAM, until `close`."""

    def __init__(self, paths: Iterable[Path], lock: Lock = _lock) -> None:
        """Blocks while they are read. Raises OSError where one cannot be."""
        self._views: list[Array] = []
        self.is_locked = True
        self.size_bytes = 0
        for path in paths:
            with path.open("rb") as file:
                if not (size_bytes := path.stat().st_size):
                    continue
                mapping = mmap.mmap(file.fileno(), size_bytes, access=mmap.ACCESS_READ)
            mapping.madvise(mmap.MADV_WILLNEED)
            view = np.frombuffer(mapping, np.uint8)
            view[::_PAGE_BYTES].max()  # every page is there when this returns
            self.is_locked = lock(view.ctypes.data, size_bytes) and self.is_locked
            self._views.append(view)
            self.size_bytes += size_bytes

    def close(self) -> None:
        """Let go of them; unmapping unlocks. Idempotent."""
        self._views.clear()
