"""Which copies are promoted and demoted: a table of pictures and answers, and the change itself on a real loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
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
from mesh.promoting import Promotions
from mesh.promotion import CopyHeat, Demote, Promote, PromotionLimits, choose_change
from mesh.resident import Resident
from mesh.settings import Settings
from mesh.staging import Staging
from mesh.telemetry import Telemetry
from placement.records import ModelRecord, ModelSpec
from runtime_adapters.artifacts.fetch import ArtifactStore
from runtime_adapters.base import CPU
from runtime_adapters.errors import LoadFailed
from runtime_adapters.fake import FakeAdapter, FakeSpec, write_fake_artifact

MB = 1_000_000
LIMITS = PromotionLimits()
CAPACITY_BYTES = 1_000 * MB
LONG_S = 10.0


def a_copy(copy_id: int = 1, **fields: Any) -> CopyHeat:
    """25 MB, 2 ms a run, 100 runs a second: worth it."""
    given = {
        "name": f"m{copy_id}",
        "is_hot": False,
        "runs_per_s": 100.0,
        "run_s": 0.002,
        "saved_share": None,
        "cold_bytes": 25 * MB,
        "hot_bytes": 25 * MB,
        "shared_bytes": 0,
    }
    return CopyHeat(copy_id, **{**given, **fields})


def chosen(*copies: CopyHeat, free_bytes: int = CAPACITY_BYTES // 2, wanted: bool = False) -> Promote | Demote | None:
    return choose_change(copies, free_bytes, CAPACITY_BYTES, bytes_wanted=wanted, limits=LIMITS)


def test_a_copy_that_saves_more_than_its_build_costs_is_promoted_into_free_bytes_for_both_forms() -> None:
    change = chosen(a_copy())
    assert isinstance(change, Promote)
    assert change.reserve_bytes == 50 * MB
    assert "100 runs a second" in change.why


@pytest.mark.parametrize(
    ("why", "copy", "free_bytes", "wanted"),
    [
        ("it runs too rarely", a_copy(runs_per_s=1.0), CAPACITY_BYTES, False),
        ("its runs are too short", a_copy(run_s=1e-6), CAPACITY_BYTES, False),
        ("there is no room for the second form", a_copy(), 25 * MB, False),
        ("what is free is the reserve", a_copy(), 25 * MB + CAPACITY_BYTES // 100, False),
        ("others wait for bytes", a_copy(), CAPACITY_BYTES, True),
        ("it was measured to bring nothing", a_copy(saved_share=0.01), CAPACITY_BYTES, False),
        ("its form is being changed", a_copy(in_change=True), CAPACITY_BYTES, False),
        ("it is hot", a_copy(is_hot=True), CAPACITY_BYTES, False),
    ],
)
def test_nothing_is_promoted_when(why: str, copy: CopyHeat, free_bytes: int, wanted: bool) -> None:
    assert not isinstance(chosen(copy, free_bytes=free_bytes, wanted=wanted), Promote), why


def test_the_hottest_goes_first_and_one_that_does_not_fit_does_not_hold_up_a_smaller_one() -> None:
    cool, hot = a_copy(1), a_copy(2, runs_per_s=200.0)
    assert chosen(cool, hot) == chosen(hot)
    large = a_copy(3, runs_per_s=1e5, hot_bytes=400 * MB, cold_bytes=400 * MB)
    change = chosen(cool, large, free_bytes=100 * MB)
    assert isinstance(change, Promote)
    assert change.copy_id == 1


def test_short_memory_demotes_the_coolest_that_gives_some_back_and_spares_those_that_give_nothing() -> None:
    alone = a_copy(1, is_hot=True, runs_per_s=50.0)
    sharing = a_copy(2, is_hot=True, runs_per_s=100.0, shared_bytes=20 * MB)
    warmer = a_copy(3, is_hot=True, runs_per_s=200.0, shared_bytes=20 * MB)
    for free_bytes, wanted in ((0, False), (CAPACITY_BYTES // 2, True)):
        change = chosen(warmer, alone, sharing, free_bytes=free_bytes, wanted=wanted)
        assert isinstance(change, Demote)
        assert change.copy_id == 2
    assert chosen(warmer, alone, sharing) is None


def test_a_copy_that_cooled_far_below_what_promoted_it_is_demoted() -> None:
    promoted_at = next(rate for rate in range(1, 10_000) if isinstance(chosen(a_copy(runs_per_s=rate)), Promote))
    assert chosen(a_copy(is_hot=True, runs_per_s=promoted_at / 2)) is None
    assert isinstance(chosen(a_copy(is_hot=True, runs_per_s=promoted_at / 6)), Demote)


def test_a_promotion_that_brought_nothing_is_taken_back() -> None:
    change = chosen(a_copy(is_hot=True, saved_share=-0.02))
    assert isinstance(change, Demote)
    assert "saves -2 %" in change.why


def test_the_same_picture_gives_the_same_answer_in_any_order() -> None:
    random = Random(1)
    for _ in range(200):
        copies = [
            a_copy(
                number,
                is_hot=random.random() < 0.5,
                runs_per_s=random.choice([0.5, 20.0, 100.0]),
                shared_bytes=random.choice([0, 5 * MB]),
            )
            for number in range(6)
        ]
        free_bytes, wanted = random.choice([0, 30 * MB, CAPACITY_BYTES // 2]), random.random() < 0.3
        answer = chosen(*copies, free_bytes=free_bytes, wanted=wanted)
        random.shuffle(copies)
        assert chosen(*copies, free_bytes=free_bytes, wanted=wanted) == answer


# The change itself ------------------------------------------------------------------------------------------------


class Pod:
    """A loader with a fake framework, and promotions that are looked at when the test says so."""

    def __init__(self, directory: Path, capacity_bytes: int) -> None:
        self.directory = directory
        self.adapter = FakeAdapter()
        self.now_s = 0.0
        self.records: dict[ModelKey, ModelRecord] = {}
        self.cache = CacheMachine(CacheLimits(capacity=Bytes.of(HOST_MEMORY, capacity_bytes), residency_min_s=0.0))
        self.artifacts = ArtifactStore(directory / "disk", capacity_bytes=100 * MB)
        settings, telemetry = Settings(), Telemetry(CollectorRegistry())
        self.loading = Loading(
            cache=self.cache,
            staging=Staging(self.artifacts, settings, telemetry, CPU),
            settings=settings,
            telemetry=telemetry,
            devices=(CPU,),
            record_of=self.records.get,
            on_loaded=lambda key: None,
        )
        self.promotions = Promotions(self.cache, self.loading, LIMITS, clock=lambda: self.now_s)

    async def load(self, name: str, **spec: Any) -> Resident:
        path = write_fake_artifact(self.directory / f"{name}.json", FakeSpec(**spec))
        key = ModelKey("default", name, 1)
        self.records[key] = ModelRecord("default", name, ModelSpec(uri=path.as_uri(), format="fake"), 1, 0.0, 0.0)
        resident = await asyncio.wait_for(self.loading.wait_servable(WantedModel(key), None), LONG_S)
        resident.let_go()
        return resident

    async def turn(self, resident: Resident, runs: int = 0) -> Promote | Demote | None:
        """One look after a second in which the copy ran so often, a tenth of a second each time."""
        self.now_s += 1.0
        for _ in range(runs):
            resident.ran(0.0, 0.1)
        return await asyncio.wait_for(self.promotions.turn(), LONG_S)

    def charged_bytes(self) -> int:
        self.cache.validate()
        return self.cache.usage().used.total_bytes


@pytest.fixture
async def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Pod]:
    pod = Pod(tmp_path, 10 * MB)
    monkeypatch.setattr("mesh.staging.adapter_for", lambda name: pod.adapter)
    # The fake's runs are instant: what a promotion saves is not to be found out from them.
    monkeypatch.setattr("mesh.promoting._quickest_run_s", lambda model, rows: 1.0 if not model.is_hot else 0.5)
    yield pod
    await pod.loading.close(1.0)
    await pod.artifacts.close()


async def promoted(pod: Pod, name: str = "m") -> Resident:
    resident = await pod.load(name, size_bytes=MB, hot_bytes=2 * MB)
    assert await pod.turn(resident) is None
    assert isinstance(await pod.turn(resident, runs=20), Promote)
    return resident


async def test_both_forms_are_charged_while_a_copy_is_promoted_and_the_new_one_after(pod: Pod) -> None:
    seen: list[int] = []
    pod.adapter.on("promote", lambda model_id: seen.append(pod.cache.usage().used.total_bytes))
    resident = await promoted(pod)
    assert seen == [3 * MB]
    assert (resident.form, resident.size.total_bytes, pod.charged_bytes()) == ("hot", 2 * MB, 2 * MB)
    assert pod.promotions.counts.promotions == 1


async def test_requests_run_while_the_form_changes(pod: Pod) -> None:
    resident = await pod.load("m", size_bytes=MB, hot_bytes=2 * MB)
    answers: list[float] = []
    x = np.ones((1, 4), np.float32)
    pod.adapter.on("promote", lambda model_id: answers.append(float(resident.model.infer({"x": x})["y"][0, 0])))
    await pod.turn(resident)
    await pod.turn(resident, runs=20)
    assert answers == [1.0]
    assert resident.form == "hot"


async def test_a_copy_that_nobody_uses_any_more_is_demoted_and_charged_as_before(pod: Pod) -> None:
    resident = await promoted(pod)
    changes = [await pod.turn(resident) for _ in range(120)]
    assert sum(isinstance(change, Demote) for change in changes) == 1
    assert (resident.form, resident.size.total_bytes, pod.charged_bytes()) == ("cold", MB, MB)
    assert pod.promotions.counts.demotions == 1


async def test_a_promotion_that_fails_leaves_the_copy_and_its_bytes_as_they_were_and_is_not_tried_again(
    pod: Pod,
) -> None:
    def refuse(model_id: str) -> None:
        raise LoadFailed("no memory for the fast form; it is tried again later")

    pod.adapter.on("promote", refuse)
    resident = await promoted(pod)
    assert (resident.form, pod.charged_bytes(), pod.promotions.counts.failures) == ("cold", MB, 1)
    assert await pod.turn(resident, runs=20) is None


async def test_nobody_is_evicted_for_a_promotion(pod: Pod) -> None:
    await pod.load("other", size_bytes=8 * MB)
    resident = await pod.load("m", size_bytes=MB, hot_bytes=2 * MB)
    for _ in range(5):
        assert await pod.turn(resident, runs=20) is None
    assert pod.cache.usage().evictions_total == 0
    assert resident.form == "cold"


async def test_a_copy_is_not_unloaded_under_its_change_of_form(pod: Pod) -> None:
    resident = await pod.load("m", size_bytes=MB, hot_bytes=2 * MB)
    loop = asyncio.get_running_loop()
    reached = asyncio.Event()
    release = asyncio.Event()

    def wait(model_id: str) -> None:
        loop.call_soon_threadsafe(reached.set)
        asyncio.run_coroutine_threadsafe(release.wait(), loop).result(LONG_S)

    pod.adapter.on("promote", wait)
    await pod.turn(resident)
    turn = loop.create_task(pod.turn(resident, runs=20))
    await asyncio.wait_for(reached.wait(), LONG_S)
    pod.loading.send(EvictRequest(resident.copy.key))
    assert pod.adapter.count("unload") == 0
    release.set()
    await turn
    await pod.loading.close(LONG_S)  # waits for the unload
    assert pod.adapter.count("unload") == 1
    assert pod.charged_bytes() == 0
    assert await pod.turn(resident) is None
