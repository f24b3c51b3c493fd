"""etcd stopped, replaced, and changing its leader, under the feet of a running pool."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from mesh.client import Client, Unavailable
from mesh.demo.local_pool import LocalPool
from tests.e2e.conftest import Example, ModelFiles, StartPool
from tests.e2e.pools import (
    LEASE_TTL_S,
    ONE_TRY,
    SteadyLoad,
    check,
    ends_of_logs,
    etcd_call,
    holders,
    status_of,
    stored,
    total,
    wait_until,
)

pytestmark = [pytest.mark.slow, pytest.mark.etcd, pytest.mark.timeout(480)]

MODELS = 12
PER_S = 50
AWAY_S = float(os.environ.get("HEXCOMB_TEST_ETCD_AWAY_S", "15"))
"""How long etcd is stopped; 300 is the bar, five lease ttls what CI has time for."""
HEADROOM_S = 6.0


def register(pool: LocalPool, models: dict[str, Example]) -> None:
    with Client(pool.endpoints) as client:
        for name, example in models.items():
            client.register(name, uri=example.uri)
        for name, example in models.items():
            check(example, client.infer(name, example.inputs).outputs)


@contextmanager
def asking(pool: LocalPool, models: dict[str, Example]) -> Iterator[SteadyLoad]:
    """A client of each pod, which tries once."""
    clients = {pod.name: Client(pod.grpc_endpoint, retry=ONE_TRY) for pod in pool.pods}

    def asks(client: Client) -> Callable[[str], None]:
        return lambda name: check(models[name], client.infer(name, models[name].inputs, timeout_s=20).outputs)

    try:
        with SteadyLoad({name: asks(client) for name, client in clients.items()}, list(models), per_s=PER_S) as load:
            yield load
    finally:
        for client in clients.values():
            client.close()


@pytest.fixture(scope="module")
def pool(start_pool: StartPool) -> LocalPool:
    return start_pool(3)


@pytest.fixture(scope="module")
def models(pool: LocalPool, files: ModelFiles) -> dict[str, Example]:
    models = {f"m-{number}": files.scale(number + 2) for number in range(MODELS)}
    register(pool, models)
    return models


def test_with_etcd_stopped_all_is_served_and_cold_models_load(
    pool: LocalPool, models: dict[str, Example], files: ModelFiles
) -> None:
    cold = {f"cold-{number}": files.scale(50 + number) for number in range(6)}
    with Client(pool.endpoints) as client:
        for name, example in cold.items():
            client.register(name, uri=example.uri)
    for pod in pool.pods:
        with Client(pod.grpc_endpoint, retry=ONE_TRY) as client:
            for name in cold:
                wait_until(pool, lambda client=client, name=name: client.model_ready(name), "the names got about", 5)
    loads = total(pool, "loads")
    with asking(pool, models) as load:
        load.wait_for(50)
        pool.etcd.kill()
        ends_s = time.monotonic() + AWAY_S
        while time.monotonic() < ends_s:
            load.wait_for(50)
            for pod, (name, example) in zip(pool.pods * 2, cold.items(), strict=True):
                with Client(pod.grpc_endpoint, retry=ONE_TRY) as client:
                    check(example, client.infer(name, example.inputs, timeout_s=20).outputs)
        loads_meanwhile = total(pool, "loads") - loads
        pool.etcd.start()
        back_s = time.monotonic()
        wait_until(pool, lambda: len(stored(pool, "pods/")) == 3, "all pods are listed again")
        wait_until(pool, lambda: all(holders(pool, name) for name in (*models, *cold)), "so are all copies")
        consistent_s = time.monotonic() - back_s
        load.wait_for(50)
    print(
        f"\netcd stopped for {AWAY_S:.0f} s: {len(load.asked)} requests, {len(load.errors())} errors, p99 "
        f"{1e3 * load.slowest_s(share=0.99):.0f} ms; {len(cold)} cold models cost {loads_meanwhile} loads; consistent "
        f"{consistent_s:.1f} s after its return (two ttls: {2 * LEASE_TTL_S:.0f} s)"
    )
    assert load.errors() == [], ends_of_logs(pool)
    assert consistent_s <= 2 * LEASE_TTL_S + HEADROOM_S


def test_after_a_wipe_registrations_come_back_from_the_pods_and_it_is_said_loudly(
    pool: LocalPool, models: dict[str, Example]
) -> None:
    with Client(pool.endpoints) as client:
        client.set_alias("alias", "m-0")
        registered = stored(pool, "models/")
        with asking(pool, models) as load:
            load.wait_for(50)
            pool.etcd.wipe()
            pool.etcd.start()
            back_s = time.monotonic()
            wait_until(pool, lambda: set(stored(pool, "models/")) >= set(registered), "all names are back", 60)
            restored_s = time.monotonic() - back_s
            wait_until(pool, lambda: all(holders(pool, name) for name in models), "and their copies")
            load.wait_for(100)
        check(models["m-0"], client.infer("alias", models["m-0"].inputs).outputs)
        after = client.register("new-after", uri=models["m-0"].uri)
    print(
        f"\netcd wiped: {len(registered)} registrations restored {restored_s:.1f} s after its return; "
        f"{len(load.asked)} requests, {len(load.errors())} errors"
    )
    assert load.errors() == [], ends_of_logs(pool)
    assert after.generation >= 1
    generations = {key: record["generation"] for key, record in stored(pool, "models/").items() if key in registered}
    assert generations == {key: record["generation"] for key, record in registered.items()}
    notices = [notice for pod in pool.pods for notice in status_of(pod).notices]
    assert any("restored" in notice or "lost" in notice for notice in notices), notices


def test_a_change_of_etcds_leader_is_not_noticed(start_pool: StartPool, files: ModelFiles) -> None:
    models = {f"m-{number}": files.scale(number + 2) for number in range(MODELS)}
    with start_pool(2, members=3) as pool:
        register(pool, models)
        with asking(pool, models) as load, Client(pool.endpoints) as client:
            load.wait_for(50)
            leading = next(
                member
                for member in pool.etcd_members
                if (said := etcd_call(member, "maintenance/status"))["leader"] == said["header"]["member_id"]
            )
            leading.kill()

            def registers() -> bool:
                # A write that etcd was about to take says so: it may have been written, and is to be repeated.
                try:
                    return client.register("meanwhile", uri=files.scale(77).uri).generation == 1
                except Unavailable:
                    return False

            wait_until(pool, registers, "the store takes writes again")
            check(files.scale(77), client.infer("meanwhile", files.scale(77).inputs).outputs)
            load.wait_for(150)
            leading.start()
            load.wait_for(50)
        print(f"\nthe leader of etcd killed: {len(load.asked)} requests, {len(load.errors())} errors")
        assert load.errors() == [], ends_of_logs(pool)
