"""Copies are measured again while they serve: larger requests, and processes that grow."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from mesh.resident import Resident
from mesh.size_watch import SizeWatch
from mesh.sizing import MIB, WORKSPACE_SHARE_MAX
from runtime_adapters.base import Array, Size, Tensors
from runtime_adapters.errors import BadInput
from runtime_adapters.fake import FakeModel, FakeSpec
from runtime_adapters.workspace import measure_workspace, shape_of
from tests.unit.mesh.test_loading import LONG_S, Pod

CAPACITY_BYTES = 1 << 30


@pytest.fixture
async def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Pod]:
    pod = Pod(tmp_path, capacity_bytes=CAPACITY_BYTES)
    monkeypatch.setattr("mesh.staging.adapter_for", lambda name: pod.adapter)
    yield pod
    pod.check_at_rest()
    await pod.loading.close(LONG_S)
    await pod.artifacts.close()


async def resident_of(pod: Pod, name: str = "m") -> Resident:
    resident = await pod.loading.wait_servable(pod.register(name, FakeSpec(size_bytes=1000)), None)
    resident.let_go()
    return resident


def hungry(bytes_per_row: int) -> type[FakeModel]:
    class Hungry(FakeModel):
        def infer(self, inputs: Tensors, outputs: object = ()) -> dict[str, Array]:
            scratch = np.ones(len(inputs["x"]) * bytes_per_row, np.uint8)
            return {"y": inputs["x"] * scratch[0]}

    return Hungry


def rows(count: int) -> dict[str, Array]:
    return {"x": np.zeros((count, 4), np.float32)}


def test_what_a_run_takes_is_found_by_making_it_on_zeros() -> None:
    model = hungry(64 * 1024)(FakeSpec(), "m", lambda point, model_id: None)
    found = measure_workspace(model, shape_of(rows(1000), 16_000))
    assert found == pytest.approx(64 * 1024 * 1000, rel=0.1)
    assert measure_workspace(model, shape_of(rows(1), 16)) == 0, "too little to be told from noise"


def test_a_model_that_rejects_zeros_stays_unmeasured() -> None:
    def refuse(point: str, model_id: str) -> None:
        raise BadInput("no zeros")

    assert measure_workspace(FakeModel(FakeSpec(), "m", refuse), shape_of(rows(10), 160)) is None


async def test_only_a_request_larger_than_those_before_is_news(pod: Pod) -> None:
    resident = await resident_of(pod)
    assert resident.request_bytes_max > 1000, "small ones never are"
    resident.larger_request(shape_of(rows(1000), 16_000))
    assert resident.unmeasured is not None
    assert resident.request_bytes_max == 20_000
    zeros = resident.unmeasured.zeros()
    assert {name: array.shape for name, array in zeros.items()} == {"x": (1000, 4)}


async def test_what_runs_take_is_counted_with_the_copy(pod: Pod) -> None:
    resident = await resident_of(pod)
    heard: list[Resident] = []
    resident.model = hungry(64 * 1024)(FakeSpec(), "m", lambda point, model_id: None)
    watch = SizeWatch(pod.loading, CAPACITY_BYTES, measured=heard.append)
    await watch.turn()
    assert watch.workspaces_measured == 0, "nothing larger has come yet"
    resident.larger_request(shape_of(rows(1000), 16_000))
    await watch.turn()
    assert resident.workspace_bytes == pytest.approx(64 * 1024 * 1000, rel=0.1)
    assert pod.charged_bytes() == 1000 + resident.workspace_bytes
    assert (resident.request_bytes_measured, heard) == (16_000, [resident])
    await watch.turn()
    assert watch.workspaces_measured == 1


async def test_one_request_cannot_make_a_copy_count_for_more_than_a_part_of_the_pod(pod: Pod) -> None:
    resident = await resident_of(pod)
    resident.model = hungry(64 * 1024)(FakeSpec(), "m", lambda point, model_id: None)
    resident.larger_request(shape_of(rows(1000), 16_000))
    await SizeWatch(pod.loading, 10 * MIB).turn()
    assert resident.workspace_bytes == int(WORKSPACE_SHARE_MAX * 10 * MIB)


async def test_a_copy_is_kept_while_it_is_measured(pod: Pod) -> None:
    resident = await resident_of(pod)
    pins: list[int] = []
    pod.adapter.on("infer", lambda model_id: pins.append(resident.copy.pins))
    resident.larger_request(shape_of(rows(10_000), 160_000))
    await SizeWatch(pod.loading, CAPACITY_BYTES).turn()
    assert pins
    assert min(pins) == 1
    assert resident.copy.pins == 0


async def test_a_process_of_its_own_counts_for_what_it_has_grown_to(pod: Pod) -> None:
    resident = await resident_of(pod)
    resident.isolated = True
    grown = FakeModel(FakeSpec(size_bytes=50 * MIB), "m", lambda point, model_id: None)
    resident.model = cast(FakeModel, grown)
    watch = SizeWatch(pod.loading, CAPACITY_BYTES)
    await watch.turn()
    assert resident.size == Size(50 * MIB)
    assert pod.charged_bytes() == 50 * MIB
    resident.model = FakeModel(FakeSpec(size_bytes=90 * MIB), "m", lambda point, model_id: None)
    await watch.turn()
    assert resident.size == Size(50 * MIB), "nothing has run in it since"
    resident.runs += 1
    await watch.turn()
    assert resident.size == Size(90 * MIB)
    resident.isolated = False
