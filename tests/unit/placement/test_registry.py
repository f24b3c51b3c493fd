"""The registry over the fake store: what callers see, what the store holds, what listeners hear."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest

from placement import keys
from placement import registry as registry_module
from placement.errors import (
    AlreadyExists,
    GenerationMismatch,
    InvalidName,
    InvalidSpec,
    NotFound,
    PlacementError,
    StillReferenced,
    StoreUnavailable,
    TargetMismatch,
    UnsupportedRecord,
)
from placement.records import AliasState, ModelSpec
from placement.registration import Outcome, Registered, Registration
from placement.registry import Registry
from placement.store.base import Put
from placement.store.memory import MemoryStore
from placement.view import Changes

SPEC = ModelSpec("file:///models/a", format="onnx")
OTHER = ModelSpec("file:///models/b", format="onnx")
T = "default"


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> MemoryStore:
    return MemoryStore(clock=clock)


@pytest.fixture
async def registry(store: MemoryStore, clock: Clock) -> AsyncIterator[Registry]:
    registry = Registry(store, clock=clock)
    await registry.start()
    yield registry
    await registry.close()


async def register(registry: Registry, *ids: str, tenant: str = T) -> None:
    for model_id in ids:
        await registry.register(tenant, model_id, SPEC)


# Registering --------------------------------------------------------------------------------------------------------


async def test_a_registered_model_resolves_at_once(registry: Registry) -> None:
    result = await registry.register(T, "iris", SPEC)
    assert result.created
    resolved = registry.resolve(T, "iris")
    assert resolved.record == result.record
    assert (resolved.record.generation, resolved.record.spec, resolved.alias) == (1, SPEC, None)
    assert resolved.record.registered_at_s == 1000.0


async def test_the_same_spec_again_changes_nothing(registry: Registry, store: MemoryStore) -> None:
    first = await registry.register(T, "iris", SPEC)
    revision = store.revision
    again = await registry.register(T, "iris", ModelSpec("file:///models/a", format="onnx"))
    assert again.outcome is Outcome.UNCHANGED
    assert again.record == first.record
    assert store.revision == revision


async def test_another_spec_is_refused_and_the_error_names_what_differs(registry: Registry) -> None:
    await registry.register(T, "iris", SPEC)
    with pytest.raises(AlreadyExists, match=r"generation 1; differs in uri, labels\).*pass if_generation=1"):
        await registry.register(T, "iris", OTHER.replaced(labels={"a": "b"}))
    assert registry.resolve(T, "iris").record.spec == SPEC


async def test_the_right_generation_replaces_the_spec(registry: Registry, clock: Clock) -> None:
    await registry.register(T, "iris", SPEC)
    clock.now_s = 2000.0
    updated = await registry.register(T, "iris", OTHER, if_generation=1)
    assert updated.outcome is Outcome.UPDATED
    assert (updated.record.generation, updated.record.registered_at_s, updated.record.generation_at_s) == (2, 1e3, 2e3)
    assert registry.resolve(T, "iris").record == updated.record
    repeated = await registry.register(T, "iris", OTHER, if_generation=1)
    assert repeated.outcome is Outcome.UNCHANGED


@pytest.mark.parametrize(
    ("there", "given", "said"), [(True, 3, "generation 1, not at 3"), (False, 1, "not registered")]
)
async def test_the_wrong_generation_is_refused_and_both_are_named(
    registry: Registry, there: bool, given: int, said: str
) -> None:
    if there:
        await registry.register(T, "iris", SPEC)
    with pytest.raises(GenerationMismatch, match=said):
        await registry.register(T, "iris", OTHER, if_generation=given)


async def test_generation_zero_only_creates(registry: Registry) -> None:
    assert (await registry.register(T, "iris", SPEC, if_generation=0)).created
    with pytest.raises(GenerationMismatch):
        await registry.register(T, "iris", OTHER, if_generation=0)


async def test_of_many_replacing_one_generation_one_wins(registry: Registry) -> None:
    await registry.register(T, "iris", SPEC)
    results = await asyncio.gather(
        *(registry.register(T, "iris", ModelSpec(f"file:///{i}"), if_generation=1) for i in range(20)),
        return_exceptions=True,
    )
    assert sum(isinstance(result, Registered) for result in results) == 1
    assert sum(isinstance(result, GenerationMismatch) for result in results) == 19
    assert registry.resolve(T, "iris").record.generation == 2


async def test_two_registering_different_specs_at_once_one_wins(registry: Registry) -> None:
    results = await asyncio.gather(
        registry.register(T, "iris", SPEC), registry.register(T, "iris", OTHER), return_exceptions=True
    )
    assert sum(isinstance(result, AlreadyExists) for result in results) == 1


@pytest.mark.parametrize(("tenant", "model_id"), [("", "a"), (T, ""), (T, "a\nb"), ("t" * 200, "a")])
async def test_bad_names_are_refused(registry: Registry, tenant: str, model_id: str) -> None:
    with pytest.raises(InvalidName):
        await registry.register(tenant, model_id, SPEC)


async def test_tenants_do_not_see_each_other(registry: Registry) -> None:
    await registry.register("a", "iris", SPEC)
    await registry.register("b", "iris", OTHER)
    assert registry.resolve("a", "iris").record.spec == SPEC
    assert registry.resolve("b", "iris").record.spec == OTHER
    await registry.unregister("a", "iris")
    with pytest.raises(NotFound, match="tenant 'a'"):
        registry.resolve("a", "iris")
    assert registry.resolve("b", "iris").record.spec == OTHER
    assert [record.tenant for record in registry.list_models("b").records] == ["b"]
    assert registry.list_models("c").records == ()


# Bulk ---------------------------------------------------------------------------------------------------------------


async def test_bulk_gives_each_entry_its_own_result_in_order(registry: Registry) -> None:
    await registry.register(T, "taken", SPEC)
    await registry.set_alias(T, "alias", "taken")
    entries = [Registration(f"m{i}", SPEC) for i in range(100)]
    entries[10] = Registration("taken", OTHER)
    entries[20] = Registration("bad\x00name", SPEC)
    entries[30] = Registration("alias", SPEC)
    entries[40] = Registration("taken", SPEC)
    entries[50] = Registration("none", SPEC, if_generation=5)
    entries[60] = Registration("taken", OTHER, if_generation=1)
    results = await registry.register_many(T, entries)
    kinds = {
        i: type(result) if isinstance(result, PlacementError) else result.outcome for i, result in enumerate(results)
    }
    expected = {10: AlreadyExists, 20: InvalidName, 30: AlreadyExists, 40: Outcome.UNCHANGED, 50: GenerationMismatch}
    expected[60] = Outcome.UPDATED
    assert kinds == {i: expected.get(i, Outcome.CREATED) for i in range(100)}
    assert registry.view.model_count() == 100 - 6 + 1


async def test_an_id_twice_in_one_call_acts_as_one_after_the_other(registry: Registry) -> None:
    same, other, update = await registry.register_many(
        T, [Registration("m", SPEC), Registration("m", OTHER), Registration("m", OTHER, if_generation=1)]
    )
    assert isinstance(same, Registered)
    assert isinstance(other, AlreadyExists)
    assert isinstance(update, Registered)
    assert update.record.generation == 2


async def test_entries_too_large_together_are_stored_apart(registry: Registry) -> None:
    fat = SPEC.replaced(parameters={f"p{i}": "x" * 4096 for i in range(30)})
    results = await registry.register_many(T, [Registration(f"m{i}", fat) for i in range(50)])
    assert all(isinstance(result, Registered) and result.created for result in results)


async def test_thousands_are_registered_and_all_resolve(registry: Registry) -> None:
    results = await registry.register_many(T, [Registration(f"m{i}", SPEC) for i in range(3000)])
    assert all(isinstance(result, Registered) for result in results)
    assert all(registry.resolve(T, f"m{i}").record.generation == 1 for i in range(3000))
    gone = await registry.unregister_many(T, [f"m{i}" for i in range(3000)] + ["never-was"])
    assert gone == [True] * 3000 + [False]
    assert registry.view.tenants == {}


async def test_when_the_store_is_away_every_entry_says_so_and_reading_goes_on(
    registry: Registry, store: MemoryStore
) -> None:
    await registry.register(T, "iris", SPEC)
    store.outage = "the store is away; try again"
    results = await registry.register_many(T, [Registration("a", SPEC), Registration("b", SPEC, if_generation=2)])
    assert all(isinstance(result, StoreUnavailable) for result in results)
    with pytest.raises(StoreUnavailable):
        await registry.register(T, "x", SPEC)
    assert registry.resolve(T, "iris").record.spec == SPEC
    store.outage = None
    assert (await registry.register(T, "x", SPEC)).created


# Unregistering ------------------------------------------------------------------------------------------------------


async def test_an_unregistered_model_is_gone_and_unknown_is_no_error(registry: Registry) -> None:
    await registry.register(T, "iris", SPEC)
    assert await registry.unregister(T, "iris") is True
    assert await registry.unregister(T, "iris") is False
    with pytest.raises(NotFound, match="model 'iris' is not registered"):
        registry.resolve(T, "iris")


async def test_a_model_registered_again_goes_on_from_its_generation(registry: Registry, store: MemoryStore) -> None:
    await registry.register(T, "iris", SPEC)
    await registry.register(T, "iris", OTHER, if_generation=1)
    await registry.unregister(T, "iris")
    assert await store.get(keys.tombstone_key(T, "iris")) is not None
    again = await registry.register(T, "iris", SPEC)
    assert again.outcome is Outcome.CREATED
    assert again.record.generation == 3
    assert await store.get(keys.tombstone_key(T, "iris")) is None


async def test_a_tombstone_stands_for_an_hour(registry: Registry, store: MemoryStore, clock: Clock) -> None:
    await register(registry, "a", "b")
    await registry.unregister(T, "a")
    clock.now_s += 599
    await registry.unregister(T, "b")
    clock.now_s += 3600
    await store.expire_leases()
    assert await store.get(keys.tombstone_key(T, "a")) is not None
    clock.now_s += 2
    await store.expire_leases()
    assert await store.get(keys.tombstone_key(T, "a")) is None
    assert (await registry.register(T, "a", SPEC)).record.generation == 1
    await registry.unregister(T, "a")
    assert await store.get(keys.tombstone_key(T, "a")) is not None


async def test_a_lease_lost_behind_our_back_does_not_stop_an_unregister(registry: Registry, store: MemoryStore) -> None:
    await register(registry, "a", "b")
    await registry.unregister(T, "a")
    stone = await store.get(keys.tombstone_key(T, "a"))
    assert stone is not None
    await store.revoke_lease(stone.lease)
    assert await registry.unregister(T, "b") is True


async def test_a_model_that_an_alias_uses_stays(registry: Registry) -> None:
    await register(registry, "m1", "m2")
    await registry.set_alias(T, "best/of", "m1")
    with pytest.raises(StillReferenced, match="used by alias 'best/of'"):
        await registry.unregister(T, "m1")
    (refused, gone) = await registry.unregister_many(T, ["m1", "m2"])
    assert isinstance(refused, StillReferenced)
    assert gone is True
    await registry.delete_alias(T, "best/of")
    assert await registry.unregister(T, "m1") is True


async def test_an_alias_and_an_unregister_at_once_never_leave_the_alias_dangling(registry: Registry) -> None:
    ends = set()
    for i in range(40):
        await registry.register(T, f"m{i}", SPEC)
        calls = [registry.set_alias(T, f"a{i}", f"m{i}"), registry.unregister(T, f"m{i}")]
        if i % 2:
            calls.reverse()
        await asyncio.gather(
            *(later(i % 5 * (1 if i % 2 else 0), calls[0]), later(0, calls[1])), return_exceptions=True
        )
        alias = registry.alias(T, f"a{i}")
        ends.add(alias is not None)
        if alias is not None:
            assert registry.resolve(T, f"a{i}").record.id == f"m{i}"
        else:
            assert registry.model(T, f"m{i}") is None
    assert ends == {True, False}


async def later(turns: int, call: Coroutine[Any, Any, object]) -> object:
    """The call, begun after so many turns of the loop."""
    for _ in range(turns):
        await asyncio.sleep(0)
    return await call


# Pinning ------------------------------------------------------------------------------------------------------------


async def test_pinning_keeps_the_generation(registry: Registry) -> None:
    await registry.register(T, "iris", SPEC)
    record = await registry.set_pinned(T, "iris", True)
    assert (record.spec.pinned, record.generation) == (True, 1)
    assert registry.resolve(T, "iris").record == record
    assert await registry.set_pinned(T, "iris", True) == record
    with pytest.raises(NotFound):
        await registry.set_pinned(T, "none", True)


# Listing ------------------------------------------------------------------------------------------------------------


async def test_listing_pages_through_all_in_order(registry: Registry) -> None:
    ids = sorted([f"m{i}" for i in range(25)] + ["a/x", "a/y", "ž"])
    await register(registry, *ids)
    found: list[str] = []
    after: str | None = ""
    pages = 0
    while after is not None:
        page = registry.list_models(T, limit=10, after=after)
        found += [record.id for record in page.records]
        after = page.next_after
        pages += 1
    assert (found, pages) == (ids, 3)
    assert [record.id for record in registry.list_models(T, id_prefix="a/").records] == ["a/x", "a/y"]
    assert registry.list_models(T, id_prefix="a/", limit=1).next_after == "a/x"
    assert registry.list_models(T, id_prefix="a/", limit=2).next_after is None
    assert registry.list_models(T, id_prefix="none").records == ()


# Aliases ------------------------------------------------------------------------------------------------------------


async def test_a_new_alias_points_at_its_target_at_once(registry: Registry) -> None:
    await registry.register(T, "m1", SPEC)
    alias = await registry.set_alias(T, "best", "m1", owner="ctl")
    assert (alias.active, alias.target, alias.owner, alias.state) == ("m1", "m1", "ctl", AliasState.DEFINED)
    resolved = registry.resolve(T, "best")
    assert (resolved.record.id, resolved.alias) == ("m1", alias)
    assert registry.aliases_of(T, "m1") == {"best"}


async def test_a_moved_alias_serves_the_old_model_until_the_new_is_ready(registry: Registry) -> None:
    await register(registry, "m1", "m2")
    await registry.set_alias(T, "best", "m1")
    alias = await registry.set_alias(T, "best", "m2")
    assert alias.state is AliasState.TRANSITIONING
    assert registry.resolve(T, "best").record.id == "m1"
    for model_id in ("m1", "m2"):
        with pytest.raises(StillReferenced):
            await registry.unregister(T, model_id)
    finished = await registry.finish_transition(T, "best", "m2")
    assert finished is not None
    assert finished.state is AliasState.DEFINED
    assert registry.resolve(T, "best").record.id == "m2"
    assert await registry.unregister(T, "m1") is True


async def test_a_failed_transition_keeps_serving_and_says_why(registry: Registry) -> None:
    await register(registry, "m1", "m2", "m3")
    await registry.set_alias(T, "best", "m1")
    await registry.set_alias(T, "best", "m2")
    failed = await registry.fail_transition(T, "best", "m2", "disk full\ud800")
    assert failed is not None
    assert (failed.state, failed.failure) == (AliasState.TRANSITION_FAILED, "disk full?")
    assert registry.resolve(T, "best").record.id == "m1"
    again = await registry.set_alias(T, "best", "m3")
    assert (again.state, again.failure) == (AliasState.TRANSITIONING, None)
    assert await registry.unregister(T, "m2") is True
    back = await registry.set_alias(T, "best", "m1")
    assert back.state is AliasState.DEFINED


async def test_the_end_of_a_transition_that_was_overtaken_changes_nothing(registry: Registry) -> None:
    await register(registry, "m1", "m2", "m3")
    await registry.set_alias(T, "best", "m1")
    await registry.set_alias(T, "best", "m2")
    await registry.set_alias(T, "best", "m3")
    assert await registry.finish_transition(T, "best", "m2") is None
    assert await registry.fail_transition(T, "best", "m2", "x") is None
    assert await registry.finish_transition(T, "none", "m2") is None
    assert registry.resolve(T, "best").record.id == "m1"


async def test_force_switches_at_once(registry: Registry) -> None:
    await register(registry, "m1", "m2")
    await registry.set_alias(T, "best", "m1")
    await registry.set_alias(T, "best", "m2")
    alias = await registry.set_alias(T, "best", "m2", force=True)
    assert alias.state is AliasState.DEFINED
    assert registry.resolve(T, "best").record.id == "m2"


async def test_another_owner_may_not_move_or_delete_an_alias(registry: Registry) -> None:
    await register(registry, "m1", "m2")
    await registry.set_alias(T, "best", "m1", owner="isvc")
    with pytest.raises(AlreadyExists, match="belongs to 'isvc', not to 'predictor'"):
        await registry.set_alias(T, "best", "m2", owner="predictor")
    assert await registry.delete_alias(T, "best", owner="predictor") is False
    assert registry.resolve(T, "best").record.id == "m1"
    assert (await registry.set_alias(T, "best", "m2")).owner == "isvc"
    assert await registry.delete_alias(T, "best", owner="isvc") is True
    assert await registry.delete_alias(T, "best") is False


@pytest.mark.parametrize(
    ("exists", "target", "expected", "passes"),
    [
        (False, "m1", "m1", True),
        (False, "m1", "m2", False),
        (True, "m2", "m1", True),
        (True, "m2", "m3", False),
        (True, "m1", "m3", True),  # done already: a repeated call
    ],
)
async def test_expected_target_is_compared_as_modelmesh_does(
    registry: Registry, exists: bool, target: str, expected: str, passes: bool
) -> None:
    await register(registry, "m1", "m2", "m3")
    if exists:
        await registry.set_alias(T, "best", "m1")
    if passes:
        assert (await registry.set_alias(T, "best", target, expected_target=expected)).target == target
    else:
        with pytest.raises(TargetMismatch, match=f"{expected!r} was expected"):
            await registry.set_alias(T, "best", target, expected_target=expected)


async def test_update_only_does_not_create(registry: Registry) -> None:
    await registry.register(T, "m1", SPEC)
    with pytest.raises(NotFound, match="update_only"):
        await registry.set_alias(T, "best", "m1", update_only=True)


async def test_an_alias_needs_its_model_and_cannot_be_its_own(registry: Registry) -> None:
    with pytest.raises(NotFound, match="model 'm1' is not registered"):
        await registry.set_alias(T, "best", "m1")
    with pytest.raises(InvalidSpec, match="point at itself"):
        await registry.set_alias(T, "m1", "m1", target_spec=SPEC)


async def test_an_alias_of_an_alias_is_refused(registry: Registry) -> None:
    await registry.register(T, "m1", SPEC)
    await registry.set_alias(T, "a1", "m1")
    with pytest.raises(NotFound):
        await registry.set_alias(T, "a2", "a1")
    with pytest.raises(AlreadyExists, match="is an alias"):
        await registry.set_alias(T, "a2", "a1", target_spec=SPEC)


async def test_models_and_aliases_share_their_names(registry: Registry) -> None:
    await register(registry, "m1", "m2")
    await registry.set_alias(T, "best", "m1")
    with pytest.raises(AlreadyExists, match=r"'best' .* is an alias"):
        await registry.register(T, "best", SPEC)
    with pytest.raises(AlreadyExists, match=r"'m2' .* is a registered model"):
        await registry.set_alias(T, "m2", "m1")


async def test_a_model_and_an_alias_of_one_name_at_once_one_wins(registry: Registry) -> None:
    await registry.register(T, "m", SPEC)
    for i in range(20):
        calls = [registry.register(T, f"n{i}", SPEC), registry.set_alias(T, f"n{i}", "m")]
        results = await asyncio.gather(*(calls if i % 2 else reversed(calls)), return_exceptions=True)
        assert sum(isinstance(result, AlreadyExists) for result in results) == 1
        assert (registry.model(T, f"n{i}") is None) != (registry.alias(T, f"n{i}") is None)


async def test_a_target_is_registered_with_its_alias_or_not_at_all(registry: Registry) -> None:
    alias = await registry.set_alias(T, "best", "m1", target_spec=SPEC)
    model = registry.model(T, "m1")
    assert model is not None
    assert model.revision == alias.revision
    assert await registry.set_alias(T, "best", "m1", target_spec=SPEC) == alias
    with pytest.raises(AlreadyExists, match="another spec"):
        await registry.set_alias(T, "best", "m1", target_spec=OTHER)
    with pytest.raises(TargetMismatch):
        await registry.set_alias(T, "best", "m9", target_spec=SPEC, expected_target="m5")
    assert registry.model(T, "m9") is None


async def test_a_model_made_for_aliases_goes_with_the_last_of_them(registry: Registry, store: MemoryStore) -> None:
    await registry.register(T, "keep", SPEC)
    await registry.set_alias(T, "a", "made", target_spec=SPEC, auto_delete_target=True)
    await registry.set_alias(T, "b", "made")
    await registry.set_alias(T, "a", "keep", force=True)
    assert registry.model(T, "made") is not None
    await registry.set_alias(T, "b", "keep")
    assert registry.model(T, "made") is not None
    await registry.finish_transition(T, "b", "keep")
    assert registry.model(T, "made") is None
    assert await store.get(keys.tombstone_key(T, "made")) is not None
    await registry.delete_alias(T, "a")
    await registry.delete_alias(T, "b")
    assert registry.model(T, "keep") is not None
    assert (await store.range(keys.REFERENCES)).items == ()


async def test_a_replaced_target_that_never_served_goes_too(registry: Registry) -> None:
    await registry.register(T, "m1", SPEC)
    await registry.set_alias(T, "a", "m1")
    await registry.set_alias(T, "a", "m2", target_spec=SPEC, auto_delete_target=True)
    await registry.set_alias(T, "a", "m3", target_spec=SPEC, auto_delete_target=True)
    assert registry.model(T, "m2") is None
    await registry.delete_alias(T, "a")
    assert registry.model(T, "m3") is None


async def test_aliases_that_let_go_at_the_same_time_leave_no_model_behind(registry: Registry) -> None:
    for i in range(10):
        names = [f"a{i}-{j}" for j in range(5)]
        for name in names:
            await registry.set_alias(T, name, f"made{i}", target_spec=SPEC, auto_delete_target=True)
        await asyncio.gather(*(registry.delete_alias(T, name) for name in names))
        assert registry.model(T, f"made{i}") is None


async def test_weights_split_the_traffic_and_hold_their_models(registry: Registry) -> None:
    await register(registry, "m1", "m2")
    with pytest.raises(NotFound, match="m9"):
        await registry.set_alias(T, "ab", "m1", weights={"m1": 1, "m9": 1})
    await registry.set_alias(T, "ab", "m1", weights={"m1": 3, "m2": 1})
    assert registry.resolve(T, "ab", 0.7).record.id == "m1"
    assert registry.resolve(T, "ab", 0.8).record.id == "m2"
    with pytest.raises(StillReferenced):
        await registry.unregister(T, "m2")
    await registry.set_alias(T, "ab", "m1")
    assert registry.resolve(T, "ab", 0.8).record.id == "m1"
    assert await registry.unregister(T, "m2") is True


# Following the store ------------------------------------------------------------------------------------------------


async def test_a_second_registry_sees_what_the_first_writes(registry: Registry, store: MemoryStore) -> None:
    await register(registry, "early")
    second = Registry(store)
    changes: list[Changes] = []
    second.on_change(changes.append)
    await second.start()
    assert second.resolve(T, "early").record.id == "early"
    await registry.register(T, "late", SPEC)
    await second._wait_view(store.revision)
    assert second.resolve(T, "late").record.id == "late"
    assert second.view.tenants == registry.view.tenants
    assert [change.id for batch in changes for change in batch.models] == ["early", "late"]
    await second.close()


async def test_listeners_hear_before_and_after_and_a_failing_one_stops_nobody(registry: Registry) -> None:
    heard: list[Changes] = []

    def fails(changes: Changes) -> None:
        raise RuntimeError("a bug of the listener")

    registry.on_change(fails)
    stop = registry.on_change(heard.append)
    await registry.register(T, "m", SPEC)
    await registry.register(T, "m", OTHER, if_generation=1)
    await registry.unregister(T, "m")
    stop()
    await registry.register(T, "n", SPEC)
    generations = [
        (change.before.generation if change.before else None, change.after.generation if change.after else None)
        for changes in heard
        for change in changes.models
    ]
    assert generations == [(None, 1), (1, 2), (2, None)]


async def test_an_alias_and_its_model_arrive_together(registry: Registry) -> None:
    heard: list[Changes] = []
    registry.on_change(heard.append)
    await registry.set_alias(T, "a", "made", target_spec=SPEC, auto_delete_target=True)
    await registry.delete_alias(T, "a")
    assert [(len(changes.models), len(changes.aliases)) for changes in heard] == [(1, 1), (1, 1)]


async def test_a_view_once_taken_never_changes(registry: Registry) -> None:
    await registry.register(T, "m", SPEC)
    before = registry.view
    await registry.unregister(T, "m")
    assert before.resolve(T, "m").record.spec == SPEC
    with pytest.raises(NotFound):
        registry.view.resolve(T, "m")


async def test_a_view_that_fell_behind_history_lists_anew(
    store: MemoryStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_module, "RETRY_FIRST_S", 0.001)
    writer, lagging = Registry(store, clock=clock), Registry(store, clock=clock)
    await writer.start()
    await register(writer, "stays", "goes")
    await lagging.start()
    assert lagging._following is not None
    lagging._following.cancel()
    await asyncio.gather(lagging._following, return_exceptions=True)
    heard: list[Changes] = []
    lagging.on_change(heard.append)
    await writer.unregister(T, "goes")
    await writer.register(T, "comes", SPEC)
    await store.compact(store.revision)
    lagging._following = asyncio.create_task(lagging._follow())
    await lagging._wait_view(store.revision)
    assert lagging.view.tenants == writer.view.tenants
    assert {(change.id, change.after is None) for changes in heard for change in changes.models} == {
        ("goes", True),
        ("comes", False),
    }
    await writer.close()
    await lagging.close()


async def test_a_record_from_the_future_costs_only_its_own_name(registry: Registry, store: MemoryStore) -> None:
    await registry.register(T, "mine", SPEC)
    revision = (await store.txn([], [Put(keys.model_key(T, "theirs"), b'{"v":9}'), Put("models/odd", b"")])).revision
    await registry._wait_view(revision)
    assert registry.resolve(T, "mine").record.spec == SPEC
    with pytest.raises(UnsupportedRecord, match="version 9"):
        registry.resolve(T, "theirs")
    with pytest.raises(UnsupportedRecord, match="version 9"):
        await registry.register(T, "theirs", SPEC)
    (mine, theirs) = await registry.register_many(T, [Registration("new", SPEC), Registration("theirs", SPEC)])
    assert isinstance(mine, Registered)
    assert isinstance(theirs, UnsupportedRecord)
    assert await registry.unregister(T, "theirs") is True
    assert (await registry.register(T, "theirs", SPEC)).created


async def test_waiters_for_a_revision_that_never_comes_leave_nothing_behind(registry: Registry) -> None:
    never = 1 << 62
    patient = asyncio.create_task(registry.wait_revision(never, 60.0))
    for _ in range(20):
        assert not await registry.wait_revision(never, 0.0)
    assert len(registry._waiting) <= 2
    patient.cancel()
    await asyncio.gather(patient, return_exceptions=True)
    assert not registry._waiting
