"""The registry against a plain dictionary, and against itself when several calls race.

Questions: does every call give the answer that a dictionary gives? Whatever races, does each alias resolve, does the
view equal the store, do references and records agree, and is nothing left behind?
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from placement import keys
from placement.errors import AlreadyExists, GenerationMismatch, NotFound, PlacementError, StillReferenced
from placement.records import ModelSpec
from placement.registration import Outcome, Registered, Registration
from placement.registry import Registry
from placement.store.base import KeyValueStore
from placement.store.embedded import EmbeddedStore
from placement.store.memory import MemoryStore

T = TypeVar("T")

TENANTS = st.sampled_from(["a", "b/c"])
NAMES = st.sampled_from(["m", "n/1", "o%2F", "ž"])
SPECS = st.builds(ModelSpec, uri=st.sampled_from(["file:///1", "file:///2"]), pinned=st.booleans())
GENERATIONS = st.one_of(st.none(), st.integers(0, 4))


async def check_consistency(registry: Registry, store: KeyValueStore) -> None:
    """What must hold whenever nothing is under way."""
    fresh = Registry(store, clock=lambda: 0.0)
    await fresh.start()
    assert fresh.view.tenants == registry.view.tenants
    await fresh.close()
    expected: set[str] = set()
    for tenant, names in registry.view.tenants.items():
        assert not set(names.models) & set(names.aliases)
        for alias_id, alias in names.aliases.items():
            assert registry.resolve(tenant, alias_id).record.id == alias.active
            assert alias.referenced <= set(names.models)
            expected |= {keys.reference_key(tenant, model_id, alias_id) for model_id in alias.referenced}
        for model_id, model in names.models.items():
            pointing = {alias_id for alias_id, alias in names.aliases.items() if model_id in alias.referenced}
            assert registry.aliases_of(tenant, model_id) == pointing
            assert pointing or not model.auto_delete
    assert {kv.key for kv in (await store.range(keys.REFERENCES)).items} == expected


class RegistryAgainstDictionary(RuleBasedStateMachine):
    """One call at a time; the dictionary holds what each name must be."""

    @initialize()
    def begin(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.store = MemoryStore()
        self.registry = Registry(self.store, clock=lambda: 0.0)
        self.run(self.registry.start())
        self.models: dict[tuple[str, str], tuple[ModelSpec, int]] = {}
        self.aliases: dict[tuple[str, str], tuple[str, str]] = {}
        self.last_generation: dict[tuple[str, str], int] = {}

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(call)

    @rule(tenant=TENANTS, name=NAMES, spec=SPECS, if_generation=GENERATIONS)
    def register(self, tenant: str, name: str, spec: ModelSpec, if_generation: int | None) -> None:
        known = self.models.get((tenant, name))
        found = known[1] if known else 0
        call = self.registry.register(tenant, name, spec, if_generation=if_generation)
        if (tenant, name) in self.aliases:
            with pytest.raises(AlreadyExists):
                self.run(call)
        elif known is not None and known[0] == spec:
            assert self.run(call).outcome is Outcome.UNCHANGED
        elif if_generation is not None and if_generation != found:
            with pytest.raises(GenerationMismatch):
                self.run(call)
        elif known is not None and if_generation is None:
            with pytest.raises(AlreadyExists):
                self.run(call)
        else:
            result = self.run(call)
            generation = self.last_generation.get((tenant, name), 0) + 1
            assert result.record.generation == generation
            self.last_generation[tenant, name] = generation
            self.models[tenant, name] = (spec, generation)

    @rule(tenant=TENANTS, name=NAMES, pinned=st.booleans())
    def pin(self, tenant: str, name: str, pinned: bool) -> None:
        known = self.models.get((tenant, name))
        call = self.registry.set_pinned(tenant, name, pinned)
        if known is None:
            with pytest.raises(NotFound):
                self.run(call)
        else:
            assert self.run(call).generation == known[1]
            self.models[tenant, name] = (known[0].replaced(pinned=pinned), known[1])

    @rule(tenant=TENANTS, name=NAMES)
    def unregister(self, tenant: str, name: str) -> None:
        used = any(key[0] == tenant and name in alias for key, alias in self.aliases.items())
        call = self.registry.unregister(tenant, name)
        if used:
            with pytest.raises(StillReferenced):
                self.run(call)
        else:
            assert self.run(call) == (self.models.pop((tenant, name), None) is not None)

    @rule(tenant=TENANTS, name=NAMES, goal=NAMES, force=st.booleans())
    def set_alias(self, tenant: str, name: str, goal: str, force: bool) -> None:
        call = self.registry.set_alias(tenant, name, goal, force=force)
        if name == goal or (tenant, goal) not in self.models or (tenant, name) in self.models:
            with pytest.raises(PlacementError):
                self.run(call)
            return
        active, _ = self.aliases.get((tenant, name), (goal, goal))
        self.aliases[tenant, name] = (goal if force else active, goal)
        record = self.run(call)
        assert (record.active, record.target) == self.aliases[tenant, name]

    @rule(tenant=TENANTS, name=NAMES, goal=NAMES)
    def finish(self, tenant: str, name: str, goal: str) -> None:
        known = self.aliases.get((tenant, name))
        record = self.run(self.registry.finish_transition(tenant, name, goal))
        assert (record is not None) == (known is not None and known[1] == goal)
        if record is not None:
            self.aliases[tenant, name] = (goal, goal)

    @rule(tenant=TENANTS, name=NAMES)
    def delete_alias(self, tenant: str, name: str) -> None:
        existed = self.aliases.pop((tenant, name), None) is not None
        assert self.run(self.registry.delete_alias(tenant, name)) is existed

    @invariant()
    def the_view_is_the_dictionary(self) -> None:
        if not hasattr(self, "registry"):
            return
        tenants = self.registry.view.tenants
        models = {(t, m): (r.spec, r.generation) for t, names in tenants.items() for m, r in names.models.items()}
        aliases = {(t, a): (r.active, r.target) for t, names in tenants.items() for a, r in names.aliases.items()}
        assert models == self.models
        assert aliases == self.aliases
        self.run(check_consistency(self.registry, self.store))

    def teardown(self) -> None:
        if hasattr(self, "registry"):
            self.run(self.registry.close())
            self.loop.close()


TestRegistryAgainstDictionary = RegistryAgainstDictionary.TestCase
TestRegistryAgainstDictionary.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


# Several calls at once ----------------------------------------------------------------------------------------------

CALLS = st.one_of(
    st.tuples(st.just("register"), NAMES, SPECS, GENERATIONS),
    st.tuples(st.just("unregister"), NAMES),
    st.tuples(st.just("set_alias"), NAMES, NAMES, st.booleans()),
    st.tuples(st.just("set_alias_made"), NAMES, NAMES, st.booleans()),
    st.tuples(st.just("finish"), NAMES, NAMES),
    st.tuples(st.just("delete_alias"), NAMES),
    st.tuples(st.just("pin"), NAMES, st.booleans()),
)


def begin_call(registry: Registry, call: tuple[Any, ...]) -> Coroutine[Any, Any, object]:
    kind, *args = call
    if kind == "register":
        return registry.register("t", args[0], args[1], if_generation=args[2])
    if kind == "unregister":
        return registry.unregister("t", args[0])
    if kind == "set_alias":
        return registry.set_alias("t", args[0], args[1], force=args[2])
    if kind == "set_alias_made":
        spec = ModelSpec("file:///1")
        return registry.set_alias("t", args[0], args[1], force=args[2], target_spec=spec, auto_delete_target=True)
    if kind == "finish":
        return registry.finish_transition("t", args[0], args[1])
    if kind == "delete_alias":
        return registry.delete_alias("t", args[0])
    return registry.set_pinned("t", args[0], args[1])


async def race(store: KeyValueStore, groups: list[list[tuple[Any, ...]]]) -> None:
    registries = [Registry(store, clock=lambda: 0.0) for _ in range(2)]
    for registry in registries:
        await registry.start()
    for group in groups:
        results = await asyncio.gather(
            *(begin_call(registries[i % 2], call) for i, call in enumerate(group)), return_exceptions=True
        )
        bugs = [r for r in results if isinstance(r, BaseException) and not isinstance(r, PlacementError)]
        assert not bugs, bugs
        latest = max(registry.view.revision for registry in registries)
        for registry in registries:
            await registry._wait_view(latest)
            await check_consistency(registry, store)
    for registry in registries:
        await registry.close()


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(CALLS, min_size=1, max_size=12), min_size=1, max_size=5))
def test_whatever_races_names_references_and_view_agree(groups: list[list[tuple[Any, ...]]]) -> None:
    asyncio.run(race(MemoryStore(), groups))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(CALLS, min_size=1, max_size=12), min_size=1, max_size=4))
def test_the_same_holds_on_the_embedded_store(
    tmp_path_factory: pytest.TempPathFactory, groups: list[list[tuple[Any, ...]]]
) -> None:
    async def run(directory: Path) -> None:
        store = await EmbeddedStore.open(directory, lease_check_s=None)
        await race(store, groups)
        await store.close()

    asyncio.run(run(tmp_path_factory.mktemp("store")))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(NAMES, SPECS, GENERATIONS), max_size=12),
    st.lists(st.tuples(NAMES, SPECS, GENERATIONS), max_size=12),
)
def test_bulk_comes_to_the_same_as_one_after_the_other(
    before: list[tuple[str, ModelSpec, int | None]], entries: list[tuple[str, ModelSpec, int | None]]
) -> None:
    async def run() -> None:
        bulk, single = Registry(MemoryStore(), clock=lambda: 0.0), Registry(MemoryStore(), clock=lambda: 0.0)
        for registry in (bulk, single):
            await registry.start()
            for entry in before:
                await registry.register_many("t", [Registration(*entry)])
        together = await bulk.register_many("t", [Registration(*entry) for entry in entries])
        apart = [(await single.register_many("t", [Registration(*entry)]))[0] for entry in entries]
        assert [outcome(result) for result in together] == [outcome(result) for result in apart]
        for registry in (bulk, single):
            await registry.close()

    asyncio.run(run())


def outcome(result: Registered | PlacementError) -> tuple[object, ...]:
    if isinstance(result, PlacementError):
        return (type(result), str(result))
    return (result.outcome, result.record.spec, result.record.generation)
