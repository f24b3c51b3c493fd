"""What another pod knows a moment earlier is waited for, or looked up, and never asked for without end."""

from __future__ import annotations

import asyncio

import pytest

from mesh.routing import names as names_module
from mesh.routing.names import LOOK_UPS_PER_S, Names
from placement.errors import StoreUnavailable
from placement.records import ModelSpec
from placement.registry import Registry
from placement.store.memory import MemoryStore


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Away(MemoryStore):
    async def txn(self, *_: object, **__: object) -> object:  # type: ignore[override]
        raise StoreUnavailable("away")


class Silent(MemoryStore):
    async def txn(self, *_: object, **__: object) -> object:  # type: ignore[override]
        await asyncio.Event().wait()
        return None


@pytest.fixture
async def pods() -> tuple[Registry, Registry, MemoryStore]:
    """Two pods on one store; the second one's watch has not begun."""
    store = MemoryStore()
    first, second = Registry(store), Registry(store)
    await first.start()
    await second.start()
    return first, second, store


async def test_a_name_registered_elsewhere_is_found_by_looking_it_up(
    pods: tuple[Registry, Registry, MemoryStore],
) -> None:
    first, second, store = pods
    names = Names(second, store, Clock())
    assert not await names.look_up("t", "m")
    await first.register("t", "m", ModelSpec("file:///m"))
    assert await names.look_up("t", "m")
    assert second.model("t", "m") is not None
    await first.set_alias("t", "a", "m")
    assert await names.look_up("t", "a")
    assert second.alias("t", "a") is not None
    await first.close()
    await second.close()


async def test_unknown_names_ask_the_store_only_so_often(pods: tuple[Registry, Registry, MemoryStore]) -> None:
    first, second, _ = pods
    clock = Clock()
    asked = 0

    class Counting(MemoryStore):
        async def txn(self, *arguments: object, **named: object) -> object:  # type: ignore[override]
            nonlocal asked
            asked += 1
            return await super().txn(*arguments, **named)  # type: ignore[arg-type]

    names = Names(second, Counting(), clock)
    for _ in range(1000):
        assert not await names.look_up("t", "nothing")
    assert asked == LOOK_UPS_PER_S
    clock.now_s = 0.5
    for _ in range(1000):
        assert not await names.look_up("t", "nothing")
    assert asked == 1.5 * LOOK_UPS_PER_S
    await first.close()
    await second.close()


@pytest.mark.parametrize("name", ["", " x", "x" * 600, "m"])
async def test_a_store_that_is_away_or_a_name_that_cannot_be_is_no_error(
    pods: tuple[Registry, Registry, MemoryStore], name: str
) -> None:
    first, second, _ = pods
    assert not await Names(second, Away(), Clock()).look_up("t", name)
    await first.close()
    await second.close()


async def test_a_silent_store_holds_no_request_up_for_long(
    pods: tuple[Registry, Registry, MemoryStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names_module, "WAIT_S", 0.01)
    async with asyncio.timeout(10):
        assert not await Names(pods[1], Silent(), Clock()).look_up("t", "m")
