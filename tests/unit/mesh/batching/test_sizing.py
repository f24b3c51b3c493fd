"""How many rows pay, where costs do not fall on a line."""

from __future__ import annotations

import pytest

from mesh.batching.sizing import KNOWN_AFTER, LOOK_AGAIN_AFTER, Sizing

MAPPED_US = {1: 1435, 2: 2031, 4: 1242, 8: 592, 16: 383, 32: 239, 64: 183}
"""Of a row, of 25 MB of weights that are read from a mapped file (measured on two cores)."""


def learned(row_us: dict[int, float], rows_max: int = 64) -> Sizing:
    sizing = Sizing()
    for _ in range(KNOWN_AFTER * 10):
        rows = min(sizing.rows_best(waiting_rows=rows_max), rows_max)
        sizing.ran(rows, rows * row_us[rows] * 1e-6)
    return sizing


def test_a_size_that_is_worse_does_not_hide_a_larger_one_that_is_better() -> None:
    assert learned(MAPPED_US).rows_best(waiting_rows=64) == 64


@pytest.mark.parametrize(("waiting", "rows"), [(1, 1), (2, 1), (3, 1), (4, 1), (8, 8), (9, 16), (40, 64)])
def test_the_best_of_the_sizes_within_reach_is_taken(waiting: int, rows: int) -> None:
    assert learned(MAPPED_US).rows_best(waiting_rows=waiting) == rows


def test_a_size_is_tried_only_when_enough_wait_for_it() -> None:
    sizing = learned({1: 100, 2: 60}, rows_max=2)
    assert sizing.rows_best(waiting_rows=2) == 2
    assert sizing.rows_best(waiting_rows=3) == 4


def test_what_is_known_of_larger_sizes_is_forgotten_in_time() -> None:
    sizing = learned({1: 100, 2: 100, 4: 100, 8: 100})
    assert sizing.rows_best() == 1
    sizing = learned({1: 100, 2: 50, 4: 50, 8: 50, 16: 50})
    assert sizing.rows_best() == 2
    for _ in range(LOOK_AGAIN_AFTER):
        sizing.ran(2, 100e-6)
    assert sizing.rows_best() == 4


def test_a_batch_that_failed_makes_the_next_ones_smaller_for_a_while() -> None:
    sizing = learned(MAPPED_US)
    sizing.failed(64)
    assert sizing.rows_best() == 32
    for _ in range(64):
        sizing.ran(32, 32 * 239e-6)
    assert sizing.rows_best() == 64
