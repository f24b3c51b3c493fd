"""Whether the store answers this pod, said in the log once when it stops and once when it is back.

Several tasks talk to the store, and each retries for itself; without this every try of each would log. What they
find out they tell here. A call that was sent before another one was answered, and fails after it, is old news.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

log = logging.getLogger(__name__)


class StoreReach:
    """Belongs to the event loop."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock`: monotonic."""
        self._clock = clock
        self.away_since_s: float | None = None
        """By the clock; None while the store answers."""
        self._answered_at_s = -math.inf

    def failed(self, error: Exception, sent_s: float) -> None:
        """A call that was sent at that time, by the clock, got no answer."""
        if self.away_since_s is None and sent_s >= self._answered_at_s:
            self.away_since_s = self._clock()
            log.warning("the store is away; this pod goes on from what it knows, and writes later: %s", error)

    def answered(self) -> None:
        """A call got an answer."""
        self._answered_at_s = self._clock()
        if self.away_since_s is not None:
            log.warning("the store answers again after %.1f s", self._clock() - self.away_since_s)
            self.away_since_s = None
