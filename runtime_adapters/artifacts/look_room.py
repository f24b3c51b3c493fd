"""Room on the disk for what a look puts there before anybody knows how much that will be: a repository's commit.

It is counted as it grows, by whoever looks, and the tier makes room or says that there is none. What was counted is
given back when the fetch that the look was for has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from runtime_adapters.artifacts.disk_tier import DiskTier
from runtime_adapters.artifacts.ledger import Reservation


class LookRoom:
    """Of one fetch."""

    def __init__(self, disk: DiskTier) -> None:
        self._disk = disk
        self._loop = asyncio.get_running_loop()
        self._reservation: Reservation | None = None

    def grow_to(self, size_bytes: int) -> None:
        """So many bytes lie there by now. From the thread that looks. Raises DiskFull, ArtifactTooLarge."""
        asyncio.run_coroutine_threadsafe(self._grow(size_bytes), self._loop).result()

    async def _grow(self, size_bytes: int) -> None:
        if self._reservation is None:
            self._reservation = await self._disk.reserve(size_bytes)
        else:
            await self._disk.grow(self._reservation, size_bytes)

    def give_back(self) -> None:
        """What lay there has gone, or goes now. On the loop, when no thread looks any more."""
        if self._reservation is not None:
            self._disk.ledger.cancel(self._reservation)
            self._reservation = None


@asynccontextmanager
async def room_for_looks(disk: DiskTier) -> AsyncGenerator[LookRoom, None]:
    """For the looks of the block."""
    room = LookRoom(disk)
    try:
        yield room
    finally:
        room.give_back()
