"""From an object to what should exist, and to what its status says: one service at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from controller.mesh_view import MeshView, ModelState
from controller.objects import Objects
from controller.policy import Mode, Policy
from controller.registration import OnMesh, plan_registration
from controller.service_view import read_service
from controller.status import events_between, status_blocked
from tests.unit.controller.builders import FORMATS, World, message, model, reason, runtime, service, sklearn


def planned(predictor: dict[str, Any], **around: Any) -> Any:
    said = service(predictor)
    return plan_registration(read_service(said), Objects(said, **around), MeshView(True, FORMATS, 2**31), Policy())


@pytest.mark.parametrize(
    ("predictor", "model_format"),
    [
        ({"xgboost": {"storageUri": "s3://b/x"}}, "xgboost"),
        ({"lightgbm": {"storageUri": "gs://b/x"}}, "lightgbm"),
        ({"onnx": {"storageUri": "https://host/x.onnx"}}, "onnx"),
        ({"pytorch": {"storageUri": "pvc://claim/x"}}, "torch"),
        ({"sklearn": {"storageUri": "hf://owner/model"}}, None),
        (model("sklearn", protocolVersion="v2"), None),
    ],
)
def test_kserves_formats_are_the_meshs(predictor: dict[str, Any], model_format: str | None) -> None:
    assert planned(predictor).registration.spec.get("format") == model_format


@pytest.mark.parametrize(
    ("storage", "types", "uri"),
    [
        ({"key": "k", "path": "a/b"}, {"k": "s3"}, "s3:///a/b"),
        ({"key": "k", "path": "/a", "parameters": {"type": "gcs", "bucket": "x"}}, {}, "gs://x/a"),
        ({"path": "a", "parameters": {"type": "azure", "container": "c", "account_name": "n"}}, {}, "az://c@n/a"),
        ({"key": "k", "path": "a", "parameters": {"name": "claim"}}, {"k": "pvc"}, "pvc://claim/a"),
    ],
)
def test_a_key_and_a_path_are_one_uri(storage: dict[str, Any], types: dict[str, str], uri: str) -> None:
    found = planned({"model": {"modelFormat": {"name": "onnx"}, "storage": storage}}, storage_types=types)
    assert isinstance(found, OnMesh), found
    assert found.registration.spec["uri"] == uri
    assert found.registration.spec.get("storage_key") == storage.get("key")


@pytest.mark.parametrize(
    ("fields", "path", "why"),
    [
        ({"storage": {"key": "k", "path": "a"}}, "storage.parameters.type", "is not said"),
        ({"storage": {"path": "a", "parameters": {"type": "ftp"}}}, "storage.parameters.type", "'ftp'"),
        (
            {"storage": {"path": "a", "parameters": {"type": "s3", "endpoint_url": "http://evil"}}},
            "storage.parameters.endpoint_url",
            "elsewhere",
        ),
        ({"storageUri": "hdfs://a/b"}, "storageUri", "hdfs"),
        ({"storageUri": "b/model"}, "storageUri", "neither a URI"),
        ({}, "storageUri", "is missing"),
        (
            {"storageUri": "s3://a/b", "resources": {"requests": {"memory": "4Gi"}}},
            "resources.requests.memory",
            "4294967296",
        ),
        (
            {"storageUri": "s3://a/b", "resources": {"requests": {"memory": "lots"}}},
            "resources.requests.memory",
            "'lots'",
        ),
        ({"storageUri": "s3://a/b", "protocolVersion": "grpc-v1"}, "protocolVersion", "grpc-v1"),
    ],
)
def test_what_is_against_the_mesh_names_its_path(fields: dict[str, Any], path: str, why: str) -> None:
    (found,) = planned({"model": {"modelFormat": {"name": "onnx"}, **fields}})
    assert found.path == f"spec.predictor.model.{path}"
    assert why in found.problem


def test_everything_against_the_mesh_is_said_at_once() -> None:
    predictor = {**model("pmml", args=["-v"]), "tolerations": [{"operator": "Exists"}]}
    assert [one.path for one in planned(predictor)] == [
        "spec.predictor.model.args",
        "spec.predictor.tolerations",
        "spec.predictor.model.modelFormat.name",
    ]


def test_batcher_and_memory_become_the_models() -> None:
    predictor = {**sklearn(), "batcher": {"maxBatchSize": 32, "maxLatency": 50}}
    predictor["sklearn"]["resources"] = {"requests": {"memory": "1.5Gi"}}
    spec = planned(predictor).registration.spec
    assert (spec["batch_rows_max"], spec["batch_delay_s"]) == (32, 0.05)
    assert spec["capacity_hint_bytes"] == 3 * 2**29


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"predictor": {}}, "spec.predictor"),
        ({"predictor": {"sklearn": {}, "onnx": {}}}, "spec.predictor"),
        ({"predictor": {"model": {}}}, "spec.predictor.model.modelFormat.name"),
        ({"predictor": {"model": {"modelFormat": {"name": 5}}}}, "spec.predictor.model.modelFormat.name"),
        ({"predictor": sklearn(minReplicas="2")}, "spec.predictor.minReplicas"),
        ({"predictor": sklearn(minReplicas=3, maxReplicas=2)}, "spec.predictor.minReplicas"),
        ({"predictor": sklearn(canaryTrafficPercent=101)}, "spec.predictor.canaryTrafficPercent"),
        ({"predictor": sklearn(scaleMetric="queue")}, "spec.predictor.scaleMetric"),
        ({"predictor": {"sklearn": {"name": "x", "storageUri": "s3://b"}}}, "spec.predictor.sklearn.name"),
        ({"predictor": model(storage={"path": "p"})}, "spec.predictor.model.storage.path"),
        ({"predictor": "sklearn"}, "spec.predictor"),
        ({}, "spec.predictor"),
    ],
)
def test_an_object_that_cannot_be_says_where(spec: dict[str, Any], path: str) -> None:
    world = World({**service(), "spec": spec})
    world.turn()
    assert reason(world.status, "Ready") == ("False", "InvalidPredictorSpec")
    assert message(world.status).startswith(f"{path}: ")
    assert world.status["modelStatus"]["transitionStatus"] == "InvalidSpec"


@pytest.mark.parametrize(
    ("name", "predictor", "path"),
    [
        ("s" * 54, sklearn(), "metadata.name"),
        ("s" * 40, sklearn(name="p" * 20), "spec.predictor.name"),
        ("s", sklearn(name="Up_per"), "spec.predictor.name"),
    ],
)
def test_a_name_that_no_service_can_have_is_told_in_the_status(name: str, predictor: Any, path: str) -> None:
    world = World(service(predictor, name=name))
    assert world.turn().hold
    assert reason(world.status) == ("False", "InvalidPredictorSpec")
    assert message(world.status).startswith(f"{path}: ")


def test_a_name_that_is_too_long_for_pods_is_served_by_the_mesh() -> None:
    long = "s" * 53
    world = World(service(name=long))
    world.rest()
    assert reason(world.status, "Ready") == ("True", "")
    world = World(service({"containers": [{"image": "i"}]}, mode="Standard", name=long))
    assert world.turn().hold
    assert message(world.status).startswith("metadata.name: is too long for pods")


def test_an_object_that_became_invalid_goes_on_serving_what_it_was() -> None:
    world = World()
    world.rest()
    models = dict(world.mesh.models)
    world.apply(service({"model": {}}))
    world.rest()
    assert world.mesh.models == models
    assert reason(world.status, "Ready") == ("True", "")
    assert reason(world.status) == ("True", "InvalidPredictorSpec")
    assert "goes on serving" in message(world.status)
    world.apply(service())
    world.rest()
    assert world.status["modelStatus"]["transitionStatus"] == "UpToDate"


def test_a_deleted_or_stopped_service_leaves_nothing() -> None:
    world = World()
    world.rest()
    world.apply(service(annotations={"serving.kserve.io/stop": "True"}))
    world.rest()
    assert (world.mesh.models, world.mesh.aliases, world.children) == ({}, {}, {})
    assert reason(world.status, "Stopped") == ("True", "Stopped")
    world.apply(service())
    world.rest()
    world.object["metadata"]["deletionTimestamp"] = "2026-11-22T00:00:00Z"
    world.object["spec"] = {"predictor": "invalid by now"}
    world.turn()
    assert (world.mesh.models, world.mesh.aliases, world.children) == ({}, {}, {})


@pytest.mark.parametrize(
    "changed",
    [service(annotations={"serving.kserve.io/stop": "true"}), service({"model": {}})],
    ids=["stopped", "invalid"],
)
def test_a_mesh_that_was_away_is_looked_at_again_once_it_answers(changed: dict[str, Any]) -> None:
    world = World()
    world.rest()
    world.mesh = replace(world.mesh, reachable=False, models={}, aliases={})
    world.apply(changed)
    assert world.turn().requeue_after_s == world.policy.requeue_when_unreachable_s


def test_an_object_that_became_invalid_is_not_ready_by_a_model_that_does_not_load() -> None:
    world = World()
    world.rest()
    models = {name: replace(one, state=ModelState.FAILED, copies=()) for name, one in world.mesh.models.items()}
    world.mesh = replace(world.mesh, models=models)
    world.apply(service({"model": {}}))
    world.turn()
    assert reason(world.status) == ("False", "InvalidPredictorSpec")
    assert reason(world.status, "Ready") == ("False", "InvalidPredictorSpec")


def test_while_no_pod_answers_nothing_changes_but_the_status() -> None:
    world = World()
    world.rest()
    world.mesh = replace(world.mesh, reachable=False, models={}, aliases={})
    decided = world.turn()
    assert decided.hold
    assert reason(world.status, "Ready") == ("Unknown", "MeshUnreachable")
    assert world.status["url"] == "http://iris-predictor.team-a.svc.cluster.local"
    assert [event.reason for event in decided.events] == ["InferenceServiceNotReady"]


def test_auto_takes_the_mesh_and_says_why() -> None:
    world = World(service(mode=None))
    world.rest()
    assert reason(world.status, "ModeChosen") == ("True", "FitsMesh")
    assert world.status["deploymentMode"] == "ModelMesh"


@pytest.mark.parametrize(
    ("annotations", "mode"),
    [
        ({"serving.kserve.io/deploymentMode": "ModelMesh"}, Mode.MESH),
        ({"serving.kserve.io/deploymentMode": "Something"}, Mode.MESH),
        ({"serving.kserve.io/deploymentMode": "Serverless"}, Mode.KNATIVE),
        ({"serving.kserve.io/deploymentMode": "Knative", "hexcomb.dev/mode": "ModelMesh"}, Mode.MESH),
    ],
)
def test_our_annotation_goes_before_kserves_and_unknown_words_of_theirs_are_ignored(
    annotations: dict[str, str], mode: Mode
) -> None:
    assert World(service(annotations=annotations, mode=None)).decide().mode is mode


def test_an_unknown_word_in_our_annotation_is_refused() -> None:
    decided = World(service(annotations={"hexcomb.dev/mode": "Mesh"})).decide()
    assert "metadata.annotations[hexcomb.dev/mode]: is 'Mesh'; allowed are ModelMesh" in message(decided.status)


def test_knative_is_refused_with_what_to_do() -> None:
    decided = World(service(mode="Serverless")).decide()
    assert reason(decided.status, "Ready") == ("False", "ServerlessModeRejected")
    assert "minReplicas: 0" in message(decided.status)


@pytest.mark.parametrize(
    ("annotation", "status", "ours"),
    [("ModelMesh", None, True), (None, None, False), ("Standard", None, False), ("ModelMesh", "Standard", False)],
)
def test_beside_kserve_only_what_it_leaves_alone_is_ours(annotation: Any, status: Any, ours: bool) -> None:
    said = service(mode=annotation)
    if status:
        said["status"] = {"deploymentMode": status}
    assert World(said, policy=Policy(beside_kserve=True)).decide().acts is ours


def test_a_runtime_for_many_models_is_in_the_status() -> None:
    pool = runtime("pool", {"name": "sklearn", "autoSelect": True}, multiModel=True)
    world = World(runtimes=(pool,))
    world.rest()
    assert world.status["clusterServingRuntimeName"] == "pool"


def test_events_tell_of_turns_and_of_each_new_reason_once() -> None:
    world = World(service(sklearn("s3://models/bad")), bad=frozenset({"s3://models/bad"}))
    told = [event.reason for _ in range(5) for event in world.turn().events]
    assert told == ["ModelLoadFailed"]
    world.apply(service())
    told = []
    for _ in range(5):
        told += [event.reason for event in world.turn().events]
        world.goes_on()
    assert told == ["InferenceServiceReady"]


def test_a_child_that_the_cluster_refuses_is_told_and_nothing_of_the_turn_is_remembered() -> None:
    world = World()
    world.rest()
    world.apply(service(sklearn("s3://models/other")))
    decided = world.decide()
    before = world.status
    blocked = status_blocked(decided.status, before, "403: exceeded quota", world.now_s)
    assert reason(blocked, "Ready") == ("False", "ChildRefused")
    assert reason(blocked) == ("True", "")
    assert {**blocked, "conditions": []} == {**before, "conditions": []}
    assert status_blocked(decided.status, blocked, "403: exceeded quota", world.now_s + 9) == blocked
    assert [event.reason for event in events_between("iris", before, blocked)] == ["InferenceServiceNotReady"]


def test_observed_generation_is_the_objects_own() -> None:
    world = World()
    world.rest()
    world.apply(service(sklearn("s3://models/2")))
    world.turn()
    assert world.status["observedGeneration"] == 2


def test_a_transition_time_moves_only_with_its_status() -> None:
    world = World()
    world.rest()
    before = {one["type"]: one["lastTransitionTime"] for one in world.status["conditions"]}
    world.now_s += 1000
    world.apply(service(sklearn("s3://models/2")))
    world.rest()
    assert {one["type"]: one["lastTransitionTime"] for one in world.status["conditions"]} == before


def test_ready_waits_for_the_name_in_the_cluster() -> None:
    world = World()
    world.turn()
    assert reason(world.status, "IngressReady") == ("Unknown", "ServiceNotCreated")
    world.rest()
    service_object = world.children["Service", "iris-predictor"]
    assert service_object["spec"] == {"type": "ExternalName", "externalName": "hexcomb.hexcomb.svc.cluster.local"}
    assert service_object["metadata"]["ownerReferences"][0]["uid"] == "u-1"
