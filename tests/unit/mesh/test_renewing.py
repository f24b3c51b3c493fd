"""A model answers from what was fetched, and goes on as its prepared form, with every byte counted all the while."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from cache.events import EvictRequest
from cache.limits import CacheLimits
from cache.machine import CacheMachine
from cache.types import Bytes, ModelKey, WantedModel
from mesh.loading.loading import Loading
from mesh.loading.places import HOST_MEMORY
from mesh.renewing import Renewals
from mesh.resident import Resident
from mesh.settings import Settings
from mesh.staging import Staging
from mesh.telemetry import Telemetry
from placement.records import ModelRecord, ModelSpec
from runtime_adapters.artifacts.fetch import ArtifactStore, FetchRequest
from runtime_adapters.base import CPU
from runtime_adapters.errors import BadArtifact, LoadFailed, NoRoom
from runtime_adapters.fake import FakeAdapter, FakeSpec, write_fake_artifact

LONG_S = 10.0
KB = 1000


class Pod:
    """A loader, its cache and its artifacts, and what changes forms."""

    def __init__(self, directory: Path, capacity_bytes: int) -> None:
        self.directory = directory
        self.adapter = FakeAdapter()
        self.records: dict[ModelKey, ModelRecord] = {}
        self.cache = CacheMachine(CacheLimits(capacity=Bytes.of(HOST_MEMORY, capacity_bytes), residency_min_s=0.0))
        self.artifacts = ArtifactStore(directory / "disk", capacity_bytes=100_000_000)
        settings, telemetry = Settings(), Telemetry(CollectorRegistry())
        self.staging = staging = Staging(
            self.artifacts, settings, telemetry, CPU, free_bytes=lambda: self.cache.free[HOST_MEMORY]
        )
        self.loading = Loading(
            cache=self.cache,
            staging=staging,
            settings=settings,
            telemetry=telemetry,
            devices=(CPU,),
            record_of=self.records.get,
            on_loaded=lambda key: None,
            loaded_as_fetched=lambda resident, staged: self.renewals.begin(resident, staged),
        )
        self.renewals = Renewals(self.cache, self.loading, staging)

    def register(self, name: str, **spec: Any) -> ModelKey:
        path = write_fake_artifact(self.directory / f"{name}.json", FakeSpec(**spec))
        key = ModelKey("default", name, 1)
        self.records[key] = ModelRecord("default", name, ModelSpec(uri=path.as_uri(), format="fake"), 1, 0.0, 0.0)
        return key

    async def load(self, key: ModelKey) -> Resident:
        resident = await asyncio.wait_for(self.loading.wait_servable(WantedModel(key), None), LONG_S)
        resident.let_go()
        return resident

    async def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        until_s = time.monotonic() + LONG_S
        while not condition():
            assert time.monotonic() < until_s, what
            await asyncio.sleep(0.001)  # the loop must turn for the condition to come

    async def wait_prepared(self, resident: Resident) -> None:
        await self.wait_until(lambda: not resident.as_fetched, "its prepared form takes its place")

    def charged_bytes(self) -> int:
        self.cache.validate()
        return self.cache.usage().used.total_bytes


@pytest.fixture
async def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Pod]:
    pod = Pod(tmp_path, 100 * KB)
    monkeypatch.setattr("mesh.staging.adapter_for", lambda name: pod.adapter)
    monkeypatch.setattr("mesh.renewing.ROOM_AGAIN_S", 0.001)
    yield pod
    await pod.renewals.close()
    await pod.loading.close(LONG_S)
    await pod.artifacts.close()


class Gate:
    """Where the fake framework waits until the test opens it."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._open = threading.Event()

    def __call__(self, model_id: str) -> None:
        self._loop.call_soon_threadsafe(self.reached.set)
        assert self._open.wait(LONG_S), "the test never opened the gate"

    def open(self) -> None:
        self._open.set()


def answer_of(resident: Resident) -> float:
    return float(resident.model.infer({"x": np.ones((1, 4), np.float32)})["y"][0, 0])


async def test_a_model_answers_before_it_is_prepared_and_goes_on_as_its_prepared_form(pod: Pod) -> None:
    gate = Gate()
    pod.adapter.on("prepare", gate)
    resident = await pod.load(
        pod.register("m", factor=3.0, size_bytes=10 * KB, hot_bytes=12 * KB, fetched_bytes=20 * KB)
    )
    assert pod.adapter.count("warm_up") == 0, "its first request waited for a run that was not its own"
    assert (answer_of(resident), resident.form, pod.charged_bytes()) == (3.0, "fetched", 20 * KB)
    assert resident.copy.copy_id not in pod.loading.residents.two_forms, "it was offered for promotion"
    gate.open()
    await pod.wait_prepared(resident)
    assert (answer_of(resident), resident.form, pod.charged_bytes()) == (3.0, "cold", 10 * KB)
    assert resident.copy.copy_id in pod.loading.residents.two_forms
    assert resident.loadable.content_hash == resident.artifact.content_hash
    assert pod.adapter.count("unload") == 0


