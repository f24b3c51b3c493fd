"""Long work in slices, which ends when nobody waits for its answer any more.

A framework's run cannot be interrupted, and TreeSHAP takes a millisecond and more a row where a prediction takes a
microsecond: a request of a few megabytes would keep a core for minutes after its client has gone. So whoever runs a
model says on its thread how to find out whether the answer is wanted, and an adapter whose rows do not depend on one
another runs them in slices, and asks in between. What cannot be cut is one row.

Deliberately absent: models in a process of their own, whose thread here only waits; they are stopped as processes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from runtime_adapters.errors import NobodyWaits

SLICE_S = 0.1
"""What a slice is to take: a client that leaves is noticed as soon, and a slice's fixed cost is nothing beside it."""
_GROWTH_MAX = 8
"""From one slice to the next: the first one, of a row, may have been measured cheap by chance."""

_of_thread = threading.local()


@contextmanager
def while_wanted(is_wanted: Callable[[], bool]) -> Iterator[None]:
    """On this thread, within the block: whether what is worked out is wanted."""
    _of_thread.is_wanted = is_wanted
    try:
        yield
    finally:
        del _of_thread.is_wanted


def slices(rows: int, clock: Callable[[], float] = time.perf_counter) -> Iterator[slice]:
    """All rows, in slices whose work takes `SLICE_S`, by what the slices before took. Raises NobodyWaits between them.

    The caller works on a slice before it asks for the next.
    """
    is_wanted: Callable[[], bool] = getattr(_of_thread, "is_wanted", lambda: True)
    begin, count = 0, 1
    while begin < rows:
        if not is_wanted():
            raise NobodyWaits(f"{begin} of {rows} rows were explained when the deadline passed, or the client left")
        end = min(rows, begin + count)
        began_s = clock()
        yield slice(begin, end)
        took_s = clock() - began_s
        count = max(1, int(min(count * SLICE_S / took_s if took_s else count * _GROWTH_MAX, count * _GROWTH_MAX)))
        begin = end
