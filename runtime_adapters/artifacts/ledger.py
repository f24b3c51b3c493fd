"""What the disk tier holds, byte by byte, and what must leave so that something new fits. Pure: no files, no clock.

Three kinds of bytes share the capacity: *entries* (fetched content, prepared forms, interrupted downloads),
*reservations* (room for what is being written now), and *leaving* bytes (entries that were chosen as victims and whose
files are still being deleted). Their sum never exceeds the capacity: room is reserved before a byte is written, and a
victim's bytes count until its files are gone.

An entry with references is in use (a loaded model may have it mapped) and never a victim. Victims are chosen as a
whole before the first is deleted; if all of them together would not do, none is.
"""

from __future__ import annotations

from dataclasses import dataclass

BLOCK_BYTES = 4096
ENTRY_OVERHEAD_BYTES = 4 * BLOCK_BYTES
"""An entry's directories and its own record."""


def disk_bytes(sizes: list[int]) -> int:
    """What an entry of these files takes on disk: whole blocks, and its overhead."""
    return ENTRY_OVERHEAD_BYTES + sum(-(-size // BLOCK_BYTES) * BLOCK_BYTES for size in sizes)


@dataclass(slots=True)
class Entry:
    """Something on disk that may be wanted again."""

    key: str
    size_bytes: int
    last_used_s: float
    references: int = 0


@dataclass(frozen=True, slots=True)
class Reservation:
    """Room that somebody may fill. A handle: the ledger knows how many bytes it stands for."""

    number: int


@dataclass(frozen=True, slots=True)
class Room:
    """There is room once these entries have left, in this order."""

    victims: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NoRoom:
    """Even with everything evictable gone it would not fit."""

    needed_bytes: int
    attainable_bytes: int
    in_use_bytes: int
    reserved_bytes: int


class DiskLedger:
    """The bytes of one disk tier. Owned by one event loop; every method is atomic and none waits."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self._entries: dict[str, Entry] = {}
        self._reserved: dict[int, int] = {}
        self._leaving_bytes = 0
        self._entry_bytes = 0
        self._reserved_bytes = 0
        self._next_number = 1

    # Looking ----------------------------------------------------------------------------------------------------

    @property
    def entry_bytes(self) -> int:
        """Bytes of all entries."""
        return self._entry_bytes

    @property
    def reserved_bytes(self) -> int:
        """Bytes promised and not yet turned into entries."""
        return self._reserved_bytes

    @property
    def used_bytes(self) -> int:
        """Everything that counts against the capacity."""
        return self._entry_bytes + self._reserved_bytes + self._leaving_bytes

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def references(self, key: str) -> int:
        """How many users an entry has; 0 for one that is not there."""
        entry = self._entries.get(key)
        return entry.references if entry else 0

    def plan_room(self, needed_bytes: int) -> Room | NoRoom:
        """Which entries must leave so that `needed_bytes` can be reserved, all of them at once."""
        missing_bytes = self.used_bytes + needed_bytes - self.capacity_bytes
        if missing_bytes <= 0:
            return Room(())  # the usual case, and no reason to sort ten thousand entries on the event loop
        victims: list[str] = []
        for entry in sorted(self._entries.values(), key=_eviction_order):
            if missing_bytes <= 0:
                break
            if entry.references == 0:
                victims.append(entry.key)
                missing_bytes -= entry.size_bytes
        if missing_bytes > 0:
            in_use_bytes = sum(entry.size_bytes for entry in self._entries.values() if entry.references)
            return NoRoom(needed_bytes, needed_bytes - missing_bytes, in_use_bytes, self._reserved_bytes)
        return Room(tuple(victims))

    # Reservations -----------------------------------------------------------------------------------------------

    def reserve(self, needed_bytes: int) -> Reservation:
        """Take room that is free now; the caller has made it. Raises ValueError where it is not."""
        if needed_bytes < 0 or self.used_bytes + needed_bytes > self.capacity_bytes:
            raise ValueError(
                f"cannot reserve {needed_bytes} bytes: {self.used_bytes} of {self.capacity_bytes} are used"
            )
        reservation = Reservation(self._next_number)
        self._next_number += 1
        self._reserved[reservation.number] = needed_bytes
        self._reserved_bytes += needed_bytes
        return reservation

    def reserved(self, reservation: Reservation) -> int:
        """Bytes that a reservation stands for."""
        return self._reserved[reservation.number]

    def merge(self, into: Reservation, other: Reservation) -> None:
        """Make one reservation of two."""
        self._reserved[into.number] += self._reserved.pop(other.number)

    def cancel(self, reservation: Reservation) -> None:
        """Give all of it back: nothing of what was written for it is on disk any more."""
        self._reserved_bytes -= self._reserved.pop(reservation.number)

    def settle(self, reservation: Reservation, key: str, size_bytes: int, now_s: float) -> None:
        """What was reserved has become an entry. Raises ValueError if it is more than was reserved."""
        held = self._reserved[reservation.number]
        if size_bytes > held:
            raise ValueError(f"entry {key} has {size_bytes} bytes, and {held} were reserved")
        self.cancel(reservation)
        self.add(key, size_bytes, now_s)

    def claim(self, key: str) -> Reservation:
        """Turn an entry into a reservation of its size (an interrupted download that goes on)."""
        entry = self._remove(key)
        number = self._next_number
        self._next_number += 1
        self._reserved[number] = entry.size_bytes
        self._reserved_bytes += entry.size_bytes
        return Reservation(number)

    # Entries ----------------------------------------------------------------------------------------------------

    def add(self, key: str, size_bytes: int, last_used_s: float) -> None:
        """Count something that is on disk already. At the start of a pod this may exceed a capacity made smaller."""
        if key in self._entries:
            raise ValueError(f"entry {key} is there already")
        self._entries[key] = Entry(key, size_bytes, last_used_s)
        self._entry_bytes += size_bytes

    def acquire(self, key: str, now_s: float) -> None:
        """One more user; the entry stays until as many have released it."""
        entry = self._entries[key]
        entry.references += 1
        entry.last_used_s = max(entry.last_used_s, now_s)

    def release(self, key: str, now_s: float) -> None:
        """One user fewer."""
        entry = self._entries[key]
        if entry.references < 1:
            raise ValueError(f"entry {key} is released more often than acquired")
        entry.references -= 1
        entry.last_used_s = max(entry.last_used_s, now_s)

    def begin_leaving(self, key: str) -> int:
        """The entry can no longer be found; its bytes, returned, count until `end_leaving`."""
        size_bytes = self._remove(key).size_bytes
        self._leaving_bytes += size_bytes
        return size_bytes

    def end_leaving(self, size_bytes: int) -> None:
        """The files of a leaving entry are gone."""
        self._leaving_bytes -= size_bytes

    def validate(self) -> None:
        """The invariants; raises AssertionError naming the one that does not hold."""
        assert self._entry_bytes == sum(entry.size_bytes for entry in self._entries.values()), "entry bytes drifted"
        assert self._leaving_bytes >= 0, "more bytes left than were leaving"
        assert self._reserved_bytes == sum(self._reserved.values()), "reserved bytes drifted"
        assert self.used_bytes <= self.capacity_bytes, "more bytes than capacity"
        assert all(entry.references >= 0 for entry in self._entries.values()), "negative references"

    def _remove(self, key: str) -> Entry:
        entry = self._entries[key]
        if entry.references:
            raise ValueError(f"entry {key} is in use by {entry.references}")
        del self._entries[key]
        self._entry_bytes -= entry.size_bytes
        return entry


def _eviction_order(entry: Entry) -> tuple[float, int, str]:
    # 1. least recently used; 2. of equally old entries the largest, to delete fewer; 3. the key, to be total.
    return (entry.last_used_s, -entry.size_bytes, entry.key)
