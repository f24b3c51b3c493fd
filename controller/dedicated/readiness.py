"""What a Deployment's status means for the predictor: KServe's reading, in one order.

1. there is none yet: not known; 2. pods cannot be made (`ReplicaFailure`): no; 3. the Deployment controller has not
seen the newest spec: not known; 4. it is available: yes; 5. it made no progress within its deadline: no; 6. else not
known, with what is missing. A rollout that is under way keeps an available Deployment ready.

Its `modelStatus` follows the Deployment as well. Deliberately absent: what containers of single pods say, for which all
pods of the cluster would have to be watched.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from controller.conditions import PREDICTOR_READY, Condition, Truth
from controller.objects import Objects
from controller.reading import Manifest


def find_child(objects: Objects, kind: str, name: str) -> Manifest | None:
    """A child as the cluster has it."""
    for manifest in objects.children:
        metadata = manifest.get("metadata")
        if manifest.get("kind") == kind and isinstance(metadata, Mapping) and metadata.get("name") == name:
            return manifest
    return None


def predictor_condition(deployment: Manifest | None, name: str) -> Condition:
    """`PredictorReady`, of the Deployment `name` as the cluster has it."""
    return deployment_condition(PREDICTOR_READY, deployment, name)


def deployment_condition(kind: str, deployment: Manifest | None, name: str) -> Condition:
    """The condition `kind`, of the Deployment `name` as the cluster has it."""
    if deployment is None:
        return Condition(kind, Truth.UNKNOWN, "DeploymentNotCreated", f"Deployment {name} is not there yet")
    status = _mapping(deployment.get("status"))
    conditions = status.get("conditions")
    by_type = {
        str(one.get("type")): one
        for one in (conditions if isinstance(conditions, list) else ())
        if isinstance(one, Mapping)
    }
    failure, available = by_type.get("ReplicaFailure", {}), by_type.get("Available", {})
    progressing = by_type.get("Progressing", {})
    if failure.get("status") == "True":
        return _condition(kind, Truth.FALSE, failure, "ReplicaFailure")
    seen, newest = status.get("observedGeneration", 0), _mapping(deployment.get("metadata")).get("generation", 0)
    if not isinstance(seen, int) or not isinstance(newest, int) or seen < newest:
        return Condition(kind, Truth.UNKNOWN, "DeploymentNotObserved", f"Deployment {name} has just changed")
    if available.get("status") == "True":
        return Condition(kind, Truth.TRUE)
    if progressing.get("status") == "False":
        return _condition(kind, Truth.FALSE, progressing, "ProgressDeadlineExceeded")
    return _condition(kind, Truth.UNKNOWN, available, "MinimumReplicasUnavailable")


def model_status_of(condition: Condition, deployment: Manifest | None) -> dict[str, Any]:
    """`modelStatus` for pods."""
    status = _mapping(deployment.get("status")) if deployment is not None else {}
    ready, wanted = _count(status, "readyReplicas"), _count(status, "replicas")
    words = {
        Truth.TRUE: ("UpToDate", "Loaded", ""),
        Truth.UNKNOWN: ("InProgress", "Pending", "Pending"),
        Truth.FALSE: ("BlockedByFailedLoad", "FailedToLoad", "FailedToLoad"),
    }
    transition, active, target = words[condition.truth]
    states = {"activeModelState": active, **({"targetModelState": target} if target else {})}
    said: dict[str, Any] = {
        "transitionStatus": transition,
        "states": states,
        "copies": {
            "totalCopies": ready,
            "failedCopies": max(wanted - ready, 0) if condition.truth is Truth.FALSE else 0,
        },
    }
    if condition.truth is Truth.FALSE:
        said["lastFailureInfo"] = {"reason": "RuntimeUnhealthy", "message": condition.message}
    return said


def _condition(kind: str, truth: Truth, found: Mapping[str, Any], otherwise: str) -> Condition:
    return Condition(kind, truth, str(found.get("reason") or otherwise), str(found.get("message", "")))


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _count(status: Mapping[str, Any], name: str) -> int:
    value = status.get(name)
    return value if type(value) is int else 0
