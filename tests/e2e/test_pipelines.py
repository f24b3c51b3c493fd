"""Pipelines on one pod: real models, every router, every protocol that a client may come by."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from mesh.client import Client
from tests.e2e.conftest import ModelFiles, Pod, StartPod

X = np.arange(8, dtype=np.float32).reshape(2, 4)


def sequence(*steps: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"nodes": {"root": {"routerType": "Sequence", "steps": list(steps)}}, **more}


def node(router: str, *steps: dict[str, Any]) -> dict[str, Any]:
    return {"nodes": {"root": {"routerType": router, "steps": list(steps)}}}


def after(service: str, **more: Any) -> dict[str, Any]:
    return {"serviceName": service, "data": "$response", **more}


@pytest.fixture(scope="module")
def pod(start_module_pod: StartPod, files: ModelFiles) -> Pod:
    pod = start_module_pod()
    with pod.client() as client:
        for factor in (2, 3, 5):
            client.register(f"times-{factor}", uri=files.scale(factor).uri)
        client.register("obedient", uri=files.obedient().as_uri(), format="python", isolation="process")
    return pod


@pytest.fixture
def client(pod: Pod) -> Iterator[Client]:
    with pod.client() as client:
        yield client


def test_a_sequence_hands_each_answer_on(client: Client) -> None:
    client.register_pipeline("six", sequence({"serviceName": "times-2"}, after("times-3")))
    answer = client.infer("six", {"x": X})
    np.testing.assert_array_equal(answer.outputs["y"], 6 * X)
    assert (answer.model_name, answer.model_version) == ("six", "1")
