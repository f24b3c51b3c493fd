"""What the pool is told of a pod's disk: of registered generations only, as long as the content is there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from cache.types import ModelKey
from mesh.parking import LOOKS_AT_ONCE, Parking
from placement.policy.snapshot import ModelName, Parked
from placement.records import ModelRecord, ModelSpec

A, B = ModelName("t", "a"), ModelName("t", "b")


class Disk:
    """A registry, a disk by URI, and what is remembered of the two."""

    def __init__(
        self,
        *names: ModelName,
        entries_max: int = 100,
        load_time_of: Callable[[str, str], Awaitable[float]] | None = None,
    ) -> None:
        self.models: dict[ModelName, ModelRecord] = {}
        self.contents: dict[str, str] = {}
        for name in names:
            self.models[name] = ModelRecord(*name, ModelSpec(uri=f"file:///{name.id}"), 1, 0.0, 0.0)
        registry: Any = self
        self.parking = Parking(
            "me", registry, lambda record: self.contents.get(record.spec.uri), entries_max, load_time_of
        )

    @property
    def view(self) -> Any:
        return self

    def every_model(self) -> list[ModelRecord]:
        return list(self.models.values())

    def model(self, tenant: str, model_id: str) -> ModelRecord | None:
        return self.models.get(ModelName(tenant, model_id))

    def register(self, name: ModelName, generation: int) -> None:
        record = ModelRecord(*name, ModelSpec(uri=f"file:///{name.id}"), generation, 0.0, 0.0)
        self.models[name] = record
        self.parking.registered(name, record)

    def changed(self) -> list[ModelName]:
        return self.parking.take_changed(1000)


def key(name: ModelName, generation: int = 1) -> ModelKey:
    return ModelKey(*name, generation)


def test_a_model_is_parked_as_long_as_its_content_is_on_the_disk() -> None:
    disk = Disk(A, B)
    for name in (A, B):
        disk.parking.on_disk(key(name), "same")
    assert disk.parking.parked(A) == disk.parking.parked(B) == Parked("me", 1)
    assert disk.changed() == [A, B]
    disk.parking.on_disk(key(A), "same")
    assert disk.changed() == []
    disk.parking.gone("another")
    disk.parking.gone("same")
    assert (disk.parking.parked(A), disk.parking.parked(B), disk.changed()) == (None, None, [A, B])
    disk.parking.gone("same")
    assert disk.changed() == []


def test_only_the_registered_generation_counts() -> None:
    disk = Disk(A)
    disk.parking.on_disk(key(A, 2), "content")
    disk.parking.on_disk(key(B), "content")
    assert (disk.parking.parked(A), disk.parking.parked(B), disk.changed()) == (None, None, [])
    disk.parking.on_disk(key(A), "old")
    disk.register(A, 2)
    assert disk.parking.parked(A) is None
    disk.parking.on_disk(key(A), "old")
    assert disk.parking.parked(A) is None
    disk.parking.on_disk(key(A, 2), "new")
    disk.parking.gone("old")
    assert disk.parking.parked(A) == Parked("me", 2)
    del disk.models[A]
    disk.parking.registered(A, None)
    assert (disk.parking.parked(A), disk.changed()) == (None, [A])


def test_a_generation_whose_artifact_is_here_already_is_parked_at_once() -> None:
    disk = Disk()
    disk.contents["file:///a"] = "content"
    disk.register(A, 1)
    assert disk.parking.parked(A) == Parked("me", 1)
    disk.register(A, 2)
    assert disk.parking.parked(A) == Parked("me", 2)
    disk.parking.gone("content")
    assert disk.parking.parked(A) is None


def test_the_time_of_the_last_load_is_told_to_one_digit() -> None:
    disk = Disk(A)
    disk.parking.loaded(key(A), 1.0)
    disk.parking.on_disk(key(A), "content")
    for load_s, told_s in ((0.0347, 0.03), (1.7, 2.0), (0.0, 0.001), (43.0, 40.0)):
        disk.parking.loaded(key(A), load_s)
        assert disk.parking.parked(A) == Parked("me", 1, told_s)
    disk.parking.loaded(key(A, 2), 9.0)
    disk.parking.on_disk(key(A), "content")
    assert disk.parking.parked(A) == Parked("me", 1, 40.0)
    disk.parking.on_disk(key(A), "fetched anew")
    assert disk.parking.parked(A) == Parked("me", 1)


async def test_after_a_restart_registered_models_are_found_on_the_disk_without_holding_up_the_loop() -> None:
    names = [ModelName("t", f"m{number}") for number in range(3 * LOOKS_AT_ONCE)]
    disk = Disk(*names, entries_max=1000)
    disk.contents = {f"file:///{name.id}": "content" for name in names[::2]}
    disk.parking.start()
    turns = 0
    while len(disk.changed()) == 0 or disk.parking.parked(names[-2]) is None:
        await asyncio.sleep(0)
        turns += 1
    assert turns >= 3
    assert [name for name in names if disk.parking.parked(name)] == names[::2]
    await disk.parking.close()


async def test_after_a_restart_it_is_asked_what_loads_from_the_disk_take() -> None:
    asked: list[tuple[str, str]] = []
    answered = asyncio.Event()

    async def load_time_s(content: str, format_name: str) -> float:
        asked.append((content, format_name))
        if content == "b":
            disk.parking.loaded(key(B), 0.5)  # it was loaded here meanwhile
        if len(asked) == 3:
            answered.set()
        return {"a": 0.042, "b": 7.0}.get(content, 0.0)

    c = ModelName("t", "c")
    disk = Disk(A, B, c, load_time_of=load_time_s)
    disk.contents = {f"file:///{name.id}": name.id for name in (A, B, c)}
    disk.parking.start()
    await asyncio.wait_for(answered.wait(), 10.0)
    await asyncio.sleep(0)
    assert asked == [("a", ""), ("b", ""), ("c", "")]
    assert [disk.parking.parked(name) for name in (A, B, c)] == [
        Parked("me", 1, 0.04),
        Parked("me", 1, 0.5),
        Parked("me", 1),
    ]
    await disk.parking.close()


async def test_a_load_time_that_comes_late_is_told_anew() -> None:
    goes_on = asyncio.Event()

    async def load_time_s(content: str, format_name: str) -> float:
        await goes_on.wait()
        return 3.0

    disk = Disk(load_time_of=load_time_s)
    disk.contents["file:///a"] = "content"
    disk.register(A, 1)
    assert disk.changed() == [A]
    await asyncio.sleep(0)
    goes_on.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (disk.changed(), disk.parking.parked(A)) == ([A], Parked("me", 1, 3.0))
    await disk.parking.close()


async def test_what_changes_while_models_are_looked_for_is_not_turned_back() -> None:
    disk = Disk(A, B)
    disk.contents = {"file:///a": "old", "file:///b": "content"}
    before = disk.every_model()
    disk.every_model = lambda: before  # type: ignore[method-assign]
    disk.parking.start()
    disk.models[A] = replace(disk.models[A], generation=2)
    del disk.models[B]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (disk.parking.parked(A), disk.parking.parked(B)) == (None, None)
    await disk.parking.close()


def test_of_very_many_those_that_were_told_of_last_are_kept() -> None:
    names = [ModelName("t", f"m{number}") for number in range(4)]
    disk = Disk(*names, entries_max=3)
    for name in names[:3]:
        disk.parking.on_disk(key(name), name.id)
    disk.parking.on_disk(key(names[0]), names[0].id)
    disk.parking.on_disk(key(names[3]), names[3].id)
    assert [name for name in names if disk.parking.parked(name)] == [names[0], names[2], names[3]]
    assert names[1] in disk.changed()
    disk.parking.gone(names[1].id)
