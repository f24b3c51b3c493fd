"""When a child is as it should be."""

from __future__ import annotations

from typing import Any

import pytest

from controller.owned_children import contains


@pytest.mark.parametrize(
    ("known", "wanted", "is_there"),
    [
        ({"a": 1, "b": 2}, {"a": 1}, True),
        ({"a": 1}, {"a": 2}, False),
        ({}, {"a": 1}, False),
        ({"a": {"b": [{"c": 1, "d": 2}]}}, {"a": {"b": [{"c": 1}]}}, True),
        ({"a": [1, 2]}, {"a": [1]}, False),
        ({"a": "text"}, {"a": {"b": 1}}, False),
    ],
    ids=["more is there", "another value", "missing", "within lists", "a longer list", "another type"],
)
def test_fields_may_be_added_and_entries_of_lists_may_not(known: Any, wanted: Any, is_there: bool) -> None:
    assert contains(known, wanted) is is_there
