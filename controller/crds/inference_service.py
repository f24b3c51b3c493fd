"""InferenceService v1beta1."""

from __future__ import annotations

from collections.abc import Sequence

from controller.crds import pods
from controller.crds.definition import Column, Definition
from controller.crds.schema import (
    Schema,
    flag,
    list_of,
    map_of,
    one_of,
    quantity,
    record,
    text,
    texts,
    whole,
)

FRAMEWORKS = (
    "sklearn",
    "xgboost",
    "tensorflow",
    "pytorch",
    "triton",
    "onnx",
    "huggingface",
    "pmml",
    "lightgbm",
    "paddle",
)
_MODEL_STATES = ("", "Pending", "Standby", "Loading", "Loaded", "FailedToLoad")
_TRANSITIONS = ("", "UpToDate", "InProgress", "BlockedByFailedLoad", "InvalidSpec")
_FAILURES = (
    "ModelLoadFailed",
    "RuntimeUnhealthy",
    "RuntimeDisabled",
    "NoSupportingRuntime",
    "RuntimeNotRecognized",
    "InvalidPredictorSpec",
)
_TARGETS = ("Utilization", "Value", "AverageValue")


def definition() -> Definition:
    """As `kubectl get isvc` shows it."""
    traffic = ".status.components.predictor.traffic"
    return Definition(
        kind="InferenceService",
        version="v1beta1",
        short_names=("isvc",),
        columns=(
            Column("URL", ".status.url"),
            Column("Ready", ".status.conditions[?(@.type=='Ready')].status"),
            Column("Prev", f"{traffic}[?(@.tag=='prev')].percent", "integer"),
            Column("Latest", f"{traffic}[?(@.latestRevision==true)].percent", "integer"),
            Column("PrevRolledoutRevision", f"{traffic}[?(@.tag=='prev')].revisionName"),
            Column("LatestReadyRevision", f"{traffic}[?(@.latestRevision==true)].revisionName"),
            Column("Age", ".metadata.creationTimestamp", "date"),
        ),
        spec=record(
            {
                "predictor": _predictor(),
                "transformer": record({**pods.pod_fields(), **_component(), "storageUris": _storage_uris()}),
                "explainer": record(
                    {**pods.pod_fields(), **_component(), "storageUris": _storage_uris(), "art": record(_art())}
                ),
                "canary": list_of(record(_canary(), ["predictor", "trafficPercent"])),
            },
            ["predictor"],
        ),
        status=_status(),
        status_written_apart=True,
    )


def _canary() -> dict[str, Schema]:
    # Here, where there is no old way of writing, Kubernetes' own rule for containers holds: they have names.
    predictor = _predictor(model_requires=("modelFormat", "name"), framework_requires=("name",))
    return {"predictor": predictor, "trafficPercent": whole(32, minimum=0, maximum=100)}


def _predictor(model_requires: Sequence[str] = (), framework_requires: Sequence[str] = ()) -> Schema:
    frameworks = {name: record(_framework(), framework_requires) for name in FRAMEWORKS}
    model_format = record({"name": text(), "version": text()}, ["name"])
    workers = record({**pods.pod_fields(), "pipelineParallelSize": whole(), "tensorParallelSize": whole()})
    return record(
        {
            **pods.pod_fields(),
            **_component(),
            **frameworks,
            "model": record({**_framework(), "modelFormat": model_format, "runtime": text()}, model_requires),
            "name": text(pattern="^[a-z]([-a-z0-9]*[a-z0-9])?$"),
            "storageUris": _storage_uris(),
            "storageContainerName": text(),
            "workerSpec": workers,
        }
    )


def _framework() -> dict[str, Schema]:
    return {
        **pods.container_fields(),
        "confidential": record({"enabled": flag(), "resourceId": text()}, ["enabled"]),
        "protocolVersion": text(),
        "runtimeVersion": text(),
        "storage": record({"key": text(), "parameters": texts(), "path": text(), "schemaPath": text()}),
        "storageUri": text(),
    }


def _art() -> dict[str, Schema]:
    fields = {name: schema for name, schema in _framework().items() if name not in ("confidential", "protocolVersion")}
    return {**fields, "config": texts(), "type": text()}


def _storage_uris() -> Schema:
    mount_path = text(default="/mnt/models", maxLength=255, pattern="^/.*")
    return list_of(record({"mountPath": mount_path, "uri": text(minLength=1)}, ["uri"]), minItems=1)


