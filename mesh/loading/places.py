"""Where the cache's ledger counts the bytes of a model.

A CPU pod has one place, its memory, and whatever lies on "the device" lies there too. On a pod with GPUs a model's
device bytes are counted on the GPU that it runs on, what it keeps in RAM beside them in the host's memory, and parked
copies in a tier of their own, which all GPUs share.
"""

from __future__ import annotations

from cache.types import Bytes, Place, Shared, SharedPart
from runtime_adapters.base import Device, Size

HOST_MEMORY = Place("device", "cpu")
"""Where a copy's RAM and mapped pages are counted: the device tier of a CPU pod."""
HOST_TIER = Place("host")
"""Where the bytes of parked copies are counted."""
RAM = (HOST_MEMORY, HOST_TIER)
"""The places that lie in this machine's memory; what lies in the last of them serves nobody."""


def place_of(device: Device) -> Place:
    """Where the device bytes of a copy on `device` are counted: a model may run on the CPU of a pod with a GPU."""
    return HOST_MEMORY if device.kind == "cpu" else Place("device", str(device))


def bytes_on(device: Device, size: Size, workspace_bytes: int = 0) -> Bytes:
    """What the ledger counts for a model of this size on `device`, and what its runs take there beside it."""
    in_ram = Bytes.of(HOST_MEMORY, size.host_bytes + size.mapped_bytes)
    return in_ram + Bytes.of(place_of(device), size.device_bytes + workspace_bytes)


def bytes_parked(size: Size) -> Bytes:
    """What it counts for a parked model: mapped files as well, since what is held there is held in RAM."""
    return Bytes.of(HOST_TIER, size.total_bytes)


def shared_parts(size: Size) -> Shared:
    """The parts of a size that copies of other models may hold as well."""
    return tuple(SharedPart(content, HOST_MEMORY, count_bytes) for content, count_bytes in size.shared)
