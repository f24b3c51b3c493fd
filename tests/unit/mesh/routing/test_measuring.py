"""What a pod says of its own room."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from cache.events import CapacityChanged
from cache.limits import CacheLimits
from cache.machine import CacheMachine
from cache.types import Bytes, Place
from mesh.routing.measuring import Measuring
from placement.policy.snapshot import Pod, Tier

HOST, GPU = Place("device", "cpu"), Place("device", "cuda:0")


def measured(cache: CacheMachine) -> Pod:
    counts = SimpleNamespace(loads=0, load_failures=0)
    loading: Any = SimpleNamespace(every_resident=tuple, counts=counts, mean_load_s=0.0, loads_concurrent_max=1)
    measuring = Measuring(cache, loading, threads=1, calls_in_flight=lambda: 0, clock=lambda: 0.0)
    return measuring.measured(Pod("p", "i", "h:1"), ready=True, draining=False, why_unready="")


def test_a_pod_tells_its_room_in_each_place_and_in_all() -> None:
    pod = measured(CacheMachine(CacheLimits(capacity=Bytes.from_mapping({HOST: 600, GPU: 400}))))
    assert set(pod.tiers) == {Tier("device", "cpu", 600, 600), Tier("device", "cuda:0", 400, 400)}
    assert (pod.capacity_bytes, pod.free_bytes) == (1000, 1000)


def test_a_capacity_that_changes_is_told_as_it_is_now() -> None:
    cache = CacheMachine(CacheLimits(capacity=Bytes.of(HOST, 600)))
    cache.handle(CapacityChanged(Bytes.of(HOST, 200), "the kernel took it back"), 1.0)
    pod = measured(cache)
    assert (pod.capacity_bytes, pod.tiers) == (200, (Tier("device", "cpu", 200, 200),))
