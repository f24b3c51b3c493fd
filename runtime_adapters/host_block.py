"""RAM for the weights of a model that has left its device: one block of exactly so many bytes, page-locked if possible.

A copy to or from a GPU runs at the bus's full speed only where the pages cannot move, and beside other work only then.
Frameworks have such memory of their own, in pools that round sizes up to powers of two and keep what was freed; a tier
whose bytes are counted needs exact ones that go back at once. So the block is a mapping of its own, and the CUDA
driver, asked through ctypes, locks its pages in place. Where the driver refuses (a container's limit on locked memory)
the block is as good as any RAM, and copies are slower; `why_not_locked` says so.

Locking is valid in the device's primary context, which is the one that all frameworks of this process use.

Deliberately absent: locking without a driver (`mlock` keeps pages in RAM, which an anonymous mapping on a pod without
swap is in any case, and does not make a copy faster).
"""

from __future__ import annotations

import ctypes
import logging
import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from runtime_adapters.base import CPU, Array, Device

_DRIVER = "libcuda.so.1"
_PORTABLE = 1
"""CU_MEMHOSTREGISTER_PORTABLE: locked for every context, so that any GPU of the pod may copy from it."""

log = logging.getLogger(__name__)

LoadLibrary = Callable[[str], Any]


class HostBlock:
    """So many bytes of RAM. Belongs to whoever made it, until `free`."""

    def __init__(self, size_bytes: int, device: Device = CPU, load_library: LoadLibrary = ctypes.CDLL) -> None:
        """`device`: which one it is copied from and to; on the CPU nothing is locked. Raises MemoryError."""
        try:
            mapping = mmap.mmap(-1, max(1, size_bytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise MemoryError(f"no RAM for a block of {size_bytes:,} bytes: {error}") from error
        self.array: Array = np.frombuffer(mapping, np.uint8)[:size_bytes]
        self._locked: _LockedPages | None = None
        self.why_not_locked = "there is no device to copy to" if device.kind == "cpu" else ""
        if device.kind != "cpu" and size_bytes:
            try:
                self._locked = _LockedPages(load_library(_DRIVER), device, self.array.ctypes.data, size_bytes)
            except OSError as error:
                self.why_not_locked = str(error)

    @property
    def is_locked(self) -> bool:
        """Whether copies run at full speed."""
        return self._locked is not None

    def free(self) -> None:
        """Give the RAM back, as soon as nobody looks at `array` any more. Idempotent."""
        locked, self._locked = self._locked, None
        if locked is not None:
            try:
                locked.unlock()  # while the memory is still there
            except OSError as error:
                log.warning("a block of locked memory was freed and stays locked: %s", error)
        self.array = np.empty(0, np.uint8)


class _LockedPages:
    """A range of memory that the driver keeps where it is."""

    def __init__(self, driver: Any, device: Device, address: int, size_bytes: int) -> None:
        """Raises OSError."""
        self._driver = driver
        self._device = device
        self._address = ctypes.c_void_p(address)
        with self._context():
            _check(driver.cuMemHostRegister_v2(self._address, ctypes.c_size_t(size_bytes), _PORTABLE), "lock memory")

    def unlock(self) -> None:
        """Raises OSError, where the device is gone."""
        with self._context():
            _check(self._driver.cuMemHostUnregister(self._address), "unlock memory")

    @contextmanager
    def _context(self) -> Iterator[None]:
        """The primary context of the device, current on this thread."""
        driver, handle, context = self._driver, ctypes.c_int(), ctypes.c_void_p()
        _check(driver.cuInit(0), "start")
        _check(driver.cuDeviceGet(ctypes.byref(handle), self._device.index), f"find {self._device}")
        _check(driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), handle), f"use {self._device}")
        try:
            _check(driver.cuCtxPushCurrent_v2(context), f"use {self._device}")
            try:
                yield
            finally:
                driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
        finally:
            driver.cuDevicePrimaryCtxRelease_v2(handle)


def _check(code: int, what: str) -> None:
    if code:
        raise OSError(code, f"the CUDA driver could not {what}: code {code}")
