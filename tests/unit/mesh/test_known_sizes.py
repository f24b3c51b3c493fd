"""What is known of a content before its load: measured here, measured elsewhere, estimated."""

from __future__ import annotations

import pytest

from mesh.known_sizes import Known, KnownSizes, Loadable, runtime_of
from mesh.sizing import wrong_declaration
from placement.profiles import Profile, ProfileStore
from placement.store.memory import MemoryStore
from runtime_adapters.base import Size

WHAT = Loadable("sha256:ab", "x86_64-onnx-onnxruntime-1.31.1-cpu")
ESTIMATE = Size(host_bytes=1_000_000, mapped_bytes=25_000_000, shared=(("t1", 20_000_000),))


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


async def test_without_a_profile_the_estimate_counts(store: MemoryStore) -> None:
    assert await KnownSizes(ProfileStore(store)).expected(WHAT, ESTIMATE) == Known(ESTIMATE)
    assert await KnownSizes().expected(WHAT, ESTIMATE) == Known(ESTIMATE)


async def test_what_another_pod_measured_corrects_the_estimate_and_keeps_what_is_shared(store: MemoryStore) -> None:
    profiles = ProfileStore(store)
    one = KnownSizes(profiles)
    one.measured(WHAT, Size(2_000_000, 26_000_000), load_s=0.01, fetch_s=0.5, run_s=0.001)
    one.measured_again(WHAT, Known(Size(2_000_000, 26_000_000), workspace_bytes=70_000_000, request_bytes=4_000_000))
    await profiles.wait_written()
    other = KnownSizes(ProfileStore(store))
    assert other.here(WHAT) is None, "this pod has not loaded it"
    found = await other.expected(WHAT, ESTIMATE)
    assert found.size == Size(2_000_000, 26_000_000, shared=ESTIMATE.shared)
    assert (found.workspace_bytes, found.request_bytes) == (70_000_000, 4_000_000)


async def test_shares_that_exceed_what_was_measured_are_not_believed(store: MemoryStore) -> None:
    profiles = ProfileStore(store)
    KnownSizes(profiles).measured(WHAT, Size(27_000_000), load_s=0.0, fetch_s=0.0, run_s=0.0)
    await profiles.wait_written()
    found = await KnownSizes(ProfileStore(store)).expected(WHAT, ESTIMATE)
    assert found.size == Size(27_000_000)


async def test_a_copy_measured_at_its_next_load_keeps_what_its_runs_took() -> None:
    known = KnownSizes()
    known.measured_again(WHAT, Known(Size(10), 500, 100))
    known.measured(WHAT, Size(12), load_s=0.1, fetch_s=0.0, run_s=0.0)
    assert known.here(WHAT) == Known(Size(12), 500, 100)


async def test_what_a_load_takes_at_its_highest_is_kept_when_a_later_one_was_not_alone(store: MemoryStore) -> None:
    profiles = ProfileStore(store)
    known = KnownSizes(profiles)
    known.measured(WHAT, Size(10_000_000), load_s=0.1, fetch_s=0.0, run_s=0.0, peak_bytes=140_000_000)
    known.measured(WHAT, Size(10_000_000), load_s=0.1, fetch_s=0.0, run_s=0.0)
    known.measured_again(WHAT, Known(Size(11_000_000), 500, 100))
    assert known.here(WHAT) == Known(Size(11_000_000), 500, 100, 140_000_000)
    await profiles.wait_written()
    assert (await KnownSizes(ProfileStore(store)).expected(WHAT, Size(9_000_000))).peak_bytes == 140_000_000


async def test_the_time_of_a_load_is_that_of_the_last_one_on_such_a_cpu() -> None:
    now_s = [1_000.0]
    profiles = ProfileStore(MemoryStore(clock=lambda: now_s[0]), clock=lambda: now_s[0])
    known = KnownSizes(profiles)
    assert await known.load_time_s("content", "onnx") == 0.0
    runtimes = [runtime_of(name, f"{name}-1", name, "cpu", {}) for name in ("onnx", "xgboost")]
    for runtime, load_s in [*zip(runtimes, (0.4, 0.2), strict=True), ("s390x-onnx-1-cpu", 9.0)]:
        now_s[0] += 10.0
        profiles.note("content", runtime, Profile(1, load_s=load_s))
        await profiles.wait_written()
    assert await known.load_time_s("content", "onnx") == 0.4
    assert await known.load_time_s("content", "") == 0.2
    assert await known.load_time_s("another", "onnx") == await KnownSizes().load_time_s("content", "onnx") == 0.0


def test_the_runtime_tells_apart_whatever_changes_a_size() -> None:
    runtimes = {
        runtime_of("onnx", "onnx-onnxruntime-1.31.1", "onnx", "cpu", {}),
        runtime_of("onnx", "onnx-onnxruntime-1.31.2", "onnx", "cpu", {}),
        runtime_of("onnx", "onnx-onnxruntime-1.31.1", "onnx", "cuda:0", {}),
        runtime_of("onnx", "onnx-onnxruntime-1.31.1", "onnx", "cpu", {"weights": "packed"}),
        runtime_of("onnx", "", "onnx", "cpu", {}),
    }
    assert len(runtimes) == 5
    same = [runtime_of("onnx", "v", "onnx", "cpu", given) for given in ({"a": "1", "b": "2"}, {"b": "2", "a": "1"})]
    assert same[0] == same[1]


@pytest.mark.parametrize(("declared", "wrong"), [(None, False), (100, False), (120, False), (20, True), (500, True)])
def test_a_declaration_that_is_far_off_is_told(declared: int | None, wrong: bool) -> None:
    assert bool(wrong_declaration(declared, 100)) is wrong


def test_a_profile_of_nothing_is_one() -> None:
    assert Profile(0).total_bytes == 0
