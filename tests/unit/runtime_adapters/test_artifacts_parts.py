"""In which parts a large object is read."""

from __future__ import annotations

from itertools import pairwise

import pytest

from runtime_adapters.artifacts.stored_objects import PART_BYTES, PARTS_AT_ONCE, _parts

MIB = 1 << 20


@pytest.mark.parametrize("size_bytes", [16 * MIB, 16 * MIB + 1, 25_000_000, 1_000_000_007])
@pytest.mark.parametrize("offset", [0, 1, 12_345_678])
def test_the_parts_cover_an_object_once_in_their_order(size_bytes: int, offset: int) -> None:
    parts = list(_parts(offset, size_bytes))
    assert (parts[0][0], parts[-1][1]) == (offset, size_bytes)
    assert all(before[1] == after[0] for before, after in pairwise(parts))
    assert all(0 < end - begin <= PART_BYTES for begin, end in parts)


def test_parts_that_begin_together_do_not_end_together() -> None:
    first = list(_parts(0, 1_000_000_000))[:PARTS_AT_ONCE]
    assert len({end - begin for begin, end in first}) == PARTS_AT_ONCE
    assert first[0] == (0, PART_BYTES), "the one that is on its way already is the largest"
