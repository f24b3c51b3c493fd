"""A look at the box before something large begins: a load, or the preparation of an artifact.

The memory watch looks once a second; between two of its looks a pod can load dozens of models, and the kernel kills
without asking. So whoever is about to take memory asks first, with a reading of a fraction of a millisecond. "No" comes
as an error from which a pod recovers: room is made, and it is tried again.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from mesh.pressure import PressureLimits, missing_room
from runtime_adapters.errors import NoRoom
from runtime_adapters.malloc import trim
from runtime_adapters.memory_reading import MemoryReading

ReadMemory = Callable[[], MemoryReading]
CHECKED_MIN_BYTES = 1 << 20
"""Less cannot bring a box from well to danger, and a reading costs as much as such a load."""
SCARCE_FACTOR = 8
"""With so many times the need left, nobody has to wait for anybody."""
ALONE_WAIT_MAX_S = 30.0
_LIMITS = PressureLimits()
_one_at_a_time = threading.Lock()


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


@contextlib.contextmanager
def room_for(needed_bytes: int, read_memory: ReadMemory | None) -> Iterator[None]:
    """Something that takes so much at its highest runs inside. Where that is a good part of what is left, it runs
    alone: two that look at the same moment would both find the same room. Raises NoRoom. Blocks."""
    if read_memory is None or needed_bytes < CHECKED_MIN_BYTES:
        yield
        return
    if SCARCE_FACTOR * needed_bytes <= read_memory().headroom_bytes:
        yield
        return
    # What hangs must not hold up others for ever; they then go without.
    alone = _one_at_a_time.acquire(timeout=ALONE_WAIT_MAX_S)
    try:
        check_room(needed_bytes, read_memory)
        yield
    finally:
        if alone:
            _one_at_a_time.release()
