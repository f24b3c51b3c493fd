"""Copies that leave a device for RAM and come back, on a real loop, with a framework and a device that do not exist."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from cache.events import Retire
from cache.limits import CacheLimits
from cache.machine import CacheMachine
from cache.types import Bytes, CopyState, ModelKey, Place, RefusalKind, WantedModel
from mesh.loading.loading import Loading, Refused
from mesh.loading.places import HOST_MEMORY, HOST_TIER, place_of
from mesh.loading.pool_hooks import PoolHooks
from mesh.node_settings import CannotStart, cache_limits, chosen_devices
from mesh.settings import Settings
from mesh.staging import Staging
from mesh.telemetry import Telemetry
from placement.records import ModelRecord, ModelSpec
from runtime_adapters.artifacts.fetch import ArtifactStore
from runtime_adapters.base import CPU, Device
from runtime_adapters.devices import CudaScan, DeviceInfo
from runtime_adapters.errors import LoadFailed
from runtime_adapters.fake import FakeAdapter, FakeSpec, write_fake_artifact

GPU = Device("cuda", 0)
GPU_2 = Device("cuda", 1)
DEVICE = Place("device", "cuda:0")
DEVICE_2 = Place("device", "cuda:1")
MODEL_BYTES = 1_000
LONG_S = 10.0


class GpuPod:
    """Room for two models on each device, and for three parked ones."""

    def __init__(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch, devices: tuple[Device, ...] = (GPU,), **given: Any
    ) -> None:
        self.directory = directory
        self.adapter = FakeAdapter()
        monkeypatch.setattr("mesh.staging.adapter_for", lambda name: self.adapter)
        self.records: dict[ModelKey, ModelRecord] = {}
        self.here: list[tuple[str, bool]] = []
        capacity = {HOST_MEMORY: 100_000, HOST_TIER: 3 * MODEL_BYTES}
        capacity |= {place_of(device): 2 * MODEL_BYTES for device in devices}
        self.cache = CacheMachine(
            CacheLimits(capacity=Bytes.from_mapping(capacity), residency_min_s=0.0, residency_override_wait_s=0.0)
        )
        settings, telemetry = Settings(load_timeout_s=5.0, **given), Telemetry(CollectorRegistry())
        self.artifacts = ArtifactStore(directory / "disk", capacity_bytes=100_000_000)
        self.loading = Loading(
            cache=self.cache,
            staging=Staging(self.artifacts, settings, telemetry, GPU),
            settings=settings,
            telemetry=telemetry,
            devices=devices,
            record_of=self.records.get,
            on_loaded=lambda key: None,
            hooks=PoolHooks(
                resident_changed=lambda resident, here: self.here.append((resident.copy.key.model_id, here))
            ),
        )

    def register(self, *names: str) -> None:
        for name in names:
            path = write_fake_artifact(self.directory / f"{name}.json", FakeSpec(size_bytes=MODEL_BYTES))
            key = ModelKey("default", name)
            self.records[key] = ModelRecord("default", name, ModelSpec(uri=path.as_uri(), format="fake"), 1, 0.0, 0.0)

    async def ask(self, *names: str) -> None:
        for name in names:
            model = WantedModel(ModelKey("default", name))
            resident = await asyncio.wait_for(self.loading.wait_servable(model, None), LONG_S)
            try:
                assert resident.model.size().device_bytes == MODEL_BYTES
            finally:
                resident.let_go()

    def state(self, name: str) -> CopyState | None:
        states = [view.state for view in self.cache.copies() if view.key.model_id == name]
        return states[0] if states else None


@pytest.fixture
async def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[GpuPod]:
    pod = GpuPod(tmp_path, monkeypatch)
    pod.register("a", "b", "c")
    yield pod
    await pod.loading.close(5.0)
    await pod.artifacts.close()


async def test_a_model_that_made_room_comes_back_without_being_loaded_anew(pod: GpuPod) -> None:
    await pod.ask("a", "b", "c")
    assert pod.state("a") is CopyState.PARKED
    assert pod.cache.usage().used[HOST_TIER] == MODEL_BYTES
    await pod.ask("a")
    assert (pod.adapter.count("load", "a"), pod.adapter.count("unpark", "a")) == (1, 1)
    assert pod.cache.usage().used == Bytes.from_mapping({DEVICE: 2 * MODEL_BYTES, HOST_TIER: MODEL_BYTES})
    assert [(name, here) for name, here in pod.here if name == "a"] == [("a", True), ("a", False), ("a", True)]
    assert pod.adapter.count("unload") == 0


async def test_a_model_that_cannot_be_parked_is_unloaded(pod: GpuPod) -> None:
    def refuse(model_id: str) -> None:
        raise LoadFailed("there is no pinned memory left")

    pod.adapter.on("park", refuse)
    await pod.ask("a", "b", "c")
    assert pod.state("a") is None
    assert pod.adapter.count("unload", "a") == 1
    assert pod.cache.usage().used[HOST_TIER] == 0


async def test_a_return_that_fails_frees_the_parked_copy_and_is_reported(pod: GpuPod) -> None:
    def refuse(model_id: str) -> None:
        raise LoadFailed("the device is gone")

    await pod.ask("a", "b", "c")
    pod.adapter.on("unpark", refuse)
    with pytest.raises(Refused) as refused:
        await pod.ask("a")
    assert refused.value.refusal.kind is RefusalKind.LOAD_FAILED_TRANSIENT
    assert "the device is gone" in refused.value.refusal.message
    assert pod.adapter.count("unload", "a") == 1
    assert pod.state("a") is None
    assert pod.cache.usage().used[HOST_TIER] == MODEL_BYTES, "the copy that made room for the return"


async def test_parked_copies_are_freed_when_the_pod_stops(pod: GpuPod) -> None:
    await pod.ask("a", "b", "c")
    await pod.loading.close(5.0)
    assert pod.adapter.count("unload") == 3


async def test_a_copy_in_use_is_not_parked(pod: GpuPod) -> None:
    held = await asyncio.wait_for(pod.loading.wait_servable(WantedModel(ModelKey("default", "a")), None), LONG_S)
    await pod.ask("b", "c")
    assert (pod.state("a"), pod.state("b")) == (CopyState.SERVABLE, CopyState.PARKED)
    held.let_go()


async def test_a_return_that_fails_too_late_frees_the_parked_copy(pod: GpuPod) -> None:
    loop = asyncio.get_running_loop()
    begun, freed, goes_on = asyncio.Event(), asyncio.Event(), threading.Event()

    def fail_in_the_end(model_id: str) -> None:
        loop.call_soon_threadsafe(begun.set)
        goes_on.wait(LONG_S)
        raise LoadFailed("the device is gone")

    await pod.ask("a", "b", "c")
    pod.adapter.on("unpark", fail_in_the_end)
    pod.adapter.on("unload", lambda model_id: loop.call_soon_threadsafe(freed.set))
    waiting = asyncio.ensure_future(pod.ask("a"))
    await asyncio.wait_for(begun.wait(), LONG_S)
    pod.loading.send(Retire(ModelKey("default", "a")))
    with pytest.raises(Refused):
        await waiting
    goes_on.set()
    await asyncio.wait_for(freed.wait(), LONG_S)
    assert pod.adapter.count("unload", "a") == 1


async def test_each_gpu_is_filled_and_counted_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pod = GpuPod(tmp_path, monkeypatch, devices=(GPU, GPU_2), device_full="run_on_cpu")
    pod.register("a", "b", "c", "d", "e")
    try:
        await pod.ask("a", "b", "c", "d")
        on = {resident.copy.key.model_id: resident.device for resident in pod.loading.residents.every()}
        assert on == {"a": GPU, "b": GPU_2, "c": GPU, "d": GPU_2}
        resident = await asyncio.wait_for(
            pod.loading.wait_servable(WantedModel(ModelKey("default", "e")), None), LONG_S
        )
        assert resident.device == CPU, "all are full"
        resident.let_go()
        used = {DEVICE: 2 * MODEL_BYTES, DEVICE_2: 2 * MODEL_BYTES, HOST_MEMORY: MODEL_BYTES}
        assert pod.cache.usage().used == Bytes.from_mapping(used)
    finally:
        await pod.loading.close(5.0)
        await pod.artifacts.close()


async def test_when_the_gpu_is_full_a_model_runs_on_the_cpu_if_the_settings_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = GpuPod(tmp_path, monkeypatch, device_full="run_on_cpu")
    pod.register("a", "b", "c")
    try:
        await pod.ask("a", "b")
        resident = await asyncio.wait_for(
            pod.loading.wait_servable(WantedModel(ModelKey("default", "c")), None), LONG_S
        )
        assert resident.device == CPU
        assert (resident.model.size().device_bytes, resident.model.size().host_bytes) == (0, MODEL_BYTES)
        assert pod.adapter.count("warm_up", "c") > 0, "what a run of this content took on the GPU was taken for granted"
        resident.let_go()
        assert pod.cache.usage().used == Bytes.from_mapping({DEVICE: 2 * MODEL_BYTES, HOST_MEMORY: MODEL_BYTES})
        assert pod.adapter.count("park") == pod.adapter.count("unload") == 0
    finally:
        await pod.loading.close(5.0)
        await pod.artifacts.close()


def test_a_pod_with_a_gpu_has_a_host_tier_and_one_without_has_none() -> None:
    def capacity(device: Device, **settings: Any) -> Bytes:
        return cache_limits(Settings(capacity=1000, device_capacity=5000, **settings), (device,)).capacity

    assert capacity(CPU) == Bytes.of(HOST_MEMORY, 1000)
    assert capacity(CPU, host_capacity=300) == Bytes.of(HOST_MEMORY, 1000)
    assert capacity(GPU) == Bytes.from_mapping({HOST_MEMORY: 500, HOST_TIER: 500, DEVICE: 5000})
    assert capacity(GPU, host_capacity=300) == Bytes.from_mapping({HOST_MEMORY: 1000, HOST_TIER: 300, DEVICE: 5000})
    assert capacity(GPU, host_capacity=0) == Bytes.from_mapping({HOST_MEMORY: 1000, DEVICE: 5000})


def test_every_gpu_of_a_pod_has_the_capacity_of_one() -> None:
    limits = cache_limits(Settings(capacity=1000, device_capacity=5000, tenant_shares="a=20B"), (GPU, GPU_2))
    assert limits.capacity == Bytes.from_mapping({HOST_MEMORY: 500, HOST_TIER: 500, DEVICE: 5000, DEVICE_2: 5000})
    assert limits.tenants["a"].guarantee == Bytes.from_mapping({DEVICE: 20, DEVICE_2: 20})


@pytest.mark.parametrize(
    ("wish", "chosen"),
    [
        ("cpu", (CPU,)),
        ("auto", (GPU,)),
        ("cuda", (GPU,)),
        ("all", (GPU, GPU_2)),
        ("cuda:1", (GPU_2,)),
        ("cuda:1,cuda:0", (GPU_2, GPU)),
    ],
)
def test_models_run_on_the_devices_that_were_asked_for(
    wish: str, chosen: tuple[Device, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = CudaScan(tuple(DeviceInfo(device, "a GPU", 1000, 900) for device in (GPU, GPU_2)))
    monkeypatch.setattr("mesh.node_settings.cuda_devices", lambda: scan)
    assert chosen_devices(Settings(device=wish)) == chosen
    with pytest.raises(CannotStart, match="cuda:2 was asked for; here are cuda:0, cuda:1"):
        chosen_devices(Settings(device="cuda:0,cuda:2"))


def test_without_a_gpu_only_auto_is_content_with_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.node_settings.cuda_devices", lambda: CudaScan(why_none="there is no driver"))
    assert chosen_devices(Settings(device="auto")) == (CPU,)
    for wish in ("cuda", "all", "cuda:0"):
        with pytest.raises(CannotStart, match="there is no driver"):
            chosen_devices(Settings(device=wish))
