"""When a child is as it should be."""

from __future__ import annotations

from typing import Any

import pytest

from controller.owned_children import are_alike, contains


@pytest.mark.parametrize(
    ("known", "wanted", "is_there"),
    [
        ({"a": 1, "b": 2}, {"a": 1}, True),
        ({"a": 1}, {"a": 2}, False),
        ({}, {"a": 1}, False),
        ({"a": {"b": [{"c": 1, "d": 2}]}}, {"a": {"b": [{"c": 1}]}}, True),
        ({"a": [1, 2]}, {"a": [1]}, False),
        ({"a": "text"}, {"a": {"b": 1}}, False),
        ({}, {"a": "", "b": False, "c": 0, "d": [], "e": None}, True),
        ({"a": 1}, {"a": 0}, False),
    ],
    ids=[
        "more is there",
        "another value",
        "missing",
        "within lists",
        "a longer list",
        "another type",
        "empty values",
        "an empty value for another",
    ],
)
def test_fields_may_be_added_and_entries_of_lists_may_not(known: Any, wanted: Any, is_there: bool) -> None:
    assert contains(known, wanted) is is_there


def test_a_status_is_the_same_with_what_the_schema_adds_to_it() -> None:
    ours = {"states": {"activeModelState": "Loaded"}, "message": ""}
    servers = {"states": {"activeModelState": "Loaded", "targetModelState": ""}}
    assert are_alike(servers, ours)
    assert not are_alike({**servers, "url": "http://old"}, ours)
