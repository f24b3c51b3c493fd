"""Pods of a service's own: KServe's children, field by field."""

from __future__ import annotations

from typing import Any

import pytest

from controller.dedicated.merging import merged
from controller.dedicated.planning import InPods, plan_dedicated
from controller.objects import Objects
from controller.policy import Policy
from controller.service_view import read_service
from tests.unit.controller.builders import World, message, model, reason, runtime, service, sklearn

SKLEARN_SERVER = runtime(
    "kserve-sklearnserver",
    {"name": "sklearn", "version": "1", "autoSelect": True, "priority": 1},
    protocolVersions=["v1", "v2"],
    annotations={"prometheus.kserve.io/port": "8080"},
    containers=[
        {
            "name": "kserve-container",
            "image": "kserve/sklearnserver:v0.20.0",
            "args": ["--model_name={{.Name}}", "--model_dir=/mnt/models", "--http_port=8080"],
            "resources": {"requests": {"cpu": "1", "memory": "2Gi"}, "limits": {"cpu": "1", "memory": "2Gi"}},
        }
    ],
)
MLSERVER = runtime(
    "kserve-mlserver",
    {"name": "sklearn", "autoSelect": True, "priority": 2},
    protocolVersions=["v2"],
    containers=[
        {
            "name": "kserve-container",
            "image": "seldonio/mlserver:1.5.0",
            "env": [{"name": "MLSERVER_MODEL_IMPLEMENTATION", "value": "{{.Labels.modelClass}}"}],
        }
    ],
)


def plan(said: dict[str, Any], *runtimes: dict[str, Any], kinds: frozenset[str] = frozenset()) -> InPods:
    objects = Objects(said, cluster_runtimes=runtimes or (SKLEARN_SERVER,), kinds=kinds)
    found = plan_dedicated(read_service(said), objects, Policy())
    assert isinstance(found, InPods), found
    return found


def against(said: dict[str, Any], *runtimes: dict[str, Any]) -> tuple[str, str]:
    objects = Objects(said, cluster_runtimes=runtimes or (SKLEARN_SERVER,))
    found = plan_dedicated(read_service(said), objects, Policy())
    assert not isinstance(found, InPods)
    return found[0].path, found[0].problem


def pod(planned: InPods) -> dict[str, Any]:
    found: dict[str, Any] = planned.workload[0]["spec"]["template"]["spec"]
    return found


def main(planned: InPods) -> dict[str, Any]:
    return next(one for one in pod(planned)["containers"] if one["name"] == "kserve-container")


def test_a_sklearn_service_is_kserves_deployment() -> None:
    planned = plan(service(mode="Standard", annotations={"team": "a"}))
    deployment, autoscaler = planned.workload
    assert (deployment["kind"], deployment["metadata"]["name"]) == ("Deployment", "iris-predictor")
    spec = deployment["spec"]
    assert spec["selector"] == {"matchLabels": {"app": "isvc.iris-predictor"}}
    assert "replicas" not in spec
    template = spec["template"]["metadata"]
    assert template["labels"] == {
        "app": "isvc.iris-predictor",
        "component": "predictor",
        "serving.kserve.io/inferenceservice": "iris",
    }
    assert template["annotations"]["prometheus.kserve.io/port"] == "8080"
    assert template["annotations"]["team"] == "a"
    container = main(planned)
    assert container["args"][0] == "--model_name=iris"
    assert container["env"] == [{"name": "INFERENCE_SERVICE_NAME", "value": "iris"}]
    assert container["readinessProbe"]["tcpSocket"] == {"port": 8080}
    assert container["volumeMounts"] == [
        {"name": "kserve-provision-location", "mountPath": "/mnt/models", "readOnly": True}
    ]
    (init,) = pod(planned)["initContainers"]
    assert (init["name"], init["args"]) == ("storage-initializer", ["s3://models/iris", "/mnt/models"])
    assert autoscaler["kind"] == "HorizontalPodAutoscaler"
    assert autoscaler["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"] == 80
    assert planned.front["spec"]["ports"] == [
        {"name": "iris-predictor", "port": 80, "targetPort": 8080, "protocol": "TCP"}
    ]


def test_the_objects_container_lies_over_the_runtimes() -> None:
    said = service(
        model(
            args=["--workers=2"],
            env=[{"name": "A", "value": "b"}],
            resources={"limits": {"memory": "4Gi"}},
            ports=[{"containerPort": 9000, "name": "h2c"}],
            runtimeVersion="v9",
        )
        | {"tolerations": [{"operator": "Exists"}], "serviceAccountName": "reader"}
    )
    planned = plan(said)
    container = main(planned)
    assert container["image"] == "kserve/sklearnserver:v9"
    assert container["args"][-2:] == ["--http_port=8080", "--workers=2"]
    assert container["resources"]["limits"] == {"cpu": "1", "memory": "4Gi"}
    assert [entry["name"] for entry in container["env"]] == ["A", "INFERENCE_SERVICE_NAME"]
    assert container["readinessProbe"]["tcpSocket"] == {"port": 9000}
    assert (pod(planned)["serviceAccountName"], pod(planned)["tolerations"]) == ("reader", [{"operator": "Exists"}])
    assert planned.front["spec"]["ports"][0]["appProtocol"] == "kubernetes.io/h2c"


