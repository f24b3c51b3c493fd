"""Give the heap back after many small blocks went through it.

A tree ensemble is thousands of vectors, most below malloc's mapping threshold, so they live on the heap, and a heap
shrinks only from its top. One load of a 21 MB XGBoost file left 29 MB behind after its copy was gone, until
`malloc_trim` was called, which takes 1 to 15 ms. To trim at every load would double the load time of a small model;
never to trim would make the pod's memory a matter of luck. So the adapters report how many bytes they pushed through
the heap, and every 16 MiB of it is followed by one trim.

Deliberately absent: a timer. A pod that loads nothing leaves nothing behind.
"""

from __future__ import annotations

import threading

from runtime_adapters.malloc import trim

TRIM_EVERY_BYTES = 16 << 20

_lock = threading.Lock()
_churned_bytes = 0


def heap_freed(size_bytes: int) -> None:
    """Note that about `size_bytes` of small blocks were freed just now. Trims when enough have added up."""
    global _churned_bytes
    with _lock:
        _churned_bytes += size_bytes
        due = _churned_bytes >= TRIM_EVERY_BYTES
        if due:
            _churned_bytes = 0
    if due:
        trim()
