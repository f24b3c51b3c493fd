"""Profiles in the store: written when they tell something new, read on demand, missed by nobody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from placement.errors import StoreUnavailable
from placement.keys import profile_key
from placement.profiles import KEPT_FOR_S, READ_WAIT_S, Profile, ProfileStore, profile_from_json, profile_to_json
from placement.store.base import Put
from placement.store.embedded import EmbeddedStore
from placement.store.memory import MemoryStore

CONTENT, RUNTIME = "sha256:ab/12", "onnx-onnxruntime-1.31.1-x86_64-avx2"
MEASURED = Profile(host_bytes=1_000_000, mapped_bytes=25_000_000, load_s=0.002, fetch_s=0.4, run_s=0.001)


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


class Away:
    """A store that does not answer, or says that it is away."""

    def __init__(self, *, hangs: bool) -> None:
        self._hangs = hangs

    async def get(self, key: str, **options: Any) -> None:
        if self._hangs:
            await asyncio.Event().wait()
        raise StoreUnavailable("etcd is away")

    def __getattr__(self, name: str) -> Any:
        return self.get


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["memory", "embedded"])
async def store(request: pytest.FixtureRequest, clock: Clock, tmp_path: Path) -> AsyncIterator[Any]:
    opened = MemoryStore(clock=clock) if request.param == "memory" else await EmbeddedStore.open(tmp_path)
    yield opened
    await opened.close()


async def measured(store: Any, clock: Clock, profile: Profile) -> ProfileStore:
    """What a pod that has measured this leaves behind."""
    profiles = ProfileStore(store, clock=clock)
    profiles.note(CONTENT, RUNTIME, profile)
    await profiles.wait_written()
    return profiles


async def test_what_one_pod_measured_another_reads(store: Any, clock: Clock) -> None:
    await measured(store, clock, MEASURED)
    other = ProfileStore(store, clock=clock)
    found = await other.read(CONTENT, RUNTIME)
    assert found == replace(MEASURED, measured_at_s=clock.now_s)
    assert await other.read(CONTENT, "another runtime") is None
    assert await other.read("another content", RUNTIME) is None


async def test_the_profiles_of_a_content_are_found_without_knowing_what_loads_it(store: Any, clock: Clock) -> None:
    profiles = await measured(store, clock, MEASURED)
    slow = replace(MEASURED, load_s=2.0)
    profiles.note(CONTENT, "another runtime", slow)
    profiles.note(CONTENT + "3", RUNTIME, slow)
    await profiles.wait_written()
    await store.txn([], [Put(profile_key(CONTENT, "from a later version"), b"[]")])
    found = await ProfileStore(store, clock=clock).of_content(CONTENT)
    assert {runtime: profile.load_s for runtime, profile in found.items()} == {RUNTIME: 0.002, "another runtime": 2.0}
    assert await profiles.of_content("another content") == {}


@pytest.mark.parametrize("hangs", [True, False])
async def test_without_a_store_a_content_has_no_profiles(hangs: bool) -> None:
    store: Any = Away(hangs=hangs)
    assert await ProfileStore(store).of_content(CONTENT) == {}


async def test_a_profile_that_was_seen_is_not_asked_for_again(store: Any, clock: Clock) -> None:
    await measured(store, clock, MEASURED)
    other = ProfileStore(store, clock=clock)
    for _ in range(5):
        await other.read(CONTENT, RUNTIME)
    assert other.reads == 1


async def test_only_what_differs_by_more_than_a_tenth_is_written(store: Any, clock: Clock) -> None:
    await measured(store, clock, MEASURED)
    near = await measured(store, clock, replace(MEASURED, mapped_bytes=26_000_000, load_s=0.0025))
    assert near.writes == 0
    far = await measured(store, clock, replace(MEASURED, mapped_bytes=30_000_000))
    assert far.writes == 1
    found = await ProfileStore(store, clock=clock).read(CONTENT, RUNTIME)
    assert found is not None
    assert found.mapped_bytes == 30_000_000


async def test_what_this_pod_did_not_measure_stays_as_it_was_known(store: Any, clock: Clock) -> None:
    first = replace(MEASURED, workspace_bytes=50_000_000, request_bytes=1_000_000)
    await measured(store, clock, first)
    await measured(store, clock, Profile(host_bytes=2_000_000, mapped_bytes=25_000_000))
    found = await ProfileStore(store, clock=clock).read(CONTENT, RUNTIME)
    assert found is not None
    assert (found.host_bytes, found.fetch_s, found.workspace_bytes) == (2_000_000, 0.4, 50_000_000)


async def test_two_pods_that_measure_at_once_write_once(store: Any, clock: Clock) -> None:
    pods = [ProfileStore(store, clock=clock) for _ in range(5)]
    for pod in pods:
        pod.note(CONTENT, RUNTIME, MEASURED)
    await asyncio.gather(*(pod.wait_written() for pod in pods))
    assert sum(pod.writes for pod in pods) == 1


async def test_a_profile_in_use_is_renewed_when_half_of_its_time_is_over(store: Any, clock: Clock) -> None:
    await measured(store, clock, MEASURED)
    clock.now_s += KEPT_FOR_S / 2 + 1
    assert (await measured(store, clock, MEASURED)).writes == 1
    assert (await measured(store, clock, MEASURED)).writes == 0


async def test_a_profile_that_nobody_uses_goes(clock: Clock) -> None:
    store = MemoryStore(clock=clock)
    await measured(store, clock, MEASURED)
    clock.now_s += 2 * KEPT_FOR_S
    await store.expire_leases()
    assert await ProfileStore(store, clock=clock).read(CONTENT, RUNTIME) is None
    await store.close()


async def test_a_value_that_is_no_profile_is_written_over(store: Any, clock: Clock) -> None:
    await store.txn([], [Put(profile_key(CONTENT, RUNTIME), b"{broken")])
    assert await ProfileStore(store, clock=clock).read(CONTENT, RUNTIME) is None
    assert (await measured(store, clock, MEASURED)).writes == 1


async def test_with_the_store_away_there_is_no_profile_and_no_error(clock: Clock) -> None:
    profiles = ProfileStore(Away(hangs=False), clock=clock)  # type: ignore[arg-type]
    assert await profiles.read(CONTENT, RUNTIME) is None
    profiles.note(CONTENT, RUNTIME, MEASURED)
    await profiles.wait_written()
    assert profiles.writes == 0


async def test_a_store_that_hangs_holds_a_load_up_for_a_moment_only(clock: Clock) -> None:
    profiles = ProfileStore(Away(hangs=True), clock=clock)  # type: ignore[arg-type]
    async with asyncio.timeout(20 * READ_WAIT_S):
        assert await profiles.read(CONTENT, RUNTIME) is None
    profiles.note(CONTENT, RUNTIME, MEASURED)
    await profiles.close()


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"{}", b'{"host_bytes": -1}', b'{"host_bytes": "x"}', b'{"host_bytes": 1, "load_s": 1e999}']
)
def test_what_cannot_be_read_is_no_profile(text: bytes) -> None:
    assert profile_from_json(text) is None


def test_the_stored_form_reads_back() -> None:
    assert profile_from_json(profile_to_json(MEASURED)) == MEASURED
