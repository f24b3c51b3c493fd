"""Pipelines over a pool of two pods: steps that run where their models are, and `kill -9` of a pod under load."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from mesh.client import Client
from mesh.demo.local_pool import LocalPool
from tests.e2e.conftest import ModelFiles, StartPool
from tests.e2e.pools import ONE_TRY, SteadyLoad, ends_of_logs, holders, status_of, stored, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.etcd]

X = np.arange(8, dtype=np.float32).reshape(2, 4)
FACTORS = (2, 3, 5, 7, 11, 13)
MODEL_BYTES = 1 << 20


@pytest.fixture(scope="module")
def pool(start_pool: StartPool) -> LocalPool:
    return start_pool(2)


@pytest.fixture(scope="module")
def models(pool: LocalPool, files: ModelFiles) -> list[str]:
    """Models that serve, each on one pod, and both pods have some."""
    names = [f"times-{factor}" for factor in FACTORS]
    with Client(pool.endpoints) as client:
        for factor, name in zip(FACTORS, names, strict=True):
            client.register(name, uri=files.scale(factor, MODEL_BYTES).uri, copies_max=1)
        for name in names:
            client.infer(name, {"x": X})
    wait_until(
        pool,
        lambda: {pod for name in names for pod in holders(pool, name)} == {pod.name for pod in pool.pods},
        "both pods have models",
    )
    return names


@pytest.fixture(scope="module")
def pipelines(pool: LocalPool, models: list[str]) -> dict[str, np.ndarray]:
    """Pipelines over all of these models, and what each answers for X, its outputs added up."""
    sequence = [{"serviceName": name, "data": "$response"} for name in models]
    ensemble = [{"serviceName": name, "dependency": "Hard"} for name in models]
    with Client(pool.pods[0].grpc_endpoint) as client:
        client.register_pipeline("all", {"nodes": {"root": {"routerType": "Sequence", "steps": sequence}}})
        client.register_pipeline("each", {"nodes": {"root": {"routerType": "Ensemble", "steps": ensemble}}})
    return {"all": X * np.float32(np.prod(FACTORS)), "each": X * np.float32(sum(FACTORS))}


def asks(client: Client, pipelines: dict[str, np.ndarray]) -> Callable[[str], None]:
    def ask(name: str) -> None:
        found = client.infer(name, {"x": X}, timeout_s=30).outputs
        np.testing.assert_allclose(sum(found.values()), pipelines[name], rtol=1e-6)

    return ask


def test_every_pod_answers_a_pipeline_at_once_and_asks_the_others_for_their_models(
    pool: LocalPool, models: list[str], pipelines: dict[str, np.ndarray]
) -> None:
    loads_before = sum(status_of(pod).loads for pod in pool.pods)
    for pod in reversed(pool.pods):  # the second knows of what was registered at the first
        with Client(pod.grpc_endpoint, retry=ONE_TRY) as client:
            ask = asks(client, pipelines)
            for name in pipelines:
                ask(name)
            assert client.model_ready("all")
            assert client.model_metadata("each").outputs[0].name == "0.y"
            (statistics,) = client.statistics("all").model_stats
            assert statistics.inference_stats.success.count >= 1
    assert sum(status_of(pod).loads for pod in pool.pods) == loads_before, "no model was loaded a second time"


def test_an_alias_moves_from_a_model_to_a_pipeline_and_back_and_may_share_with_one(
    pool: LocalPool, models: list[str], pipelines: dict[str, np.ndarray]
) -> None:
    here, there = (Client(pod.grpc_endpoint, retry=ONE_TRY) for pod in pool.pods)
    with here, there:

        def answers(expected: np.ndarray) -> bool:
            return np.allclose(there.infer("front", {"x": X}).outputs["y"], expected, rtol=1e-6)

        here.put_alias("front", models[0])
        wait_until(pool, lambda: answers(X * FACTORS[0]), "it is a model")
        here.put_alias("front", "all", wait=True)
        wait_until(pool, lambda: answers(pipelines["all"]), "it is a pipeline")
        here.put_alias("front", models[1], wait=True)
        wait_until(pool, lambda: answers(X * FACTORS[1]), "it is a model again")
        here.put_alias("front", "all", {"all": 1, models[1]: 0})
        wait_until(pool, lambda: answers(pipelines["all"]), "all of its share is a pipeline's")
        assert not here.describe("all").failures
        here.delete_alias("front")


def test_nobody_who_asks_pipelines_notices_a_killed_pod(
    pool: LocalPool, models: list[str], pipelines: dict[str, np.ndarray]
) -> None:
    stays, victim = pool.pods
    lost = [name for name in models if holders(pool, name) == [victim.name]]
    assert lost, "the victim has models that nobody else has"
    with Client(stays.grpc_endpoint, retry=ONE_TRY) as one, Client(pool.endpoints) as everywhere:
        askers = {"the pod that stays": asks(one, pipelines), "mesh.client": asks(everywhere, pipelines)}
        with SteadyLoad(askers, list(pipelines), per_s=40) as load:
            load.wait_for(100)
            victim.kill()
            wait_until(pool, lambda: all(stays.name in holders(pool, name) for name in lost), "its models are back")
            load.wait_for(100)
            victim.start()
            wait_until(pool, lambda: f"pods/{victim.name}" in stored(pool, "pods/"), "it is in the pool again")
            load.wait_for(100)
    print(f"\nkill -9 of 1 of 2: {len(load.asked)} requests of {len(models)} steps each, {len(load.errors())} errors")
    assert load.errors() == [], ends_of_logs(pool)
    assert min(load.counts().values()) > 100, load.counts()