def _component() -> dict[str, Schema]:
    log_storage = {"key": text(), "parameters": texts(), "path": text(), "serviceAccountName": text()}
    logger = {
        "batchInterval": text(),
        "batchSize": whole(),
        "marshallerUrl": text(),
        "metadataAnnotations": list_of(text()),
        "metadataHeaders": list_of(text()),
        "mode": one_of("all", "request", "response"),
        "storage": record(log_storage),
        "url": text(),
    }
    return {
        "annotations": texts(),
        "autoScaling": _auto_scaling(),
        "batcher": record({"maxBatchSize": whole(), "maxLatency": whole(), "timeout": whole()}),
        "canaryTrafficPercent": whole(64),
        "containerConcurrency": whole(64),
        "deploymentStrategy": pods.deployment_strategy(),
        "labels": texts(),
        "logger": record(logger),
        "maxReplicas": whole(32),
        "minReplicas": whole(32),
        "scaleMetric": one_of("cpu", "memory", "concurrency", "rps"),
        "scaleMetricType": one_of(*_TARGETS),
        "scaleTarget": whole(32),
        "timeout": whole(64),
    }


def _auto_scaling() -> Schema:
    target = record(
        {"averageUtilization": whole(32), "averageValue": quantity(), "type": one_of(*_TARGETS), "value": quantity()}
    )
    credentials = record({"name": text()}, ["name"])
    external = {
        "authenticationRef": record({"authModes": text(), "authenticationRef": credentials}, ["authenticationRef"]),
        "metric": record(
            {
                "backend": one_of("prometheus", "graphite"),
                "namespace": text(),
                "query": text(),
                "serverAddress": text(),
            }
        ),
        "target": target,
    }
    of_pods = {
        "metric": record(
            {
                "backend": one_of("opentelemetry"),
                "metricNames": list_of(text()),
                "operationOverTime": text(),
                "query": text(),
                "serverAddress": text(),
            }
        ),
        "target": target,
    }
    metric = {
        "type": one_of("Resource", "External", "PodMetric"),
        "resource": record({"name": one_of("cpu", "memory"), "target": target}, ["name", "target"]),
        "external": record(external, ["metric", "target"]),
        "podmetric": record(of_pods, ["metric", "target"]),
    }
    step = record({"periodSeconds": whole(32), "type": text(), "value": whole(32)}, ["periodSeconds", "type", "value"])
    way = record(
        {
            "policies": list_of(step),
            "selectPolicy": text(),
            "stabilizationWindowSeconds": whole(32),
            "tolerance": quantity(),
        }
    )
    behavior = record({"scaleDown": way, "scaleUp": way})
    return record({"behavior": behavior, "metrics": list_of(record(metric, ["type"]))})


def _status() -> Schema:
    address = record({"CACerts": text(), "audience": text(), "name": text(), "url": text()})
    traffic = {
        "configurationName": text(),
        "latestRevision": flag(),
        "percent": whole(64),
        "revisionName": text(),
        "tag": text(),
        "url": text(),
    }
    component = {
        "address": address,
        "grpcUrl": text(),
        "latestCreatedRevision": text(),
        "latestReadyRevision": text(),
        "latestRolledoutRevision": text(),
        "previousRolledoutRevision": text(),
        "restUrl": text(),
        "traffic": list_of(record(traffic)),
        "url": text(),
    }
    failure = {
        "exitCode": whole(32),
        "location": text(),
        "message": text(),
        "modelRevisionName": text(),
        "reason": one_of(*_FAILURES),
        "time": text(format="date-time"),
    }
    states = {
        "activeModelState": one_of(*_MODEL_STATES, default="Pending"),
        "targetModelState": one_of(*_MODEL_STATES, default=""),
    }
    model_status = record(
        {
            "copies": record({"failedCopies": whole(default=0), "totalCopies": whole()}, ["failedCopies"]),
            "lastFailureInfo": record(failure),
            "states": record(states, ["activeModelState"]),
            "transitionStatus": one_of(*_TRANSITIONS, default="UpToDate"),
        },
        ["transitionStatus"],
    )
    canary = {"modelStatus": model_status, "name": text(), "ready": flag(), "trafficPercent": whole(32)}
    return record(
        {
            "address": address,
            "annotations": texts(),
            "canaryStatuses": list_of(record(canary, ["name", "ready", "trafficPercent"])),
            "clusterServingRuntimeName": text(),
            "components": map_of(record(component)),
            "conditions": conditions(),
            "deploymentMode": text(),
            "modelStatus": model_status,
            "observedGeneration": whole(64),
            "servingRuntimeName": text(),
            "url": text(),
        }
    ) | {"x-kubernetes-preserve-unknown-fields": True}


def conditions() -> Schema:
    """What holds of an object, one entry per question."""
    fields = {
        "lastTransitionTime": text(),
        "message": text(),
        "reason": text(),
        "severity": text(),
        "status": text(),
        "type": text(),
    }
    return list_of(record(fields, ["status", "type"]))
