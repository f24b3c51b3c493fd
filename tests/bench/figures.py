"""A measured number, with what makes it worth something: its spread, its baseline and its bar.

Every bench runs in a process of its own, so that one bench's memory and threads never enter another's figures. It
reports through a `Reporter`: JSON lines on stdout, which the parent turns into progress and, at the end, one table.

Deliberately absent: averages over several runs of the whole. The README keeps dated results; comparing them is the
reader's.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Spread:
    """Samples of one quantity, in the figure's unit."""

    p50: float
    p95: float
    p99: float
    least: float
    most: float
    runs: int


def spread_of(samples: Sequence[float]) -> Spread:
    """Percentiles by linear interpolation."""
    p50, p95, p99 = (float(value) for value in np.percentile(samples, (50, 95, 99)))
    return Spread(p50, p95, p99, float(min(samples)), float(max(samples)), len(samples))


@dataclass(frozen=True, slots=True)
class Figure:
    """One number. `bar` is the most it may be, or the least where `at_least`; None: for information."""

    bench: str
    name: str
    value: float
    unit: str
    bar: float | None = None
    at_least: bool = False
    baseline: float | None = None
    baseline_name: str = ""
    """What was measured beside it, in the same run and the same unit."""
    spread: Spread | None = None
    note: str = ""

    @property
    def meets(self) -> bool | None:
        """Whether it keeps its bar; None where there is none."""
        if self.bar is None:
            return None
        return self.value >= self.bar if self.at_least else self.value <= self.bar

    def to_json(self) -> dict[str, Any]:
        """For a pipe and for the results file; `figure_from_json` reads it."""
        return {**asdict(self), "meets": self.meets}


def figure_from_json(value: dict[str, Any]) -> Figure:
    """The inverse of `Figure.to_json`."""
    fields = {name: item for name, item in value.items() if name != "meets"}
    if fields["spread"] is not None:
        fields["spread"] = Spread(**fields["spread"])
    return Figure(**fields)


class Reporter:
    """What a bench is given: how thorough to be, where its files are, and where its numbers go."""

    def __init__(self, bench: str, *, quick: bool, cache_dir: Path) -> None:
        self.bench = bench
        self.quick = quick
        self.cache_dir = cache_dir
        # Frameworks print to stdout when they like; the parent reads ours, so theirs goes to stderr.
        self._lines = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def choose(self, thorough: int, quick: int) -> int:
        """How many, by mode."""
        return quick if self.quick else thorough

    def progress(self, done: int, total: int, remark: str = "") -> None:
        """Where the bench stands; cheap enough for every step of a loop."""
        self._say({"progress": [done, total, remark]})

    def figure(self, name: str, value: float, unit: str, **rest: Any) -> Figure:
        """Report a number; `rest` are the other fields of `Figure`."""
        figure = Figure(self.bench, name, float(value), unit, **rest)
        self._say({"figure": figure.to_json()})
        return figure

    def samples(self, name: str, samples: Sequence[float], unit: str, **rest: Any) -> Figure:
        """Report the median of samples, with their spread."""
        spread = spread_of(samples)
        return self.figure(name, spread.p50, unit, spread=spread, **rest)

    def skip(self, what: str, why: str) -> None:
        """Something that could not be measured here; it appears below the table."""
        self._say({"skipped": f"{self.bench}: {what}: {why}"})

    def _say(self, line: dict[str, Any]) -> None:
        self._lines.write(json.dumps(line) + "\n")
