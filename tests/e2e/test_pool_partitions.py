"""Lines that are cut: between two pods, between all pods, between a pod and etcd. Real processes, real bytes, and a
proxy on each line that holds them back or resets them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import pytest

from mesh.client import Client
from mesh.demo.line import Line
from mesh.demo.local_pool import LocalPod, LocalPool
from tests.e2e.conftest import Example, ModelFiles, StartPool
from tests.e2e.pools import (
    LEASE_TTL_S,
    ONE_TRY,
    SteadyLoad,
    check,
    ends_of_logs,
    holders,
    stored,
    wait_until,
)

pytestmark = [pytest.mark.slow, pytest.mark.etcd]

MODELS = 12
PER_S = 60
SETTLED_WITHIN_S = 60.0
"""Twice the lease ttl after the lines are mended, by the bar; what is left is for a leader that was elected just then
and waits for demand to show, and for other tests on this machine."""


@pytest.fixture(scope="module")
def pool(start_pool: StartPool) -> LocalPool:
    return start_pool(3, with_lines=True)


@pytest.fixture(scope="module")
def models(pool: LocalPool, files: ModelFiles) -> dict[str, Example]:
    models = {f"m-{number}": files.scale(number + 2) for number in range(MODELS)}
    with Client(pool.endpoints) as client:
        for name, example in models.items():
            client.register(name, uri=example.uri)
        for name, example in models.items():
            check(example, client.infer(name, example.inputs).outputs)
    return models


@pytest.fixture
def askers(pool: LocalPool, models: dict[str, Example]) -> Iterator[dict[str, Callable[[str], None]]]:
    """A client of each pod, which tries once."""
    clients = {pod.name: Client(pod.grpc_endpoint, retry=ONE_TRY) for pod in pool.pods}

    def asks(client: Client) -> Callable[[str], None]:
        return lambda name: check(models[name], client.infer(name, models[name].inputs, timeout_s=20).outputs)

    yield {name: asks(client) for name, client in clients.items()}
    for client in clients.values():
        client.close()


@contextmanager
def apart(pods: list[LocalPod], how: Literal["cut", "freeze"]) -> Iterator[None]:
    """No two of these pods reach one another; `how`: `cut` or `freeze`, as `Line` has it."""
    names = {pod.name for pod in pods}
    Line.part({pod.peer_line: names - {pod.name} for pod in pods if pod.peer_line is not None}, how)
    try:
        yield
    finally:
        for pod in pods:
            assert pod.peer_line is not None
            pod.peer_line.mend()


def does_not_reach(pod: LocalPod, other: LocalPod) -> bool:
    with Client(pod.grpc_endpoint, retry=ONE_TRY) as client:
        return any(each.pod == other.name and each.why_unreachable for each in client.pod_status())


@pytest.mark.parametrize("how", ["cut", "freeze"])
def test_two_pods_that_do_not_reach_one_another_answer_everything(
    pool: LocalPool, models: dict[str, Example], askers: dict[str, Callable[[str], None]], how: Literal["cut", "freeze"]
) -> None:
    one, other, third = pool.pods
    with SteadyLoad(askers, list(models), per_s=PER_S) as load:
        load.wait_for(100)
        with apart([one, other], how):
            wait_until(pool, lambda: does_not_reach(one, other) and does_not_reach(other, one), "both noticed")
            assert not does_not_reach(third, one), "the third one reaches both"
            load.wait_for(400)
        wait_until(pool, lambda: not does_not_reach(one, other) and not does_not_reach(other, one), "it was mended")
        load.wait_for(100)
    print(f"\ntwo of three pods apart ({how}): {len(load.asked)} requests, {len(load.errors())} errors")
    assert load.errors() == [], ends_of_logs(pool)
    wait_until(
        pool,
        lambda: all(len(holders(pool, name)) == 1 for name in models),
        "copies that nobody needs any more were retired",
        SETTLED_WITHIN_S,
    )


def test_pods_that_reach_only_etcd_answer_everything_alone(
    pool: LocalPool, models: dict[str, Example], askers: dict[str, Callable[[str], None]]
) -> None:
    with SteadyLoad(askers, list(models), per_s=PER_S) as load:
        load.wait_for(100)
        with apart(pool.pods, "cut"):
            wait_until(
                pool,
                lambda: all(len(holders(pool, name)) == 3 for name in models),
                "every pod has loaded what it is asked for",
            )
            load.wait_for(200)
        wait_until(pool, lambda: not does_not_reach(pool.pods[0], pool.pods[1]), "it was mended")
        load.wait_for(100)
    print(f"\nall pods apart: {len(load.asked)} requests, {len(load.errors())} errors")
    assert load.errors() == [], ends_of_logs(pool)
    wait_until(
        pool,
        lambda: all(len(holders(pool, name)) == 1 for name in models),
        "copies that nobody needs any more were retired",
        SETTLED_WITHIN_S,
    )


@pytest.mark.parametrize("how", ["cut", "freeze"])
def test_a_pod_that_does_not_reach_etcd_serves_and_loads_and_comes_back(
    pool: LocalPool, models: dict[str, Example], askers: dict[str, Callable[[str], None]], files: ModelFiles, how: str
) -> None:
    cut_off, beside = pool.pods[0], pool.pods[1]
    cold = {f"cold-{how}-{number}": files.scale(40 + number) for number in range(4)}
    with Client(pool.endpoints) as client:
        for name, example in cold.items():
            client.register(name, uri=example.uri)
    with SteadyLoad(askers, list(models), per_s=PER_S) as load, Client(cut_off.grpc_endpoint, retry=ONE_TRY) as client:
        for name in cold:
            wait_until(pool, lambda name=name: client.model_ready(name), "the names got about", 5)
        load.wait_for(100)
        loads_before = len(holders(pool, "m-0"))
        for line in cut_off.store_lines:
            getattr(line, how)()
        try:
            wait_until(
                pool, lambda: f"pods/{cut_off.name}" not in stored(pool, "pods/"), "its lease ran out", 4 * LEASE_TTL_S
            )
            for name, example in cold.items():
                check(example, client.infer(name, example.inputs, timeout_s=20).outputs)
            load.wait_for(200)
        finally:
            for line in cut_off.store_lines:
                line.mend()
        wait_until(pool, lambda: f"pods/{cut_off.name}" in stored(pool, "pods/"), "it is listed again")
        load.wait_for(100)
    print(
        f"\na pod cut off from etcd ({how}): {len(load.asked)} requests over all pods, {len(load.errors())} errors, "
        f"{len(cold)} cold models loaded through it"
    )
    assert loads_before >= 1
    assert load.errors() == [], ends_of_logs(pool)
    wait_until(
        pool,
        lambda: all(len(holders(pool, name)) == 1 for name in (*models, *cold)),
        "the store has one copy of each model again",
        SETTLED_WITHIN_S,
    )
    with Client(beside.grpc_endpoint, retry=ONE_TRY) as client:
        for name, example in cold.items():
            check(example, client.infer(name, example.inputs).outputs)
