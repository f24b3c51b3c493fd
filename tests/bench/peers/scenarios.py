"""What is asked of every contestant: the cells of the comparison."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tests.bench.peers.artifacts import Fleet

ZIPF_EXPONENT = 0.9
_ORDER = 20_000


@dataclass(frozen=True, slots=True)
class Cell:
    """One number of requests in flight against one set of models.

    `half_peak`: paced at half of the most requests a second that this contestant answered in this round's other cells
    of the same model and rows; `in_flight` is then how many connections there may be.
    """

    scenario: str
    fleet: str
    model: str
    """Empty: all of the fleet, in an order that `zipf` says."""
    rows: int
    in_flight: int
    zipf: bool = False
    half_peak: bool = False

    @property
    def name(self) -> str:
        """For tables: says what differs within a scenario."""
        load = "half of its peak" if self.half_peak else f"{self.in_flight} in flight"
        return f"{self.scenario}, {self.rows} row{'s' if self.rows > 1 else ''}, {load}"


def _closed(scenario: str, model: str, rows: int, *in_flight: int) -> list[Cell]:
    return [Cell(scenario, "single", model, rows, count) for count in in_flight]


TINY, TREES, WIDE, IMAGE, LARGE = "tiny ONNX, 64 B", "XGBoost 100 × d6", "ONNX, 4 KB", "CNN, 600 KB", "ONNX, 8 MB"
MANY, ZIPF = "200 models, uniform", "Zipf, 5 × memory"

WHOLE = (
    *_closed(TINY, "tiny", 1, 1, 32, 512),
    *_closed(TINY, "tiny", 32, 1, 32, 512),
    Cell(TINY, "single", "tiny", 1, 32, half_peak=True),
    *_closed(TREES, "trees", 1, 1, 32, 512),
    *_closed(TREES, "trees", 32, 1, 32, 512),
    Cell(TREES, "single", "trees", 1, 32, half_peak=True),
    *_closed(WIDE, "wide", 1, 1, 32, 512),
    *_closed(IMAGE, "image", 1, 1, 32, 512),
    *_closed(LARGE, "large", 1, 1, 32),
    *(Cell(MANY, "many", "", 1, count) for count in (1, 32, 512)),
    *(Cell(ZIPF, "zipf", "", 1, count, zipf=True) for count in (1, 32, 512)),
)
"""512 × 8 MB would be 4 GB in flight, twice: sent and received. It is left out."""

QUICK = (
    *_closed(TINY, "tiny", 1, 1, 32),
    Cell(TINY, "single", "tiny", 1, 32, half_peak=True),
    *_closed(TREES, "trees", 1, 32),
    *_closed(IMAGE, "image", 1, 32),
    Cell(MANY, "many", "", 1, 32),
    Cell(ZIPF, "zipf", "", 1, 32, zipf=True),
)


def asked_models(cell: Cell, fleet: Fleet) -> list[str]:
    """The models of a cell, in the order in which requests go to them, over and over."""
    if cell.model:
        return [cell.model]
    names = sorted(fleet)
    weights = 1 / np.arange(1, len(names) + 1) ** (ZIPF_EXPONENT if cell.zipf else 0.0)
    chosen = np.random.default_rng(5).choice(len(names), _ORDER, p=weights / weights.sum())
    return [names[number] for number in chosen]