async def test_both_forms_are_charged_while_one_takes_the_others_place(pod: Pod) -> None:
    seen: list[int] = []
    pod.adapter.on("go_on_as", lambda model_id: seen.append(pod.cache.usage().used.total_bytes))
    await pod.wait_prepared(await pod.load(pod.register("m", size_bytes=10 * KB, fetched_bytes=20 * KB)))
    assert seen == [30 * KB]


async def test_models_that_come_at_once_do_not_count_on_the_same_free_bytes(pod: Pod) -> None:
    await pod.load(pod.register("here", size_bytes=15 * KB))
    keys = [pod.register(f"m{n}", size_bytes=10 * KB, fetched_bytes=30 * KB, factor=n) for n in (1.0, 2.0, 3.0)]
    await asyncio.gather(*(pod.load(key) for key in keys))
    assert pod.cache.usage().evictions_total == 0, "85 KB were free: enough for both forms of one of them"
    assert pod.cache.servable(ModelKey("default", "here", 1)) is not None


async def test_the_next_load_takes_the_prepared_form(pod: Pod) -> None:
    key = pod.register("m", size_bytes=10 * KB, fetched_bytes=20 * KB)
    await pod.wait_prepared(await pod.load(key))
    pod.loading.send(EvictRequest(key))
    await pod.wait_until(lambda: pod.adapter.count("unload") == 1, "it is unloaded")
    resident = await pod.load(key)
    assert (resident.as_fetched, pod.charged_bytes()) == (False, 10 * KB)
    assert pod.adapter.count("prepare") == 1


async def test_a_copy_that_leaves_while_it_is_prepared_comes_back_prepared(pod: Pod) -> None:
    gate = Gate()
    pod.adapter.on("prepare", gate)
    key = pod.register("m", size_bytes=10 * KB, fetched_bytes=20 * KB)
    await pod.load(key)
    await asyncio.wait_for(gate.reached.wait(), LONG_S)
    pod.loading.send(EvictRequest(key))
    await pod.wait_until(lambda: pod.adapter.count("unload") == 1, "it is not kept for its preparation")
    gate.open()
    await pod.wait_until(lambda: not pod.renewals._tasks, "the preparation has ended")
    resident = await pod.load(key)
    assert (resident.form, resident.as_fetched, pod.charged_bytes()) == ("", False, 10 * KB)
    assert pod.adapter.count("prepare") == 1


