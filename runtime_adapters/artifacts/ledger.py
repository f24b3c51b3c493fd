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


def file_blocks_bytes(size_bytes: int) -> int:
    """What one file takes on disk: whole blocks."""
    return -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES


def disk_bytes(sizes: list[int]) -> int:
    """What an entry of these files takes on disk: whole blocks, and its overhead."""
    return ENTRY_OVERHEAD_BYTES + sum(file_blocks_bytes(size) for size in sizes)


@dataclass(slots=True)
class Entry:
    """Something on disk that may be wanted again. `size_bytes` are its own; `shared` names what others may hold too."""

    key: str
    size_bytes: int
    last_used_s: float
    references: int = 0
    shared: tuple[str, ...] = ()


@dataclass(slots=True)
class _SharedFile:
    size_bytes: int
    holders: int = 0


@dataclass(frozen=True, slots=True)
class Leaving:
    """What an entry frees: bytes that count until they are gone, and shared files that nobody else holds."""

    size_bytes: int
    shared: tuple[str, ...] = ()


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
        self._shared: dict[str, _SharedFile] = {}
        self._leaving_bytes = 0
        self._entry_bytes = 0
        self._reserved_bytes = 0
        self._next_number = 1

    # Looking ----------------------------------------------------------------------------------------------------

    @property
    def entry_bytes(self) -> int:
        """Bytes of all entries, shared ones once."""
        return self._entry_bytes

    @property
    def saved_bytes(self) -> int:
        """Bytes that the entries would take more if each had its own copy of what is shared."""
        return sum(file.size_bytes * (file.holders - 1) for file in self._shared.values())

    def holds_shared(self, name: str) -> bool:
        """Whether any entry holds this shared file."""
        return name in self._shared

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
        left: dict[str, int] = {}
        for entry in sorted(self._entries.values(), key=_eviction_order):
            if missing_bytes <= 0:
                break
            if entry.references == 0:
                victims.append(entry.key)
                missing_bytes -= entry.size_bytes
                for name in entry.shared:
                    left[name] = left.get(name, self._shared[name].holders) - 1
                    if left[name] == 0:
                        missing_bytes -= self._shared[name].size_bytes
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

    def settle(
        self,
        reservation: Reservation,
        key: str,
        size_bytes: int,
        now_s: float,
        shared: tuple[tuple[str, int], ...] = (),
    ) -> None:
        """What was reserved has become an entry. Raises ValueError if it is more than was reserved."""
        held = self._reserved[reservation.number]
        new_bytes = size_bytes + sum(size for name, size in shared if name not in self._shared)
        if new_bytes > held:
            raise ValueError(f"entry {key} has {new_bytes} bytes, and {held} were reserved")
        self.cancel(reservation)
        self.add(key, size_bytes, now_s, shared)

    def settle_into(self, reservation: Reservation, key: str, size_bytes: int) -> None:
        """A part of what was reserved belongs to an entry now, which takes `size_bytes`; the rest stays reserved.

        Raises ValueError if it is more than was reserved.
        """
        entry = self._entries[key]
        more_bytes = size_bytes - entry.size_bytes
        held = self._reserved[reservation.number]
        if more_bytes > held:
            raise ValueError(f"entry {key} grows by {more_bytes} bytes, and {held} were reserved")
        self._reserved[reservation.number] -= more_bytes
        self._reserved_bytes -= more_bytes
        self._entry_bytes += more_bytes
        entry.size_bytes = size_bytes

    def claim(self, key: str) -> Reservation:
        """Turn an entry into a reservation of its size (an interrupted download that goes on)."""
        entry = self._remove(key)
        number = self._next_number
        self._next_number += 1
        self._reserved[number] = entry.size_bytes
        self._reserved_bytes += entry.size_bytes
        return Reservation(number)

    # Entries ----------------------------------------------------------------------------------------------------

    def add(self, key: str, size_bytes: int, last_used_s: float, shared: tuple[tuple[str, int], ...] = ()) -> None:
        """Count something that is on disk already. At the start of a pod this may exceed a capacity made smaller.

        `shared`: files that other entries may hold as well, and their bytes, which `size_bytes` does not include.
        """
        if key in self._entries:
            raise ValueError(f"entry {key} is there already")
        self._entries[key] = Entry(key, size_bytes, last_used_s, shared=tuple(name for name, _ in shared))
        self._entry_bytes += size_bytes
        for name, shared_bytes in shared:
            file = self._shared.setdefault(name, _SharedFile(shared_bytes))
            if file.holders == 0:
                self._entry_bytes += file.size_bytes
            file.holders += 1

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

    def begin_leaving(self, key: str) -> Leaving:
        """The entry can no longer be found; its bytes, returned, count until `end_leaving`."""
        before_bytes = self._entry_bytes
        entry = self._remove(key)
        gone = tuple(name for name in entry.shared if name not in self._shared)
        leaving = Leaving(before_bytes - self._entry_bytes, gone)
        self._leaving_bytes += leaving.size_bytes
        return leaving

    def begin_shrinking(self, key: str, to_bytes: int) -> int:
        """A part of an entry leaves while the rest stays in use; its bytes, returned, count until `end_leaving`."""
        entry = self._entries[key]
        size_bytes = max(0, entry.size_bytes - to_bytes)
        entry.size_bytes -= size_bytes
        self._entry_bytes -= size_bytes
        self._leaving_bytes += size_bytes
        return size_bytes

    def end_leaving(self, size_bytes: int) -> None:
        """The files of a leaving entry are gone."""
        self._leaving_bytes -= size_bytes

    def validate(self) -> None:
        """The invariants; raises AssertionError naming the one that does not hold."""
        holders: dict[str, int] = {}
        for name in (name for entry in self._entries.values() for name in entry.shared):
            holders[name] = holders.get(name, 0) + 1
        assert holders == {name: file.holders for name, file in self._shared.items()}, "shared files drifted"
        own_bytes = sum(entry.size_bytes for entry in self._entries.values())
        shared_bytes = sum(file.size_bytes for file in self._shared.values())
        assert self._entry_bytes == own_bytes + shared_bytes, "entry bytes drifted"
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
        for name in entry.shared:
            file = self._shared[name]
            file.holders -= 1
            if file.holders == 0:
                del self._shared[name]
                self._entry_bytes -= file.size_bytes
        return entry


def _eviction_order(entry: Entry) -> tuple[float, int, str]:
    # 1. least recently used; 2. of equally old entries the largest, to delete fewer; 3. the key, to be total.
    return (entry.last_used_s, -entry.size_bytes, entry.key)
