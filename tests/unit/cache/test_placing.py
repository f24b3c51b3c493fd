"""Several devices in one pod: which of them a model is loaded on, and that each is counted for itself."""

from __future__ import annotations

import random
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from cache.events import Retire
from cache.fake_loader import FakeLoader
from cache.limits import CacheLimits
from cache.machine import CacheMachine
from cache.placing import NO_DAMAGE, Damage, Elsewhere, OnDevice, choose_place, expected_on
from cache.types import Bytes, ModelKey, Place, WantedModel

CPU, HOST = Place("device", "cpu"), Place("host")
GPUS = [Place("device", f"cuda:{index}") for index in range(3)]


def on(*amounts: int) -> tuple[Bytes, ...]:
    """A model's need on each of the first GPUs, in order."""
    return tuple(Bytes.of(place, amount) for place, amount in zip(GPUS, amounts, strict=False))


def everywhere(*amounts: int, cpu: int = 0) -> Bytes:
    return Bytes.from_mapping({CPU: cpu, **dict(zip(GPUS, amounts, strict=False))})


def chosen(
    devices: Sequence[Bytes], free: Bytes, otherwise: Bytes | None = None, damages: dict[int, Damage] | None = None
) -> int | None:
    """The index; None: elsewhere."""
    placing = choose_place(
        devices,
        otherwise,
        free=free,
        capacity=everywhere(100, 100, 100, cpu=100),
        damage_on=lambda needed: (damages or {})[devices.index(needed)],
    )
    return None if isinstance(placing, Elsewhere) else placing.index


def test_a_device_with_room_comes_first_and_of_those_the_emptiest() -> None:
    assert chosen(on(30, 30, 30), everywhere(10, 40, 60)) == 2
    assert chosen(on(30, 30, 30), everywhere(10, 40, 20)) == 1


def test_equally_empty_devices_are_taken_in_their_order() -> None:
    assert chosen(on(30, 30, 30), everywhere(50, 50, 50)) == 0


def test_when_none_has_room_the_least_is_lost() -> None:
    damages = {0: Damage(False, 9.0, 30), 1: Damage(False, 2.0, 90), 2: Damage(True, 0.0, 0)}
    assert chosen(on(30, 30, 30), everywhere(10, 0, 20), damages=damages) == 1
    assert chosen(on(30, 30, 30), everywhere(10, 0, 20), damages=dict.fromkeys(range(3), damages[0])) == 2


def test_elsewhere_comes_before_making_room_and_after_a_device_with_room() -> None:
    otherwise = Bytes.of(CPU, 50)
    assert chosen(on(30, 30), everywhere(10, 10, cpu=60), otherwise) is None
    assert chosen(on(30, 30), everywhere(10, 30, cpu=60), otherwise) == 1
    assert chosen(on(30, 30), everywhere(10, 9, cpu=40), otherwise, dict.fromkeys(range(2), NO_DAMAGE)) == 0


def test_a_device_that_is_too_small_is_none() -> None:
    assert chosen(on(101, 40), everywhere(100, 10)) == 1
    assert chosen(on(101, 101), everywhere(100, 100), Bytes.of(CPU, 99)) is None
    assert chosen(on(101, 101), everywhere(100, 100)) == 0


@settings(deadline=None)
@given(
    free=st.tuples(*[st.integers(0, 50)] * 3),
    needed=st.integers(1, 60),
    worths=st.tuples(*[st.integers(0, 2)] * 3),
)
def test_the_order_is_total(free: tuple[int, ...], needed: int, worths: tuple[int, ...]) -> None:
    devices = on(needed, needed, needed)
    damages = {index: Damage(False, float(worth), needed) for index, worth in enumerate(worths)}
    index = chosen(devices, everywhere(*free), damages=damages)
    assert index is not None
    ranks = [(free[each] < needed, worths[each] if free[each] < needed else -1, -free[each], each) for each in range(3)]
    if any(free[each] >= needed for each in range(3)):
        ranks = [rank for rank in ranks if not rank[0]]
    assert min(ranks)[3] == index


