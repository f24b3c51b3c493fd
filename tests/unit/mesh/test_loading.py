"""The loader on a real loop with real artifacts and a fake framework: what the cache orders is done, once, and undone.

The fake framework tells a test when it is reached and waits for the test's word, so that nothing depends on time.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from cache.events import Crashed, Drain, EvictRequest, Forgive, Retire
from cache.limits import CacheLimits
from cache.machine import CacheMachine
from cache.types import Bytes, CopyState, ModelKey, RefusalKind, WantedModel
from mesh.loading.loading import Loading, Refused
from mesh.loading.places import HOST_MEMORY
from mesh.loading.pool_hooks import PoolHooks
from mesh.loading.running_out import RanOut, nobody_hears
from mesh.room import ReadMemory
from mesh.settings import Settings
from mesh.staging import Staging
from mesh.telemetry import Telemetry
from placement.records import ModelRecord, ModelSpec
from runtime_adapters.artifacts.fetch import ArtifactStore, FetchRequest
from runtime_adapters.base import CPU, LoadOptions, Size, Trust
from runtime_adapters.errors import BadArtifact, UntrustedArtifact
from runtime_adapters.fake import FakeAdapter, FakeSpec, write_fake_artifact
from runtime_adapters.isolation_process import scratch_root
from runtime_adapters.registry import adapter_for

CAPACITY_BYTES = 1_000_000
LONG_S = 10.0
_PYTHON_MODEL = """
import os
from runtime_adapters.custom import Model, TensorSpec

class M(Model):
    inputs = (TensorSpec("x", "FP32", (-1,)),)
    outputs = (TensorSpec("y", "FP32", (-1,)),)
