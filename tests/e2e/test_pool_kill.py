"""`kill -9` of one pod of four under steady load: nobody who asks the others, or all, sees an error."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from mesh.client import Client
from mesh.demo.local_pool import LocalPool
from tests.e2e.conftest import Example, ModelFiles, StartPool
from tests.e2e.pools import (
    LEASE_TTL_S,
    ONE_TRY,
    SteadyLoad,
    check,
    ends_of_logs,
    holders,
    leader,
    plain_channel,
    pod_named,
    stored,
    wait_until,
)

pytestmark = [pytest.mark.slow, pytest.mark.etcd]

HOT_MODELS = 24
MODEL_BYTES = 2 << 20
BANDWIDTH_BYTES_PER_S = 100e6
"""Of what is loaded here: files in the page cache, read, hashed and optimised; on an idle machine it is several times
as much."""
HEADROOM_S = 6.0
"""For a machine that runs four pods, etcd, the clients and other tests on two cores."""


@pytest.fixture(scope="module")
def pool(start_pool: StartPool) -> LocalPool:
    return start_pool(4)


@pytest.fixture(scope="module")
def hot(pool: LocalPool, files: ModelFiles) -> dict[str, Example]:
    """Models that serve, spread over the pods."""
    models = {f"hot-{number}": files.scale(number + 2, MODEL_BYTES) for number in range(HOT_MODELS)}
    with Client(pool.endpoints) as client:
        for name, example in models.items():
            client.register(name, uri=example.uri)
        for name, example in models.items():
            check(example, client.infer(name, example.inputs).outputs)
    return models


def asks(client: Client, models: dict[str, Example]) -> Callable[[str], None]:
    return lambda name: check(models[name], client.infer(name, models[name].inputs, timeout_s=30).outputs)


def test_nobody_notices_a_killed_pod_and_its_models_are_soon_back(pool: LocalPool, hot: dict[str, Example]) -> None:
    victim = max(pool.pods, key=lambda pod: sum(holders(pool, name) == [pod.name] for name in hot))
    lost = [name for name in hot if holders(pool, name) == [victim.name]]
    others = [pod for pod in pool.pods if pod is not victim]
    assert lost, "the victim has models that nobody else has"
    clients = {pod.name: Client(pod.grpc_endpoint, retry=ONE_TRY) for pod in others}
    everywhere = Client(pool.endpoints)
    with plain_channel(pool) as ask_plainly:
        askers = {name: asks(client, hot) for name, client in clients.items()}
        askers["mesh.client"] = asks(everywhere, hot)
        askers["channel"] = lambda name: ask_plainly(name, hot[name])
        with SteadyLoad(askers, list(hot), per_s=100) as load:
            load.wait_for(300)
            killed_s = time.monotonic()
            victim.kill()
            wait_until(
                pool,
                lambda: all(set(holders(pool, name)) - {victim.name} for name in lost),
                "what was lost is servable elsewhere",
            )
            restored_s = time.monotonic() - killed_s
            load.wait_for(300)
            victim.start()
            ready_s = time.monotonic() - killed_s - restored_s
            load.wait_for(300)
    for client in [*clients.values(), everywhere]:
        client.close()
    bar_s = LEASE_TTL_S + 1.5 * len(lost) * MODEL_BYTES / BANDWIDTH_BYTES_PER_S
    print(
        f"\nkill -9 of 1 of 4: {len(load.asked)} requests, {len(load.errors())} errors; {len(lost)} of {len(hot)} hot "
        f"models were lost and servable again after {restored_s:.2f} s (bar {bar_s:.2f} s); p50 "
        f"{1e3 * load.slowest_s(0, killed_s, 0.5):.0f} ms before, slowest {1e3 * load.slowest_s(killed_s):.0f} ms "
        f"after; restarted in {ready_s:.1f} s"
    )
    assert load.errors() == [], ends_of_logs(pool)
    assert min(load.counts().values()) > 100, load.counts()
    assert restored_s < bar_s + HEADROOM_S
    wait_until(pool, lambda: victim.name in stored_pods(pool), "it is in the pool again")


def test_nobody_notices_the_death_of_the_leader_and_another_pod_leads(pool: LocalPool, hot: dict[str, Example]) -> None:
    before = wait_until(pool, lambda: leader(pool), "somebody leads")
    victim = pod_named(pool, before)
    client = Client(",".join(pod.grpc_endpoint for pod in pool.pods if pod is not victim), retry=ONE_TRY)
    with SteadyLoad({"others": asks(client, hot)}, list(hot), per_s=50) as load:
        load.wait_for(50)
        killed_s = time.monotonic()
        victim.kill()
        wait_until(pool, lambda: leader(pool) not in ("", before), "another pod leads")
        led_s = time.monotonic() - killed_s
        load.wait_for(100)
    client.close()
    print(f"\nkill -9 of the leader: another pod leads after {led_s:.1f} s (lease ttl {LEASE_TTL_S:g} s)")
    assert load.errors() == [], ends_of_logs(pool)
    assert led_s < LEASE_TTL_S + HEADROOM_S
    victim.start()


def test_a_dead_pods_records_leave_with_its_lease_and_no_model_is_quarantined(
    pool: LocalPool, hot: dict[str, Example]
) -> None:
    """Hundreds of models are in use when a pod is killed: one such death accuses none of them."""
    victim = pool.pods[0]
    victim.kill()
    wait_until(pool, lambda: victim.name not in stored_pods(pool), "its record left", LEASE_TTL_S + HEADROOM_S)
    assert not [key for key in stored(pool, "copies/") if key.endswith(f"/{victim.name}")]
    victim.start()
    with Client(victim.grpc_endpoint, retry=ONE_TRY) as client:
        for name, example in hot.items():
            check(example, client.infer(name, example.inputs).outputs)
    verdicts = {key: found["verdict"] for key, found in stored(pool, "suspicions/").items()}
    assert "quarantined" not in verdicts.values(), verdicts


def stored_pods(pool: LocalPool) -> set[str]:
    return {key.removeprefix("pods/") for key in stored(pool, "pods/")}
