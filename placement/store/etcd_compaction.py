"""Which revision a pool's leader compacts etcd to. Pure: the time comes in.

etcd keeps every version of every key until somebody compacts; nobody does unless told to, and at its quota (2 GB) it
stops taking writes. The leader does it for the pool: it notes now and then at which revision the store is (any `Page`
tells), and compacts to the one that was present `keep_s` ago. A watcher that was away for less goes on where it was,
one that was away for longer lists again.

etcd has one history for all that lies in it. Where pools or other programs share an etcd, the one that keeps least
decides; Kubernetes' API server, for one, keeps five minutes.
"""

from __future__ import annotations

from collections import deque

KEEP_S = 600.0
"""Longer than a restart of a pod or of etcd, far shorter than it takes to fill etcd's quota."""
NOTES_MAX = 256
"""Notes in memory: one in about 2 s of the default time."""


class CompactionPlan:
    """What was seen of the store's revision, and what follows from it. One for each time as leader."""

    def __init__(self, keep_s: float = KEEP_S) -> None:
        self._keep_s = keep_s
        self._notes: deque[tuple[float, int]] = deque()
        self._planned = 0

    def note(self, now_s: float, revision: int) -> None:
        """The store is at this revision now. A lower one than before is another store: begin anew."""
        if self._notes and revision < self._notes[-1][1]:
            self._notes.clear()
            self._planned = 0
        if not self._notes or now_s - self._notes[-1][0] >= self._keep_s / NOTES_MAX:
            self._notes.append((now_s, revision))

    def plan(self, now_s: float) -> int | None:
        """The revision to compact to now, once: None when nothing more has grown old enough."""
        due = 0
        while self._notes and now_s - self._notes[0][0] >= self._keep_s:
            due = self._notes.popleft()[1]
        if due <= self._planned:
            return None
        self._planned = due
        return due
