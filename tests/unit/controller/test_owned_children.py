"""When a child is as it should be, and whose it is."""

from __future__ import annotations

from typing import Any

import pytest

from controller.back_off import BackOff
from controller.cluster_api import SERVICES, Kind
from controller.informers import Informer
from controller.owned_children import NameTaken, OwnedChildren, are_alike, contains


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


def child(service: str, uid: str, **metadata: Any) -> dict[str, Any]:
    owner = {"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService", "name": service, "uid": uid}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": "a-b-predictor",
            "namespace": "n",
            "labels": {
                "app.kubernetes.io/managed-by": "hexcomb-controller",
                "serving.kserve.io/inferenceservice": service,
            },
            "ownerReferences": [{**owner, "controller": True}],
            **metadata,
        },
        "spec": {"type": "ExternalName", "externalName": "mesh"},
    }


class OneObject:
    """An API server that holds one object, and takes any apply: nobody else has said any of our fields."""

    def __init__(self, held: dict[str, Any] | None) -> None:
        self.held = held
        self.forced: list[bool] = []

    async def find(self, kind: Kind, namespace: str, name: str) -> dict[str, Any] | None:
        return self.held

    async def apply(self, kind: Kind, manifest: dict[str, Any], *, force: bool) -> dict[str, Any]:
        self.forced.append(force)
        return {**manifest, "metadata": {"uid": "c-1", "resourceVersion": "7", **manifest["metadata"]}}


async def applied(api: OneObject) -> None:
    informer = Informer(api, SERVICES, lambda key: None, back_off=BackOff())  # type: ignore[arg-type]
    await OwnedChildren(api, {("v1", "Service"): informer}).apply([child("a", "u-1")])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "held",
    [
        child("a", "", labels={}, ownerReferences=[]),
        child("a-b", "u-2"),
        child("a", "", ownerReferences=[{"kind": "Gateway", "name": "a", "uid": "u-3", "controller": True}]),
    ],
    ids=["made by hand", "of the service whose name is ours with its predictor's", "of another kind's object"],
)
async def test_an_object_of_somebody_else_is_never_made_ours(held: dict[str, Any]) -> None:
    api = OneObject(held)
    with pytest.raises(NameTaken, match="Service a-b-predictor exists and is not this InferenceService's"):
        await applied(api)
    assert api.forced == []


@pytest.mark.parametrize(
    ("held", "forced"),
    [
        (None, False),
        (child("a", "u-1"), True),
        (child("a", "u-0"), False),
        (child("a", "", ownerReferences=[]), False),
    ],
    ids=["nobody's", "its own", "left of a service of its name", "left without an owner"],
)
async def test_what_is_its_own_or_left_of_its_name_is_applied(held: dict[str, Any] | None, forced: bool) -> None:
    api = OneObject(held)
    await applied(api)
    assert api.forced == [forced]
