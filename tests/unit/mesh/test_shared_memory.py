"""Regions of shared memory, in a directory that stands for /dev/shm."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from mesh.endpoint.access import Access, is_on_this_machine
from mesh.endpoint.shared_memory import REGION, SIZE, SharedMemoryEndpoint
from mesh.shared_memory import REGIONS_MAX, NoRegion, RegionError, RegionExists, Regions
from mesh.transport.base import Call, Reply, StatusCode, TransportError
from mesh.wire import messages
from mesh.wire.errors import InvalidMessage
from mesh.wire.generated import inference_pb2


@pytest.fixture
def regions(tmp_path: Path) -> Regions:
    (tmp_path / "object").write_bytes(bytes(range(64)))
    return Regions(tmp_path)


def test_a_region_is_a_part_of_an_object(regions: Regions, tmp_path: Path) -> None:
    regions.register("t", "r", "/object", 8, 16)
    region = regions.find("t", "r")
    assert region.read(4, 4) == bytes(range(12, 16))
    region.write(0, b"new")
    assert (tmp_path / "object").read_bytes()[8:11] == b"new"
    for offset, size in ((0, 17), (-1, 2), (16, 1)):
        with pytest.raises(RegionError, match="not within"):
            region.read(offset, size)


def test_tenants_do_not_see_each_other_s_regions(regions: Regions) -> None:
    regions.register("t", "r", "object", 0, 8)
    with pytest.raises(NoRegion):
        regions.find("u", "r")
    regions.unregister("u", "")
    assert [each.name for each in regions.status("t")] == ["r"]
    assert regions.status("u") == []
    with pytest.raises(RegionExists):
        regions.register("t", "r", "object", 0, 8)


def test_an_object_that_was_made_shorter_is_an_error_and_no_signal(regions: Regions, tmp_path: Path) -> None:
    regions.register("t", "r", "object", 0, 64)
    os.truncate(tmp_path / "object", 8)
    with pytest.raises(RegionError, match="made shorter"):
        regions.find("t", "r").read(0, 64)
    with pytest.raises(RegionError, match="made shorter"):
        regions.find("t", "r").write(0, bytes(64))


@pytest.mark.parametrize("key", ["", "/", ".", "..", "/..", "a/b", "/a/b", "//a", "a\0"])
def test_what_is_no_name_of_an_object_is_refused(regions: Regions, key: str) -> None:
    with pytest.raises(RegionError, match="is no name"):
        regions.register("t", "r", key, 0, 8)


def test_links_and_directories_are_no_objects(regions: Regions, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "object")
    (tmp_path / "directory").mkdir()
    for key in ("link", "directory"):
        with pytest.raises(RegionError):
            regions.register("t", "r", key, 0, 8)


def test_regions_have_a_limit_and_a_region_outlives_its_name_while_it_is_read(regions: Regions) -> None:
    for number in range(REGIONS_MAX):
        regions.register("t", str(number), "object", 0, 8)
    with pytest.raises(RegionError, match="its limit"):
        regions.register("t", "one more", "object", 0, 8)
    held = regions.find("t", "0")
    regions.unregister("t", "")
    assert not regions
    assert held.read(0, 2) == b"\0\1"


@pytest.mark.parametrize(
    ("peer", "here"),
    [
        ("ipv4:127.0.0.1:5000", True),
        ("ipv6:%5B::1%5D:5000", True),
        ("127.0.0.1:5000", True),
        ("::1:5000", True),
        ("[::1]:5000", True),
        ("unix:", True),
        ("ipv4:10.0.0.7:5000", False),
        ("10.0.0.7:5000", False),
        ("", False),
    ],
)
def test_a_caller_on_this_machine_is_known_by_its_address(peer: str, here: bool) -> None:
    assert is_on_this_machine(peer) is here


async def test_what_another_pod_forwards_reads_no_region_here(regions: Regions) -> None:
    async def echo(call: Call) -> Reply:
        return bytes(call.body)

    regions.register("default", "r", "object", 0, 8)
    request = inference_pb2.ModelInferRequest(model_name="m")
    parameters = request.inputs.add(name="x", datatype="UINT8", shape=[8]).parameters
    parameters[REGION].string_param, parameters[SIZE].int64_param = "r", 8
    infer = SharedMemoryEndpoint(regions, Access("key"), 100).by_reference(echo)
    body = request.SerializeToString()
    path = messages.MODEL_INFER.path
    assert bytes(range(8)) in await infer(Call(path, body, peer="unix:"))
    assert await infer(Call(path, body, ((messages.PEER_KEY_METADATA, "key"),), peer="unix:")) == body


def reading(size_bytes: int, *more: int) -> Call:
    """A call whose inputs lie in region `r`, so many bytes of it each."""
    request = inference_pb2.ModelInferRequest(model_name="m")
    for number, each in enumerate((size_bytes, *more)):
        parameters = request.inputs.add(name=f"x{number}", datatype="UINT8", shape=[each]).parameters
        parameters[REGION].string_param, parameters[SIZE].int64_param = "r", each
    return Call(messages.MODEL_INFER.path, request.SerializeToString(), peer="unix:")


async def test_what_requests_have_read_together_is_bounded_until_they_are_answered(regions: Regions) -> None:
    entered, release = asyncio.Event(), asyncio.Event()

    async def hold(call: Call) -> Reply:
        entered.set()
        await release.wait()
        return b""

    regions.register("default", "r", "object", 0, 64)
    infer = SharedMemoryEndpoint(regions, Access(), 100).by_reference(hold)
    first = asyncio.create_task(infer(reading(60)))
    await entered.wait()
    with pytest.raises(TransportError, match="60 bytes of shared memory, and this one names 41; 100 are") as refused:
        await infer(reading(41))
    assert refused.value.status is StatusCode.RESOURCE_EXHAUSTED
    second = asyncio.create_task(infer(reading(20, 20)))
    release.set()
    await asyncio.gather(first, second)
    await infer(reading(64, 36))  # what was read has been given back


async def test_a_request_that_fails_or_leaves_gives_back_what_it_read(regions: Regions, tmp_path: Path) -> None:
    waiting = asyncio.Event()

    async def hold(call: Call) -> Reply:
        waiting.set()
        await asyncio.Event().wait()
        return b""

    regions.register("default", "r", "object", 0, 64)
    shared = SharedMemoryEndpoint(regions, Access(), 100)
    leaves = asyncio.create_task(shared.by_reference(hold)(reading(60)))
    await waiting.wait()
    leaves.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaves
    os.truncate(tmp_path / "object", 8)
    with pytest.raises(TransportError, match="made shorter"):
        await shared.by_reference(hold)(reading(60))
    os.truncate(tmp_path / "object", 64)
    async with shared.plain(reading(64, 36), "default") as (call, _):
        assert len(call.body) > 100


async def test_sizes_below_zero_make_no_room(regions: Regions) -> None:
    regions.register("default", "r", "object", 0, 64)
    with pytest.raises(InvalidMessage, match="0 and more, not -50"):
        async with SharedMemoryEndpoint(regions, Access(), 100).plain(reading(-50, 64, 64), "default"):
            pass
