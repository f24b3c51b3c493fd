"""What an operator says about running requests together, apart from the rest: nothing is imported here, since a pod's
settings are read before NumPy is loaded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """The pod's; `mesh.batching.rules` has what follows for a model."""

    enabled: bool = True
    rows_max: int = 64
    delay_s: float = 0.0