def test_a_probe_that_asks_otherwise_takes_the_place_of_the_runtimes() -> None:
    asked = {"readinessProbe": {"httpGet": {"path": "/"}, "periodSeconds": 5}}
    base = {"readinessProbe": {"tcpSocket": {"port": 1}, "periodSeconds": 9, "timeoutSeconds": 2}}
    assert merged(base, asked)["readinessProbe"] == {"httpGet": {"path": "/"}, "periodSeconds": 5, "timeoutSeconds": 2}


def test_mlserver_is_told_model_and_class() -> None:
    planned = plan(service(model(protocolVersion="v2")), MLSERVER)
    env = {entry["name"]: entry["value"] for entry in main(planned)["env"]}
    assert env["MLSERVER_MODEL_IMPLEMENTATION"] == "mlserver_sklearn.SKLearnModel"
    assert (env["MLSERVER_MODEL_NAME"], env["MLSERVER_MODEL_URI"]) == ("iris", "/mnt/models")


def test_a_gpu_takes_the_image_for_gpus() -> None:
    torchserve = runtime(
        "kserve-torchserve",
        {"name": "pytorch", "autoSelect": True},
        containers=[{"name": "kserve-container", "image": "pytorch/torchserve-kfs:0.9.0"}],
    )
    said = service(model("pytorch", resources={"limits": {"nvidia.com/gpu": "1"}}))
    assert main(plan(said, torchserve))["image"] == "pytorch/torchserve-kfs:0.9.0-gpu"


@pytest.mark.parametrize(
    ("uri", "mount", "volume"),
    [
        ("pvc://claim/a/b", {"subPath": "a/b"}, {"persistentVolumeClaim": {"claimName": "claim"}}),
        (
            "oci+native://host/image:1",
            {"subPath": "models"},
            {"image": {"reference": "host/image:1", "pullPolicy": "IfNotPresent"}},
        ),
    ],
)
def test_claims_and_images_are_mounted_and_not_copied(uri: str, mount: dict[str, Any], volume: dict[str, Any]) -> None:
    planned = plan(service(sklearn(uri)))
    assert mount.items() <= main(planned)["volumeMounts"][0].items()
    assert volume.items() <= pod(planned)["volumes"][0].items()
    assert "initContainers" not in pod(planned)


def test_a_container_of_its_own_is_the_main_one_whatever_it_is_called() -> None:
    env = [{"name": "STORAGE_URI", "value": "gs://b/x"}]
    planned = plan(service({"containers": [{"name": "mine", "image": "me/mine:1", "env": env}]}))
    assert main(planned)["env"][0] == {"name": "STORAGE_URI", "value": "/mnt/models"}
    assert pod(planned)["initContainers"][0]["args"][0] == "gs://b/x"
    assert planned.runtime is None


def test_a_predictor_with_a_name_has_it_in_all_names() -> None:
    planned = plan(service(sklearn(name="blue"), mode="Standard"))
    assert planned.deployment == "iris-blue-predictor"
    assert planned.front["spec"]["selector"] == {"app": "isvc.iris-blue-predictor"}


@pytest.mark.parametrize(
    ("scaler", "fields", "replicas", "kind", "least", "most"),
    [
        ("hpa", {"minReplicas": 0, "maxReplicas": 4}, None, "HorizontalPodAutoscaler", 1, 4),
        ("hpa", {"minReplicas": 3}, None, "HorizontalPodAutoscaler", 3, 3),
        ("none", {"minReplicas": 3}, 3, None, None, None),
        ("external", {"minReplicas": 3}, None, None, None, None),
    ],
)
def test_the_autoscaler_is_the_one_that_is_named(
    scaler: str, fields: dict[str, Any], replicas: Any, kind: Any, least: Any, most: Any
) -> None:
    planned = plan(service(sklearn(**fields), {"serving.kserve.io/autoscalerClass": scaler}))
    assert planned.workload[0]["spec"].get("replicas") == replicas
    scalers = list(planned.workload[1:])
    assert [one["kind"] for one in scalers] == ([kind] if kind else [])
    if kind:
        assert (scalers[0]["spec"]["minReplicas"], scalers[0]["spec"]["maxReplicas"]) == (least, most)


