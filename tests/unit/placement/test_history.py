"""The recent changes that a store in this process keeps: how many, and who is told that they are gone."""

import pytest

from placement.errors import Compacted
from placement.store.base import Event, KeyValue, StoreLimits
from placement.store.history import History


def put_at(revision: int, value: bytes = b"") -> tuple[Event, ...]:
    return (Event("put", KeyValue(f"copies/default/m-{revision}/pod", value, revision, revision, 1)),)


def test_changes_without_a_value_take_memory_too_and_are_bounded_by_it() -> None:
    history = History(StoreLimits(history_bytes_max=100_000), 0)
    for revision in range(1, 1_001):
        history.append(revision, put_at(revision))
    assert 700 < history.compacted_revision < 1_000
    with pytest.raises(Compacted):
        history.batch_from(("copies/",), history.compacted_revision)
    kept = history.batch_from(("copies/",), history.compacted_revision + 1)
    assert [event.kv.mod_revision for event in kept.events] == list(range(history.compacted_revision + 1, 1_001))


def test_one_change_beyond_the_bound_is_kept_until_the_next() -> None:
    history = History(StoreLimits(history_bytes_max=1_000), 0)
    history.append(1, put_at(1, bytes(5_000)))
    assert len(history.batch_from(("copies/",), 1).events) == 1
    history.append(2, put_at(2))
    assert history.compacted_revision == 1