"""


class Gate:
    """A point where the fake framework waits until the test opens it."""

    def __init__(self) -> None:
        self._reached = threading.Semaphore(0)
        self._open = threading.Event()

    def __call__(self, model_id: str) -> None:
        self._reached.release()
        assert self._open.wait(LONG_S), "the test never opened the gate"

    async def reached(self) -> None:
        assert await asyncio.to_thread(self._reached.acquire, True, LONG_S), "it was never reached"

    def open(self) -> None:
        self._open.set()


class DiskNotes:
    """Writes down what a listener is told of the disk."""

    def __init__(self) -> None:
        self.contents: dict[ModelKey, str] = {}
        self.told: list[ModelKey] = []
        self.load_times_s: list[tuple[ModelKey, float]] = []

    def on_disk(self, key: ModelKey, content: str) -> None:
        self.contents[key] = content
        self.told.append(key)

    def gone(self, content: str) -> None:
        self.contents = {key: kept for key, kept in self.contents.items() if kept != content}

    def loaded(self, key: ModelKey, load_s: float) -> None:
        self.load_times_s.append((key, load_s))


class Pod:
    """A loader, its cache, its artifacts, and the models that are registered."""

    def __init__(
        self,
        directory: Path,
        capacity_bytes: int = CAPACITY_BYTES,
        clock: Callable[[], float] = time.monotonic,
        ran_out: RanOut = nobody_hears,
        read_memory: ReadMemory | None = None,
        **settings: Any,
    ) -> None:
        self.directory = directory
        self.adapter = FakeAdapter()
        self.records: dict[ModelKey, ModelRecord] = {}
        self.servable: list[ModelKey] = []
        self.resident: list[tuple[str, bool]] = []
        self.crashed: list[ModelKey] = []
        self.cache = CacheMachine(
            CacheLimits(
                capacity=Bytes.of(HOST_MEMORY, capacity_bytes),
                loads_concurrent_max=2,
                residency_min_s=0.0,
                residency_override_wait_s=0.0,
                failure_backoff_base_s=60.0,
                prefetch=True,
            )
        )
        self.elsewhere: set[ModelKey] = set()
        self.disk = DiskNotes()
        self.artifacts = ArtifactStore(directory / "disk", capacity_bytes=100_000_000, content_gone=self.disk.gone)
        given, telemetry = Settings(**settings), Telemetry(CollectorRegistry())
        self.staging = Staging(self.artifacts, given, telemetry, CPU, disk_listener=self.disk)
        self.loading = Loading(
            cache=self.cache,
            staging=self.staging,
            settings=given,
            telemetry=telemetry,
            devices=(CPU,),
            record_of=self.records.get,
            on_loaded=self.servable.append,
            hooks=PoolHooks(
                resident_changed=lambda resident, here: self.resident.append((resident.copy.key.model_id, here)),
                is_elsewhere=self.elsewhere.__contains__,
                crashed=self.crashed.append,
            ),
            ran_out=ran_out,
            read_memory=read_memory,
            clock=clock,
        )

    def register(self, model_id: str, spec: FakeSpec | None = None, generation: int = 1, **fields: Any) -> WantedModel:
        path = write_fake_artifact(self.directory / f"{model_id}-{generation}.json", spec)
        key = ModelKey("default", model_id, generation)
        self.records[key] = ModelRecord(
            "default", model_id, ModelSpec(uri=path.as_uri(), format="fake", **fields), generation, 0.0, 0.0
        )
        return WantedModel(key)

    async def load(self, model: WantedModel, deadline_s: float | None = None) -> None:
        resident = await asyncio.wait_for(self.loading.wait_servable(model, deadline_s), LONG_S)
        resident.let_go()

    def is_servable(self, model: WantedModel) -> bool:
        return self.cache.servable(model.key) is not None

    def charged_bytes(self) -> int:
        return sum(amount.total_bytes for amount in self.cache.usage().bytes_by_state.values())

    async def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        deadline_s = time.monotonic() + LONG_S
        while not condition():
            assert time.monotonic() < deadline_s, what
            await asyncio.sleep(0.001)  # the loop must turn for the condition to come

    def check_at_rest(self) -> None:
        self.cache.validate()
        assert self.loading.waiting == 0
        assert all(copy.pins == 0 for copy in self.cache.copies())


@pytest.fixture
async def make_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[..., Pod]]:
    pods: list[Pod] = []

    def make(**settings: Any) -> Pod:
        pod = Pod(tmp_path, **settings)
        monkeypatch.setattr("mesh.staging.adapter_for", lambda name: pod.adapter)
        pods.append(pod)
        return pod

    yield make
    for pod in pods:
        pod.check_at_rest()
        await pod.loading.close(LONG_S)
        await pod.artifacts.close()


@pytest.fixture
def pod(make_pod: Callable[..., Pod]) -> Pod:
    return make_pod()


async def test_many_waiters_cause_one_load_and_all_are_served(pod: Pod) -> None:
    gate = Gate()
    pod.adapter.on("load", gate)
    model = pod.register("m", FakeSpec(size_bytes=1000))
    waiting = [asyncio.ensure_future(pod.load(model)) for _ in range(300)]
    await gate.reached()
    assert pod.loading.waiting == 300
    assert pod.loading.servable(model.key) is None
    gate.open()
    await asyncio.gather(*waiting)
    assert pod.adapter.count("load") == 1
    assert pod.loading.counts.loads == 1
    await pod.wait_until(lambda: pod.servable == [model.key], "it is announced, once")
    assert pod.loading.metadata(model.key) is not None
    resident = pod.loading.servable(model.key)
    assert resident is not None
    resident.let_go()


async def test_room_is_made_before_a_load_and_the_victims_files_are_let_go(pod: Pod) -> None:
    models = [pod.register(f"m{index}", FakeSpec(size_bytes=400_000)) for index in range(3)]
    for model in models:
        await pod.load(model)
        assert pod.charged_bytes() <= CAPACITY_BYTES
    assert pod.adapter.calls.index(("unload", "m0")) < pod.adapter.calls.index(("load", "m2"))
    assert pod.loading.counts.unloads == 1
    assert pod.loading.servable(models[0].key) is None
    await pod.load(models[0])
    assert pod.adapter.count("load", "m0") == 2


async def test_a_copy_in_use_is_not_unloaded_and_the_claim_waits_for_it(pod: Pod) -> None:
    first, second = (pod.register(name, FakeSpec(size_bytes=700_000)) for name in ("first", "second"))
    held = await pod.loading.wait_servable(first, None)
    waiting = asyncio.ensure_future(pod.load(second))
    await pod.wait_until(
        lambda: (view := pod.cache.current(second.key)) is not None and view.state is CopyState.WAITING_FOR_SPACE,
        "the second waits for space",
    )
    assert pod.adapter.count("unload") == 0
    held.let_go()
    await waiting
    assert pod.adapter.calls.index(("unload", "first")) < pod.adapter.calls.index(("load", "second"))


@pytest.mark.parametrize(
    ("fails", "kind"),
    [
        ("bad_artifact", RefusalKind.LOAD_FAILED_PERMANENT),
        ("load_failed", RefusalKind.LOAD_FAILED_TRANSIENT),
    ],
)
async def test_a_failed_load_is_told_to_all_who_wait_and_remembered(pod: Pod, fails: str, kind: RefusalKind) -> None:
    model = pod.register("m", FakeSpec(fails=fails))
    results = await asyncio.gather(*(pod.load(model) for _ in range(5)), return_exceptions=True)
    assert [result.refusal.kind for result in results if isinstance(result, Refused)] == [kind] * 5
    assert pod.charged_bytes() == 0
    assert pod.loading.failure(model.key) is not None
    with pytest.raises(Refused):
        await pod.load(model)
    assert pod.adapter.count("load") == 1, "it was tried again at once"
    assert pod.loading.counts.load_failures == 1


async def test_a_defect_in_a_framework_is_a_passing_failure_without_its_words(pod: Pod) -> None:
    def explode(_: str) -> None:
        raise RuntimeError("the password is 1234")

    pod.adapter.on("load", explode)
    with pytest.raises(Refused) as refused:
        await pod.load(pod.register("m"))
    assert refused.value.refusal.kind is RefusalKind.LOAD_FAILED_TRANSIENT
    assert "RuntimeError" in refused.value.refusal.message
    assert "1234" not in refused.value.refusal.message


async def test_a_model_that_is_unregistered_before_its_fetch_is_refused(pod: Pod) -> None:
    model = pod.register("m")
    pod.records.clear()
    with pytest.raises(Refused, match="not registered"):
        await pod.load(model)


async def test_a_load_beyond_its_time_is_told_at_once_and_its_bytes_count_until_it_ends(
    make_pod: Callable[..., Pod],
) -> None:
    pod = make_pod(load_timeout_s=0.05)
    gate = Gate()
    pod.adapter.on("load", gate)
    slow = pod.register("slow", FakeSpec(size_bytes=600_000))
    with pytest.raises(Refused, match=r"load_timeout_s.*isolation=process") as refused:
        await pod.load(slow)
    assert refused.value.refusal.kind is RefusalKind.LOAD_FAILED_TRANSIENT
    assert pod.charged_bytes() == 600_000, "a thread still fills memory that nobody counts"

    pod.adapter.on("load", lambda _: None)
    for index in range(3):  # loads go on beside it: it holds bytes, and no turn
        await pod.load(pod.register(f"quick-{index}", FakeSpec(size_bytes=100_000)))
    big = pod.register("big", FakeSpec(size_bytes=500_000))
    waiting = asyncio.ensure_future(pod.load(big))
    gate.open()
    await waiting
    assert pod.adapter.count("unload", "slow") == 1, "what it made was not freed"
    await pod.wait_until(lambda: pod.charged_bytes() <= 800_000, "its bytes are given back")


async def test_threads_that_hang_take_no_turn_from_other_loads(make_pod: Callable[..., Pod]) -> None:
    pod = make_pod(load_timeout_s=0.05)
    gate = Gate()
    pod.adapter.on("load", gate)
    for index in range(4):  # twice as many as may load at a time
        with pytest.raises(Refused):
            await pod.load(pod.register(f"hung-{index}", FakeSpec(size_bytes=1000)))
    pod.adapter.on("load", lambda _: None)
    await pod.load(pod.register("quick", FakeSpec(size_bytes=1000)))
    gate.open()
    await pod.wait_until(lambda: pod.charged_bytes() == 1000, "the hung ones are freed when they come back")
    assert pod.adapter.count("unload") == 4


async def test_a_waiter_that_leaves_is_forgotten_and_the_load_still_ends_well(pod: Pod) -> None:
    gate = Gate()
    pod.adapter.on("load", gate)
    model = pod.register("m", FakeSpec(size_bytes=1000))
    waiting = asyncio.ensure_future(pod.load(model))
    await gate.reached()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert pod.loading.waiting == 0
    gate.open()
    await pod.load(model)
    assert pod.adapter.count("load") == 1
    assert pod.charged_bytes() == 1000


async def test_a_waiter_that_leaves_in_the_turn_in_which_it_is_served_keeps_no_pin(pod: Pod) -> None:
    for generation in range(1, 20):
        model = pod.register("m", generation=generation)
        waiting = [asyncio.ensure_future(pod.loading.wait_servable(model, None)) for _ in range(3)]
        await pod.wait_until(partial(pod.is_servable, model), "it is loaded")
        for each in waiting:
            each.cancel()
        for result in await asyncio.gather(*waiting, return_exceptions=True):
            if not isinstance(result, BaseException):
                result.let_go()
        await asyncio.sleep(0)
        pod.check_at_rest()
        pod.loading.send(Retire(model.key))
        await pod.wait_until(lambda: pod.charged_bytes() == 0, "it is gone")


async def test_a_retired_model_gives_its_waiters_gone_and_frees_what_was_on_its_way(pod: Pod) -> None:
    gate = Gate()
    pod.adapter.on("load", gate)
    model = pod.register("m", FakeSpec(size_bytes=1000))
    waiting = asyncio.ensure_future(pod.load(model))
    await gate.reached()
    pod.loading.send(Retire(model.key))
    with pytest.raises(Refused) as refused:
        await waiting
    assert refused.value.refusal.kind is RefusalKind.GONE
    assert pod.charged_bytes() == 1000
    gate.open()
    await pod.wait_until(lambda: pod.charged_bytes() == 0, "its bytes are given back")
    await pod.wait_until(lambda: pod.adapter.count("unload") == 1, "what the thread made is freed")


async def test_a_crashed_copy_leaves_when_let_go_and_the_next_request_loads_again(pod: Pod) -> None:
    model = pod.register("m", FakeSpec(size_bytes=1000))
    held = await pod.loading.wait_servable(model, None)
    pod.loading.crashed(held, "SIGSEGV")
    assert pod.loading.servable(model.key) is None
    await pod.load(model)
    held.let_go()
    await pod.wait_until(lambda: pod.charged_bytes() == 1000, "the crashed one left")
    assert pod.adapter.count("load") == 2


@pytest.mark.parametrize(
    ("method", "crashes"),
    [("load(self): os.abort()", 1), ("predict(self, inputs): os.abort()", 1), ("load(self): raise ValueError", 0)],
    ids=["in its load", "in its warm-up", "which it does not"],
)
async def test_a_process_of_a_models_own_that_dies_before_it_serves_is_told(
    make_pod: Callable[..., Pod], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, method: str, crashes: int
) -> None:
    pod = make_pod(capacity_bytes=100 << 20, trusted_prefixes=[f"{tmp_path.as_uri()}/"])
    monkeypatch.setattr("mesh.staging.adapter_for", adapter_for)
    source = tmp_path / "m" / "model.py"
    source.parent.mkdir()
    source.write_text(f"{_PYTHON_MODEL}    def {method}\n")
    model = pod.register("m")
    spec = ModelSpec(uri=source.parent.as_uri(), format="python")
    pod.records[model.key] = replace(pod.records[model.key], spec=spec)
    scratch_root(tempfile.gettempdir())  # held open for the pod's life
    open_before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(Refused):
        await pod.load(model)
    assert pod.crashed == [model.key] * crashes
    assert len(os.listdir("/proc/self/fd")) == open_before


async def test_what_was_measured_is_reserved_the_next_time(pod: Pod) -> None:
    model = pod.register("m", FakeSpec(size_bytes=300_000, estimate_bytes=10))
    await pod.load(model)
    assert pod.charged_bytes() == 300_000
    pod.loading.send(Crashed(next(copy.copy_id for copy in pod.cache.copies()), "gone"))
    await pod.wait_until(lambda: pod.charged_bytes() == 0, "it left")
    gate = Gate()
    pod.adapter.on("load", gate)
    waiting = asyncio.ensure_future(pod.load(model))
    await gate.reached()
    assert pod.charged_bytes() == 300_000
    gate.open()
    await waiting


async def test_an_unload_that_fails_keeps_its_bytes_counted_until_it_succeeds(pod: Pod) -> None:
    failing = True

    def fail(_: str) -> None:
        if failing:
            raise RuntimeError("busy")

    model = pod.register("m", FakeSpec(size_bytes=1000))
    await pod.load(model)
    pod.adapter.on("unload", fail)
    pod.loading.send(Retire(model.key))
    await pod.wait_until(lambda: pod.adapter.count("unload") == 1, "it was asked to unload")
    await asyncio.sleep(0)
    assert pod.charged_bytes() == 1000
    failing = False


async def test_a_draining_pod_refuses_and_a_closed_one_frees_all_copies(pod: Pod) -> None:
    for index in range(5):
        await pod.load(pod.register(f"m{index}", FakeSpec(size_bytes=1000)))
    pod.loading.send(Drain())
    with pytest.raises(Refused) as refused:
        await pod.load(pod.register("late"))
    assert refused.value.refusal.kind is RefusalKind.DRAINING
    await pod.loading.close(LONG_S)
    assert pod.adapter.count("unload") == 5


async def evict(pod: Pod, model: WantedModel) -> None:
    pod.loading.send(EvictRequest(model.key))
    await pod.wait_until(lambda: not pod.cache.copies(), "it left")


async def test_a_reload_that_cannot_be_prepared_is_refused_and_the_next_one_tries_again(
    pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: Any) -> None:
        raise OSError("the disk is gone")

    model = pod.register("m", FakeSpec(size_bytes=1000))
    await pod.load(model)
    await evict(pod, model)
    with monkeypatch.context() as patch:
        patch.setattr(pod.artifacts, "prepare", fail)
        with pytest.raises(Refused) as refused:
            await pod.load(model)
    assert refused.value.refusal.kind is RefusalKind.LOAD_FAILED_TRANSIENT
    assert not pod.cache.copies()
    pod.loading.send(Forgive(model.key))
    await pod.load(model)


async def test_a_reload_that_is_cancelled_while_it_is_prepared_can_be_loaded_later(
    pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = asyncio.Event()

    async def hang(*_: Any) -> None:
        began.set()
        await asyncio.Event().wait()

    model = pod.register("m", FakeSpec(size_bytes=1000))
    await pod.load(model)
    await evict(pod, model)
    with monkeypatch.context() as patch:
        patch.setattr(pod.artifacts, "prepare", hang)
        caller = asyncio.ensure_future(pod.load(model))
        await began.wait()
        caller.cancel()
        await pod.wait_until(lambda: not pod.cache.copies(), "the cancelled fetch has ended")
    await pod.load(model)


async def test_a_model_whose_metadata_make_no_sense_fails_to_load_and_leaves_nothing(
    pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Any) -> None:
        raise ValueError("two inputs of one name")

    model = pod.register("m", FakeSpec(size_bytes=1000))
    monkeypatch.setattr("mesh.loading.residents.InputChecker", refuse)
    with pytest.raises(Refused):
        await pod.load(model)
    assert pod.charged_bytes() == 0
    assert pod.adapter.count("unload") == 1


async def test_a_name_that_is_registered_anew_is_not_loaded_from_what_its_predecessor_was(pod: Pod) -> None:
    await pod.load(pod.register("m", FakeSpec(size_bytes=1000)))
    model = pod.register("m", FakeSpec(size_bytes=2000))  # an hour later: the tombstone with its generation has gone
    await evict(pod, model)
    pod.loading.forget(model.key)
    assert pod.loading.metadata(model.key) is None
    await pod.load(model)
    assert pod.charged_bytes() == 2000


async def test_closing_leaves_alone_what_still_runs_in_this_process(pod: Pod) -> None:
    held = await pod.loading.wait_servable(pod.register("busy", FakeSpec(size_bytes=1000)), None)
    await pod.load(pod.register("idle", FakeSpec(size_bytes=1000)))
    await pod.loading.close(LONG_S)
    assert (pod.adapter.count("unload", "busy"), pod.adapter.count("unload", "idle")) == (0, 1)
    held.let_go()


async def test_an_untrusted_artifact_is_named_without_the_signature_of_its_url(
    pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = pod.register("m")
    monkeypatch.setattr(pod.adapter, "trust", Trust.RUNS_CODE, raising=False)
    record = pod.records[model.key]
    artifact = await pod.artifacts.fetch(FetchRequest(uri=record.spec.uri))
    signed = replace(record, spec=ModelSpec(uri="https://store.example/m.json?X-Amz-Signature=hunter2", format="fake"))
    with pytest.raises(UntrustedArtifact, match=r"store\.example/m\.json") as refused:
        await pod.loading._staging._prepare(signed, artifact, "fake", None)
    assert "hunter2" not in str(refused.value)
    pod.artifacts.release(artifact)


class Heard:
    """A fake model's file that is read while it comes, and remembers what it was."""

    def __init__(self) -> None:
        self.content = b""
        self.prepared = 0

    def take(self, piece: bytes) -> None:
        self.content += piece

    def prepare(self, into: Path, options: LoadOptions) -> bool:
        self.prepared += 1
        return False

    def size(self) -> Size:
        return Size(host_bytes=1000)


