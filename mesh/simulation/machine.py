"""The machine that a pod runs on: what outlives its process (name, zone, disk), and how well it is.

Deliberately absent: the pod (`pod.py`), which is started on a machine, dies there and is started again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Machine:
    """One machine. Owned by the world."""

    name: str
    zone: str
    capacity_bytes: int
    clock_offset_s: float = 0.0
    """How wrong its wall clock is."""
    slowness: float = 1.0
    """How many times longer everything takes that computes: loads, runs."""
    slow_until_s: float = -1e9
    """When it was slow last; infinite while it is."""
    disk_artifacts_max: int = 1_000
    disk: dict[str, None] = field(default_factory=dict)
    """URIs whose artifact is here, unused for longest first."""
    crash: Callable[[str], None] = lambda why: None
    """Ends the process that runs here, because of `why`."""

    @property
    def address(self) -> str:
        """Where its pod listens."""
        return f"{self.name}:8033"
