"""Which devices this machine has, asked without importing a framework.

`import torch` or creating a CUDA context to count GPUs costs hundreds of megabytes; NVML, the driver's own library,
answers the same through ctypes and touches no context. A machine without the driver has the CPU only, and the answer
says why, so that a skipped GPU test or a refused `--device-capacity` can tell the reader.

`CUDA_VISIBLE_DEVICES` is respected as CUDA does: device index 0 is the first *visible* one, which is the index that
the frameworks take. Deliberately absent: MIG slices, other vendors; a slice is listed by nobody until it is needed.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from typing import Any

from runtime_adapters.base import CPU, Device
from runtime_adapters.cgroups import memory_limit
from runtime_adapters.memory_reading import read_memory

_NVML = "libnvidia-ml.so.1"
_NAME_BYTES_MAX = 96


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """One device as its driver describes it."""

    device: Device
    name: str
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class CudaScan:
    """The CUDA devices in CUDA's own order; `why_none` is a sentence when there are none."""

    devices: tuple[DeviceInfo, ...] = ()
    why_none: str = ""


def devices() -> tuple[DeviceInfo, ...]:
    """The CPU, then every visible CUDA device."""
    return (cpu(), *cuda_devices().devices)


def cpu() -> DeviceInfo:
    """The host: memory as this container may use it."""
    return DeviceInfo(CPU, "cpu", memory_limit().limit_bytes, read_memory().headroom_bytes)


def cuda_devices() -> CudaScan:
    """Every CUDA device that this process may use."""
    try:
        nvml: Any = ctypes.CDLL(_NVML)
    except OSError:
        return CudaScan(why_none=f"the NVIDIA driver's library {_NVML} is not on this machine")
    code = nvml.nvmlInit_v2()
    if code != 0:
        return CudaScan(why_none=f"nvmlInit failed with code {code}; see nvidia-smi for the driver's state")
    try:
        everything = _all_nvml_devices(nvml)
    finally:
        nvml.nvmlShutdown()
    if not everything:
        return CudaScan(why_none="the NVIDIA driver lists no device")
    visible = visible_ordinals(os.environ.get("CUDA_VISIBLE_DEVICES"), [uuid for uuid, _, _, _ in everything])
    if not visible:
        return CudaScan(why_none="CUDA_VISIBLE_DEVICES hides every device")
    found = []
    for index, ordinal in enumerate(visible):
        _, name, total_bytes, free_bytes = everything[ordinal]
        found.append(DeviceInfo(Device("cuda", index), name, total_bytes, free_bytes))
    return CudaScan(tuple(found))


def visible_ordinals(setting: str | None, uuids: list[str]) -> list[int]:
    """What CUDA_VISIBLE_DEVICES leaves, as positions in `uuids`. Like CUDA, the list ends at the first bad entry."""
    if setting is None:
        return list(range(len(uuids)))
    ordinals: list[int] = []
    for entry in (part.strip() for part in setting.split(",")):
        if entry.isdigit() and int(entry) < len(uuids):
            ordinal = int(entry)
        else:
            matches = [at for at, uuid in enumerate(uuids) if entry.startswith("GPU-") and uuid.startswith(entry)]
            if len(matches) != 1:
                break
            ordinal = matches[0]
        if ordinal in ordinals:
            break
        ordinals.append(ordinal)
    return ordinals


class _NvmlMemory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def _all_nvml_devices(nvml: Any) -> list[tuple[str, str, int, int]]:
    """(uuid, name, total bytes, free bytes) in PCI order, which is CUDA's with CUDA_DEVICE_ORDER=PCI_BUS_ID."""
    count = ctypes.c_uint()
    if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
        return []
    found = []
    for ordinal in range(count.value):
        handle = ctypes.c_void_p()
        if nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(ordinal), ctypes.byref(handle)) != 0:
            continue
        uuid = ctypes.create_string_buffer(_NAME_BYTES_MAX)
        name = ctypes.create_string_buffer(_NAME_BYTES_MAX)
        memory = _NvmlMemory()
        nvml.nvmlDeviceGetUUID(handle, uuid, _NAME_BYTES_MAX)
        nvml.nvmlDeviceGetName(handle, name, _NAME_BYTES_MAX)
        nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory))
        found.append((uuid.value.decode(), name.value.decode(), int(memory.total), int(memory.free)))
    return found
