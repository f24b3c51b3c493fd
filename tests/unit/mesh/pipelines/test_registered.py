"""Registered pipelines: what may be registered, what has to stay while it is asked, what a pipeline asks in the end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from mesh.models import Models
from mesh.pipelines.registered import Pipelines
from mesh.pipelines.spec import URI, parameters_of
from mesh.status import ModelState, StatusView
from placement.errors import InvalidSpec, PlacementError, StillReferenced
from placement.records import PIPELINE_FORMAT, ModelRecord, ModelSpec
from placement.registration import Registered, Registration
from placement.registry import Registry
from placement.store.memory import MemoryStore
from runtime_adapters.artifacts.source_policy import SourcePolicy

T = "default"
MODEL = ModelSpec("file:///m.onnx", "onnx")


def asks(*services: str, router: str = "Ensemble") -> ModelSpec:
    graph = {"nodes": {"root": {"routerType": router, "steps": [{"serviceName": name} for name in services]}}}
    return ModelSpec(URI, PIPELINE_FORMAT, parameters=parameters_of(graph))


class NothingFailed:
    """The loading of a pod on which nothing has been loaded."""

    def failure(self, key: Any) -> None:
        return None


class World:
    """A registry with pipelines, and what manages them."""

    def __init__(self, registry: Registry) -> None:
        unused: Any = None
        nothing: Any = NothingFailed()
        self.registry = registry
        self.pipelines = Pipelines(registry, depth_max=3)
        registry.on_change(self.pipelines.heed)
        self.models = Models(registry, SourcePolicy(), nothing, unused, pipelines=self.pipelines)

    async def register(self, **specs: ModelSpec) -> None:
        """All in one call."""
        for result in await self.models.register(T, [Registration(name, spec) for name, spec in specs.items()]):
            if isinstance(result, PlacementError):
                raise result

    async def replace(self, name: str, spec: ModelSpec) -> Registered | PlacementError:
        known = self.record(name)
        (result,) = await self.models.register(T, [Registration(name, spec, known.generation)])
        return result

    def record(self, name: str) -> ModelRecord:
        record = self.registry.model(T, name)
        assert record is not None
        return record

    def parts(self, name: str) -> tuple[list[str], str]:
        parts = self.pipelines.parts(self.record(name))
        return sorted(model.id for model in parts.models), parts.problem


@pytest.fixture
async def world() -> AsyncIterator[World]:
    registry = Registry(MemoryStore())
    await registry.start()
    yield World(registry)
    await registry.close()


async def test_a_pipeline_asks_models_aliases_and_pipelines(world: World) -> None:
    await world.register(a=MODEL, b=MODEL, c=MODEL)
    await world.registry.set_alias(T, "either", "b", weights={"b": 1, "c": 1})
    await world.register(inner=asks("either"), outer=asks("a", "inner", "a"))
    assert world.parts("outer") == (["a", "b", "c"], "")


async def test_a_pipeline_may_come_with_the_models_that_it_asks(world: World) -> None:
    await world.register(outer=asks("inner"), inner=asks("a"), a=MODEL)
    assert world.parts("outer") == (["a"], "")


@pytest.mark.parametrize(
    ("name", "spec", "message"),
    [
        ("p", asks("nobody"), "pipeline 'p' has a step for 'nobody', which is not registered"),
        ("p", asks("p"), "pipelines lead back to one another: p -> p"),
        ("p", asks("outer"), "more than 3 pipelines in one another .p -> outer -> middle -> inner."),
        ("a", asks("b"), "'a' is registered as a model, and cannot become a pipeline while it answers"),
        ("inner", MODEL, "'inner' is registered as a pipeline, and cannot become a model"),
        ("p", ModelSpec("file:///x", PIPELINE_FORMAT), "uri is 'file:///x'; a pipeline has nothing to fetch"),
    ],
)
async def test_what_cannot_answer_is_not_registered(world: World, name: str, spec: ModelSpec, message: str) -> None:
    await world.register(a=MODEL, b=MODEL, inner=asks("a"), middle=asks("inner"), outer=asks("middle"))
    with pytest.raises(InvalidSpec, match=message):
        await world.register(**{name: spec})


async def test_a_new_graph_that_leads_back_to_its_pipeline_is_refused(world: World) -> None:
    await world.register(a=MODEL, inner=asks("a"), outer=asks("inner"))
    refused = await world.replace("inner", asks("outer"))
    assert isinstance(refused, InvalidSpec)
    assert "inner -> outer -> inner" in str(refused)
    assert isinstance(await world.replace("inner", asks("a", router="Sequence")), Registered)


async def test_pipelines_that_are_registered_together_may_not_ask_one_another_in_a_circle(world: World) -> None:
    with pytest.raises(InvalidSpec, match="lead back to one another"):
        await world.register(p=asks("q"), q=asks("p"))


async def test_what_a_pipeline_asks_stays_until_the_pipeline_has_gone(world: World) -> None:
    await world.register(a=MODEL, b=MODEL, p=asks("a", "b"), q=asks("a"))
    kept, gone, free = await world.models.unregister(T, ["a", "q", "nobody"])
    assert isinstance(kept, StillReferenced)
    assert str(kept) == "'a' (tenant 'default') is asked by a step of pipeline 'p'; change or unregister that first"
    assert (gone, free) == (True, False)
    assert isinstance(await world.replace("p", asks("b")), Registered)
    assert await world.models.unregister(T, ["a", "b", "p"]) == [True, True, True], "with the pipeline that asks it"


async def test_what_stays_of_what_is_unregistered_together_keeps_what_it_asks(world: World) -> None:
    await world.register(a=MODEL, b=MODEL, p=asks("a"), q=asks("p"))
    first, second, third = await world.models.unregister(T, ["a", "p", "b"])
    assert [type(first), type(second), third] == [StillReferenced, StillReferenced, True]
    assert world.parts("q") == (["a"], "")


async def test_what_is_refused_of_what_is_registered_together_is_not_there_for_the_others(world: World) -> None:
    specs = {"bad": ModelSpec("no uri at all", "onnx"), "p": asks("q"), "q": asks("bad"), "good": MODEL}
    entries = [Registration(name, spec) for name, spec in specs.items()]
    *refused, good = await world.models.register(T, entries)
    assert [str(each).partition(";")[0] for each in refused[1:]] == [
        "pipeline 'q' has a step for 'bad', which is not registered (tenant 'default')"
    ] * 2
    assert isinstance(refused[0], InvalidSpec)
    assert isinstance(good, Registered)


async def test_users_are_known_after_a_restart(world: World) -> None:
    await world.register(a=MODEL, p=asks("a"))
    later = Pipelines(world.registry, 3)
    assert later.why_kept(T, "a") is None
    later.begin()
    assert isinstance(later.why_kept(T, "a"), StillReferenced)
    assert later.why_kept("another", "a") is None


async def test_a_name_that_begins_at_generation_one_again_has_its_own_graph(world: World) -> None:
    """Tombstones, by which generations go on, end after an hour."""
    old, new = (ModelRecord(T, "p", asks(name), 1, at_s, at_s) for name, at_s in (("a", 10.0), ("b", 9000.0)))
    assert [world.pipelines.graph(each).services for each in (old, new)] == [("a",), ("b",)]


async def test_an_alias_cannot_point_at_a_pipeline_that_asks_it(world: World) -> None:
    await world.register(a=MODEL)
    await world.registry.set_alias(T, "x", "a")
    await world.register(inner=asks("x"), outer=asks("inner"), other=asks("a"))
    world.pipelines.check_alias(T, "x", ["a", "other"])
    for target in ("inner", "outer"):
        with pytest.raises(InvalidSpec, match=f"alias 'x' cannot point at pipeline '{target}', which has a step"):
            world.pipelines.check_alias(T, "x", [target])


async def test_a_pipeline_leads_to_so_many_names_and_no_more(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.pipelines.registered.NAMES_MAX", 6)
    await world.register(a=MODEL, b=MODEL)
    await world.registry.set_alias(T, "either", "a", weights={"a": 1, "b": 1})
    await world.register(p=asks("a", "either"), q=asks("p", "either"))
    assert world.parts("q") == (["a", "b"], "")
    with pytest.raises(InvalidSpec, match="pipeline 'r' leads to more than 6 names"):
        await world.register(r=asks("b", "q"))


async def test_a_pipeline_cannot_be_pinned(world: World) -> None:
    await world.register(a=MODEL, p=asks("a"))
    with pytest.raises(InvalidSpec, match="'p' is a pipeline, which has no copies to keep"):
        await world.models.set_pinned(T, "p", True)


async def test_a_pipeline_is_as_ready_as_its_models(world: World) -> None:
    await world.register(a=MODEL, p=asks("a"), q=asks("p"))
    unused: Any = None
    status = StatusView("pod", unused, unused, unused, unused, unused, parts_of=world.pipelines.parts)
    await world.registry.unregister(T, "a")  # another pod, which did not know of the pipeline
    shown = status.model(world.record("q"))
    assert shown.state is ModelState.FAILED
    assert shown.failure is not None
    assert shown.failure.message == (
        "pipeline 'p' has a step for 'a', which is not registered (tenant 'default'); register it first"
    )
    assert not status.has_chance(world.record("q"))
