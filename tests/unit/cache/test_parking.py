"""The host tier: what makes room on its device is parked in RAM, and comes back without a fetch."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cache.commands import StartFetch, StartLoad, StartPark, StartReturn, StartUnload
from cache.events import Cancel, CapacityChanged, EvictRequest, Retire
from cache.fake_loader import FakeLoader
from cache.limits import CacheLimits
from cache.machine import CacheMachine
from cache.types import Bytes, CopyState, ModelKey, Place, RefusalKind, WantedModel

CPU, GPU = Place("device", "cpu"), Place("device", "cuda:0")
HOST = Place("host")


@pytest.fixture
def gpu_pod() -> Callable[..., FakeLoader]:
    """100 bytes on the device; each model takes 30 there, and parked as many in the host tier."""

    def build(host_bytes: int = 100, *, parks: bool = True, size_bytes: int = 30) -> FakeLoader:
        capacity = Bytes.from_mapping({GPU: 100, HOST: host_bytes})
        machine = CacheMachine(CacheLimits(capacity=capacity, residency_min_s=0.0))
        return FakeLoader(
            machine,
            lambda key: Bytes.of(GPU, size_bytes),
            parks_of=lambda key: Bytes.of(HOST, size_bytes) if parks else None,
        )

    return build


def key(name: str) -> ModelKey:
    return ModelKey("t", name)


def use(loader: FakeLoader, *names: str) -> list[RefusalKind | None]:
    answers = []
    for name in names:
        loader.now_s += 1.0
        answers.append(loader.use(len(loader.log) + 1000, WantedModel(key(name))))
        loader.machine.validate()
    return answers


def states(loader: FakeLoader) -> dict[str, CopyState]:
    return {view.key.model_id: view.state for view in loader.machine.copies()}


def commands_for(loader: FakeLoader, name: str) -> list[type]:
    kinds = (StartFetch, StartLoad, StartPark, StartReturn, StartUnload)
    return [type(command) for command in loader.log if isinstance(command, kinds) and command.key == key(name)]


def test_a_victim_is_parked_and_comes_back_without_a_fetch(gpu_pod: Callable[..., FakeLoader]) -> None:
    loader = gpu_pod()
    assert use(loader, "a", "b", "c", "d") == [None] * 4
    assert states(loader)["a"] is CopyState.PARKED
    usage = loader.machine.usage()
    assert (usage.used[GPU], usage.used[HOST], usage.parkings_total) == (90, 30, 1)
    assert use(loader, "a") == [None]
    assert commands_for(loader, "a") == [StartFetch, StartLoad, StartPark, StartReturn]
    assert states(loader) == {
        "a": CopyState.SERVABLE,
        "b": CopyState.PARKED,
        "c": CopyState.SERVABLE,
        "d": CopyState.SERVABLE,
    }


def test_it_is_explained_that_a_model_is_parked(gpu_pod: Callable[..., FakeLoader]) -> None:
    loader = gpu_pod()
    use(loader, "a", "b", "c", "d")
    loader.now_s += 2.0
    said = loader.machine.explain(key("a"))
    assert said.summary.startswith("Parked for ")
    assert "30 B on host" in said.summary
    assert [copy.state for copy in said.copies] == [CopyState.PARKED]


def test_without_a_host_tier_victims_are_unloaded(gpu_pod: Callable[..., FakeLoader]) -> None:
    for loader in (gpu_pod(host_bytes=0), gpu_pod(parks=False)):
        use(loader, "a", "b", "c", "d")
        assert "a" not in states(loader)
        assert commands_for(loader, "a") == [StartFetch, StartLoad, StartUnload]


def test_the_host_tier_keeps_room_for_the_next_one_and_lets_the_least_recently_used_go(
    gpu_pod: Callable[..., FakeLoader],
) -> None:
    loader = gpu_pod()
    use(loader, *"abcdefgh")
    assert {name for name, state in states(loader).items() if state is CopyState.PARKED} == {"d", "e"}
    assert {name for name, state in states(loader).items() if state is CopyState.SERVABLE} == {"f", "g", "h"}
    assert loader.machine.usage().parkings_total == 5, "none was unloaded for want of room"


def test_what_is_wanted_while_it_is_being_parked_comes_back_from_there(gpu_pod: Callable[..., FakeLoader]) -> None:
    loader = gpu_pod()
    use(loader, "a", "b", "c")
    loader.want(1, WantedModel(key("d")))
    loader.finish_fetch(next(iter(loader.fetching)))
    assert loader.parking
    loader.want(2, WantedModel(key("a")))
    loader.machine.validate()
    assert not loader.fetching
    loader.run()
    loader.machine.validate()
    assert {1, 2} <= set(loader.served)
    assert commands_for(loader, "a") == [StartFetch, StartLoad, StartPark, StartReturn]


def test_a_copy_that_could_not_be_parked_is_unloaded(gpu_pod: Callable[..., FakeLoader]) -> None:
    loader = gpu_pod()
    use(loader, "a", "b", "c")
    loader.want(1, WantedModel(key("d")))
    loader.finish_fetch(next(iter(loader.fetching)))
    loader.fail_park(next(iter(loader.parking)))
    loader.machine.validate()
    loader.run()
    assert 1 in loader.served
    assert "a" not in states(loader)
    assert loader.machine.usage().used[HOST] == 0


def test_a_return_that_fails_leaves_nothing_and_the_next_load_fetches(gpu_pod: Callable[..., FakeLoader]) -> None:
    loader = gpu_pod()
    use(loader, "a", "b", "c", "d")
    loader.want(1, WantedModel(key("a")))
    while not loader.loading:
        loader.finish_park(next(iter(loader.parking)))
    loader.fail_load(next(iter(loader.loading)))
    loader.machine.validate()
    assert loader.refused[1].kind is RefusalKind.LOAD_FAILED_TRANSIENT
    assert "a" not in states(loader)
    loader.pass_time(loader.now_s + 100.0)
    assert use(loader, "a") == [None]
    assert commands_for(loader, "a")[-2:] == [StartFetch, StartLoad]


def test_who_gives_up_waiting_for_a_return_leaves_it_parked(gpu_pod: Callable[..., FakeLoader]) -> None:
    loader = gpu_pod()
    use(loader, "a", "b", "c", "d")
    for waiter_id, name in enumerate("bcd"):
        copy = loader.machine.servable(key(name))
        assert copy is not None
        copy.pin(loader.now_s)
        loader.served[waiter_id] = copy.copy_id
    loader.want(10, WantedModel(key("a")))
    assert states(loader)["a"] is CopyState.WAITING_FOR_SPACE
    loader.machine.validate()
    loader.send(Cancel(10))
    loader.machine.validate()
    assert states(loader)["a"] is CopyState.PARKED


def test_what_is_parked_goes_up_by_itself_when_its_device_has_room(gpu_pod: Callable[..., FakeLoader]) -> None:
    loader = gpu_pod()
    use(loader, "a", "b", "c", "d", "e")
    assert [name for name, state in states(loader).items() if state is CopyState.PARKED] == ["a", "b"]
    loader.send(Retire(key("d")))
    loader.run()
    loader.machine.validate()
    assert states(loader) == {
        "a": CopyState.PARKED,
        "b": CopyState.SERVABLE,
        "c": CopyState.SERVABLE,
        "e": CopyState.SERVABLE,
    }, "the one that was used last"


@pytest.mark.parametrize("event", [Retire, EvictRequest])
def test_a_parked_copy_leaves_when_its_model_does(
    gpu_pod: Callable[..., FakeLoader], event: type[Retire] | type[EvictRequest]
) -> None:
    loader = gpu_pod()
    use(loader, "a", "b", "c", "d")
    loader.send(event(key("a")))
    loader.run()
    assert "a" not in states(loader)
    assert loader.machine.usage().used[HOST] == 0


def test_a_model_that_is_retired_while_it_is_being_parked_does_not_stay(gpu_pod: Callable[..., FakeLoader]) -> None:
    loader = gpu_pod()
    use(loader, "a", "b", "c")
    loader.want(1, WantedModel(key("d")))
    loader.finish_fetch(next(iter(loader.fetching)))
    loader.send(Retire(key("a")))
    loader.run()
    loader.machine.validate()
    assert "a" not in states(loader)


def test_a_model_that_is_to_leave_while_it_is_being_parked_does_not_stay_but_who_waits_for_it_is_served(
    gpu_pod: Callable[..., FakeLoader],
) -> None:
    for is_wanted in (False, True):
        loader = gpu_pod()
        use(loader, "a", "b", "c")
        loader.want(1, WantedModel(key("d")))
        loader.finish_fetch(next(iter(loader.fetching)))
        if is_wanted:
            loader.want(2, WantedModel(key("a")))
        loader.send(EvictRequest(key("a")))
        loader.machine.validate()
        loader.run()
        loader.machine.validate()
        assert ("a" in states(loader)) is is_wanted
        assert (2 in loader.served) is is_wanted
        assert StartReturn not in commands_for(loader, "a")
        assert loader.machine.usage().used[HOST] == (30 if is_wanted else 0)


def test_a_smaller_host_tier_lets_parked_copies_go(gpu_pod: Callable[..., FakeLoader]) -> None:
    loader = gpu_pod()
    use(loader, *"abcde")
    loader.send(CapacityChanged(Bytes.from_mapping({GPU: 100, HOST: 35}), "memory is short"))
    loader.run()
    loader.machine.validate()
    assert loader.machine.usage().used[HOST] <= 35
    assert len([state for state in states(loader).values() if state is CopyState.SERVABLE]) == 3


def test_when_its_device_is_full_a_model_runs_elsewhere_if_it_may() -> None:
    capacity = Bytes.from_mapping({GPU: 60, CPU: 50})
    loader = FakeLoader(
        CacheMachine(CacheLimits(capacity=capacity, residency_min_s=0.0)),
        lambda key: Bytes.of(GPU, 30),
        otherwise_of=lambda key: Bytes.of(CPU, 40),
    )
    use(loader, "a", "b", "c")
    assert {view.key.model_id: view.charged for view in loader.machine.copies()} == {
        "a": Bytes.of(GPU, 30),
        "b": Bytes.of(GPU, 30),
        "c": Bytes.of(CPU, 40),
    }
    use(loader, "d")
    assert states(loader).keys() == {"b", "c", "d"}, "both are full: its device is where others make room"
    assert loader.machine.servable(key("d")).charged == Bytes.of(GPU, 30)  # type: ignore[union-attr]
    loader.send(Retire(key("b")))
    loader.send(EvictRequest(key("c")))
    loader.run()
    use(loader, "c")
    assert loader.machine.servable(key("c")).charged == Bytes.of(GPU, 30), "measured on the CPU, expected on its device"  # type: ignore[union-attr]


def test_the_return_time_is_that_of_the_tier_below(gpu_pod: Callable[..., FakeLoader]) -> None:
    loader = gpu_pod()
    use(loader, "a", "b", "c", "d")
    loader.want(1, WantedModel(key("a")))
    while not loader.loading:
        loader.finish_park(next(iter(loader.parking)))
    loader.now_s += 0.25
    loader.finish_load(next(iter(loader.loading)))
    (view,) = [view for view in loader.machine.copies() if view.key == key("a")]
    assert view.return_time_s == pytest.approx(0.25)
