"""A look at the box before something large begins: a load, or the preparation of an artifact.

The memory watch looks once a second; between two of its looks a pod can load dozens of models, and the kernel kills
without asking. So whoever is about to take memory asks first, with a reading of a fraction of a millisecond. "No" comes
as an error from which a pod recovers: room is made, and it is tried again.
"""

from __future__ import annotations

from collections.abc import Callable

from mesh.pressure import PressureLimits, missing_room
from runtime_adapters.errors import NoRoom
from runtime_adapters.memory import trim
from runtime_adapters.memory_reading import MemoryReading

ReadMemory = Callable[[], MemoryReading]
CHECKED_MIN_BYTES = 1 << 20
"""Less cannot bring a box from well to danger, and a reading costs as much as such a load."""
_LIMITS = PressureLimits()


def check_room(needed_bytes: int, read_memory: ReadMemory | None) -> None:
    """Raises NoRoom where so much would lead into danger, while the kernel would not yet kill. Blocks."""
    if read_memory is None or needed_bytes < CHECKED_MIN_BYTES:
        return
    missing_bytes, why = missing_room(read_memory(), needed_bytes, _LIMITS)
    if missing_bytes:
        trim()  # what malloc has kept is the cheapest to give back
        missing_bytes, why = missing_room(read_memory(), needed_bytes, _LIMITS)
    if missing_bytes:
        raise NoRoom(why, missing_bytes)
