"""Whether the disk tier's capacity is there."""

from __future__ import annotations

import pytest

from mesh.disk_room import DiskRoom, disk_room

GIB = 1 << 30


def room(capacity_gib: int, *, asked_for: bool, used_gib: int = 0, free_gib: int = 10) -> DiskRoom:
    return disk_room(
        capacity_gib * GIB,
        asked_for=asked_for,
        used_bytes=used_gib * GIB,
        free_bytes=free_gib * GIB,
        total_bytes=50 * GIB,
        where="/data",
    )


@pytest.mark.parametrize("asked_for", [False, True])
def test_a_capacity_that_is_free_or_used_already_is_fine(asked_for: bool) -> None:
    assert room(10, asked_for=asked_for) == DiskRoom()
    assert room(15, asked_for=asked_for, used_gib=5) == DiskRoom()


def test_what_the_file_system_can_never_hold_is_refused_where_it_was_asked_for() -> None:
    found = room(51, asked_for=True)
    assert "52,224 MiB asked for" in found.error
    assert "--disk-capacity" in found.error
    assert not room(51, asked_for=False).error
    assert room(51, asked_for=False).warning


def test_what_is_not_free_now_is_told_and_no_more() -> None:
    found = room(20, asked_for=True)
    assert not found.error
    assert "10,240 MiB free of 51,200 MiB" in found.warning
