"""A model comes back on the pod whose disk has its artifact: after an eviction, a restart of that pod, a wipe of etcd.

By hash alone about half of the models would go to the other pod, which has never seen them and has equal room.
"""

from __future__ import annotations

import pytest

from mesh.client import Client
from mesh.demo.local_pool import LocalPod, LocalPool
from mesh.wire.generated import hexcomb_pb2
from placement.policy.rendezvous import affinity
from placement.policy.snapshot import ModelName
from tests.e2e.conftest import Example, ModelFiles, StartPool
from tests.e2e.pools import check, delete_by_hand, holders, stored, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.etcd, pytest.mark.timeout(300)]

MODELS = 8
CAPACITY_BYTES = 256 * 2**20
PARKED = "parked/default/"


@pytest.fixture(scope="module")
def pool(start_pool: StartPool) -> LocalPool:
    # Without trial loads of hot models: the second pod's disk would have them as well.
    return start_pool(2, capacity=CAPACITY_BYTES, bootstrap_trials=0)


@pytest.fixture(scope="module")
def models(pool: LocalPool, files: ModelFiles) -> dict[str, Example]:
    """Loaded on the first pod while the second was away, and unused since: only the first disk has them."""
    knowing, other = pool.pods
    models = {f"m-{number}": files.scale(number + 2) for number in range(MODELS)}
    other.stop()
    with Client(knowing.grpc_endpoint) as client:
        for name, example in models.items():
            client.register(name, uri=example.uri, format="onnx", ttl_s=1.0)
            check(example, client.infer(name, example.inputs).outputs)
    other.start()
    wait_parked(pool, models)
    return models


def by_hash_elsewhere(models: dict[str, Example], pods: list[LocalPod]) -> list[str]:
    """Those that the second pod would be given if no disk had them."""
    knowing, other = (pod.name for pod in pods)
    names = {name: ModelName("default", name) for name in models}
    return [n for n, m in names.items() if affinity(m, other, CAPACITY_BYTES) > affinity(m, knowing, CAPACITY_BYTES)]


def wait_parked(pool: LocalPool, models: dict[str, Example]) -> None:
    """Nobody has a copy, and the first pod says of all models that they lie on its disk."""
    wanted = {f"{PARKED}{name}/{pool.pods[0].name}" for name in models}

    def parked() -> bool:
        return not stored(pool, "copies/default/") and stored(pool, PARKED).keys() == wanted

    wait_until(pool, parked, "all models are parked on the first pod")


def explained(pod: LocalPod, model: str) -> hexcomb_pb2.Explanation:
    with Client(pod.grpc_endpoint) as client:
        return client.explain(model)


def check_come_back(pool: LocalPool, models: dict[str, Example]) -> None:
    """Asked at the second pod, every model is loaded on the first, and whoever asks hears why."""
    knowing, other = pool.pods
    assert by_hash_elsewhere(models, pool.pods), "else the test shows nothing"
    for name, example in models.items():
        sentence = f"Its artifact is on the disk of 1 pod ({knowing.name})."
        wait_until(pool, lambda name=name, said=sentence: said in explained(other, name).summary, "the pods know it")
        places = {place.pod: place for place in explained(other, name).candidates}
        assert places[knowing.name].chosen
        assert any(reason.endswith("from its disk") for reason in places[knowing.name].reasons)
        assert any(reason.endswith("from afar") for reason in places[other.name].reasons)
        with Client(other.grpc_endpoint) as client:
            check(example, client.infer(name, example.inputs).outputs)
        assert wait_until(pool, lambda name=name: holders(pool, name), "its copy is told of") == [knowing.name]
    wait_parked(pool, models)


def test_a_model_whose_copy_left_comes_back_where_its_artifact_is(pool: LocalPool, models: dict[str, Example]) -> None:
    check_come_back(pool, models)
    told = stored(pool, PARKED)
    assert all(record["disk"] == 1 and record["disk_load_s"] > 0 for record in told.values()), told


def test_a_pod_that_was_killed_finds_on_its_disk_what_it_had(pool: LocalPool, models: dict[str, Example]) -> None:
    knowing, _ = pool.pods
    knowing.kill()
    wait_until(pool, lambda: not stored(pool, PARKED), "what it said went with its lease")
    knowing.start()
    wait_parked(pool, models)
    check_come_back(pool, models)


def test_after_a_wipe_of_etcd_the_pods_say_again_what_is_on_their_disks(
    pool: LocalPool, models: dict[str, Example]
) -> None:
    pool.etcd.wipe()
    pool.etcd.start()
    wait_until(pool, lambda: len(stored(pool, "models/default/")) == MODELS, "registrations are back", 60)
    wait_parked(pool, models)
    delete_by_hand(pool, f"{PARKED}m-0/{pool.pods[0].name}")
    wait_parked(pool, models)
    check_come_back(pool, models)


def test_a_model_that_is_unregistered_is_parked_no_more(pool: LocalPool, models: dict[str, Example]) -> None:
    with Client(pool.endpoints) as client:
        client.unregister("m-0")
    wait_until(pool, lambda: f"{PARKED}m-0/{pool.pods[0].name}" not in stored(pool, PARKED), "its record goes")
    assert len(stored(pool, PARKED)) == MODELS - 1
