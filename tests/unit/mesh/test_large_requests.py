"""While large requests come, what they used is kept; a moment after the last it is given back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mesh import large_requests
from mesh.large_requests import KEPT_FROM, LargeRequests


class Malloc:
    def __init__(self) -> None:
        self.told: list[str] = []
        self.given_back = asyncio.Event()

    def keep(self, keep: bool) -> None:
        self.told.append("keep" if keep else "return")

    def give_back(self) -> None:
        self.told.append("give back")
        self.given_back.set()


def at_once(name: str, work: Any, *arguments: Any) -> Any:
    work(*arguments)


@pytest.fixture
def malloc() -> Malloc:
    return Malloc()


@pytest.fixture
def requests(malloc: Malloc, monkeypatch: pytest.MonkeyPatch) -> LargeRequests:
    monkeypatch.setattr(large_requests, "LOOK_EVERY_S", 0.01)
    return LargeRequests(malloc.keep, malloc.give_back, at_once)


async def test_a_single_large_request_changes_nothing(malloc: Malloc, requests: LargeRequests) -> None:
    requests.came()
    requests.close()
    assert malloc.told == []


async def test_what_several_used_is_kept_and_given_back_when_no_more_come(
    malloc: Malloc, requests: LargeRequests
) -> None:
    for _ in range(10 * KEPT_FROM):
        requests.came()
    assert malloc.told == ["keep"]
    await asyncio.wait_for(malloc.given_back.wait(), 10)
    assert malloc.told == ["keep", "return", "give back"]
    for _ in range(KEPT_FROM):
        requests.came()
    assert malloc.told[3:] == ["keep"]
    requests.close()


async def test_a_pod_that_stops_keeps_nothing(malloc: Malloc, requests: LargeRequests) -> None:
    for _ in range(KEPT_FROM):
        requests.came()
    requests.close()
    assert malloc.told == ["keep", "return"]
