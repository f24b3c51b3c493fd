"""What every eviction policy is: a number for each copy, how much it is worth to keep it. The lowest goes first.

A policy is pure. It looks at a copy's picture (`CopyView`: bytes, uses, what bringing it back would take) and at the
`Situation`, and gives the same numbers for the same pictures, in whatever order it is asked. What a policy has to
remember of the evictions so far (GDSF's clock, hazard's horizon) is a value of the machine's state, `EvictionMemory`,
and `after_eviction` is the pure step from one to the next. Who may leave at all (not in use, not pinned, old enough,
tenants' shares) and what comes before worth (priorities) is decided in `cache.eviction`, once for all policies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from cache.views import CopyView

Score = Callable[[CopyView], float]
"""What keeping a copy is worth."""

HORIZON_MIN_S = 60.0
"""The horizon is no shorter: models that come back within a minute are all worth keeping."""


@dataclass(frozen=True, slots=True)
class EvictionMemory:
    """What the evictions so far have taught. One value for all policies; each moves what it uses."""

    inflation: float = 0.0
    """GDSF's clock: the worth of the last victim, which newer uses start from."""
    horizon_s: float = HORIZON_MIN_S
    """Uses that are further away than this do not make a copy worth keeping: about twice the age of victims."""


@dataclass(frozen=True, slots=True)
class Situation:
    """What is true of the pod when a policy is asked."""

    now_s: float
    memory: EvictionMemory = EvictionMemory()


class EvictionPolicy(Protocol):
    """Who leaves first."""

    @property
    def name(self) -> str:
        """As in `--eviction-policy`."""

    def scorer(self, situation: Situation) -> Score:
        """The worth of copies in this situation."""

    def soon(self, situation: Situation, copy: CopyView, within_s: float) -> float:
        """The worth that a copy would have here if its next use were expected within this time."""

    def after_eviction(self, memory: EvictionMemory, score: float, idle_s: float) -> EvictionMemory:
        """What is remembered once a copy of this worth, idle for so long, was evicted."""


def return_cost_s(copy: CopyView) -> float:
    """Seconds of waiting that a miss is expected to cost in all: of the request that misses, and of those that join.

    With arrivals at random at rate l and a load of z seconds that would be z + l z^2 / 2. But requests come in clumps,
    and what joins a load is mostly of the clump that caused it; so what they have waited is measured and remembered.
    """
    return copy.return_time_s + copy.uses.joined_s
