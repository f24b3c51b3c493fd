"""What a wiped store is given back: the newest of what pods knew of each name, and nothing that is there already."""

from __future__ import annotations

import pytest

from placement import keys
from placement.errors import StillReferenced, StoreUnavailable
from placement.model_writes import CHUNK_ENTRIES_MAX
from placement.records import AliasRecord, AliasState, ModelRecord, ModelSpec
from placement.registry import Registry
from placement.restoration import Names, Restored, merge_names, restore_names
from placement.store.memory import MemoryStore

T = "default"


def model(model_id: str, generation: int = 1, uri: str = "file:///a", at_s: float = 10.0) -> ModelRecord:
    return ModelRecord(T, model_id, ModelSpec(uri), generation, 5.0, at_s, revision=77)


def alias(alias_id: str, active: str, target: str | None = None, changed_at_s: float = 1.0) -> AliasRecord:
    return AliasRecord(T, alias_id, active, target or active, changed_at_s=changed_at_s, revision=77)


# The union ----------------------------------------------------------------------------------------------------------


def test_the_highest_generation_wins_whichever_pod_comes_first() -> None:
    old = ([model("a", 3), model("b")], [])
    new = ([model("a", 7, "file:///new")], [])
    expected = Names((model("a", 7, "file:///new"), model("b")), ())
    assert merge_names([old, new]) == merge_names([new, old]) == expected


def test_of_one_generation_the_later_write_wins_and_the_choice_is_total() -> None:
    first, second = model("a", 2, "file:///x", at_s=1.0), model("a", 2, "file:///y", at_s=2.0)
    assert merge_names([([second], []), ([first], [])]).models == (second,)
    same = model("a", 2, "file:///z", at_s=2.0)
    assert merge_names([([second], []), ([same], [])]) == merge_names([([same], []), ([second], [])])


def test_of_an_alias_the_latest_change_wins() -> None:
    models = [model("a"), model("b")]
    names = merge_names([(models, [alias("x", "b", changed_at_s=2.0)]), (models, [alias("x", "a", changed_at_s=1.0)])])
    assert names.aliases == (alias("x", "b", changed_at_s=2.0),)


def test_an_alias_comes_back_only_with_its_active_model() -> None:
    split = AliasRecord(T, "split", "a", "a", weights={"a": 9, "lost": 1})
    only_lost = AliasRecord(T, "only", "a", "a", weights={"a": 0, "lost": 1})
    aliases = [alias("gone", "lost"), alias("moving", "a", "lost"), split, only_lost]
    names = merge_names([([model("a")], aliases)])
    assert {a.id: (a.active, a.target, dict(a.weights)) for a in names.aliases} == {
        "moving": ("a", "a", {}),
        "split": ("a", "a", {"a": 9}),
        "only": ("a", "a", {}),
    }


def test_a_name_that_is_a_model_somewhere_is_no_alias() -> None:
    assert merge_names([([model("a")], []), ([model("b")], [alias("a", "b")])]).aliases == ()


# Writing back -------------------------------------------------------------------------------------------------------


async def registry_on(store: MemoryStore) -> Registry:
    registry = Registry(store, clock=lambda: 100.0)
    await registry.start()
    return registry


async def test_names_come_back_with_their_generations_and_references() -> None:
    store = MemoryStore()
    models = tuple(model(f"m{number:03}", number + 1) for number in range(2 * CHUNK_ENTRIES_MAX + 5))
    names = Names(models, (alias("x", "m000", "m001"),))
    assert await restore_names(store, names) == Restored(models=len(models), aliases=1, kept=0)
    registry = await registry_on(store)
    assert registry.view.model_count() == len(models)
    found = registry.model(T, "m004")
    assert found is not None
    assert (found.generation, found.spec, found.registered_at_s) == (5, models[4].spec, 5.0)
    moving = registry.alias(T, "x")
    assert moving is not None
    assert moving.state is AliasState.TRANSITIONING
    for model_id in ("m000", "m001"):
        with pytest.raises(StillReferenced):
            await registry.unregister(T, model_id)
    await registry.close()


async def test_what_was_registered_or_unregistered_since_stays() -> None:
    store = MemoryStore()
    registry = await registry_on(store)
    new = (await registry.register(T, "new", ModelSpec("file:///since"))).record
    await registry.register(T, "left", ModelSpec("file:///since"))
    await registry.unregister(T, "left")
    await registry.register(T, "taken", ModelSpec("file:///since"))
    names = Names(
        (model("a"), model("left", 9), model("new", 9)),
        (alias("new-alias", "a"), alias("taken", "a"), alias("to-left", "left")),
    )
    assert await restore_names(store, names) == Restored(models=1, aliases=1, kept=4)
    assert registry.model(T, "new") == new
    assert await store.get(keys.model_key(T, "left")) is None
    assert await store.get(keys.alias_key(T, "taken")) is None
    assert await restore_names(store, names) == Restored(models=0, aliases=0, kept=6)
    await registry.close()


async def test_records_too_large_for_one_transaction_are_written_one_by_one() -> None:
    store = MemoryStore()
    labels = {f"label-{number}": "x" * 4000 for number in range(20)}
    large = tuple(ModelRecord(T, f"m{n}", ModelSpec("file:///a", labels=labels), 1, 1.0, 1.0) for n in range(20))
    assert (await restore_names(store, Names(large, ()))).models == 20


async def test_an_interrupted_restoration_says_so() -> None:
    store = MemoryStore()
    store.outage = "away"
    with pytest.raises(StoreUnavailable):
        await restore_names(store, Names((model("a"),), ()))
