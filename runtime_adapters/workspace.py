"""What a run takes while it lasts: activations, copies of the inputs, scratch.

A framework gives most of it back after the run, so no later look at the process finds it. The kernel remembers the
highest resident set of a process (`VmHWM`) and forgets it on request (`/proc/self/clear_refs`), which makes a run of
its own measurable: forget, run, read. What else the process does meanwhile is counted in; so the run is made a few
times, and the smallest figure is the best one.

The runs are made on zeros of the shapes that a real request had, off the request's path. A model that rejects zeros
stays unmeasured.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from runtime_adapters.base import Array, LoadedModel, Tensors
from runtime_adapters.errors import AdapterError
from runtime_adapters.malloc import returning_freed_memory
from runtime_adapters.memory import forget_high_water, high_water_bytes

RUNS = 3
"""The first may still set things up; of the others the smaller counts."""
SLOW_RUN_S = 0.25
"""A run of this length is made once: its figure is large, and takes a core from others."""
NOISE_BYTES = 1 << 20
"""Less than this is the allocator's breathing."""


@dataclass(frozen=True, slots=True)
class RequestShape:
    """The inputs of one request without their values."""

    inputs: Mapping[str, tuple[tuple[int, ...], np.dtype[np.generic]]]
    request_bytes: int

    def zeros(self) -> dict[str, Array]:
        """Inputs of this shape."""
        return {
            name: np.full(shape, b"", dtype) if dtype == np.object_ else np.zeros(shape, dtype)
            for name, (shape, dtype) in self.inputs.items()
        }


def shape_of(inputs: Tensors, request_bytes: int) -> RequestShape:
    """What there is to remember of a request."""
    return RequestShape({name: (array.shape, array.dtype) for name, array in inputs.items()}, request_bytes)


def measure_workspace(model: LoadedModel, shape: RequestShape) -> int | None:
    """Bytes that a run on such a request takes at its highest; None where it cannot be told. Blocks for some runs."""
    inputs = shape.zeros()
    input_bytes = sum(prod(array.shape) * array.itemsize for array in inputs.values())
    highest: list[int] = []
    began_s = time.perf_counter()
    while len(highest) < RUNS and (not highest or time.perf_counter() - began_s < SLOW_RUN_S):
        before_bytes = forget_high_water()
        if before_bytes is None:
            return None
        try:
            with returning_freed_memory():
                outputs = model.infer(inputs)
        except AdapterError:
            return None
        highest.append(high_water_bytes() - before_bytes)
        del outputs
    workspace_bytes = min(highest[1:] or highest)
    return 0 if workspace_bytes < NOISE_BYTES else workspace_bytes + input_bytes
