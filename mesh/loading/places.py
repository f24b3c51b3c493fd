"""Where the cache's ledger counts the bytes of a model.

A CPU pod has one place, its memory, and whatever lies on "the device" lies there too. On a pod with a GPU a model's
device bytes are counted on that GPU, what it keeps in RAM beside them in the host's memory, and parked copies in a tier
of their own.
"""

from __future__ import annotations

from cache.types import Bytes, Place, Shared, SharedPart
from runtime_adapters.base import Device, Size

HOST_MEMORY = Place("device", "cpu")
"""Where a copy's RAM and mapped pages are counted: the device tier of a CPU pod."""
HOST_TIER = Place("host")
"""Where the bytes of parked copies are counted."""


class Places:
    """The places of a pod that loads onto this device."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def of(self, device: Device) -> Place:
        """Where the device bytes of a copy on `device` are counted: a model may run on the CPU of a pod with a GPU."""
        return HOST_MEMORY if device.kind == "cpu" else Place("device", str(device))

    def bytes_of(self, size: Size) -> Bytes:
        """What the ledger counts for a model of this size."""
        components = {HOST_MEMORY: size.host_bytes + size.mapped_bytes}
        if self._device.kind != "cpu":
            components[Place("device", str(self._device))] = size.device_bytes
        else:
            components[HOST_MEMORY] += size.device_bytes
        return Bytes.from_mapping(components)

    def with_runs(self, size: Size, device: Device, workspace_bytes: int) -> Bytes:
        """The same, and what its runs on `device` take beside it."""
        return self.bytes_of(size) + Bytes.of(self.of(device), workspace_bytes)


def shared_parts(size: Size) -> Shared:
    """The parts of a size that copies of other models may hold as well."""
    return tuple(SharedPart(content, HOST_MEMORY, count_bytes) for content, count_bytes in size.shared)
