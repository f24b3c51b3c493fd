"""Bytes that several copies share are counted once, from the first holder to the last."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.events import Resized
from cache.fake_loader import FakeLoader
from cache.ledger import Ledger, Oversold
from cache.limits import CacheLimits
from cache.machine import CacheMachine
from cache.sharing import bytes_of, counted_once
from cache.tenancy import TenantShare
from cache.types import NO_BYTES, Bytes, ModelKey, Place, RefusalKind, Shared, SharedPart, WantedModel

CPU = Place("device", "cpu")
BACKBONE = SharedPart("backbone", CPU, 100)


def of(count_bytes: int) -> Bytes:
    return Bytes.of(CPU, count_bytes)


def pod(capacity_bytes: int, *, tenants: Mapping[str, TenantShare] | None = None) -> FakeLoader:
    """`tune7` takes 5 bytes and the backbone of 100; `alone=30` shares nothing."""
    limits = CacheLimits(capacity=of(capacity_bytes), residency_min_s=0.0, tenants=tenants or {})

    def size_of(key: ModelKey) -> Bytes:
        return of(105 if key.model_id.startswith("tune") else int(key.model_id.partition("=")[2]))

    def shared_of(key: ModelKey) -> Shared:
        return (BACKBONE,) if key.model_id.startswith("tune") else ()

    return FakeLoader(CacheMachine(limits), size_of, shared_of)


def use(loader: FakeLoader, *models: str, tenant: str = "t") -> list[RefusalKind | None]:
    answers = []
    for model_id in models:
        loader.now_s += 1.0
        answers.append(loader.use(len(loader.served) + len(loader.log) + 1, WantedModel(ModelKey(tenant, model_id))))
        loader.machine.validate()
    return answers


def resident(loader: FakeLoader) -> set[str]:
    return {view.key.model_id for view in loader.machine.copies()}


def test_twenty_fine_tunes_take_one_backbone() -> None:
    loader = pod(200)
    tunes = [f"tune{number}" for number in range(20)]
    assert set(use(loader, *tunes)) == {None}
    assert resident(loader) == set(tunes)
    usage = loader.machine.usage()
    assert usage.used == of(200)
    assert usage.saved_by_sharing == of(1900)
    assert Bytes.sum(usage.bytes_by_state.values()) == usage.used


def test_twenty_fine_tunes_that_are_wanted_at_once_take_one_backbone() -> None:
    loader = pod(200)
    for number in range(20):
        loader.want(number, WantedModel(ModelKey("t", f"tune{number}")))
    loader.run()
    assert len(loader.served) == 20
    assert loader.machine.usage().evictions_total == 0


def test_one_of_several_holders_frees_only_what_is_its_own() -> None:
    loader = pod(150)
    use(loader, "alone=30", "tune1", "tune2")
    use(loader, "alone=15")
    assert resident(loader) == {"tune1", "tune2", "alone=15"}, "the other one that was alone made room"
    use(loader, "tune1", "tune2")
    assert use(loader, "alone=40") == [None]
    assert resident(loader) == {"tune1", "tune2", "alone=40"}


def test_the_last_holder_frees_the_shared_part() -> None:
    loader = pod(150)
    use(loader, "tune1", "tune2", "alone=40")
    assert use(loader, "other=80") == [None]
    assert resident(loader) == {"alone=40", "other=80"}, "both had to go: either alone would have freed 5 bytes"


def test_a_copy_whose_part_others_keep_is_not_evicted_in_vain() -> None:
    loader = pod(150)
    loader.want(1, WantedModel(ModelKey("t", "tune-in-use")))
    loader.run()
    loader.machine.handle(Resized(next(iter(loader.loaded)), of(100), (BACKBONE,)), loader.now_s)
    use(loader, "alone=40")
    loader.want(2, WantedModel(ModelKey("t", "tune-all-backbone")))
    (copy_id,) = loader.fetching
    loader.finish_fetch(copy_id, of(100), (BACKBONE,))
    loader.finish_load(copy_id, of(100), (BACKBONE,))
    loader.release(2)
    use(loader, "alone=40")
    assert use(loader, "other=45") == [None]
    assert resident(loader) == {"tune-in-use", "tune-all-backbone", "other=45"}, "its going would have freed nothing"


def test_a_fine_tune_that_takes_the_place_of_the_last_holder_needs_only_what_is_its_own() -> None:
    loader = pod(105)
    assert use(loader, "tune1", "tune2", "tune3") == [None, None, None]
    assert resident(loader) == {"tune3"}


def test_what_turns_out_to_be_shared_is_given_back() -> None:
    loader = pod(300)
    use(loader, "tune1")
    loader.want(99, WantedModel(ModelKey("t", "tune2")))
    (copy_id,) = loader.fetching
    loader.finish_fetch(copy_id, of(105), ())
    assert loader.machine.usage().used == of(210), "the estimate knows of no shared part"
    loader.finish_load(copy_id)
    assert loader.machine.usage().used == of(110)
    loader.send(Resized(copy_id, of(140), ()))
    assert loader.machine.usage().used == of(245), "packed, it has weights of its own"
    loader.machine.validate()


def test_a_tenant_at_its_limit_has_its_shared_parts_counted_once() -> None:
    loader = pod(1000, tenants={"t": TenantShare(limit=of(130))})
    use(loader, *(f"tune{number}" for number in range(6)))
    assert len(resident(loader)) == 6
    assert loader.machine.usage().tenants["t"].held == of(130)
    use(loader, "tune6")
    assert len(resident(loader)) == 6


def test_each_tenant_is_charged_in_full_for_what_tenants_share() -> None:
    loader = pod(1000, tenants={"t": TenantShare(limit=of(500))})
    use(loader, "tune1")
    use(loader, "tune1", tenant="other")
    usage = loader.machine.usage()
    assert usage.used == of(110)
    assert (usage.tenants["t"].held, usage.tenants["other"].held) == (of(105), of(105))


# -- the ledger against a plain sum ------------------------------------------------------------------------------------

PARTS = st.lists(
    st.builds(SharedPart, st.sampled_from("abc"), st.just(CPU), st.sampled_from([10, 20])),
    max_size=3,
    unique_by=lambda part: part.content,
).map(tuple)


@settings(max_examples=300, deadline=None)
@given(
    charges=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 30), PARTS), max_size=25),
    capacity=st.integers(20, 200),
)
def test_the_ledger_is_the_sum_of_what_is_held_with_parts_once_and_never_more_than_the_capacity(
    charges: list[tuple[int, int, Shared]], capacity: int
) -> None:
    ledger = Ledger(of(capacity))
    held: dict[int, tuple[Bytes, Shared]] = {}

    def total(copies: Mapping[int, tuple[Bytes, Shared]]) -> Bytes:
        parts = {part for _, shared in copies.values() for part in shared}
        return Bytes.sum([*(own for own, _ in copies.values()), bytes_of(parts)])

    for copy_id, own_bytes, shared in charges:
        then = {**held, copy_id: (of(own_bytes), shared)}
        room = ledger.room_for(copy_id, shared)
        assert of(own_bytes) - room == total(then) - of(capacity)
        if total(then) <= of(capacity):
            ledger.charge(copy_id, of(own_bytes) + bytes_of(shared), shared)
            held = then
        else:
            with pytest.raises(Oversold):
                ledger.charge(copy_id, of(own_bytes) + bytes_of(shared), shared)
        ledger.validate()
        assert ledger.used == total(held)
    for copy_id in range(5):
        ledger.charge(copy_id, NO_BYTES)
    assert ledger.used == counted_once([]) == NO_BYTES
    assert not ledger.holders
