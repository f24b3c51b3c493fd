"""What the controller does when things are lost, changed by others, refused, or started twice."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.policy import Policy
from mesh.demo.ports import free_ports
from tests.cluster.control_plane import ControlPlane, Json
from tests.cluster.controllers import StartController
from tests.cluster.services import condition, isvc, model_status, path_of, predicts, wait_ready
from tests.e2e.conftest import Example, ModelFiles, Pod, PodStarter, StartPod


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    """A mesh of one pod; each test is a tenant of its own."""
    starter = PodStarter(tmp_path_factory.mktemp("mesh"))
    yield starter()
    starter.close()


@pytest.fixture
def scale(files: ModelFiles) -> Example:
    return files.scale(2.0)


def test_a_mesh_that_lost_everything_is_given_it_back(
    cluster: ControlPlane,
    namespace: str,
    start_pod: StartPod,
    start_controller: StartController,
    scale: Example,
    tmp_path: Path,
) -> None:
    (port,) = free_ports(1)
    pod = start_pod(grpc_port=port)
    start_controller(namespace, pod.target, mesh_resync_s=0.5)
    cluster.admin.create(path_of(namespace), isvc("s", scale.uri))
    wait_ready(cluster.admin, namespace, "s")
    pod.process.kill()
    pod.process.wait()
    shutil.rmtree(tmp_path / "data")
    pod = start_pod(grpc_port=port)

    def is_back() -> bool:
        with pod.client(tenant=namespace) as client:
            return [alias.id for alias in client.list_aliases()] == ["s"]

    pod.wait_until(is_back, "the name is there again")
    assert predicts(pod, namespace, "s", scale)


def test_a_deletion_waits_for_the_controller_and_what_others_registered_stays(
    cluster: ControlPlane, namespace: str, pod: Pod, start_controller: StartController, scale: Example
) -> None:
    admin, path = cluster.admin, path_of(namespace, "s")
    with pod.client(tenant=namespace) as client:
        client.register("theirs", uri=scale.uri)
        client.put_alias("their-name", "theirs", owner="them")
    first = start_controller(namespace, pod.target, leader_elect=False)
    admin.apply(path, isvc("s", scale.uri))
    wait_ready(admin, namespace, "s")
    first.kill()
    admin.delete(path)
    assert "deletionTimestamp" in admin.get(path)["metadata"]
    assert predicts(pod, namespace, "s", scale)
    start_controller(namespace, pod.target, leader_elect=False)
    admin.wait_until(lambda: admin.find(path) is None, "the service has gone")
    with pod.client(tenant=namespace) as client:
        assert [model.id for model in client.list_models()] == ["theirs"]
        assert [alias.id for alias in client.list_aliases()] == ["their-name"]


def test_what_is_left_of_a_service_whose_finalizer_was_taken_off_is_found(
    cluster: ControlPlane, namespace: str, pod: Pod, start_controller: StartController, scale: Example
) -> None:
    admin = cluster.admin
    first = start_controller(namespace, pod.target, leader_elect=False)
    for name in ("gone", "stays"):
        admin.create(path_of(namespace), isvc(name, scale.uri))
        wait_ready(admin, namespace, name)
    first.kill()
    admin.merge(path_of(namespace, "gone"), {"metadata": {"finalizers": None}})
    admin.delete(path_of(namespace, "gone"))
    assert admin.find(path_of(namespace, "gone")) is None
    start_controller(namespace, pod.target, leader_elect=False, mesh_resync_s=0.5)

    def names() -> list[str]:
        with pod.client(tenant=namespace) as client:
            assert len(list(client.list_models())) in (1, 2)
            return [alias.id for alias in client.list_aliases()]

    admin.wait_until(lambda: names() == ["stays"], "nothing is left of it")
    assert predicts(pod, namespace, "stays", scale)


def test_a_controller_that_starts_on_services_at_rest_writes_nothing(
    cluster: ControlPlane, namespace: str, pod: Pod, start_controller: StartController, scale: Example
) -> None:
    admin = cluster.admin
    first = start_controller(namespace, pod.target, leader_elect=False)
    for number in range(3):
        admin.create(path_of(namespace), isvc(f"s{number}", scale.uri))
    before = {f"s{number}": wait_ready(admin, namespace, f"s{number}") for number in range(3)}
    assert first.stop() == 0
    second = start_controller(namespace, pod.target, leader_elect=False)
    turns = 'hexcomb_controller_turn_seconds_count{outcome="ok"} '

    def looked() -> bool:
        return any(line.startswith(turns) and float(line.removeprefix(turns)) >= 3 for line in second.metrics())

    admin.wait_until(looked, "it has looked at each of them")
    assert second.calls_by_method().keys() == {"GET"}
    for name, service in before.items():
        assert (
            admin.get(path_of(namespace, name))["metadata"]["resourceVersion"] == service["metadata"]["resourceVersion"]
        )


def test_a_standby_takes_over_when_the_leader_stops(
    cluster: ControlPlane, namespace: str, pod: Pod, start_controller: StartController, scale: Example
) -> None:
    admin = cluster.admin
    leader = start_controller(namespace, pod.target)
    admin.wait_until(lambda: "hexcomb_controller_leading 1.0" in leader.metrics(), "the first one leads")
    standby = start_controller(namespace, pod.target)
    admin.wait_until(lambda: standby.ask("/readyz") == "ok\n", "the second one is ready")
    assert "hexcomb_controller_leading 0.0" in standby.metrics()
    admin.create(path_of(namespace), isvc("one", scale.uri))
    wait_ready(admin, namespace, "one")
    assert standby.calls_by_method().keys() == {"GET"}
    assert leader.stop() == 0
    admin.create(path_of(namespace), isvc("two", scale.uri))
    wait_ready(admin, namespace, "two")
    assert "hexcomb_controller_leading 1.0" in standby.metrics()


def test_a_child_that_somebody_changes_or_deletes_comes_back(
    cluster: ControlPlane, namespace: str, pod: Pod, start_controller: StartController, scale: Example
) -> None:
    admin = cluster.admin
    start_controller(namespace, pod.target, leader_elect=False)
    admin.create(path_of(namespace), isvc("s", scale.uri))
    wait_ready(admin, namespace, "s")
    child = f"/api/v1/namespaces/{namespace}/services/s-predictor"
    wanted = admin.get(child)["spec"]["externalName"]
    admin.merge(child, {"spec": {"externalName": "elsewhere.example"}})
    admin.wait_until(lambda: admin.get(child)["spec"]["externalName"] == wanted, "it leads to the mesh again")
    admin.delete(child)
    admin.wait_until(lambda: admin.find(child), "it is there again")


@pytest.mark.parametrize("leads_to", ["their.example", Policy().mesh_host], ids=["elsewhere", "as ours would"])
def test_a_child_of_somebody_else_is_left_alone_and_told_until_it_has_gone(
    cluster: ControlPlane, namespace: str, pod: Pod, start_controller: StartController, scale: Example, leads_to: str
) -> None:
    admin = cluster.admin
    child = f"/api/v1/namespaces/{namespace}/services/s-predictor"
    spec: Json = {"type": "ExternalName", "externalName": leads_to}
    admin.apply(child, {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s-predictor"}, "spec": spec})
    start_controller(namespace, pod.target, leader_elect=False, retry_max_s=1)
    admin.create(path_of(namespace), isvc("s", scale.uri))

    def told() -> bool:
        events = admin.get(f"/api/v1/namespaces/{namespace}/events")["items"]
        return any("s-predictor exists and is not this InferenceService's" in event["message"] for event in events)

    admin.wait_until(told, "an event says so")
    left = admin.get(child)
    assert left["spec"]["externalName"] == leads_to
    assert "ownerReferences" not in left["metadata"]
    ready = condition(admin.get(path_of(namespace, "s")), "Ready")
    assert (ready["status"], ready["reason"]) == ("False", "ChildRefused")
    admin.delete(child)
    wait_ready(admin, namespace, "s")


def test_a_name_that_is_taken_on_the_mesh_is_told_and_left_alone(
    cluster: ControlPlane, namespace: str, pod: Pod, start_controller: StartController, scale: Example
) -> None:
    with pod.client(tenant=namespace) as client:
        client.register("theirs", uri=scale.uri)
        client.put_alias("s", "theirs", owner="them")
    start_controller(namespace, pod.target, leader_elect=False)
    cluster.admin.create(path_of(namespace), isvc("s", scale.uri))
    service = wait_ready(cluster.admin, namespace, "s", "False")
    assert "taken on the mesh" in condition(service, "Ready")["message"]
    assert "taken on the mesh" in model_status(service)["lastFailureInfo"]["message"]
    with pod.client(tenant=namespace) as client:
        (alias,) = list(client.list_aliases())
        assert (alias.active, alias.owner) == ("theirs", "them")


@pytest.mark.parametrize(
    ("uri", "model_format", "said", "reason", "words"),
    [
        ("file:///nowhere/model.onnx", "onnx", {}, "ModelLoadFailed", "nowhere"),
        ("s3://models/m", "paddle", {}, "NoSupportingRuntime", "spec.predictor.model.modelFormat.name"),
        (
            "s3://models/m",
            "onnx",
            {"nodeSelector": {"gpu": "yes"}},
            "InvalidPredictorSpec",
            "spec.predictor.nodeSelector",
        ),
    ],
    ids=["no artifact", "no such format", "a field of pods"],
)
def test_what_cannot_be_served_says_why(
    cluster: ControlPlane,
    namespace: str,
    pod: Pod,
    start_controller: StartController,
    uri: str,
    model_format: str,
    said: Json,
    reason: str,
    words: str,
) -> None:
    start_controller(namespace, pod.target, leader_elect=False)
    cluster.admin.create(path_of(namespace), isvc("s", uri, model_format, **said))
    service = wait_ready(cluster.admin, namespace, "s", "False")
    failure = model_status(service)["lastFailureInfo"]
    assert failure["reason"] == reason
    assert words in failure["message"]


def test_a_controller_works_on_when_the_api_server_and_the_mesh_come_back(
    cluster: ControlPlane, namespace: str, start_pod: StartPod, start_controller: StartController, scale: Example
) -> None:
    admin = cluster.admin
    (port,) = free_ports(1)
    pod = start_pod(grpc_port=port)
    start_controller(namespace, pod.target, leader_elect=False, retry_max_s=1)
    admin.create(path_of(namespace), isvc("one", scale.uri))
    wait_ready(admin, namespace, "one")
    cluster.kill_apiserver()
    cluster.start_apiserver()
    assert pod.stop() == 0
    admin.create(path_of(namespace), isvc("two", scale.uri))
    pod = start_pod(grpc_port=port)
    wait_ready(admin, namespace, "two")
    assert predicts(pod, namespace, "one", scale)
    assert predicts(pod, namespace, "two", scale)
