"""Giving freed memory back to the kernel in time, without paying for it at each unload.

Large weights have mappings of their own and are returned when they are freed (`runtime_adapters.malloc`). What small
models leave behind are free pages inside malloc's heap, and only `malloc_trim` returns those. It walks the heap, in a
millisecond or in tens of them after ten thousand models, so it is called on a thread, when enough was freed to matter,
and so rarely that it takes at most `TIME_SHARE_MAX` of a core: the pause before the next call is a multiple of what the
last one took. Whatever was freed is returned in the end: a timer stands in for the unload that would have triggered it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from mesh.threads import InThread, in_thread
from runtime_adapters.malloc import trim

FREED_MIN_BYTES = 2 << 20
"""Less than this is not worth a walk: the next load is likely to use it again."""
PAUSE_MIN_S = 0.1
"""The shortest pause between two walks."""
TIME_SHARE_MAX = 0.02
"""Of one core, for walking the heap while models come and go."""


class HeapTrimmer:
    """Counts freed bytes and trims the heap. Owned by the event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, in_thread: InThread = in_thread) -> None:
        self._clock = clock
        self._in_thread = in_thread
        self._freed_bytes = 0
        self._pause_s = PAUSE_MIN_S
        self._timer: asyncio.TimerHandle | None = None

    def freed(self, count_bytes: int) -> None:
        """An unload gave this much back to malloc."""
        self._freed_bytes += count_bytes
        if self._timer is None and self._freed_bytes >= FREED_MIN_BYTES:
            self._timer = asyncio.get_running_loop().call_later(self._pause_s, self._trim)

    def _trim(self) -> None:
        self._timer = None
        self._freed_bytes = 0
        began_s = self._clock()
        self._in_thread("trim", trim).add_done_callback(lambda _: self._trimmed(self._clock() - began_s))

    def _trimmed(self, took_s: float) -> None:
        self._pause_s = max(PAUSE_MIN_S, took_s / TIME_SHARE_MAX)

    def close(self) -> None:
        """No more trimming."""
        if self._timer is not None:
            self._timer.cancel()
