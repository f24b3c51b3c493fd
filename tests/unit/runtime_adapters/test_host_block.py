"""The block of RAM for parked weights, with a CUDA driver that does not exist."""

from __future__ import annotations

from typing import Any

import pytest

from runtime_adapters.base import CPU, Device
from runtime_adapters.host_block import HostBlock

GPU = Device("cuda", 1)


class Driver:
    """Remembers what it was asked; `refuses` names the call that fails."""

    def __init__(self, refuses: str = "") -> None:
        self.asked: list[str] = []
        self._refuses = refuses

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.asked.append(name)
            return 2 if name == self._refuses else 0

        return call


def test_on_a_gpu_the_pages_are_locked_until_the_block_is_freed() -> None:
    driver = Driver()
    block = HostBlock(10_000, GPU, load_library=lambda name: driver)
    assert block.is_locked
    assert block.array.nbytes == 10_000
    block.free()
    block.free()
    assert not block.is_locked
    assert driver.asked.count("cuMemHostRegister_v2") == driver.asked.count("cuMemHostUnregister") == 1
    assert driver.asked.count("cuCtxPushCurrent_v2") == driver.asked.count("cuCtxPopCurrent_v2") == 2
    assert driver.asked.count("cuDevicePrimaryCtxRetain") == driver.asked.count("cuDevicePrimaryCtxRelease_v2") == 2


@pytest.mark.parametrize("refuses", ["cuInit", "cuDeviceGet", "cuCtxPushCurrent_v2", "cuMemHostRegister_v2"])
def test_what_the_driver_refuses_to_lock_is_ram_all_the_same(refuses: str) -> None:
    driver = Driver(refuses)
    block = HostBlock(4096, GPU, load_library=lambda name: driver)
    assert not block.is_locked
    assert "code 2" in block.why_not_locked
    block.array[:] = 7
    block.free()
    assert "cuMemHostUnregister" not in driver.asked
    assert driver.asked.count("cuDevicePrimaryCtxRetain") == driver.asked.count("cuDevicePrimaryCtxRelease_v2")


def test_a_device_that_is_gone_does_not_keep_a_block_from_being_freed() -> None:
    block = HostBlock(4096, GPU, load_library=lambda name: Driver("cuMemHostUnregister"))
    assert block.is_locked
    block.free()
    assert block.array.nbytes == 0


def test_without_a_driver_the_block_says_why_it_is_not_locked() -> None:
    def missing(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    assert "libcuda" in HostBlock(1, GPU, load_library=missing).why_not_locked


def test_on_the_cpu_nothing_is_locked_and_an_empty_block_is_allowed() -> None:
    block = HostBlock(0, CPU, load_library=lambda name: pytest.fail("nobody is asked"))
    assert (block.array.nbytes, block.is_locked) == (0, False)
    block.free()
