"""When do calls run out of time? One timer for all of them, not one for each.

Nearly every call is answered long before its deadline, so a timer per call would be made and thrown away for nothing.
The one timer is set for the earliest deadline that was known when it was set; when it rings, calls that have ended
meanwhile are simply not there any more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from math import inf

_LEAST_S = 0.001
"""Between two rings."""


class Deadlines:
    """Belongs to the event loop."""

    def __init__(self, on_due: Callable[[int], None]) -> None:
        """`on_due`: called once for each call that is still there at its deadline."""
        self._on_due = on_due
        self._deadlines_s: dict[int, float] = {}
        self._rings_s = inf
        self._timer: asyncio.TimerHandle | None = None

    def add(self, call_id: int, deadline_s: float) -> None:
        """`deadline_s` is on this process's `time.monotonic()`."""
        self._deadlines_s[call_id] = deadline_s
        if deadline_s < self._rings_s:
            self._set(deadline_s)

    def discard(self, call_id: int) -> None:
        """The call has ended."""
        self._deadlines_s.pop(call_id, None)

    def close(self) -> None:
        """No call is due any more."""
        self._deadlines_s.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._rings_s = inf

    def _set(self, at_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._rings_s = at_s
        wait_s = max(_LEAST_S, at_s - time.monotonic())
        self._timer = asyncio.get_running_loop().call_later(wait_s, self._ring)

    def _ring(self) -> None:
        self._timer = None
        self._rings_s = inf
        now_s = time.monotonic()
        due = [call_id for call_id, deadline_s in self._deadlines_s.items() if deadline_s <= now_s]
        for call_id in due:
            del self._deadlines_s[call_id]
        if self._deadlines_s:
            self._set(min(self._deadlines_s.values()))
        for call_id in due:
            self._on_due(call_id)
