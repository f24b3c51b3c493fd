"""Freed memory returns to the kernel, unless it is kept for requests; and even then not while somebody loads."""

from __future__ import annotations

import subprocess
import sys

import pytest

_PROGRAM = """
import ctypes
from runtime_adapters.malloc import keep_freed_memory, returning_freed_memory, trim, tune_allocator
from runtime_adapters.memory import anonymous_bytes
tuned = tune_allocator()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
def left_bytes():
    before = anonymous_bytes()
    blocks = [libc.malloc(1 << 20) for _ in range(16)]
    for block in blocks:
        ctypes.memset(block, 1, 1 << 20)
    for block in blocks:
        libc.free(ctypes.c_void_p(block))
    return anonymous_bytes() - before
left = [left_bytes()]
keep_freed_memory(True)
with returning_freed_memory():
    left.append(left_bytes())
left.append(left_bytes())
before = anonymous_bytes()
keep_freed_memory(False)
trim()
left.append(before - anonymous_bytes())
left.append(left_bytes())
print(tuned, *left)
"""


def test_freed_blocks_stay_only_while_they_are_to_be_kept_and_nobody_loads() -> None:
    run = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, timeout=60, check=True)
    tuned, *left_bytes = run.stdout.split()
    if tuned == "False":
        pytest.skip("this C library has no mallopt")
    as_ever, while_loading, kept, given_back, afterwards = (int(each) >> 20 for each in left_bytes)
    assert as_ever <= 4
    assert while_loading <= 4
    assert kept >= 12
    assert given_back >= 12
    assert afterwards <= 4
