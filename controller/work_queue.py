"""Keys that need a look: each at most once in the queue, at most once in hand, later if it failed.

Who adds a key while a worker has it in hand makes it wait until that worker is done, and then it is looked at again:
no change is lost, and no key is in two hands. A key may be put off; a time that is nearer wins. Failures of a key put
it off longer and longer, by themselves: others do not wait for it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from controller.back_off import BackOff

Key = TypeVar("Key", bound=Hashable)


class WorkQueue(Generic[Key]):
    """Belongs to one loop. Nothing here blocks but `take`."""

    def __init__(self, make_back_off: Callable[[], BackOff] = BackOff) -> None:
        """`make_back_off`: for each key that fails."""
        self._make_back_off = make_back_off
        self._ready: deque[Key] = deque()
        self._waiting: set[Key] = set()
        self._in_hand: set[Key] = set()
        self._again: set[Key] = set()
        self._later: dict[Key, asyncio.TimerHandle] = {}
        self._back_offs: dict[Key, BackOff] = {}
        self._some = asyncio.Event()

    def __len__(self) -> int:
        """Keys that wait for a worker now."""
        return len(self._ready)

    @property
    def failing(self) -> int:
        """Keys whose last look failed."""
        return len(self._back_offs)

    def add(self, key: Key) -> None:
        """As soon as may be."""
        if (timer := self._later.pop(key, None)) is not None:
            timer.cancel()
        if key in self._in_hand:
            self._again.add(key)
        elif key not in self._waiting:
            self._waiting.add(key)
            self._ready.append(key)
            self._some.set()

    def add_after(self, key: Key, delay_s: float) -> None:
        """In a while, unless it is to be looked at sooner anyway."""
        loop = asyncio.get_running_loop()
        known = self._later.get(key)
        if key in self._waiting or (known is not None and known.when() <= loop.time() + delay_s):
            return
        if known is not None:
            known.cancel()
        self._later[key] = loop.call_later(delay_s, self.add, key)

    async def take(self) -> Key:
        """The key that has waited longest; give it back with `done` or `failed`."""
        while not self._ready:
            self._some.clear()
            await self._some.wait()
        key = self._ready.popleft()
        self._waiting.remove(key)
        self._in_hand.add(key)
        return key

    def done(self, key: Key) -> None:
        """It went well."""
        self._back_offs.pop(key, None)
        self._give_back(key)

    def failed(self, key: Key, at_least_s: float = 0.0) -> float:
        """It did not; it is tried again after the seconds that are returned."""
        back_off = self._back_offs.setdefault(key, self._make_back_off())
        delay_s = max(at_least_s, back_off.next_s())
        # What changed meanwhile does not make it go well: the wait counts, or a storm of changes would undo it.
        self._again.discard(key)
        self._give_back(key)
        self.add_after(key, delay_s)
        return delay_s

    def _give_back(self, key: Key) -> None:
        self._in_hand.discard(key)
        if key in self._again:
            self._again.remove(key)
            self.add(key)
