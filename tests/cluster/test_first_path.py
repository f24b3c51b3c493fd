"""From an InferenceService that is applied to a prediction, and back: a real API server, the controller, a real pod."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mesh.client import NotFound
from tests.cluster.control_plane import Admin, ControlPlane, Json
from tests.cluster.controllers import StartController
from tests.e2e.conftest import Example, ModelFiles, Pod, StartPod

ISVCS = "/apis/serving.kserve.io/v1beta1/namespaces/{}/inferenceservices"


def isvc(name: str, example: Example, model_format: str = "onnx", **predictor: Any) -> Json:
    model = {"modelFormat": {"name": model_format}, "storageUri": example.uri}
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name, "annotations": {"serving.kserve.io/deploymentMode": "ModelMesh"}},
        "spec": {"predictor": {"model": model, **predictor}},
    }


def condition(service: Json, kind: str) -> Json:
    found = service.get("status", {}).get("conditions", [])
    return next((one for one in found if one["type"] == kind), {})


def wait_ready(admin: Admin, namespace: str, name: str, is_ready: str = "True", timeout_s: float = 60.0) -> Json:
    """The service once its condition Ready says so about its newest spec."""

    def ready() -> Json | None:
        service = admin.get(f"{ISVCS.format(namespace)}/{name}")
        seen = service.get("status", {}).get("observedGeneration") == service["metadata"]["generation"]
        return service if seen and condition(service, "Ready").get("status") == is_ready else None

    found: Json = admin.wait_until(ready, f"{name} is Ready={is_ready}", timeout_s)
    return found


def moved_on(service: Json) -> bool:
    """Whether the newest spec is what answers."""
    status = service.get("status", {})
    is_seen = status.get("observedGeneration") == service["metadata"]["generation"]
    return is_seen and status.get("modelStatus", {}).get("transitionStatus") == "UpToDate"


def predicts(pod: Pod, namespace: str, name: str, example: Example) -> bool:
    with pod.client(tenant=namespace) as client:
        outputs = client.infer(name, dict(example.inputs)).outputs
    return all(np.allclose(outputs[key], value) for key, value in example.expected.items())


def test_a_service_is_applied_answers_changes_and_goes(
    cluster: ControlPlane, namespace: str, start_pod: StartPod, start_controller: StartController, files: ModelFiles
) -> None:
    admin, iris, scale = cluster.admin, files.iris(), files.scale(3.0)
    pod = start_pod()
    controller = start_controller(namespace, pod.target)
    services = ISVCS.format(namespace)

    admin.create(services, isvc("flowers", iris, "sklearn"))
    service = wait_ready(admin, namespace, "flowers")
    status = service["status"]
    assert status["url"] == f"http://flowers-predictor.{namespace}.svc.cluster.local"
    assert status["modelStatus"]["states"]["activeModelState"] == "Loaded"
    assert status["modelStatus"]["transitionStatus"] == "UpToDate"
    assert predicts(pod, namespace, "flowers", iris)
    child = admin.get(f"/api/v1/namespaces/{namespace}/services/flowers-predictor")
    assert child["spec"]["type"] == "ExternalName"
    assert child["metadata"]["ownerReferences"][0]["uid"] == service["metadata"]["uid"]

    admin.apply(f"{services}/flowers", isvc("flowers", scale))
    admin.wait_until(lambda: moved_on(admin.get(f"{services}/flowers")), "the new artifact has taken over")
    assert predicts(pod, namespace, "flowers", scale)

    admin.delete(f"{services}/flowers")
    admin.wait_until(lambda: admin.find(f"{services}/flowers") is None, "the service has gone")
    with pod.client(tenant=namespace) as client:
        assert list(client.list_models()) == []
        assert list(client.list_aliases()) == []
        with pytest.raises(NotFound):
            client.infer("flowers", dict(scale.inputs))
    child_path = f"/api/v1/namespaces/{namespace}/services/flowers-predictor"
    admin.wait_until(lambda: admin.find(child_path) is None, "the garbage collector has taken the child")
    events = [event["reason"] for event in admin.get(f"/api/v1/namespaces/{namespace}/events")["items"]]
    assert "InferenceServiceReady" in events
    assert controller.stop() == 0