def test_keda_scales_where_the_cluster_has_it() -> None:
    keda = {"serving.kserve.io/autoscalerClass": "keda"}
    said = service(sklearn(scaleMetric="memory", scaleTarget=70, maxReplicas=5), keda)
    planned = plan(said, kinds=frozenset({"keda.sh/v1alpha1/ScaledObject"}))
    assert planned.workload[1]["spec"]["triggers"] == [
        {"type": "memory", "metricType": "Utilization", "metadata": {"value": "70"}}
    ]
    assert "no keda.sh/v1alpha1/ScaledObject" in against(said)[1]


def test_min_replicas_0_is_1_and_the_status_says_so() -> None:
    assert plan(service(sklearn(minReplicas=0))).noted == ("spec.predictor.minReplicas (0 is 1: nothing wakes a pod)",)


@pytest.mark.parametrize(
    ("predictor", "path", "why"),
    [
        (sklearn(scaleMetric="rps"), "spec.predictor.scaleMetric", "cpu or memory"),
        (sklearn(scaleTarget=500), "spec.predictor.scaleTarget", "1 to 100"),
        (sklearn("oci://image"), "spec.predictor.sklearn.storageUri", "scheme oci"),
        (sklearn("/models"), "spec.predictor.sklearn.storageUri", "give a URI"),
        (sklearn(canaryTrafficPercent=10), "spec.predictor.canaryTrafficPercent", "routes with weights"),
        (model("tensorflow"), "spec.predictor.model.runtime", "not for tensorflow"),
        (sklearn(volumes="x"), "spec.predictor.volumes", "must be a list"),
        (model(env=["x"]), "spec.predictor.model.env[0]", "must be an object"),
    ],
)
def test_what_pods_cannot_do_names_its_path(predictor: dict[str, Any], path: str, why: str) -> None:
    found, problem = against(service(predictor))
    assert found == path
    assert why in problem


def test_what_the_object_says_of_the_container_is_filled_too() -> None:
    assert "--name=iris" in main(plan(service(model(args=["--name={{.Name}}"]))))["args"]
    path, problem = against(service(model(args=["{{.Unknown}}"])))
    assert path == "spec.predictor.model"
    assert "{{.Unknown}}" in problem


@pytest.mark.parametrize("text", ["{{.Labels.nobody}}", "{{ range .Items }}", "{{.Spec.x}}"])
def test_a_template_that_cannot_be_filled_is_refused(text: str) -> None:
    odd = runtime(
        "odd", {"name": "sklearn", "autoSelect": True}, containers=[{"name": "kserve-container", "args": [text]}]
    )
    path, problem = against(service(), odd)
    assert path == "ServingRuntime odd: spec.containers"
    assert text in problem


def test_an_object_in_mode_standard_becomes_ready_with_its_deployment() -> None:
    world = World(service(mode="RawDeployment"), runtimes=(SKLEARN_SERVER,), pods_answer=False)
    world.rest()
    assert world.status["deploymentMode"] == "Standard"
    assert set(world.children) == {
        ("Deployment", "iris-predictor"),
        ("HorizontalPodAutoscaler", "iris-predictor"),
        ("Service", "iris-predictor"),
    }
    assert reason(world.status, "Ready") == ("Unknown", "MinimumReplicas")
    world.pods_answer = True
    world.rest()
    assert reason(world.status, "Ready") == ("True", "")
    assert world.status["clusterServingRuntimeName"] == "kserve-sklearnserver"
    assert world.status["observedGeneration"] == 1
    assert not world.mesh.models


@pytest.mark.parametrize(
    ("conditions", "truth", "why"),
    [
        (
            [{"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "quota"}],
            "False",
            "quota",
        ),
        (
            [
                {"type": "Available", "status": "False"},
                {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "late"},
            ],
            "False",
            "late",
        ),
    ],
)
def test_a_deployment_that_cannot_says_why(conditions: list[dict[str, str]], truth: str, why: str) -> None:
    world = World(service(mode="Standard"), runtimes=(SKLEARN_SERVER,))
    world.turn()
    key = ("Deployment", "iris-predictor")
    world.children[key] = {**world.children[key], "status": {"observedGeneration": 1, "conditions": conditions}}
    world.turn()
    assert reason(world.status, "Ready")[0] == truth
    assert why in message(world.status)


def test_auto_takes_pods_for_what_only_they_can_do_and_says_what_that_is() -> None:
    said = service(model(args=["--debug"]), mode=None)
    world = World(said, runtimes=(SKLEARN_SERVER,))
    world.rest()
    assert world.status["deploymentMode"] == "Standard"
    assert reason(world.status, "ModeChosen") == ("True", "NeedsOwnPods")


def test_auto_that_nobody_can_serve_has_both_lists() -> None:
    decided = World(service(model("pmml"), mode=None), runtimes=(SKLEARN_SERVER,)).decide()
    assert "on the mesh: spec.predictor.model.modelFormat.name" in message(decided.status)
    assert "in pods of its own: spec.predictor.model.runtime" in message(decided.status)