def test_a_size_that_was_measured_on_one_device_is_expected_on_the_others() -> None:
    devices = tuple(Bytes.from_mapping({CPU: 5, place: 30}) for place in GPUS)
    measured = Bytes.from_mapping({CPU: 7, GPUS[1]: 33})
    assert expected_on(measured, devices) == tuple(Bytes.from_mapping({CPU: 7, place: 33}) for place in GPUS)
    assert expected_on(Bytes.of(CPU, 40), devices) == (None,) * 3
    assert expected_on(None, devices) == (None,) * 3


# -- in a pod ----------------------------------------------------------------------------------------------------------


def pod(*capacities: int, host: int = 0, size: int = 30) -> FakeLoader:
    capacity = everywhere(*capacities) + Bytes.of(HOST, host)
    first, *peers = on(*[size] * len(capacities))
    return FakeLoader(
        CacheMachine(CacheLimits(capacity=capacity, residency_min_s=0.0)),
        lambda key: first,
        peers_of=lambda key: tuple(peers),
        parks_of=lambda key: Bytes.of(HOST, size) if host else None,
    )


def use(loader: FakeLoader, *names: str) -> None:
    for name in names:
        loader.now_s += 1.0
        assert loader.use(len(loader.log) + 1000, WantedModel(ModelKey("t", name))) is None
        loader.machine.validate()


def where(loader: FakeLoader) -> dict[str, str]:
    return {
        view.key.model_id: " ".join(str(place) for place, _ in view.charged).removeprefix("device:")
        for view in loader.machine.copies()
    }


def test_models_spread_over_the_devices_and_then_the_oldest_makes_room() -> None:
    loader = pod(60, 70)
    use(loader, "a", "b", "c", "d")
    assert where(loader) == {"a": "cuda:1", "b": "cuda:0", "c": "cuda:1", "d": "cuda:0"}
    use(loader, "a", "e")
    assert where(loader) == {"a": "cuda:1", "c": "cuda:1", "d": "cuda:0", "e": "cuda:0"}


def test_two_that_come_at_once_go_to_two_devices() -> None:
    loader = pod(30, 30)
    loader.want(1, WantedModel(ModelKey("t", "a")))
    loader.want(2, WantedModel(ModelKey("t", "b")))
    loader.run()
    assert {1, 2} <= set(loader.served)
    assert set(where(loader).values()) == {"cuda:0", "cuda:1"}


def test_a_parked_model_returns_to_the_device_that_it_left() -> None:
    loader = pod(30, 30, host=100)
    use(loader, "a", "b", "c")
    assert where(loader) == {"a": "host", "b": "cuda:1", "c": "cuda:0"}
    use(loader, "a")
    assert where(loader)["a"] == "cuda:0"


def test_a_model_that_fits_only_the_larger_device_is_loaded_there() -> None:
    loader = pod(20, 60)
    use(loader, "a", "b", "c")
    assert set(where(loader).values()) == {"cuda:1"}


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), capacities=st.lists(st.integers(20, 80), min_size=2, max_size=3))
def test_no_device_is_ever_oversold_and_everything_that_fits_is_served(seed: int, capacities: list[int]) -> None:
    draw = random.Random(seed)
    loader = pod(*capacities, host=draw.choice([0, 50]), size=draw.randint(1, 20))
    for step in range(40):
        loader.now_s += draw.random()
        if draw.random() < 0.1:
            loader.send(Retire(ModelKey("t", str(draw.randint(0, 12)))))
        loader.want(step, WantedModel(ModelKey("t", str(draw.randint(20, 32)))))
        if draw.random() < 0.5:
            loader.run()
        usage = loader.machine.usage()
        loader.machine.validate()
        for place, capacity in zip(GPUS, capacities, strict=False):
            assert usage.used[place] <= capacity
        for waiter_id in list(loader.served):
            if draw.random() < 0.7:
                loader.release(waiter_id)
    for _ in range(40):
        loader.run()
        for waiter_id in list(loader.served):
            loader.release(waiter_id)
    assert not loader.waiting
    assert not loader.refused


def test_the_placing_says_what_it_needs() -> None:
    placing = choose_place(
        on(30, 20), None, free=everywhere(10, 25), capacity=everywhere(50, 50), damage_on=lambda needed: NO_DAMAGE
    )
    assert placing == OnDevice(1, Bytes.of(GPUS[1], 20))
