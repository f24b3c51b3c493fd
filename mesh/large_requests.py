"""While large requests come, memory that they used is kept for the next ones; a moment after the last it is given back.

What that saves, and what malloc is told, stands in `runtime_adapters.malloc`. A single large request changes nothing:
what it used goes back to the kernel at once. From `KEPT_FROM` of them within `LOOK_EVERY_S` on it is kept, until such a
while has passed without as many.

Belongs to the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mesh.threads import InThread, in_thread
from runtime_adapters.malloc import MMAP_THRESHOLD_BYTES, keep_freed_memory, trim

LARGE_BYTES = MMAP_THRESHOLD_BYTES
"""Smaller ones come from malloc's heaps in any case."""
KEPT_FROM = 2
LOOK_EVERY_S = 2.0


class LargeRequests:
    """Counts them."""

    def __init__(
        self,
        keep: Callable[[bool], None] = keep_freed_memory,
        give_back: Callable[[], None] = trim,
        in_thread: InThread = in_thread,
    ) -> None:
        """`give_back` blocks for milliseconds, and runs beside the loop."""
        self._keep = keep
        self._give_back = give_back
        self._in_thread = in_thread
        self._came = 0
        self._is_keeping = False
        self._timer: asyncio.TimerHandle | None = None

    def came(self) -> None:
        """One did."""
        self._came += 1
        if self._timer is None:
            self._look_later()
        if not self._is_keeping and self._came >= KEPT_FROM:
            self._is_keeping = True
            self._keep(True)

    def close(self) -> None:
        """Keep nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._is_keeping:
            self._keep(False)

    def _look_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(LOOK_EVERY_S, self._look)

    def _look(self) -> None:
        self._timer = None
        came, self._came = self._came, 0
        if came >= KEPT_FROM:
            self._look_later()
        elif self._is_keeping:
            self._is_keeping = False
            self._keep(False)
            self._in_thread("trim", self._give_back)