async def test_what_stands_for_another_version_is_not_taken_for_the_original(
    pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime_adapters.artifacts.disk_tier.ORIGINAL_DROP_MIN_BYTES", 1)

    def of_an_earlier_version(into: Path) -> bool:
        (into / "form").write_text("of a framework that is not here any more")
        return True

    def no_memory(model_id: str) -> None:
        raise LoadFailed("no memory to prepare it; it is tried again later")

    key = pod.register("m", factor=3.0, size_bytes=10 * KB, fetched_bytes=20 * KB)
    earlier = await pod.artifacts.fetch(FetchRequest(pod.records[key].spec.uri))
    await pod.artifacts.prepare(earlier, "fake-fake-0", of_an_earlier_version)
    pod.artifacts.release(earlier)
    pod.adapter.on("prepare", no_memory)
    await pod.load(key)
    await pod.wait_until(lambda: not pod.renewals._tasks, "the preparation has failed")
    pod.loading.send(EvictRequest(key))
    await pod.wait_until(lambda: pod.adapter.count("unload") == 1, "it is unloaded")
    await pod.wait_until(lambda: pod.charged_bytes() == 0, "its artifact is let go")
    await pod.artifacts._forms.wait_dropped()
    pod.adapter.on("prepare", lambda model_id: None)
    assert answer_of(await pod.load(key)) == 3.0


async def test_a_copy_is_not_unloaded_while_its_prepared_form_is_loaded(pod: Pod) -> None:
    gate = Gate()
    pod.adapter.on("go_on_as", gate)
    key = pod.register("m", size_bytes=10 * KB, fetched_bytes=20 * KB)
    await pod.load(key)
    await asyncio.wait_for(gate.reached.wait(), LONG_S)
    pod.loading.send(EvictRequest(key))
    assert pod.adapter.count("unload") == 0
    gate.open()
    await pod.wait_until(lambda: pod.adapter.count("unload") == 1, "it is unloaded after")
    await pod.wait_until(lambda: pod.charged_bytes() == 0, "nothing of it is charged")


async def test_where_both_forms_do_not_fit_the_model_is_prepared_first(pod: Pod) -> None:
    await pod.load(pod.register("other", size_bytes=70 * KB))
    resident = await pod.load(pod.register("m", size_bytes=10 * KB, fetched_bytes=20 * KB))
    assert (resident.as_fetched, pod.charged_bytes()) == (False, 80 * KB)
    assert pod.cache.usage().evictions_total == 0


async def test_a_change_waits_for_free_bytes_and_evicts_nobody(pod: Pod) -> None:
    gate = Gate()
    pod.adapter.on("prepare", gate)
    resident = await pod.load(pod.register("m", size_bytes=30 * KB, fetched_bytes=40 * KB))
    other = pod.register("other", size_bytes=50 * KB)
    await pod.load(other)
    gate.open()
    await pod.wait_prepared(await pod.load(pod.register("small", size_bytes=1 * KB, fetched_bytes=2 * KB)))
    assert (resident.form, pod.cache.usage().evictions_total) == ("fetched", 0)
    pod.loading.send(EvictRequest(other))
    await pod.wait_prepared(resident)
    assert pod.charged_bytes() == 31 * KB


async def test_a_change_that_finds_no_room_in_the_box_is_tried_again(pod: Pod) -> None:
    def no_room(model_id: str) -> None:
        if pod.adapter.count("go_on_as") == 1:
            raise NoRoom("the box is full", 10 * KB)

    pod.adapter.on("go_on_as", no_room)
    resident = await pod.load(pod.register("m", size_bytes=10 * KB, fetched_bytes=20 * KB))
    await pod.wait_prepared(resident)
    assert (pod.adapter.count("go_on_as"), pod.charged_bytes()) == (2, 10 * KB)


async def test_a_pod_that_stops_begins_no_change(pod: Pod) -> None:
    await pod.renewals.close()
    resident = await pod.load(pod.register("m", size_bytes=10 * KB, fetched_bytes=20 * KB))
    await asyncio.sleep(0)  # the turn in which a load's listeners hear of it
    assert (resident.form, pod.renewals._tasks, pod.adapter.count("prepare")) == ("fetched", set(), 0)


async def test_a_prepared_form_that_does_not_load_leaves_the_copy_as_it_was(pod: Pod) -> None:
    def refuse(model_id: str) -> None:
        raise LoadFailed("no memory for the prepared form; it is tried again later")

    pod.adapter.on("go_on_as", refuse)
    resident = await pod.load(pod.register("m", factor=3.0, size_bytes=10 * KB, fetched_bytes=20 * KB))
    await pod.wait_until(lambda: pod.adapter.count("unload") == 1, "what was loaded in vain is freed")
    await pod.wait_until(lambda: not pod.renewals._tasks, "the change has ended")
    assert (answer_of(resident), resident.form, pod.charged_bytes()) == (3.0, "fetched", 20 * KB)


async def test_a_model_that_cannot_be_prepared_goes_on_as_the_load_in_no_haste_makes_it(pod: Pod) -> None:
    def refuse(model_id: str) -> None:
        raise BadArtifact("the optimiser refuses it; correct the model")

    pod.adapter.on("prepare", refuse)
    resident = await pod.load(pod.register("m", size_bytes=10 * KB, fetched_bytes=20 * KB))
    await pod.wait_prepared(resident)
    assert pod.charged_bytes() == 10 * KB


async def test_a_change_that_gets_no_thread_lets_the_copy_go(pod: Pod) -> None:
    tried = asyncio.Event()

    def no_thread(name: str, work: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
        tried.set()
        raise RuntimeError("can't start new thread")

    pod.renewals = Renewals(pod.cache, pod.loading, pod.staging, in_thread=no_thread)
    resident = await pod.load(pod.register("m", size_bytes=10 * KB, fetched_bytes=20 * KB))
    await asyncio.wait_for(tried.wait(), LONG_S)
    assert (resident.copy.pins, resident.as_fetched, pod.charged_bytes()) == (0, True, 20 * KB)


async def test_a_change_that_is_cancelled_twice_lets_the_copy_go_when_its_thread_ends(pod: Pod) -> None:
    gate = Gate()
    pod.adapter.on("go_on_as", gate)
    resident = await pod.load(pod.register("m", size_bytes=10 * KB, fetched_bytes=20 * KB))
    await gate.reached.wait()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(pod.renewals.close(), 0.01)  # the change is cancelled, and waits for its thread
    await pod.renewals.close()  # and is cancelled once more
    assert resident.copy.pins == 1
    gate.open()
    await pod.wait_until(lambda: resident.copy.pins == 0, "the copy is let go")
    assert (resident.as_fetched, pod.charged_bytes()) == (False, 10 * KB)
