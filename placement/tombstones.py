"""The lease that lets tombstones vanish after an hour, without a reaper.

One lease per unregistered model would be thousands; so those of ten minutes share one, and a tombstone lives between
an hour and an hour and ten minutes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from placement.store.base import KeyValueStore

TOMBSTONE_MIN_S = 3600.0
"""Longer than any pod may be cut off and come back with old views."""
SHARED_FOR_S = 600.0


class TombstoneLease:
    """Gives the lease to put tombstones on."""

    def __init__(self, store: KeyValueStore, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self._lease = 0
        self._granted_at_s = 0.0
        self._granting = asyncio.Lock()

    async def current(self) -> int:
        """A lease with at least an hour left."""
        async with self._granting:
            now_s = self._clock()
            if not self._lease or not 0 <= now_s - self._granted_at_s < SHARED_FOR_S:
                self._lease = await self._store.grant_lease(TOMBSTONE_MIN_S + SHARED_FOR_S)
                self._granted_at_s = now_s
            return self._lease

    def forget(self) -> None:
        """The lease is gone: the next call grants another."""
        self._lease = 0
