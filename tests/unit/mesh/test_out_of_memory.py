"""A framework that finds no memory in a load or a run: more is reserved, idle copies leave, it is tried once more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cache.events import CapacityChanged
from cache.types import Bytes, CopyState, Place, RefusalKind
from mesh.loading.loading import Refused
from mesh.loading.places import HOST_MEMORY, HOST_TIER, RAM
from mesh.memory_watch import MemoryWatch
from mesh.sizing import WORKSPACE_SHARE_MAX
from runtime_adapters.errors import OutOfMemory
from runtime_adapters.fake import FakeSpec
from runtime_adapters.memory_reading import MemoryReading
from tests.unit.mesh.test_loading import LONG_S, Pod

MIB = 1 << 20
GIB = 1 << 30
BIG = FakeSpec(size_bytes=200_000)


@pytest.fixture
def heard() -> list[tuple[Place, int, bool]]:
    """What whoever watches the memory of `pod` hears."""
    return []


@pytest.fixture
async def pod(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heard: list[tuple[Place, int, bool]]
) -> AsyncIterator[Pod]:
    def hear(place: Place, missing_bytes: int, message: str, *, counted: bool) -> None:
        heard.append((place, missing_bytes, counted))

    pod = Pod(tmp_path, ran_out=hear)
    monkeypatch.setattr("mesh.staging.adapter_for", lambda name: pod.adapter)
    yield pod
    pod.check_at_rest()
    await pod.loading.close(LONG_S)
    await pod.artifacts.close()


def runs_out(times: int) -> Callable[[str], None]:
    left = [times]

    def hook(model_id: str) -> None:
        if model_id == "hungry" and left[0] > 0:
            left[0] -= 1
            raise OutOfMemory("std::bad_alloc")

    return hook


async def test_a_load_without_memory_succeeds_the_second_time_with_more_reserved(pod: Pod) -> None:
    idle = [pod.register(f"idle{number}", BIG) for number in range(4)]
    hungry = pod.register("hungry", BIG)
    for model in idle:
        await pod.load(model)
    pod.adapter.on("load", runs_out(1))
    await pod.load(hungry)
    assert pod.is_servable(hungry)
    assert pod.adapter.count("load", "hungry") == 2
    assert pod.adapter.count("unload") == 1, "300,000 bytes were reserved the second time: one of four left"
    assert pod.charged_bytes() == 800_000, "what it was measured to take counts in the end"


async def test_the_second_time_without_memory_is_told_and_the_pod_lives_on(pod: Pod) -> None:
    hungry, other = pod.register("hungry", BIG), pod.register("other", BIG)
    pod.adapter.on("load", runs_out(2))
    with pytest.raises(Refused) as refused:
        await pod.load(hungry)
    assert refused.value.refusal.kind is RefusalKind.FULL
    assert "no memory" in refused.value.refusal.message
    await pod.load(other)
    assert pod.charged_bytes() == 200_000


async def test_whoever_watches_the_memory_hears_where_and_how_much_was_missing(
    pod: Pod, heard: list[tuple[Place, int, bool]]
) -> None:
    pod.adapter.on("load", runs_out(1))
    await pod.load(pod.register("hungry", BIG))
    assert heard == [(HOST_MEMORY, 0, False)]


async def test_a_run_without_memory_makes_its_copy_count_for_more_and_waits_until_others_have_left(
    pod: Pod,
) -> None:
    for number in range(4):
        await pod.load(pod.register(f"idle{number}", BIG))
    model = pod.register("hungry", BIG)
    resident = await pod.loading.wait_servable(model, None)
    await pod.loading.make_room(resident, 1_000, "std::bad_alloc")
    assert resident.workspace_bytes == int(WORKSPACE_SHARE_MAX * 1_000_000)
    assert pod.adapter.count("unload") == 2, "250,000 bytes beside five copies of 200,000 in a million"
    assert pod.cache.copy(resident.copy.copy_id).size.total_bytes == 450_000
    resident.let_go()


async def test_a_client_s_huge_requests_never_make_a_model_too_big_for_the_pod(pod: Pod) -> None:
    model = pod.register("hungry", BIG)
    resident = await pod.loading.wait_servable(model, None)
    for _ in range(10):
        await pod.loading.make_room(resident, 1 << 40, "std::bad_alloc")
    resident.let_go()
    assert pod.is_servable(model)
    assert resident.copy.state is CopyState.SERVABLE


@pytest.fixture
async def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Pod]:
    """A pod that may hold 500 MiB in a box that has 150 for it, beside the 41 that are danger."""

    def ran_out(place: Place, missing_bytes: int, message: str, *, counted: bool) -> None:
        watch.ran_out(place, missing_bytes, message, counted=counted)

    pod = Pod(tmp_path, capacity_bytes=500 * MIB, ran_out=ran_out, read_memory=lambda: read())
    monkeypatch.setattr("mesh.staging.adapter_for", lambda name: pod.adapter)

    def read() -> MemoryReading:
        held_bytes = sum(resident.size.host_bytes for resident in pod.loading.every_resident())
        return replace(QUIET, unreclaimable_bytes=GIB - 191 * MIB + held_bytes)

    watch = MemoryWatch(
        pod.cache.usage().capacity,
        RAM,
        read=read,
        used=lambda: pod.cache.usage().used,
        change_capacity=pod.loading.send,
    )
    yield pod
    pod.check_at_rest()
    await pod.loading.close(LONG_S)
    await pod.artifacts.close()


async def test_loads_that_would_lead_into_danger_are_not_begun_and_idle_copies_leave_for_them(box: Pod) -> None:
    models = [box.register(f"m{number}", FakeSpec(size_bytes=30 * MIB)) for number in range(8)]
    for model in models:
        await box.load(model)
        assert box.charged_bytes() <= 150 * MIB
    assert box.adapter.count("load") == 8, "none was begun in vain"
    assert box.cache.usage().capacity.total_bytes < 160 * MIB, "what the box has is known now"


async def test_a_load_that_finds_no_room_even_so_is_refused_as_full(box: Pod) -> None:
    with pytest.raises(Refused) as refused:
        await box.load(box.register("large", FakeSpec(size_bytes=200 * MIB)))
    assert refused.value.refusal.kind is RefusalKind.FULL
    assert "without danger" in refused.value.refusal.message
    await box.load(box.register("small", FakeSpec(size_bytes=30 * MIB)))
    assert box.adapter.count("load", "large") == 0


# -- the watch ---------------------------------------------------------------------------------------------------------

QUIET = MemoryReading(GIB, "memory.max of control group /pod", 700 * MIB, 600 * MIB, 400 * MIB, 0, 1, 0, 0, 0)
GPU = Place("device", "cuda:0")


class Watched:
    """A watch, and what it asked of the cache."""

    def __init__(self, tier_bytes: int = 0, parked_bytes: int = 0) -> None:
        self.asked: list[CapacityChanged] = []
        self.now_s = 0.0
        self.full = Bytes.from_mapping({HOST_MEMORY: 500 * MIB, HOST_TIER: tier_bytes, GPU: 80 * MIB})
        self.watch = MemoryWatch(
            self.full,
            RAM,
            read=lambda: QUIET,
            used=lambda: Bytes.from_mapping({HOST_MEMORY: 450 * MIB, HOST_TIER: parked_bytes, GPU: 60 * MIB}),
            change_capacity=self.asked.append,
            clock=lambda: self.now_s,
            in_thread=lambda name, work, *arguments: asyncio.get_running_loop().create_future(),
        )

    def see(self, reading: MemoryReading) -> None:
        self.now_s += 1.0
        self.watch.turn(reading)

    def figures(self) -> dict[tuple[str, str], float]:
        return {(sample.name, dict(sample.labels).get("device", "")): sample.value for sample in self.watch.samples()}


async def test_while_all_is_well_nothing_is_asked_of_the_cache() -> None:
    watched = Watched()
    for _ in range(100):
        watched.see(QUIET)
    assert watched.asked == []
    assert watched.watch.pressure == ""
    assert watched.figures()["hexcomb_memory_pressure", "cpu"] == 0
    assert watched.figures()["hexcomb_box_memory_limit_bytes", ""] == GIB


async def test_near_the_kernel_s_limit_loads_pause_and_the_reason_is_shown(caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched()
    watched.see(QUIET)
    for _ in range(5):
        watched.see(replace(QUIET, unreclaimable_bytes=GIB - 10 * MIB))
    assert watched.asked[0].loads_paused
    assert watched.asked[0].capacity[HOST_MEMORY] < 450 * MIB
    assert watched.asked[0].capacity[GPU] == 80 * MIB
    assert "10 MiB left" in watched.watch.pressure
    assert watched.figures()["hexcomb_memory_pressure", "cpu"] == 3
    assert sum("memory is short" in record.message for record in caplog.records) == 1, "once per episode"
    for _ in range(300):
        watched.see(QUIET)
    assert watched.asked[-1] == CapacityChanged(Bytes.from_mapping({HOST_MEMORY: 500 * MIB, GPU: 80 * MIB}))
    assert watched.watch.pressure == ""


async def test_when_memory_is_short_what_is_parked_leaves_before_what_serves() -> None:
    watched = Watched(tier_bytes=200 * MIB, parked_bytes=120 * MIB)
    watched.see(QUIET)
    watched.see(replace(QUIET, unreclaimable_bytes=GIB - 10 * MIB))
    (asked,) = watched.asked
    assert asked.loads_paused
    assert (asked.capacity[HOST_MEMORY], asked.capacity[GPU]) == (450 * MIB, 80 * MIB)
    assert 0 < asked.capacity[HOST_TIER] < 50 * MIB, "75 MB are missing"
    assert watched.figures()["hexcomb_memory_pressure", ""] == 3, "of the tier, too"
    for _ in range(300):
        watched.see(QUIET)
    assert watched.asked[-1] == CapacityChanged(watched.full)


async def test_a_device_without_memory_lowers_that_device_s_capacity_alone() -> None:
    watched = Watched()
    watched.watch.ran_out(GPU, 20 * MIB, "CUDA out of memory", counted=False)
    (asked,) = watched.asked
    assert asked.capacity == Bytes.from_mapping({HOST_MEMORY: 500 * MIB, GPU: 40 * MIB})
    assert not asked.loads_paused
    assert "cuda:0" in watched.watch.pressure


async def test_another_limit_that_becomes_the_tightest_is_not_compared_with_the_one_before() -> None:
    watched = Watched()
    watched.see(QUIET)
    watched.see(replace(QUIET, source="the machine's memory", major_faults=1 << 40, refaults=1 << 40, used_bytes=GIB))
    assert watched.asked == []


async def test_the_watch_reads_until_it_is_closed() -> None:
    read = asyncio.Event()
    loop = asyncio.get_running_loop()

    def reading() -> MemoryReading:
        loop.call_soon_threadsafe(read.set)
        return QUIET

    watch = MemoryWatch(
        Bytes.of(HOST_MEMORY, 100),
        RAM,
        read=reading,
        used=lambda: Bytes(),
        change_capacity=lambda event: None,
        every_s=0.001,
    )
    watch.start()
    async with asyncio.timeout(LONG_S):
        await read.wait()
    await watch.close()
