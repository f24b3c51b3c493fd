"""A capacity that changes while the pod runs, and loads that find no memory."""

from __future__ import annotations

from collections.abc import Callable

from cache.events import CapacityChanged
from cache.fake_loader import FakeLoader
from cache.types import Bytes, Place, RefusalKind, WantedModel

CPU = Place("device", "cpu")
Model = Callable[..., WantedModel]
Build = Callable[..., FakeLoader]


def used_bytes(loader: FakeLoader) -> int:
    loader.machine.validate()
    return loader.machine.usage().used.total_bytes


def resident(loader: FakeLoader) -> set[str]:
    return {key.model_id for key in loader.loaded.values()}


def test_a_smaller_capacity_evicts_the_least_used_and_no_more_than_it_must(pod: Build, model: Model) -> None:
    loader = pod()
    for number, name in enumerate("abc"):
        loader.now_s += 1.0
        assert loader.use(number, model(name)) is None
    loader.send(CapacityChanged(Bytes.of(CPU, 70), "memory is short"))
    assert [loader.unloading[copy_id].model_id for copy_id in loader.unloading] == ["a"]
    assert loader.machine.usage().capacity.total_bytes == 90, "what is still there counts until it has gone"
    loader.run()
    assert resident(loader) == {"b", "c"}
    assert loader.machine.usage().capacity.total_bytes == 70


def test_copies_in_use_stay_and_their_bytes_go_to_nobody_else(pod: Build, model: Model) -> None:
    loader = pod()
    for number, name in enumerate("abc"):
        loader.want(number, model(name))
        loader.run()
    loader.send(CapacityChanged(Bytes.of(CPU, 30), "memory is short"))
    assert not loader.unloading
    loader.release(0)
    loader.run()
    assert used_bytes(loader) == 60
    loader.want(9, model("d"))
    loader.run()
    assert 9 in loader.waiting
    loader.release(1)
    loader.release(2)
    loader.run()
    assert 9 in loader.served
    assert used_bytes(loader) == 30


def test_what_fits_only_the_larger_capacity_is_refused_for_now_with_the_reason(pod: Build, model: Model) -> None:
    loader = pod(sizes={"big": 80})
    loader.send(CapacityChanged(Bytes.of(CPU, 50), "the kernel takes pages back"))
    assert loader.use(1, model("big")) is RefusalKind.FULL
    assert "the kernel takes pages back" in loader.refused[1].message
    loader.send(CapacityChanged(Bytes.of(CPU, 100)))
    loader.pass_time(10.0)
    assert loader.use(2, model("big")) is None


def test_a_capacity_never_exceeds_the_limits(pod: Build, model: Model) -> None:
    loader = pod()
    loader.send(CapacityChanged(Bytes.of(CPU, 1000)))
    assert loader.machine.usage().capacity.total_bytes == 100


def test_while_loads_are_paused_a_hit_is_served_and_a_miss_is_told_to_come_back(pod: Build, model: Model) -> None:
    loader = pod()
    assert loader.use(1, model("here")) is None
    loader.send(CapacityChanged(Bytes.of(CPU, 100), "memory is nearly used up", loads_paused=True))
    assert loader.use(2, model("here")) is None
    assert loader.use(3, model("there")) is RefusalKind.OVERLOADED
    assert "memory is nearly used up" in loader.refused[3].message
    assert loader.refused[3].retry_after_s
    loader.send(CapacityChanged(Bytes.of(CPU, 100)))
    assert loader.use(4, model("there")) is None


def test_a_load_without_memory_is_tried_once_more_with_more_bytes_and_others_leave_for_it(
    pod: Build, model: Model
) -> None:
    loader = pod()
    assert loader.use(1, model("idle")) is None
    assert loader.use(2, model("idle-too")) is None
    loader.want(3, model("hungry"))
    (copy_id,) = loader.fetching
    loader.finish_fetch(copy_id)
    loader.run_out(copy_id, Bytes.of(CPU, 45))
    assert [loader.unloading[each].model_id for each in loader.unloading] == ["idle"]
    loader.run()
    assert 3 in loader.served
    assert resident(loader) == {"idle-too", "hungry"}


def test_a_second_time_without_memory_the_pod_is_full_for_a_while(pod: Build, model: Model) -> None:
    loader = pod()
    loader.want(1, model("hungry"))
    (copy_id,) = loader.fetching
    loader.finish_fetch(copy_id)
    loader.run_out(copy_id, Bytes.of(CPU, 45))
    loader.run_out(copy_id, Bytes.of(CPU, 60))
    assert loader.refused[1].kind is RefusalKind.FULL
    assert loader.refused[1].retry_after_s
    assert "no memory" in loader.refused[1].message
    assert used_bytes(loader) == 0


def test_want_of_memory_never_makes_a_model_too_big_for_good(pod: Build, model: Model) -> None:
    loader = pod(sizes={"hungry": 80})
    loader.want(1, model("hungry"))
    (copy_id,) = loader.fetching
    loader.finish_fetch(copy_id)
    loader.run_out(copy_id, Bytes.of(CPU, 120))
    loader.run()
    assert 1 in loader.served
