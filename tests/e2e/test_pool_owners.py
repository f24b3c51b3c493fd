"""A client that follows what answers say of where a model is, in a pool on the native transport."""

from __future__ import annotations

import asyncio
import re
import urllib.request

import pytest

from mesh.client import AsyncClient, Client
from mesh.demo.local_pool import LocalPod
from tests.e2e.conftest import ModelFiles, StartPool
from tests.e2e.pools import check, holders, pod_named

pytestmark = [pytest.mark.slow, pytest.mark.etcd]


def forwarded(pod: LocalPod) -> float:
    with urllib.request.urlopen(f"http://{pod.http_endpoint}/metrics", timeout=20) as response:
        found = re.search(r"^hexcomb_forwarded_total (\S+)", response.read().decode(), re.MULTILINE)
    assert found is not None
    return float(found[1])


async def test_a_client_asks_the_pod_that_has_the_model_and_does_not_notice_when_that_one_dies(
    start_pool: StartPool, files: ModelFiles
) -> None:
    pool = start_pool(2, trusted_prefixes=f"{files.directory.as_uri()}/", transport="native", tell_owner=True)
    example = files.scale(3.0)
    with Client(pool.endpoints) as client:
        client.register("m", uri=example.uri, format="onnx", copies_max=1)
        client.ensure_loaded("m")
    (holder,) = holders(pool, "m")
    owner = pod_named(pool, holder)
    endpoint = next(pod for pod in pool.pods if pod is not owner)

    async with AsyncClient(endpoint.grpc_endpoint, timeout_s=60) as client:
        async with asyncio.timeout(40):
            hops = -1.0
            while forwarded(endpoint) != hops:  # until a request takes no hop
                hops = forwarded(endpoint)
                check(example, (await client.infer("m", example.inputs)).outputs)
        assert hops >= 1
        for _ in range(20):
            check(example, (await client.infer("m", example.inputs)).outputs)
        assert forwarded(endpoint) == hops
        owner.kill()
        for _ in range(20):
            check(example, (await client.infer("m", example.inputs)).outputs)
