"""From an InferenceService that is applied to a prediction, and back: a real API server, the controller, a real pod."""

from __future__ import annotations

import pytest

from mesh.client import NotFound
from tests.cluster.control_plane import ControlPlane
from tests.cluster.controllers import StartController
from tests.cluster.services import is_seen, isvc, model_status, path_of, predicts, wait_ready
from tests.e2e.conftest import ModelFiles, StartPod


def test_a_service_is_applied_answers_changes_and_goes(
    cluster: ControlPlane, namespace: str, start_pod: StartPod, start_controller: StartController, files: ModelFiles
) -> None:
    admin, iris, scale = cluster.admin, files.iris(), files.scale(3.0)
    pod = start_pod()
    controller = start_controller(namespace, pod.target)
    flowers = path_of(namespace, "flowers")

    admin.apply(flowers, isvc("flowers", iris.uri, "sklearn"))
    service = wait_ready(admin, namespace, "flowers")
    assert service["status"]["url"] == f"http://flowers-predictor.{namespace}.svc.cluster.local"
    assert model_status(service)["states"]["activeModelState"] == "Loaded"
    assert predicts(pod, namespace, "flowers", iris)
    child_path = f"/api/v1/namespaces/{namespace}/services/flowers-predictor"
    child = admin.get(child_path)
    assert child["spec"]["type"] == "ExternalName"
    assert child["metadata"]["ownerReferences"][0]["uid"] == service["metadata"]["uid"]

    admin.apply(flowers, isvc("flowers", scale.uri))

    def moved_on() -> bool:
        service = admin.get(flowers)
        return is_seen(service) and model_status(service).get("transitionStatus") == "UpToDate"

    admin.wait_until(moved_on, "the new artifact has taken over")
    assert predicts(pod, namespace, "flowers", scale)

    admin.delete(flowers)
    admin.wait_until(lambda: admin.find(flowers) is None, "the service has gone")
    with pod.client(tenant=namespace) as client:
        assert list(client.list_models()) == []
        assert list(client.list_aliases()) == []
        with pytest.raises(NotFound):
            client.infer("flowers", dict(scale.inputs))
    admin.wait_until(lambda: admin.find(child_path) is None, "the garbage collector has taken the child")
    events = [event["reason"] for event in admin.get(f"/api/v1/namespaces/{namespace}/events")["items"]]
    assert "InferenceServiceReady" in events
    assert controller.stop() == 0
