"""The views of a large pool stay small: 100 MB for 100,000 models on each pod (`tests/bench/pool_memory.py`)."""

from __future__ import annotations

from tests.bench.pool_memory import traced

MODELS = 4_000
BYTES_MAX = 900
"""For each model with a copy. 820 are measured; the resident set is an eighth more, and must stay within 1,000."""


def test_a_model_and_its_copy_take_less_than_a_kilobyte() -> None:
    traced(100, rich=False)  # caches and imports
    assert traced(MODELS, rich=False) / MODELS <= BYTES_MAX


def test_so_does_a_model_that_is_parked_on_two_pods() -> None:
    traced(100, rich=False, parked=True)
    assert traced(MODELS, rich=False, parked=True) / MODELS <= BYTES_MAX
