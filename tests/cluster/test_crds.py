"""Our definitions in a real API server: what KServe's samples say is accepted, and what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from controller.crds.files import contents
from controller.owned_children import contains
from tests.cluster.conftest import CRDS
from tests.cluster.control_plane import ControlPlane, Json, Refusal

SAMPLES = Path(__file__).parents[1] / "unit" / "controller" / "samples" / "services.yaml"


def services(namespace: str) -> str:
    return f"/apis/serving.kserve.io/v1beta1/namespaces/{namespace}/inferenceservices"


def service(name: str, predictor: Json, **more: Json) -> Json:
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name},
        "spec": {"predictor": predictor, **more},
    }


def test_the_files_are_what_the_definitions_say() -> None:
    written = {file.name: file.read_text() for file in Path(CRDS).glob("*.yaml")}
    assert written == contents(), "run `python -m controller.crds`"


@pytest.mark.parametrize(
    "predictor",
    [
        pytest.param({"sklearn": {"storageUri": "gs://kfserving-examples/models/sklearn/1.0/model"}}, id="old style"),
        pytest.param(
            {
                "model": {
                    "modelFormat": {"name": "sklearn"},
                    "runtime": "kserve-sklearnserver",
                    "storageUri": "s3://models/iris",
                    "resources": {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"cpu": 1}},
                },
                "minReplicas": 0,
                "scaleMetric": "concurrency",
                "scaleTarget": 10,
                "canaryTrafficPercent": 10,
            },
            id="new style",
        ),
        pytest.param(
            {
                "containers": [
                    {
                        "name": "kserve-container",
                        "image": "example/custom:1",
                        "env": [{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
                        "ports": [{"containerPort": 8080}],
                        "readinessProbe": {"httpGet": {"path": "/ready", "port": 8080}},
                    }
                ],
                "volumes": [{"name": "work", "emptyDir": {"sizeLimit": "1Gi"}}],
                "affinity": {"nodeAffinity": {}},
                "tolerations": [{"key": "gpu", "operator": "Exists"}],
            },
            id="custom",
        ),
    ],
)
def test_what_people_write_is_kept_whole(cluster: ControlPlane, namespace: str, predictor: Json) -> None:
    written = cluster.admin.create(services(namespace), service("s", predictor))
    kept = written["spec"]["predictor"]
    for port in [port for container in kept.get("containers", ()) for port in container.get("ports", ())]:
        assert port.pop("protocol") == "TCP"  # the schema's default
    assert kept == predictor


def test_a_transformer_an_explainer_and_canaries_are_kept(cluster: ControlPlane, namespace: str) -> None:
    pod = {"containers": [{"name": "kserve-container", "image": "example/transformer:1"}]}
    canary = {"trafficPercent": 20, "predictor": {"sklearn": {"name": "new", "storageUri": "s3://models/new"}}}
    said = service(
        "s",
        {"sklearn": {"storageUri": "s3://models/old"}},
        transformer=pod,
        explainer={"art": {"type": "SquareAttack", "config": {"nb_classes": "10"}}},
        canary=[canary],  # type: ignore[arg-type]
    )
    assert cluster.admin.create(services(namespace), said)["spec"] == said["spec"]


@pytest.mark.parametrize(
    ("predictor", "field", "problem"),
    [
        ({"minReplicas": "two"}, "spec.predictor.minReplicas", "must be of type integer"),
        ({"scaleMetric": "qps"}, "spec.predictor.scaleMetric", "supported values"),
        ({"logger": {"mode": "some"}}, "spec.predictor.logger.mode", "supported values"),
        ({"model": {"modelFormat": {}}}, "spec.predictor.model.modelFormat.name", "Required"),
        ({"model": {"storageUri": 5}}, "spec.predictor.model.storageUri", "must be of type string"),
        ({"model": {"resources": {"requests": {"memory": "much"}}}}, "resources.requests.memory", "should match"),
        ({"containers": [{"image": "x"}]}, "spec.predictor.containers[0].name", "Required"),
        ({"name": "Bad_Name"}, "spec.predictor.name", "should match"),
        ({"storageUris": []}, "spec.predictor.storageUris", "at least 1 items"),
        ({"storageUris": [{"uri": "s3://m", "mountPath": "models"}]}, "storageUris[0].mountPath", "should match"),
    ],
)
def test_what_is_wrong_is_refused_by_its_path(
    cluster: ControlPlane, namespace: str, predictor: Json, field: str, problem: str
) -> None:
    with pytest.raises(Refusal) as refused:
        cluster.admin.create(services(namespace), service("s", predictor))
    assert refused.value.status == 422
    assert field in refused.value.message
    assert problem in refused.value.message


def test_a_service_without_a_predictor_is_refused(cluster: ControlPlane, namespace: str) -> None:
    nothing = service("s", {})
    del nothing["spec"]["predictor"]
    with pytest.raises(Refusal, match=r"spec\.predictor: Required"):
        cluster.admin.create(services(namespace), nothing)


def test_fields_that_nobody_knows_are_dropped(cluster: ControlPlane, namespace: str) -> None:
    alibi = service("s", {"sklearn": {"storageUri": "s3://m"}}, explainer={"alibi": {"type": "AnchorTabular"}})
    assert cluster.admin.create(services(namespace), alibi)["spec"]["explainer"] == {}


def test_the_status_is_written_apart_and_its_words_are_checked(cluster: ControlPlane, namespace: str) -> None:
    admin = cluster.admin
    path = f"{services(namespace)}/s"
    sneaked = service("s", {"sklearn": {"storageUri": "s3://m"}}) | {"status": {"url": "http://elsewhere"}}
    assert "status" not in admin.create(services(namespace), sneaked)
    admin.merge(f"{path}/status", {"status": {"url": "http://s.example", "hexcomb": {"ours": 1}}})
    assert admin.get(path)["status"] == {"url": "http://s.example", "hexcomb": {"ours": 1}}
    with pytest.raises(Refusal, match=r"status\.modelStatus\.lastFailureInfo\.reason"):
        admin.merge(f"{path}/status", {"status": {"modelStatus": {"lastFailureInfo": {"reason": "BadLuck"}}}})


def test_runtimes_of_a_namespace_and_of_the_cluster_are_accepted(cluster: ControlPlane, namespace: str) -> None:
    admin = cluster.admin
    spec = {
        "multiModel": True,
        "supportedModelFormats": [{"name": "sklearn", "version": "1", "autoSelect": True, "priority": 1}],
        "protocolVersions": ["grpc-v2"],
        "grpcEndpoint": "port:8085",
        "builtInAdapter": {"serverType": "mlserver", "runtimeManagementPort": 8001, "memBufferBytes": 134217728},
        "containers": [{"name": "mlserver", "image": "example/mlserver:1"}],
    }
    runtime = {"apiVersion": "serving.kserve.io/v1alpha1", "metadata": {"name": namespace}, "spec": spec}
    of_namespace = f"/apis/serving.kserve.io/v1alpha1/namespaces/{namespace}/servingruntimes"
    of_cluster = "/apis/serving.kserve.io/v1alpha1/clusterservingruntimes"
    assert admin.create(of_namespace, {**runtime, "kind": "ServingRuntime"})["spec"] == spec
    assert admin.create(of_cluster, {**runtime, "kind": "ClusterServingRuntime"})["spec"] == spec
    admin.delete(f"{of_cluster}/{namespace}")
    spec["supportedModelFormats"][0]["priority"] = 0  # type: ignore[index]
    with pytest.raises(Refusal, match=r"supportedModelFormats\[0\]\.priority"):
        admin.create(of_namespace, {**runtime, "kind": "ServingRuntime", "metadata": {"name": "other"}})


def test_kubectl_shows_url_and_readiness(cluster: ControlPlane) -> None:
    found = cluster.admin.get(
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/inferenceservices.serving.kserve.io"
    )
    version = found["spec"]["versions"][0]
    shown = {column["name"]: column["jsonPath"] for column in version["additionalPrinterColumns"]}
    assert shown["URL"] == ".status.url"
    assert shown["Ready"] == ".status.conditions[?(@.type=='Ready')].status"
    assert found["spec"]["names"]["shortNames"] == ["isvc"]
    assert found["status"]["acceptedNames"]["kind"] == "InferenceService"


def test_every_documented_service_is_kept_as_it_is_written(cluster: ControlPlane, namespace: str) -> None:
    altered = []
    for number, sample in enumerate(yaml.safe_load(SAMPLES.read_text())):
        spec = {part: sample[part] for part in ("predictor", "transformer", "explainer", "canary") if part in sample}
        said = service(f"s{number}", {}) | {"spec": spec}
        kept = cluster.admin.create(f"{services(namespace)}?dryRun=All", said)["spec"]
        if not contains(kept, spec):
            altered.append(sample["chapter"])
    assert altered == []
