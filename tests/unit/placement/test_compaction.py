"""The store forgets what is older than pods may be away, and nothing younger."""

from __future__ import annotations

from placement.compaction import CompactionPlan


def plan() -> CompactionPlan:
    return CompactionPlan(kept_s=600.0, every_s=120.0)


def test_nothing_is_forgotten_before_it_is_old_enough() -> None:
    compaction = plan()
    assert [compaction.note(revision=10 + second, now_s=float(second)) for second in range(600)] == [None] * 600


def test_what_was_seen_long_enough_ago_is_forgotten_at_intervals() -> None:
    compaction = plan()
    asked = {s: r for s in range(1500) if (r := compaction.note(revision=1000 + s, now_s=float(s))) is not None}
    assert asked == {600: 1000, 720: 1120, 840: 1240, 960: 1360, 1080: 1480, 1200: 1600, 1320: 1720, 1440: 1840}


def test_a_quiet_store_is_not_compacted_again() -> None:
    compaction = plan()
    assert [r for s in range(0, 5000, 10) if (r := compaction.note(7, float(s))) is not None] == [7]


def test_another_store_begins_anew() -> None:
    compaction = plan()
    for second in range(0, 1000, 10):
        compaction.note(revision=5000 + second, now_s=float(second))
    assert [compaction.note(3, float(second)) for second in range(1000, 1600, 10)] == [None] * 60
    assert compaction.note(4, 1600.0) == 3
