"""ServingRuntime and ClusterServingRuntime v1alpha1."""

from __future__ import annotations

from controller.crds import pods
from controller.crds.definition import Column, Definition
from controller.crds.schema import anything, flag, list_of, record, text, texts, whole


def definitions() -> tuple[Definition, Definition]:
    """Of a namespace, and of the cluster: the same but for that."""
    return _definition("ServingRuntime", of_cluster=False), _definition("ClusterServingRuntime", of_cluster=True)


def _definition(kind: str, *, of_cluster: bool) -> Definition:
    pod = {
        "affinity": anything(),
        "annotations": texts(),
        "containers": pods.containers(),
        "hostIPC": flag(),
        "imagePullSecrets": pods.pull_secrets(),
        "labels": texts(),
        "nodeSelector": texts(),
        "schedulerName": text(),
        "tolerations": pods.tolerations(),
        "volumes": pods.volumes(),
    }
    workers = record({**pod, "pipelineParallelSize": whole(), "tensorParallelSize": whole()}, ["containers"])
    adapter = {
        "env": list_of(pods.environment()["items"]),
        "memBufferBytes": whole(),
        "modelLoadingTimeoutMillis": whole(),
        "runtimeManagementPort": whole(),
        "serverType": text(),
    }
    model_format = {"autoSelect": flag(), "name": text(), "priority": whole(32, minimum=1), "version": text()}
    spec = {
        **pod,
        "builtInAdapter": record(adapter),
        "disabled": flag(),
        "grpcDataEndpoint": text(),
        "grpcEndpoint": text(),
        "httpDataEndpoint": text(),
        "multiModel": flag(),
        "protocolVersions": list_of(text()),
        "replicas": whole(),
        "storageHelper": record({"disabled": flag()}),
        "supportedModelFormats": list_of(record(model_format, ["name"])),
        "workerSpec": workers,
    }
    return Definition(
        kind=kind,
        version="v1alpha1",
        of_cluster=of_cluster,
        columns=(
            Column("Disabled", ".spec.disabled", "boolean"),
            Column("ModelType", ".spec.supportedModelFormats[*].name"),
            Column("Containers", ".spec.containers[*].name"),
            Column("Age", ".metadata.creationTimestamp", "date"),
        ),
        spec=record(spec, ["containers"]),
        status={"type": "object"},
    )
