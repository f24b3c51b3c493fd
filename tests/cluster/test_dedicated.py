"""Pods of a service's own, and moves between them and the mesh: a real API server, with pods marked ready by hand."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator

import pytest

from tests.cluster.control_plane import Admin, ControlPlane, Json
from tests.cluster.controllers import StartController
from tests.cluster.services import isvc, path_of, predicts, wait_ready
from tests.e2e.conftest import Example, ModelFiles, StartPod

OUR_MODE = "hexcomb.dev/mode"


@pytest.fixture
def scale(files: ModelFiles) -> Example:
    return files.scale(2.0)


@pytest.fixture
def uri(scale: Example) -> Iterator[str]:
    """Of the example's artifact, where pods of the mesh and pods of its own could both fetch it."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(scale.path.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/{scale.path.name}"
        server.shutdown()


def make_runtime(admin: Admin, namespace: str) -> None:
    container = {
        "name": "kserve-container",
        "image": "example/onnxserver:1",
        "args": ["--model_name={{.Name}}", "--model_dir=/mnt/models"],
        "resources": {"requests": {"cpu": "1000m", "memory": "1024Mi"}, "limits": {"cpu": 1, "memory": "2Gi"}},
    }
    runtime = {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "ServingRuntime",
        "metadata": {"name": "onnxserver"},
        "spec": {"supportedModelFormats": [{"name": "onnx", "autoSelect": True}], "containers": [container]},
    }
    admin.create(f"/apis/serving.kserve.io/v1alpha1/namespaces/{namespace}/servingruntimes", runtime)


def mark_pods_ready(admin: Admin, namespace: str) -> None:
    """What a kubelet would say of pods that run."""
    conditions = [{"type": "Ready", "status": "True"}, {"type": "ContainersReady", "status": "True"}]
    for pod in admin.get(f"/api/v1/namespaces/{namespace}/pods")["items"]:
        path = f"/api/v1/namespaces/{namespace}/pods/{pod['metadata']['name']}/status"
        admin.merge(path, {"status": {"phase": "Running", "conditions": conditions}})


def wait_ready_with_pods(admin: Admin, namespace: str, name: str) -> Json:
    def pods() -> list[Json]:
        found: list[Json] = admin.get(f"/api/v1/namespaces/{namespace}/pods")["items"]
        return found

    admin.wait_until(pods, "the Deployment has pods")
    mark_pods_ready(admin, namespace)
    return wait_ready(admin, namespace, name)


def test_a_service_gets_pods_of_its_own_and_moves_to_the_mesh_and_back(
    cluster: ControlPlane,
    namespace: str,
    start_pod: StartPod,
    start_controller: StartController,
    scale: Example,
    uri: str,
) -> None:
    admin = cluster.admin
    pod = start_pod()
    settings = {"leader_elect": False, "move_grace_s": 1, "retry_max_s": 1}
    controller = start_controller(namespace, pod.target, **settings)
    make_runtime(admin, namespace)
    path = path_of(namespace, "s")
    deployment = f"/apis/apps/v1/namespaces/{namespace}/deployments/s-predictor"
    autoscaler = f"/apis/autoscaling/v2/namespaces/{namespace}/horizontalpodautoscalers/s-predictor"
    name = f"/api/v1/namespaces/{namespace}/services/s-predictor"

    admin.create(path_of(namespace), isvc("s", uri, annotations={OUR_MODE: "Standard"}))
    service = wait_ready_with_pods(admin, namespace, "s")
    assert service["status"]["url"] == f"http://s-predictor.{namespace}.svc.cluster.local"
    assert admin.get(deployment)["spec"]["template"]["spec"]["containers"][0]["args"][0] == "--model_name=s"
    assert admin.get(name)["spec"]["type"] == "ClusterIP"
    assert admin.get(autoscaler)["spec"]["scaleTargetRef"]["name"] == "s-predictor"

    # At rest nothing changes, though the server writes `1000m` as `1`. (What others say of a Deployment or an
    # autoscaler makes versions of it, but no generations.)
    def state() -> list[object]:
        generation = admin.get(deployment)["metadata"]["generation"]
        return [generation, *(admin.get(one)["metadata"]["resourceVersion"] for one in (path, name))]

    assert controller.stop() == 0
    before = state()
    controller = start_controller(namespace, pod.target, **settings)
    turns = 'hexcomb_controller_turn_seconds_count{outcome="ok"} '
    admin.wait_until(lambda: any(line.startswith(turns) for line in controller.metrics()), "it has looked")
    assert state() == before

    admin.merge(path, {"metadata": {"annotations": {OUR_MODE: "ModelMesh"}}})
    admin.wait_until(lambda: admin.get(name)["spec"]["type"] == "ExternalName", "the name leads to the mesh")
    assert predicts(pod, namespace, "s", scale)
    admin.wait_until(lambda: admin.find(deployment) is None, "its pods have gone")
    admin.wait_until(lambda: admin.find(autoscaler) is None, "its autoscaler has gone")
    wait_ready(admin, namespace, "s")

    admin.merge(path, {"metadata": {"annotations": {OUR_MODE: "Standard"}}})
    admin.wait_until(lambda: admin.find(deployment), "it has pods again")
    assert admin.get(name)["spec"]["type"] == "ExternalName"  # until they are ready
    wait_ready_with_pods(admin, namespace, "s")
    admin.wait_until(lambda: admin.get(name)["spec"]["type"] == "ClusterIP", "the name leads to its pods")

    def has_left() -> bool:
        with pod.client(tenant=namespace) as client:
            return not list(client.list_models()) and not list(client.list_aliases())

    admin.wait_until(has_left, "nothing is left on the mesh")
    admin.delete(path)
    admin.wait_until(lambda: admin.find(deployment) is None and admin.find(name) is None, "all children have gone")


def test_a_transformer_stands_beside_a_model_of_the_mesh_until_it_is_taken_out(
    cluster: ControlPlane, namespace: str, start_pod: StartPod, start_controller: StartController, scale: Example
) -> None:
    admin = cluster.admin
    start_controller(namespace, start_pod().target)
    deployment = f"/apis/apps/v1/namespaces/{namespace}/deployments/s-transformer"
    manifest = isvc("s", scale.uri)
    manifest["spec"]["transformer"] = {"containers": [{"name": "mine", "image": "example/transformer:1"}]}

    admin.create(path_of(namespace), manifest)
    service = wait_ready_with_pods(admin, namespace, "s")
    assert service["status"]["deploymentMode"] == "ModelMesh"
    assert service["status"]["url"] == f"http://s-transformer.{namespace}.svc.cluster.local"
    (container,) = admin.get(deployment)["spec"]["template"]["spec"]["containers"]
    assert container["args"][:4] == [
        *("--model_name", "s"),
        *("--predictor_host", f"s-predictor.{namespace}.svc.cluster.local"),
    ]

    admin.merge(path_of(namespace, "s"), {"spec": {"transformer": None}})
    admin.wait_until(lambda: admin.find(deployment) is None, "the transformer has gone")
    service = wait_ready(admin, namespace, "s")
    assert service["status"]["url"] == f"http://s-predictor.{namespace}.svc.cluster.local"