async def test_a_file_that_was_read_while_it_came_is_not_read_again_to_be_prepared(
    pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Heard()
    monkeypatch.setattr(pod.adapter, "reading", lambda: heard, raising=False)
    model = pod.register("m", FakeSpec(fetched_bytes=1000))
    await pod.load(model)
    assert len(heard.content) == (pod.directory / "m-1.json").stat().st_size
    assert (heard.prepared, pod.adapter.count("prepare")) == (1, 0)


async def test_content_that_has_loaded_before_is_tried_once_more_at_once(pod: Pod) -> None:
    model = pod.register("m", FakeSpec(size_bytes=1000))
    await pod.load(model)
    pod.loading.send(EvictRequest(model.key))
    failures = iter([BadArtifact("two loads met in the framework")])

    def fail_once(model_id: str) -> None:
        for failure in failures:
            raise failure

    pod.adapter.on("load", fail_once)
    await pod.load(model)
    assert pod.adapter.count("load", "m") == 3
    assert pod.loading.counts.load_failures == 0


async def test_content_that_has_run_before_is_warmed_up_only_where_nobody_waits_to_run_it(pod: Pod) -> None:
    model = pod.register("m", FakeSpec(size_bytes=1000))
    await pod.load(model)
    warm_ups = pod.adapter.count("warm_up")
    for background in (False, True):
        unloads = pod.loading.counts.unloads
        pod.loading.send(EvictRequest(model.key))
        await pod.wait_until(lambda before=unloads: pod.loading.counts.unloads > before, "it is evicted")
        resident = await pod.loading.wait_servable(model, None, background=background)
        resident.let_go()
        assert pod.adapter.count("warm_up") == warm_ups + background


async def test_what_was_measured_before_is_measured_again_only_where_nobody_waits(
    pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []
    monkeypatch.setattr("mesh.loading.measured_load.MEASURED_MIN_BYTES", 1)
    monkeypatch.setattr("mesh.loading.measured_load.forget_high_water", lambda: measured.append("once"))
    model = pod.register("m", FakeSpec(size_bytes=1000))
    for background, times in ((False, 1), (False, 1), (True, 2)):
        unloads = pod.loading.counts.unloads
        resident = await pod.loading.wait_servable(model, None, background=background)
        resident.let_go()
        assert len(measured) == times
        assert pod.charged_bytes() == 1000
        pod.loading.send(EvictRequest(model.key))
        await pod.wait_until(lambda before=unloads: pod.loading.counts.unloads > before, "it is evicted")


async def test_the_pool_hears_of_copies_that_come_and_of_copies_that_go(pod: Pod) -> None:
    model = pod.register("m")
    await pod.load(model)
    assert pod.resident == [("m", True)]
    pod.loading.send(EvictRequest(model.key))
    await pod.wait_until(lambda: pod.resident == [("m", True), ("m", False)], "its slot is not given back")


async def test_a_listener_hears_what_each_load_found_on_the_disk_and_what_left_it(pod: Pod) -> None:
    model = pod.register("m")
    record = pod.records[model.key]
    assert pod.staging.content_on_disk(record) is None
    await pod.load(model)
    content = pod.staging.content_on_disk(record)
    assert content is not None
    assert pod.disk.contents == {model.key: content}
    pod.loading.send(EvictRequest(model.key))
    await pod.wait_until(lambda: pod.loading.counts.unloads == 1, "it is evicted")
    await pod.load(model)
    assert pod.disk.told == [model.key, model.key]
    assert [key for key, load_s in pod.disk.load_times_s if load_s > 0] == [model.key, model.key]
    pod.loading.send(EvictRequest(model.key))
    await pod.wait_until(lambda: pod.loading.counts.unloads == 2, "it is evicted again")
    await pod.artifacts._disk.evict((f"content/{content}",))
    assert (pod.disk.contents, pod.staging.content_on_disk(record)) == ({}, None)


async def test_an_artifact_that_cannot_be_prepared_is_not_told_of(pod: Pod) -> None:
    model = pod.register("m")
    (pod.directory / "m-1.json").write_text("no model")
    with pytest.raises(Refused):
        await pod.load(model)
    assert pod.disk.contents == {}


async def _used_together(make_pod: Callable[..., Pod]) -> tuple[Pod, WantedModel, WantedModel]:
    """A pod on which `second` was always asked for right after `first`, and has been evicted since."""
    now_s = 1_000.0
    pod = make_pod(clock=lambda: now_s)
    first, second = pod.register("first"), pod.register("second")
    for _ in range(4):
        now_s += 100.0
        await pod.load(first)
        now_s += 0.5
        await pod.load(second)
    pod.loading.send(EvictRequest(second.key))
    await pod.wait_until(lambda: pod.loading.counts.unloads == 1, "it left")
    now_s += 100.0
    return pod, first, second


async def test_a_model_that_is_used_together_with_another_comes_with_it(make_pod: Callable[..., Pod]) -> None:
    pod, first, second = await _used_together(make_pod)
    await pod.load(first)
    await pod.wait_until(lambda: pod.is_servable(second), "it is brought in")
    assert pod.cache.usage().prefetches == 1
    await pod.wait_until(lambda: not pod.cache.copies()[-1].pins, "nobody holds it")
    await pod.load(second)
    assert pod.cache.usage().prefetches_used == 1


@pytest.mark.parametrize("why", ["served elsewhere", "unregistered"])
async def test_nothing_is_prefetched_that_nobody_would_ask_this_pod_for(make_pod: Callable[..., Pod], why: str) -> None:
    pod, first, second = await _used_together(make_pod)
    if why == "unregistered":
        del pod.records[second.key]
    else:
        pod.elsewhere.add(second.key)
    await pod.load(first)
    for _ in range(20):
        await asyncio.sleep(0)
    assert pod.cache.current(second.key) is None
    assert pod.cache.usage().prefetches == 0
