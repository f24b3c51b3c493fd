"""What malloc does with freed memory: give it back at once, or keep it for the next request.

glibc keeps what was freed. Three settings change that, made once at process start, before any framework is imported:

* `M_MMAP_THRESHOLD`: a weight gets its own mapping, and freeing it returns it to the kernel at once. Left alone, glibc
  raises this threshold by itself (up to 32 MiB) whenever a mapping is freed; setting it stops that.
* `M_TRIM_THRESHOLD` and `M_ARENA_MAX`: the heap's free top is given back, and worker threads share few arenas instead
  of scattering small blocks over eight per core.

For requests, giving memory back is dear. A page that the kernel hands out anew must be mapped and zeroed, 2.7 µs on the
virtual machine where this was measured: copying 600 KB into new memory took 413 µs, into used memory 13.
A large request is copied two or three times on its way to its run. So while such requests come, somebody
(`mesh.large_requests`) says `keep_freed_memory(True)`: blocks below `KEPT_BLOCK_BYTES` then come from the heaps, which
keep up to `KEPT_TOP_BYTES` each. Whoever loads a model, or measures what something takes, does it
`returning_freed_memory()`: weights have mappings of their own as ever, and a measurement sees what it is about.

malloc is one for the process, so this is, too. Where the C library has no mallopt (musl, macOS) nothing happens.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

MMAP_THRESHOLD_BYTES = 128 << 10
TRIM_THRESHOLD_BYTES = 128 << 10
ARENAS_MAX = 2
"""Two cores' worth: more arenas fragment, and the frameworks run outside malloc for most of their time."""
KEPT_BLOCK_BYTES = 32 << 20
"""The most that glibc takes for it, and twice the largest request."""
KEPT_TOP_BYTES = 32 << 20
"""Free memory that a heap keeps at its end: a request of the largest size, as it came and as it is aligned."""

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

_lock = threading.Lock()
_wanted = False
_returning = 0
_kept = False


def tune_allocator() -> bool:
    """Tell malloc to return memory. Call at process start. False where this C library has no mallopt."""
    return _set(MMAP_THRESHOLD_BYTES, TRIM_THRESHOLD_BYTES) and _mallopt(_M_ARENA_MAX, ARENAS_MAX)


def trim() -> None:
    """Give free heap pages back to the kernel. Milliseconds on a large heap: for after an unload, not per request."""
    malloc_trim = getattr(_c_library(), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


def keep_freed_memory(keep: bool) -> None:
    """From now on. What was kept stays until somebody trims."""
    global _wanted
    with _lock:
        _wanted = keep
        _tell()


@contextmanager
def returning_freed_memory() -> Iterator[None]:
    """While one of these blocks is open, on whatever thread, nothing is kept."""
    global _returning
    with _lock:
        _returning += 1
        _tell()
    try:
        yield
    finally:
        with _lock:
            _returning -= 1
            _tell()


def _tell() -> None:
    global _kept
    keep = _wanted and not _returning
    if keep is _kept:
        return
    _kept = keep
    if keep:
        _set(KEPT_BLOCK_BYTES, KEPT_TOP_BYTES)
    else:
        _set(MMAP_THRESHOLD_BYTES, TRIM_THRESHOLD_BYTES)


def _set(mapped_from_bytes: int, top_bytes: int) -> bool:
    # Both are tried even if one is refused.
    done = _mallopt(_M_MMAP_THRESHOLD, mapped_from_bytes), _mallopt(_M_TRIM_THRESHOLD, top_bytes)
    return all(done)


def _mallopt(name: int, value: int) -> bool:
    mallopt = getattr(_c_library(), "mallopt", None)
    return mallopt is not None and mallopt(name, value) == 1


def _c_library() -> Any:
    return ctypes.CDLL(None)
