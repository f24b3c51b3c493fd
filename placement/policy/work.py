"""What a model's copies have to do together, from what each pod measured of its own.

Work is counted in runs that are under way or waiting: what a copy has in flight, and at least rate × run time, which
by Little's law is the mean of what runs. Sums are exact (`fsum`), so that the order of pods changes no digit.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import fsum
from typing import NamedTuple

from placement.policy.snapshot import BusyModel


class Work(NamedTuple):
    """Of one model, over all its copies."""

    runs: float
    """Under way or waiting."""
    rate_per_s: float
    queue_delay_s: float
    """Mean over requests."""
    run_s: float
    """Mean over requests."""
    concurrency: float
    """Runs that a copy takes at a time, mean over the copies that said so; 1 where none did."""

    @classmethod
    def of(cls, measured: Iterable[BusyModel]) -> Work:
        """Add up; a copy that is not among `measured` is idle."""
        copies = list(measured)
        if not copies:
            return cls(0.0, 0.0, 0.0, 0.0, 1.0)
        rate_per_s = fsum(copy.rate_per_s for copy in copies)
        # Without a rate (requests wait, none has come back yet) each copy counts the same.
        weights = [copy.rate_per_s / rate_per_s if rate_per_s > 0 else 1 / len(copies) for copy in copies]
        return cls(
            fsum(max(copy.in_flight, copy.rate_per_s * copy.run_s) for copy in copies),
            rate_per_s,
            fsum(weight * copy.queue_delay_s for weight, copy in zip(weights, copies, strict=True)),
            fsum(weight * copy.run_s for weight, copy in zip(weights, copies, strict=True)),
            fsum(max(1, copy.concurrency) for copy in copies) / len(copies),
        )
