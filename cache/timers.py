"""Named alarms for a machine that has no clock: set, cancel, take what is due.

A heap with lazy deletion: a cancelled or replaced alarm stays in the heap until it surfaces or until the heap is
mostly made of such leftovers, and is then swept. So waiters that are served long before their deadline cost little.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import NamedTuple

LEFTOVERS_MIN = 64
"""Below this many leftovers a sweep is not worth its walk."""


class Alarm(NamedTuple):
    """What an alarm is for; one alarm per name."""

    kind: str
    subject_id: int


class Timers:
    """Alarms by name, earliest first; ties fire in the order of their names."""

    __slots__ = ("_at_s", "_heap")

    def __init__(self) -> None:
        self._at_s: dict[Alarm, float] = {}
        self._heap: list[tuple[float, Alarm]] = []

    def set(self, alarm: Alarm, at_s: float) -> None:
        """The alarm rings at this time, and no longer at an earlier one that was set before."""
        if self._at_s.get(alarm) == at_s:
            return
        self._at_s[alarm] = at_s
        heappush(self._heap, (at_s, alarm))
        if len(self._heap) - len(self._at_s) > LEFTOVERS_MIN + len(self._at_s):
            self._heap = [(time_s, name) for name, time_s in self._at_s.items()]
            heapify(self._heap)

    def set_no_later(self, alarm: Alarm, at_s: float) -> None:
        """Like `set`, but an alarm that rings earlier stays."""
        if self._at_s.get(alarm, float("inf")) > at_s:
            self.set(alarm, at_s)

    def cancel(self, alarm: Alarm) -> None:
        """The alarm does not ring; fine when it is not set."""
        self._at_s.pop(alarm, None)

    def is_set(self, alarm: Alarm) -> bool:
        """Will it ring?"""
        return alarm in self._at_s

    def next_at_s(self) -> float | None:
        """When the next alarm rings."""
        while self._heap:
            at_s, alarm = self._heap[0]
            if self._at_s.get(alarm) == at_s:
                return at_s
            heappop(self._heap)
        return None

    def take_due(self, now_s: float) -> list[Alarm]:
        """All alarms that ring by now, in order; they are then no longer set."""
        due: list[Alarm] = []
        while (at_s := self.next_at_s()) is not None and at_s <= now_s:
            alarm = heappop(self._heap)[1]
            del self._at_s[alarm]
            due.append(alarm)
        return due
