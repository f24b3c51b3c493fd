"""How old a view may be, how often the mesh is asked, and whose an alias is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping

import pytest

from controller.mesh_mirror import MeshMirror
from controller.mesh_view import ModelState
from mesh.wire.generated import hexcomb_pb2

OURS = {"managed-by": "hexcomb-controller"}


class FakeMesh:
    """One tenant's. Counts how often it is asked for everything."""

    def __init__(self) -> None:
        self.asked = 0
        self.was_asked = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()
        self.models: list[hexcomb_pb2.ModelDescription] = []
        self.aliases: list[hexcomb_pb2.AliasDescription] = []

    def add(self, service: str, model: str) -> None:
        spec = hexcomb_pb2.ModelSpec(uri="s3://m", copies_min=1, labels={**OURS, "inferenceservice": service})
        self.models.append(hexcomb_pb2.ModelDescription(id=model, spec=spec, generation=3, state=hexcomb_pb2.LOADED))

    async def list_models(
        self, id_prefix: str = "", labels: Mapping[str, str] | None = None, page_size: int = 0
    ) -> AsyncIterator[hexcomb_pb2.ModelDescription]:
        assert labels == OURS
        self.asked += 1
        self.was_asked.set()
        await self.gate.wait()
        for model in self.models:
            yield model

    async def list_aliases(self, id_prefix: str = "") -> AsyncIterator[hexcomb_pb2.AliasDescription]:
        for alias in self.aliases:
            yield alias

    async def pod_status(self) -> list[hexcomb_pb2.PodDescription]:
        tiers = [hexcomb_pb2.TierStatus(tier="device", capacity_bytes=100)]
        runtimes = [
            hexcomb_pb2.RuntimeStatus(format="onnx", available=True),
            hexcomb_pb2.RuntimeStatus(format="torch", available=False),
        ]
        return [hexcomb_pb2.PodDescription(pod="p", ready=True, tiers=tiers, runtimes=runtimes)]

    async def close(self) -> None:
        return None


@pytest.fixture
async def mesh() -> FakeMesh:
    return FakeMesh()


@pytest.fixture
async def mirror(mesh: FakeMesh) -> AsyncIterator[MeshMirror]:
    mirror = MeshMirror(lambda namespace: mesh, age_max_s=3600.0)  # type: ignore[arg-type,return-value]
    yield mirror
    await mirror.close()


async def test_a_view_has_the_services_own_models_and_what_the_pool_can_do(mesh: FakeMesh, mirror: MeshMirror) -> None:
    mesh.add("mine", "mine__isvc-1")
    mesh.add("other", "other__isvc-1")
    view = await mirror.view("n", "mine", {"mine": "no"})
    assert view.reachable
    assert (view.formats, view.capacity_bytes, view.refusals) == (frozenset({"onnx"}), 100, {"mine": "no"})
    (model,) = view.models.values()
    assert (model.id, model.generation, model.state) == ("mine__isvc-1", 3, ModelState.LOADED)
    assert model.spec == {"uri": "s3://m", "copies_min": 1, "labels": {**OURS, "inferenceservice": "mine"}}


async def test_many_who_ask_at_once_share_one_question(mesh: FakeMesh, mirror: MeshMirror) -> None:
    mesh.gate.clear()
    asking = [asyncio.create_task(mirror.view("n", f"s{number}", {})) for number in range(20)]
    await mesh.was_asked.wait()
    mesh.gate.set()
    await asyncio.gather(*asking)
    await mirror.view("n", "late", {})
    assert mesh.asked == 1


async def test_after_a_write_the_service_gets_a_younger_view_and_others_do_not_need_one(
    mesh: FakeMesh, mirror: MeshMirror
) -> None:
    await mirror.view("n", "mine", {})
    mesh.add("mine", "mine__isvc-1")
    mirror.wrote("n", "mine")
    await mirror.view("n", "other", {})
    assert mesh.asked == 1
    assert "mine__isvc-1" in (await mirror.view("n", "mine", {})).models
    await mirror.view("n", "mine", {})
    assert mesh.asked == 2


async def test_an_alias_is_the_services_whose_model_it_leads_to(mesh: FakeMesh, mirror: MeshMirror) -> None:
    mesh.add("mine", "mine__isvc-1")
    mesh.aliases = [
        hexcomb_pb2.AliasDescription(id="mine.latest", target="mine__isvc-1", owner="hexcomb-controller"),
        hexcomb_pb2.AliasDescription(id="theirs", target="mine__isvc-1", owner="them"),
        hexcomb_pb2.AliasDescription(id="far", target="elsewhere", owner="hexcomb-controller"),
    ]
    view = await mirror.view("n", "mine", {})
    assert list(view.aliases) == ["mine.latest"]
    assert mirror.owner_of_alias("n", "mine.latest") == "mine"
    assert "them" in mirror.owner_of_alias("n", "theirs")
    assert mirror.owner_of_alias("n", "free") == ""


async def test_what_changed_unasked_is_told_by_service(mesh: FakeMesh, mirror: MeshMirror) -> None:
    mesh.add("same", "same__isvc-1")
    mesh.add("lost", "lost__isvc-1")
    await mirror.view("n", "same", {})
    del mesh.models[1]
    mesh.add("new", "new__isvc-1")
    assert await mirror.changed_services("n") == {"lost", "new"}
    assert mirror.services("n") == {"same", "new"}


async def test_a_change_that_another_services_look_has_seen_is_told_all_the_same(
    mesh: FakeMesh, mirror: MeshMirror
) -> None:
    mesh.add("lost", "lost__isvc-1")
    await mirror.view("n", "lost", {})
    assert await mirror.changed_services("n") == set()
    mesh.models.clear()
    mirror.wrote("n", "other")
    await mirror.view("n", "other", {})
    assert await mirror.changed_services("n") == {"lost"}
    assert await mirror.changed_services("n") == set()
