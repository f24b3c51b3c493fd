"""The views of a large pool stay small: 100 MB for 100,000 models on each pod (`tests/bench/pool_memory.py`)."""

from __future__ import annotations

import pytest

from tests.bench.pool_memory import traced

MODELS = 4_000
BYTES_MAX = 830
"""For each model with a copy. 710 to 760 are measured; the resident set is more by an eighth, and must stay within
1,000."""


@pytest.mark.parametrize("kind", [{"rich": False}, {"rich": True}, {"rich": False, "parked": True}], ids=str)
def test_a_model_and_what_pods_have_of_it_take_less_than_a_kilobyte(kind: dict[str, bool]) -> None:
    """Also where each spec has labels and a checksum of its own, and where each model is parked on two pods."""
    traced(100, **kind)  # caches and imports
    assert traced(MODELS, **kind) / MODELS <= BYTES_MAX
