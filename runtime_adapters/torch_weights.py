"""The weights of a torch module: what they take, and moving them between their device and one block of RAM.

A module is parked by giving each of its tensors other memory (`tensor.data = ...`): the module, its graph and whoever
refers to a tensor stay as they are, so the return needs no load. Memory is moved storage by storage: what was tied is
tied afterwards, and views still show the same bytes. On the way up all storages come as one block, in one copy on a
stream of its own, so that runs of other models go on beside it.

What is neither a parameter, nor a buffer, nor an attribute of a module that Python sees (constants within a TorchScript
program, a frozen one's weights above all) stays on its device, and is not counted either.

Nothing here asks whether a device is a GPU but for the stream: between two places in RAM the same code runs, which is
how it is tested on machines without a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from runtime_adapters.base import Device, Size
from runtime_adapters.host_block import HostBlock

_ALIGNMENT_BYTES = 256
"""Of each storage in the block: what CUDA's own allocator promises, and kernels rely on."""


def weights_of(module: Any) -> Iterator[Any]:
    """Every tensor that the module and its parts hold; tied ones as often as they are tied."""
    for part in module.modules():
        for held in (part._parameters, part._buffers, vars(part)):
            for value in held.values():
                if hasattr(value, "untyped_storage"):
                    yield value


def weights_size(module: Any, program_bytes: int) -> Size:
    """Weights by storage, so that tied ones count once; the program is in RAM."""
    storages: dict[tuple[str, int], int] = {}
    for tensor in weights_of(module):
        storage = tensor.untyped_storage()
        storages[tensor.device.type, storage.data_ptr()] = storage.nbytes()
    device_bytes = sum(size for (kind, _), size in storages.items() if kind != "cpu")
    return Size(host_bytes=program_bytes + sum(storages.values()) - device_bytes, device_bytes=device_bytes)


@dataclass(frozen=True, slots=True)
class _Span:
    """Where a storage lies in the block."""

    offset_bytes: int
    count_bytes: int
    storage: Any


@dataclass(frozen=True, slots=True)
class _Moved:
    """A tensor: where its storage lies in the block, and where in the storage it begins."""

    tensor: Any
    offset_bytes: int
    offset_elements: int


def _spans(module: Any, device: Any) -> dict[int, _Span]:
    """By the address that the storage has now."""
    spans: dict[int, _Span] = {}
    end_bytes = 0
    for tensor in weights_of(module):
        storage = tensor.untyped_storage()
        if tensor.device.type == device.type and storage.nbytes() and storage.data_ptr() not in spans:
            spans[storage.data_ptr()] = _Span(end_bytes, storage.nbytes(), storage)
            end_bytes += storage.nbytes() + -storage.nbytes() % _ALIGNMENT_BYTES
    return spans


def _block_bytes(spans: dict[int, _Span]) -> int:
    return max((span.offset_bytes + span.count_bytes for span in spans.values()), default=0)


def parked_bytes(module: Any, device: Any) -> int:
    """The block that `take_down` would make."""
    return _block_bytes(_spans(module, device))


class WeightsInRam:
    """What a module had on its device."""

    def __init__(self, torch: Any, module: Any, device: Any) -> None:
        """Take them down. Raises what torch raises, and MemoryError; then they are where they were."""
        self._torch = torch
        self._device = device
        spans = _spans(module, device)
        self._block = HostBlock(_block_bytes(spans), Device(device.type, device.index or 0))
        try:
            self._flat = torch.from_numpy(self._block.array)
            for span in spans.values():
                source = torch.empty(0, dtype=torch.uint8, device=device).set_(span.storage)
                self._flat[span.offset_bytes : span.offset_bytes + span.count_bytes].copy_(source, non_blocking=True)
            if device.type == "cuda":
                torch.cuda.current_stream(device).synchronize()
        except BaseException:
            self.free()
            raise
        self._moved = [
            _Moved(tensor, spans[address].offset_bytes, tensor.storage_offset())
            for tensor in weights_of(module)
            if (address := tensor.untyped_storage().data_ptr()) in spans
        ]
        self._show(self._flat)

    def bring_up(self) -> None:
        """To their device again, and free the block. Raises what torch raises; then they are in RAM still."""
        torch, device = self._torch, self._device
        up = torch.empty(self._flat.numel(), dtype=torch.uint8, device=device)
        if device.type == "cuda":
            stream = torch.cuda.Stream(device)
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                up.copy_(self._flat, non_blocking=True)
            stream.synchronize()
        else:
            up.copy_(self._flat)
        self._show(up)
        self.free()

    def free(self) -> None:
        """The RAM goes back once the module's tensors have other memory, or are gone. Idempotent."""
        self._flat = self._torch.empty(0, dtype=self._torch.uint8)
        self._moved = []
        self._block.free()

    def _show(self, flat: Any) -> None:
        """From now on the tensors are views of this block."""
        for moved in self._moved:
            tensor = moved.tensor
            view = self._torch.empty(0, dtype=tensor.dtype, device=flat.device)
            begins = moved.offset_bytes // tensor.element_size() + moved.offset_elements
            tensor.data = view.set_(flat.untyped_storage(), begins, tensor.size(), tensor.stride())
