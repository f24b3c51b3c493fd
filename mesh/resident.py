"""A copy as the request path sees it: the loaded model and what was worked out about it once, at load.

Each request holds one pin, and each run on a worker thread another: a client that leaves gives back its pin at once,
and the copy stays until the thread is done with the model.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from cache.copies import Copy
from mesh.telemetry import RequestMeter
from runtime_adapters.artifacts.fetch import Artifact
from runtime_adapters.base import Device, LoadedModel, Size
from runtime_adapters.validation import InputChecker


@dataclass(slots=True)
class Resident:
    """One servable copy of this pod. Owned by the event loop."""

    copy: Copy
    model: LoadedModel
    format: str
    checker: InputChecker
    meter: RequestMeter
    artifact: Artifact
    """Held while the copy lives: its files may be mapped."""
    device: Device
    size: Size
    estimated_bytes: int
    """What was reserved for the load."""
    declared_bytes: int | None
    """What the spec says, where it does."""
    run_s: float
    """Mean seconds of a run."""
    load_s: float
    """What the framework took to load it."""
    turn: asyncio.Semaphore | None
    """Of a copy in a subprocess: whose run it is. None for copies in this process, which run several at a time."""
    pin: Callable[[Copy], None] = field(repr=False)
    unpin: Callable[[Copy], None] = field(repr=False)

    def hold(self) -> None:
        """Keep the copy from being unloaded until `let_go`."""
        self.pin(self.copy)

    def let_go(self) -> None:
        """Give back one `hold`."""
        self.unpin(self.copy)
