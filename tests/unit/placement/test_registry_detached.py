"""A registry whose store was wiped: it keeps what it knows, until it is told to take what the store has."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from random import Random

import pytest

from mesh.simulation.store import StoreConditions, StoreServer
from mesh.simulation.virtual_loop import VirtualLoop
from placement.errors import PlacementError, StoreUnavailable
from placement.policy.snapshot import ModelName
from placement.records import ModelSpec
from placement.registry import Registry
from placement.restoration import merge_names, restore_names
from placement.view import Changes

T = "default"
SPEC = ModelSpec("file:///models/a", format="onnx")


class World:
    """A store that can be wiped, and one pod's registry."""

    def __init__(self) -> None:
        self.loop = VirtualLoop()
        conditions = StoreConditions(slow_share=0.0, watch_slow_share=0.0)
        self.server = StoreServer(self.loop, Random(1), conditions)
        self.store = self.server.connect("pod")
        self.registry = Registry(self.store, clock=self.loop.time)

    async def start(self) -> None:
        """Two models and an alias are registered."""
        await self.registry.start()
        await self.registry.register(T, "a", SPEC)
        await self.registry.register(T, "b", SPEC)
        await self.registry.set_alias(T, "x", "a")

    async def wipe(self) -> None:
        """And give the registry the time to find out."""
        self.server.wipe()
        await asyncio.sleep(5.0)
        assert self.registry.detached

    async def restore(self, *lost: str) -> None:
        """What a leader does, but for these models."""
        view = self.registry.view
        models = [record for record in view.every_model() if record.id not in lost]
        await restore_names(self.store, merge_names([(models, list(view.tenant(T).aliases.values()))]))


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    assert world.loop.mishaps == []
    world.loop.discard()


def test_a_wiped_store_takes_nothing_from_the_view_and_writes_are_refused_meanwhile(world: World) -> None:
    async def story() -> None:
        registry = world.registry
        told: list[bool] = []
        registry.on_detached(lambda: told.append(registry.detached))
        await world.start()
        before = registry.view
        heard: list[Changes] = []
        registry.on_change(heard.append)
        await world.wipe()
        await asyncio.sleep(60.0)
        assert told == [True]
        assert registry.view is before
        assert heard == []
        assert registry.resolve(T, "x").record.id == "a"
        writes: list[Callable[[], Awaitable[object]]] = [
            lambda: registry.register(T, "c", SPEC),
            lambda: registry.unregister(T, "a"),
            lambda: registry.unregister_many(T, ["a"]),
            lambda: registry.set_pinned(T, "a", True),
            lambda: registry.set_alias(T, "x", "b"),
            lambda: registry.finish_transition(T, "x", "a"),
            lambda: registry.fail_transition(T, "x", "a", "why"),
            lambda: registry.delete_alias(T, "x"),
        ]
        for write in writes:
            with pytest.raises(StoreUnavailable, match="has lost its registrations"):
                await write()

    world.loop.run(story())


def test_once_restored_nothing_has_changed_for_listeners_and_the_registry_follows_again(world: World) -> None:
    async def story() -> None:
        registry = world.registry
        await world.start()
        await world.wipe()
        heard: list[Changes] = []
        registry.on_change(heard.append)
        await world.restore()
        await registry.adopt()
        assert not registry.detached
        assert [changes.models + changes.aliases for changes in heard] == []
        assert registry.view.revision == world.server.memory.revision
        assert registry.resolve(T, "x").record.id == "a"
        result = await registry.register(T, "c", SPEC)
        assert registry.resolve(T, "c").record == result.record
        assert [change.id for changes in heard for change in changes.models] == ["c"]
        await world.wipe()  # and once more
        await world.restore()
        await registry.adopt()
        assert registry.view.model_count() == 3

    world.loop.run(story())


def test_what_was_not_restored_is_gone_when_the_store_is_adopted(world: World) -> None:
    async def story() -> None:
        registry = world.registry
        await world.start()
        await world.wipe()
        heard: list[Changes] = []
        registry.on_change(heard.append)
        await world.restore("b")
        await registry.adopt()
        assert [(change.id, change.after) for changes in heard for change in changes.models] == [("b", None)]

    world.loop.run(story())


def test_a_store_that_is_away_cannot_be_adopted_and_the_view_stays(world: World) -> None:
    async def story() -> None:
        registry = world.registry
        await world.start()
        await world.wipe()
        world.server.go_away("refusing")
        with pytest.raises(PlacementError):
            await registry.adopt()
        assert registry.detached
        assert registry.view.model_count() == 2
        world.server.come_back()
        await world.restore()
        await asyncio.gather(registry.adopt(), registry.adopt())
        assert not registry.detached

    world.loop.run(story())


def test_adopting_without_need_does_nothing(world: World) -> None:
    async def story() -> None:
        await world.start()
        before = world.registry.view
        await world.registry.adopt()
        assert world.registry.view is before

    world.loop.run(story())


def test_shared_names_are_made_of_what_the_view_holds(world: World) -> None:
    async def story() -> None:
        await world.start()
        record = world.registry.model(T, "a")
        assert record is not None
        name = world.registry.shared_name(ModelName("".join(("def", "ault")), "".join(("", "a"))))
        assert name == (T, "a")
        assert name.tenant is record.tenant
        unknown = ModelName(T, "unknown")
        assert world.registry.shared_name(unknown) is unknown

    world.loop.run(story())
