"""What an informer holds after lists, watches, breaks and forgotten points."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from controller.back_off import BackOff
from controller.cluster_api import INFERENCE_SERVICES, Change, Json, Kind
from controller.cluster_errors import ClusterError, Expired, Unreachable
from controller.informers import Informer, Key


def thing(name: str, version: int, **metadata: Any) -> Json:
    return {"metadata": {"name": name, "namespace": "n", "resourceVersion": str(version), "uid": name, **metadata}}


class Script:
    """Lists and watches, in the order in which they are asked for."""

    def __init__(self) -> None:
        self.lists: list[tuple[list[Json], str]] = []
        self.watches: list[list[Change | ClusterError]] = []
        self.watched_from: list[str] = []

    async def list(self, kind: Kind, namespace: str = "", *, labels: str = "") -> tuple[list[Json], str]:
        return self.lists.pop(0)

    async def watch(
        self, kind: Kind, resource_version: str, namespace: str = "", *, for_s: float, labels: str = ""
    ) -> AsyncIterator[Change]:
        self.watched_from.append(resource_version)
        for step in self.watches.pop(0):
            if isinstance(step, ClusterError):
                raise step
            yield step


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def told() -> list[Key]:
    return []


@pytest.fixture
async def informer(script: Script, told: list[Key]) -> Informer:
    return Informer(script, INFERENCE_SERVICES, told.append, back_off=BackOff())


async def test_a_watch_goes_on_from_where_the_last_one_ended(informer: Informer, script: Script) -> None:
    script.lists = [([thing("a", 3)], "5")]
    script.watches = [[Change("ADDED", thing("b", 6)), Change("BOOKMARK", thing("", 9))], []]
    await informer.turn()
    await informer.turn()
    assert script.watched_from == ["5", "9"]
    assert set(informer.keys()) == {("n", "a"), ("n", "b")}


async def test_what_went_while_nobody_watched_is_told_by_the_next_list(
    informer: Informer, script: Script, told: list[Key]
) -> None:
    script.lists = [([thing("a", 3), thing("b", 4), thing("c", 4)], "5"), ([thing("b", 4), thing("c", 8)], "9")]
    script.watches = [[Expired("410: too old")], []]
    with pytest.raises(Expired):
        await informer.turn()
    told.clear()
    informer.forget_place()
    await informer.turn()
    assert sorted(told) == [("n", "a"), ("n", "c")]  # b is as it was
    assert informer.get(("n", "a")) is None


async def test_a_watch_that_breaks_off_keeps_its_place(informer: Informer, script: Script) -> None:
    script.lists = [([], "5")]
    script.watches = [[Change("ADDED", thing("a", 6)), Unreachable("gone")], []]
    with pytest.raises(Unreachable):
        await informer.turn()
    await informer.turn()
    assert script.watched_from == ["5", "6"]


async def test_an_answer_to_a_write_is_there_at_once_and_is_not_undone_by_an_older_change(
    informer: Informer, script: Script
) -> None:
    script.lists = [([thing("a", 3)], "5")]
    script.watches = [[], [Change("MODIFIED", thing("a", 6, labels={"old": "yes"}))]]
    await informer.turn()
    informer.heard(thing("a", 7, labels={"new": "yes"}))
    await informer.turn()
    found = informer.get(("n", "a"))
    assert found is not None
    assert found["metadata"]["labels"] == {"new": "yes"}


async def test_an_answer_that_the_watch_has_overtaken_is_not_believed(informer: Informer, script: Script) -> None:
    script.lists = [([thing("a", 3)], "5")]
    script.watches = [[Change("DELETED", thing("a", 8))]]
    await informer.turn()
    informer.heard(thing("a", 7))
    assert informer.get(("n", "a")) is None


async def test_children_are_found_by_their_owner(informer: Informer, script: Script) -> None:
    owned = {"ownerReferences": [{"uid": "u-1", "controller": True}]}
    script.lists = [([thing("a", 1, **owned), thing("b", 2, **owned), thing("c", 3)], "5")]
    script.watches = [[Change("DELETED", thing("a", 6, **owned))]]
    await informer.turn()
    assert [child["metadata"]["name"] for child in informer.of_owner("u-1")] == ["b"]
    assert informer.of_owner("u-2") == ()


async def test_what_nobody_reads_is_not_kept(informer: Informer, script: Script) -> None:
    noise = {
        "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "mine": "1"},
        "managedFields": [],
    }
    script.lists = [([thing("a", 1, **noise)], "5")]
    script.watches = [[]]
    await informer.turn()
    found = informer.get(("n", "a"))
    assert found is not None
    assert found["metadata"]["annotations"] == {"mine": "1"}
    assert "managedFields" not in found["metadata"]
