"""Giving freed memory back to the kernel in time, without paying for it at each unload.

Large weights have mappings of their own and are returned when they are freed (`runtime_adapters.memory`). What small
models leave behind are free pages inside malloc's heap, and only `malloc_trim` returns those. It walks the heap (tens
of milliseconds after ten thousand models), so it is called on a thread, when enough was freed to matter, and not twice
within `INTERVAL_S`. What was freed since the last call is always returned in the end: a timer stands in for the unload
that would have triggered it.
"""

from __future__ import annotations

import asyncio
import threading

from runtime_adapters.memory import trim

FREED_MIN_BYTES = 4 << 20
"""Less than this is not worth a walk: the next load is likely to use it again."""
INTERVAL_S = 1.0
"""The longest that freed memory stays with malloc while models come and go."""


class HeapTrimmer:
    """Counts freed bytes and trims the heap. Owned by the event loop."""

    def __init__(self) -> None:
        self._freed_bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    def freed(self, count_bytes: int) -> None:
        """An unload gave this much back to malloc."""
        self._freed_bytes += count_bytes
        if self._timer is None and self._freed_bytes >= FREED_MIN_BYTES:
            self._timer = asyncio.get_running_loop().call_later(INTERVAL_S, self._trim)

    def _trim(self) -> None:
        self._timer = None
        self._freed_bytes = 0
        threading.Thread(target=trim, name="hexcomb-trim", daemon=True).start()

    def close(self) -> None:
        """No more trimming."""
        if self._timer is not None:
            self._timer.cancel()
