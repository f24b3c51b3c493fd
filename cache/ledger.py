"""The books: how many bytes each copy holds, and how many are left, per place.

One number per copy and one running total, so that "does it fit" never walks over the copies. The ledger refuses to
be oversold; it does not know why bytes are charged. Which tenant holds them follows from the copy.
"""

from __future__ import annotations

from cache.types import NO_BYTES, Bytes


class Oversold(Exception):
    """A charge beyond the capacity: always a defect of the machine."""


class Ledger:
    """Bytes charged to copies; their sum never exceeds the capacity in any place."""

    __slots__ = ("_charged", "capacity", "free", "used")

    def __init__(self, capacity: Bytes) -> None:
        self.capacity = capacity
        self.used = NO_BYTES
        self.free = capacity
        self._charged: dict[int, Bytes] = {}

    def charged(self, copy_id: int) -> Bytes:
        """What this copy holds."""
        return self._charged.get(copy_id, NO_BYTES)

    def charge(self, copy_id: int, size: Bytes) -> None:
        """From now on the copy holds exactly `size`."""
        used = self.used - self.charged(copy_id) + size
        lacking = used.missing_from(self.capacity)
        if lacking:
            raise Oversold(f"Charging {size} to copy {copy_id} would exceed the capacity by {lacking}.")
        self.used = used
        self.free = self.capacity - used
        if size:
            self._charged[copy_id] = size
        else:
            self._charged.pop(copy_id, None)

    def resize(self, capacity: Bytes) -> None:
        """From now on this much may be held. Raises Oversold when more is."""
        lacking = self.used.missing_from(capacity)
        if lacking:
            raise Oversold(f"A capacity of {capacity} is {lacking} less than what is held.")
        self.capacity = capacity
        self.free = capacity - self.used

    def validate(self) -> None:
        """The total is the sum of its parts and fits."""
        assert self.used == Bytes.sum(self._charged.values()), "the total differs from the sum of the charges"
        assert not self.used.missing_from(self.capacity), f"oversold: {self.used} of {self.capacity}"
        assert all(count > 0 for charge in self._charged.values() for _, count in charge), "a charge is not positive"
