"""The pool's mark: who opens first writes it, and who cannot read what lies there does not start."""

from __future__ import annotations

import asyncio

import pytest

from placement.errors import StoreIncompatible
from placement.store.base import Put
from placement.store.format import FORMAT_KEY, FORMAT_VERSION, PoolFormat, format_from_json, format_to_json, open_format
from placement.store.memory import MemoryStore


async def test_the_first_to_open_a_pool_marks_it_and_the_others_find_the_same_pool() -> None:
    store = MemoryStore()
    marks = await asyncio.gather(*(open_format(store, f"hexcomb {i}") for i in range(5)))
    assert len({mark.pool_id for mark in marks}) == 1
    assert {mark.version for mark in marks} == {FORMAT_VERSION}
    assert await open_format(store, "hexcomb later") == marks[0]


async def test_opening_a_marked_pool_writes_nothing() -> None:
    store = MemoryStore()
    await open_format(store, "hexcomb 1")
    revision = store.revision
    await open_format(store, "hexcomb 2")
    assert store.revision == revision


async def test_a_pool_of_a_newer_format_is_refused_with_both_versions() -> None:
    store = MemoryStore()
    theirs = PoolFormat(FORMAT_VERSION + 1, "id", "hexcomb 9.9")
    await store.txn([], [Put(FORMAT_KEY, format_to_json(theirs))])
    with pytest.raises(StoreIncompatible) as caught:
        await open_format(store, "hexcomb 0.1")
    message = str(caught.value)
    assert f"format {FORMAT_VERSION + 1} (written by hexcomb 9.9)" in message
    assert f"hexcomb 0.1 reads and writes format {FORMAT_VERSION}" in message
    assert "upgrade this pod" in message


async def test_a_pool_of_an_older_format_says_that_the_pool_is_to_be_upgraded() -> None:
    store = MemoryStore()
    await store.txn([], [Put(FORMAT_KEY, format_to_json(PoolFormat(0, "id", "hexcomb 0.0")))])
    with pytest.raises(StoreIncompatible, match="upgrade the pool"):
        await open_format(store, "hexcomb 0.1")


@pytest.mark.parametrize("value", [b"", b"\xff", b"[]", b"7", b"{}", b'{"v": "x", "id": ""}', b'{"v": null, "id": ""}'])
async def test_a_key_of_another_program_is_not_taken_for_a_mark(value: bytes) -> None:
    assert format_from_json(value) is None
    store = MemoryStore()
    await store.txn([], [Put(FORMAT_KEY, value)])
    with pytest.raises(StoreIncompatible, match="another program"):
        await open_format(store, "hexcomb 0.1")


def test_what_a_later_version_adds_to_the_mark_is_ignored() -> None:
    assert format_from_json(b'{"v": 1, "id": "a", "by": "b", "more": []}') == PoolFormat(1, "a", "b")
