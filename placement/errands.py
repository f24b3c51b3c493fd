"""What a turn has decided and somebody else must do: sent out, not waited for, and never twice at once.

A turn must not wait for a pod that does not answer or for a store that is away; the next one sees what has come of it.
An errand that fails is logged and forgotten: whether it is still wanted, the next turn decides.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Hashable
from typing import Any

from placement.errors import PlacementError

log = logging.getLogger(__name__)


class Errands:
    """Tasks by what they are about. Belongs to the event loop."""

    def __init__(self) -> None:
        self._tasks: dict[Hashable, asyncio.Task[None]] = {}

    def __contains__(self, about: Hashable) -> bool:
        return about in self._tasks

    def __len__(self) -> int:
        return len(self._tasks)

    def send(self, about: Hashable, work: Coroutine[Any, Any, object]) -> bool:
        """Begin, unless one is under way about the same. Whether it has begun."""
        if about in self._tasks:
            work.close()
            return False
        self._tasks[about] = asyncio.get_running_loop().create_task(self._run(about, work))
        return True

    async def _run(self, about: Hashable, work: Coroutine[Any, Any, object]) -> None:
        try:
            await work
        except PlacementError as error:
            log.info("%s is tried again later: %s", about, error)
        except Exception:
            log.exception("%s failed", about)
        finally:
            self._tasks.pop(about, None)

    async def settled(self) -> None:
        """All that are under way have ended."""
        while self._tasks:
            await asyncio.wait(tuple(self._tasks.values()))

    async def close(self, within_s: float) -> None:
        """Give what is under way so long to end, then break it off."""
        if self._tasks:
            await asyncio.wait(tuple(self._tasks.values()), timeout=within_s)
        left = tuple(self._tasks.values())
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
