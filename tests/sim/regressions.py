"""Every seed that ever broke a promise, and what it found. None is taken away; each is played in CI.

The code under test moves on, so a seed may no longer pass the place where it failed; the story says what a unit test
should hold down, and most of these have one.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Regression:
    """A seed, the steps that it was played for, and its story in a line."""

    seed: int
    steps: int
    story: str


REGRESSIONS = (
    Regression(
        1008, 10_000, "a peer that a probe found down was let go of within the same call, and its probe looked for it"
    ),
)
