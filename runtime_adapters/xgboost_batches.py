"""Both engines of an XGBoost model at hand, and which of them answers how many rows.

onnxruntime takes the same for each row, however many there are; XGBoost takes 0.2 ms for any request, and from some
hundred rows on half as much for each of them. Measured on one core (2026-11-22, rows that differ, µs per row,
onnxruntime and XGBoost):

| rows | 64 | 128 | 256 | 512 | 1,024 | 4,096 |
|---|---|---|---|---|---|---|
| 100 trees of depth 6 | 2.3, 3.7 | 2.2, 2.3 | 2.2, 1.6 | 2.2, 1.3 | 2.2, 1.1 | 2.2, 1.0 |
| 500 trees of depth 8 | 17, 17 | 16, 12 | 15, 9.3 | 17, 9.0 | 16, 8.3 | 16, 8.9 |

Not where a value is missing: XGBoost then looks at each one that it reads, and takes as long as onnxruntime, or longer.
So rows with missing values stay with onnxruntime, however many.

To have both takes 2.6 times the memory, which only pays where such requests come, or come together: so the owner of a
model says so (`large_batches`), and from how many rows on it pays is measured when the trees are converted, and kept
with them. Where it pays nowhere, XGBoost is not loaded.

Deliberately absent: other machines' measurements (forms are made where they are used), and finding out by itself whose
batches are large.
"""

from __future__ import annotations

import time
from typing import Protocol

import numpy as np

from runtime_adapters.base import Array, Size

SAVED_MIN = 0.2
"""Of onnxruntime's time: what XGBoost has to save, or it is not kept beside."""
ROWS_TRIED = (64, 128, 256, 512, 1024)
RUNS = 3
"""Of each size: the quickest counts."""
TRYING_MAX_S = 0.5
"""Of processor time, after which the answer is that it does not pay."""


class Engine(Protocol):
    """Trees that answer (`runtime_adapters.xgboost_onnx.Ensemble`)."""

    def sums(self, rows: Array, margin: Array | None) -> Array: ...
    def values(self, rows: Array, margin: Array | None) -> Array: ...
    def contributions(self, rows: Array, margin: Array | None) -> Array: ...
    def size(self) -> Size: ...
    def unload(self) -> None: ...


class TreesBySize:
    """Two engines of the same trees."""

    def __init__(self, few: Engine, many: Engine, rows_min: int) -> None:
        """`many` answers `rows_min` rows and more without missing values, and explains."""
        self._few, self._many = few, many
        self._rows_min = rows_min

    def sums(self, rows: Array, margin: Array | None) -> Array:
        """What the trees add up to."""
        return self._engine(rows).sums(rows, margin)

    def values(self, rows: Array, margin: Array | None) -> Array:
        """What the objective makes of it."""
        return self._engine(rows).values(rows, margin)

    def contributions(self, rows: Array, margin: Array | None) -> Array:
        """What each feature contributed."""
        return self._many.contributions(rows, margin)

    def size(self) -> Size:
        """Of both."""
        return both_sizes(self._few.size(), self._many.size())

    def unload(self) -> None:
        """Free both."""
        self._few.unload()
        self._many.unload()

    def _engine(self, rows: Array) -> Engine:
        is_many = len(rows) >= self._rows_min and not np.isnan(rows.min())
        return self._many if is_many else self._few


def both_sizes(few: Size, many: Size) -> Size:
    """What two engines take together; `many` maps nothing, and is on no device."""
    return Size(few.host_bytes + many.host_bytes, few.mapped_bytes, few.device_bytes, few.shared)


def rows_min_for(few: Engine, many: Engine, samples: Array) -> int | None:
    """From how many rows on `many` saves enough of the time of `few`; None: nowhere.

    `samples`: rows of which others are made up, feature by feature."""
    chance = np.random.default_rng(0)
    picked = chance.integers(0, len(samples), (RUNS * max(ROWS_TRIED), samples.shape[1]))
    rows = np.where(np.isfinite(samples), samples, np.float32(0))[picked, np.arange(samples.shape[1])]
    began_s = time.thread_time()
    for count in ROWS_TRIED:
        if _quickest_s(many, rows, count) <= (1 - SAVED_MIN) * _quickest_s(few, rows, count):
            return count
        if time.thread_time() - began_s > TRYING_MAX_S:
            break
    return None


def _quickest_s(engine: Engine, rows: Array, count: int) -> float:
    """Seconds of this thread's time, which leaves out what others take of its core, for so many rows: others in each
    run, since the processor learns its way through trees by heart."""
    took_s = []
    for begin in range(0, RUNS * count, count):
        began_s = time.thread_time()
        engine.values(rows[begin : begin + count], None)
        took_s.append(time.thread_time() - began_s)
    return min(took_s)
