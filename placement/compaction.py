"""When the store may forget its history, and up to which revision.

Nobody compacts a bare etcd: it would keep every change of every copy for ever. Watches resume from the revision they
have seen, so a pod that was away for less than `kept_s` finds all that it missed; one that was away longer lists anew.

Revisions have no times. So the leader remembers which revision it saw when, and forgets what was old enough then.
"""

from __future__ import annotations

from collections import deque


class CompactionPlan:
    """What one leader has seen, and has had forgotten."""

    def __init__(self, *, kept_s: float, every_s: float) -> None:
        """`kept_s` of history stay; `every_s` lie between compactions at least."""
        self._kept_s = kept_s
        self._every_s = every_s
        self._seen: deque[tuple[float, int]] = deque()
        self._compacted = 0

    def note(self, revision: int, now_s: float) -> int | None:
        """The store is at `revision` now. What may be forgotten, if it is time; else None."""
        if self._seen and revision < self._seen[-1][1]:
            self._seen.clear()  # another store
            self._compacted = 0
        if not self._seen or now_s - self._seen[-1][0] >= self._every_s:
            self._seen.append((now_s, revision))
        old = 0
        while self._seen and now_s - self._seen[0][0] >= self._kept_s:
            old = self._seen.popleft()[1]
        if old <= self._compacted:
            return None
        self._compacted = old
        return old
