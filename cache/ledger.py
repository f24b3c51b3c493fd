"""The books: how many bytes each copy holds, and how many are left, per place.

One number per copy and one running total, so that "does it fit" never walks over the copies. Parts that several copies
share (`cache.sharing`) are charged once, from the first holder to the last. The ledger refuses to be oversold; it does
not know why bytes are charged. Which tenant holds them follows from the copy.
"""

from __future__ import annotations

from cache.sharing import bytes_of
from cache.types import NO_BYTES, Bytes, Shared, SharedPart


class Oversold(Exception):
    """A charge beyond the capacity: always a defect of the machine."""


class Ledger:
    """Bytes charged to copies; their sum, shared parts once, never exceeds the capacity in any place."""

    __slots__ = ("_charged", "_holders", "_shared", "capacity", "free", "used")

    def __init__(self, capacity: Bytes) -> None:
        self.capacity = capacity
        self.used = NO_BYTES
        self.free = capacity
        self._charged: dict[int, Bytes] = {}
        self._shared: dict[int, Shared] = {}
        self._holders: dict[SharedPart, int] = {}

    def charged(self, copy_id: int) -> Bytes:
        """What this copy holds, its shared parts in full."""
        return self._charged.get(copy_id, NO_BYTES)

    def shared(self, copy_id: int) -> Shared:
        """The shared parts among it."""
        return self._shared.get(copy_id, ())

    @property
    def holders(self) -> dict[SharedPart, int]:
        """How many hold each shared part. Not to be changed."""
        return self._holders

    def room_for(self, copy_id: int, shared: Shared) -> Bytes:
        """What the copy could hold of its own if it held these parts; negative where the parts alone are too much."""
        return self.free + self._own(copy_id) - self._difference(copy_id, shared)

    def charge(self, copy_id: int, size: Bytes, shared: Shared = ()) -> None:
        """From now on the copy holds exactly `size`, these parts in it."""
        own = size - bytes_of(shared) if shared else size
        used = self.used - self._own(copy_id) + own + self._difference(copy_id, shared)
        lacking = used.missing_from(self.capacity)
        if lacking:
            raise Oversold(f"Charging {size} to copy {copy_id} would exceed the capacity by {lacking}.")
        self.used = used
        self.free = self.capacity - used
        for part in self.shared(copy_id):
            self._holders[part] -= 1
        for part in shared:
            self._holders[part] = self._holders.get(part, 0) + 1
        for part in self.shared(copy_id):
            if not self._holders.get(part, 1):
                del self._holders[part]
        self._charged[copy_id] = size
        if not size:
            del self._charged[copy_id]
        self._shared[copy_id] = shared
        if not shared:
            del self._shared[copy_id]

    def _own(self, copy_id: int) -> Bytes:
        shared = self.shared(copy_id)
        return self.charged(copy_id) - bytes_of(shared) if shared else self.charged(copy_id)

    def _difference(self, copy_id: int, shared: Shared) -> Bytes:
        """What the total of shared parts changes by when this copy holds `shared` in place of what it holds."""
        before = self.shared(copy_id)
        if before == shared:
            return NO_BYTES
        added = [part for part in shared if part not in self._holders]
        removed = [part for part in before if part not in shared and self._holders[part] == 1]
        return bytes_of(added) - bytes_of(removed)

    def resize(self, capacity: Bytes) -> None:
        """From now on this much may be held. Raises Oversold when more is."""
        lacking = self.used.missing_from(capacity)
        if lacking:
            raise Oversold(f"A capacity of {capacity} is {lacking} less than what is held.")
        self.capacity = capacity
        self.free = capacity - self.used

    def validate(self) -> None:
        """The total is the sum of its parts and fits."""
        parts = [part for shared in self._shared.values() for part in shared]
        assert self._holders == {part: parts.count(part) for part in set(parts)}, "the holders are miscounted"
        own = Bytes.sum(self._own(copy_id) for copy_id in self._charged)
        assert self.used == own + bytes_of(self._holders), "the total differs from the sum of the charges"
        assert not self.used.missing_from(self.capacity), f"oversold: {self.used} of {self.capacity}"
        assert all(count > 0 for charge in self._charged.values() for _, count in charge), "a charge is not positive"
        assert all(count > 0 for copy_id in self._charged for _, count in self._own(copy_id)), "a part exceeds its copy"
