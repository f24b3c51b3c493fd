"""The status of an InferenceService, whole, and the events that a change of it is worth.

`observedGeneration` is the object's own (KServe writes the Deployment's, and clients that wait for it are misled).
`url` and `address.url` are the predictor's name in the cluster, which stays the same wherever the service runs.

Beyond KServe's fields the status has `hexcomb`: what the next turn has to know (`controller.rollout`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from controller import names
from controller.children import host_of
from controller.conditions import (
    FIELDS_HONOURED,
    INGRESS_READY,
    MODE_CHOSEN,
    PREDICTOR_READY,
    READY,
    STOPPED,
    Condition,
    Truth,
    conditions_in_status,
    ready_from,
    shortened,
    truth_in,
)
from controller.mesh_view import MeshView
from controller.model_status import standing_of
from controller.modes import Chosen, Refused, Undecided
from controller.objects import Objects
from controller.policy import Mode, Policy
from controller.reading import InvalidField, Manifest
from controller.registration import OnMesh
from controller.rollout import Rollout, remembered_in_status
from controller.service_view import Service

_KEPT = ("url", "address", "components", "deploymentMode", "servingRuntimeName", "clusterServingRuntimeName", "hexcomb")
"""Of an earlier turn, when this one changes nothing that serves."""


@dataclass(frozen=True, slots=True)
class Event:
    """`type` is Normal or Warning."""

    type: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Turn:
    """What one decision about one service is made from."""

    service: Service
    objects: Objects
    mesh: MeshView
    policy: Policy
    before: Manifest
    """The status that the object has."""
    now_s: float


def status_on_mesh(turn: Turn, choice: Chosen, on_mesh: OnMesh, rollout: Rollout) -> tuple[dict[str, Any], bool]:
    """The status, and whether nothing is under way."""
    service, policy = turn.service, turn.policy
    standing = standing_of(service, rollout, turn.mesh)
    conditions = [
        standing.condition,
        _ingress_condition(turn),
        _mode_condition(choice),
        *_noted_condition(on_mesh.noted),
    ]
    host = host_of(service, policy)
    rest_url = f"http://{host}" if policy.mesh_http_port == 80 else f"http://{host}:{policy.mesh_http_port}"
    component: dict[str, Any] = {
        # HTTP first: the host says the tenant there. Over gRPC callers send the namespace as `hexcomb-tenant`.
        "url": rest_url,
        "restUrl": rest_url,
        "grpcUrl": f"grpc://{host}:{policy.mesh_grpc_port}",
        "address": {"url": rest_url},
        "latestCreatedRevision": rollout.latest,
        "traffic": _traffic(service, rollout),
    }
    remembered = rollout.remembered
    if rollout.latest in remembered.seen_loaded:
        component["latestReadyRevision"] = rollout.latest
    if remembered.stable is not None:
        component["latestRolledoutRevision"] = remembered.stable.id
    if remembered.previous:
        component["previousRolledoutRevision"] = remembered.previous
    status: dict[str, Any] = {
        **_conditions(service.generation, conditions, turn.before, turn.now_s),
        "deploymentMode": Mode.MESH.value,
        "url": rest_url,
        "address": {"url": rest_url},
        "components": {"predictor": component},
        "modelStatus": standing.model_status,
        "hexcomb": remembered_in_status(remembered),
    }
    if on_mesh.runtime is not None:
        field = "clusterServingRuntimeName" if on_mesh.runtime.of_cluster else "servingRuntimeName"
        status[field] = on_mesh.runtime.name
    return status, standing.settled


def status_refused(turn: Turn, refused: Refused) -> dict[str, Any]:
    """The object cannot be served as it is written; what served before does so still."""
    alias = turn.mesh.aliases.get(turn.service.name)
    conditions = [
        _refused_condition(refused.reason, refused.message, alias.active if alias is not None else ""),
        _ingress_kept(turn.before),
        Condition(MODE_CHOSEN, Truth.FALSE, refused.reason, refused.message),
    ]
    return _kept(turn.service.generation, conditions, turn.before, turn.now_s, refused.reason, refused.message)


def status_invalid(
    generation: int, error: InvalidField, serving: str, before: Manifest, now_s: float
) -> dict[str, Any]:
    """The object cannot be read. `serving`: the model that goes on, if there is one."""
    conditions = [_refused_condition("InvalidPredictorSpec", str(error), serving), _ingress_kept(before)]
    return _kept(generation, conditions, before, now_s, "InvalidPredictorSpec", str(error))


def status_undecided(turn: Turn, undecided: Undecided) -> dict[str, Any]:
    """Nobody can say now whether it serves."""
    conditions = [
        Condition(PREDICTOR_READY, Truth.UNKNOWN, "MeshUnreachable", undecided.message),
        _ingress_kept(turn.before),
    ]
    status = _kept(turn.service.generation, conditions, turn.before, turn.now_s, "", "")
    if "modelStatus" in turn.before:
        status["modelStatus"] = turn.before["modelStatus"]
    return status


def status_stopped(turn: Turn) -> dict[str, Any]:
    """Of a service that is to run nowhere."""
    message = f"the annotation {names.STOP} is true"
    conditions = [
        Condition(PREDICTOR_READY, Truth.FALSE, "Stopped", message),
        Condition(INGRESS_READY, Truth.FALSE, "Stopped", message),
        Condition(STOPPED, Truth.TRUE, "Stopped", message),
    ]
    return _conditions(turn.service.generation, conditions, turn.before, turn.now_s)


def events_between(name: str, before: Manifest, after: Manifest) -> tuple[Event, ...]:
    """KServe's two, when `Ready` turns; and one for each new reason why the predictor is not."""
    was, now = truth_in(before, READY), truth_in(after, READY)
    if now == "True" and was != "True":
        return (Event("Normal", "InferenceServiceReady", f"InferenceService [{name}] is Ready"),)
    found: list[Event] = []
    if was == "True" and now != "True":
        text = f"InferenceService [{name}] is no longer Ready because of: {_reason(after)}"
        found.append(Event("Warning", "InferenceServiceNotReady", shortened(text)))
    elif truth_in(after, PREDICTOR_READY) == "False" and _reason(after) != _reason(before):
        found.append(Event("Warning", _reason(after).partition(":")[0] or "InternalError", shortened(_reason(after))))
    return tuple(found)


def _conditions(generation: int, conditions: Iterable[Condition], before: Manifest, now_s: float) -> dict[str, Any]:
    listed = list(conditions)
    return {
        "observedGeneration": generation,
        "conditions": conditions_in_status([*listed, ready_from(listed)], before, now_s),
    }


def _kept(
    generation: int, conditions: Iterable[Condition], before: Manifest, now_s: float, reason: str, message: str
) -> dict[str, Any]:
    status = {key: before[key] for key in _KEPT if key in before} | _conditions(generation, conditions, before, now_s)
    if reason:
        known = before.get("modelStatus")
        # The status's schema has an enumeration of reasons; others stay in the conditions.
        allowed = reason if reason in _FAILURE_REASONS else "InvalidPredictorSpec"
        status["modelStatus"] = {
            **(known if isinstance(known, dict) else {}),
            "transitionStatus": "InvalidSpec",
            "lastFailureInfo": {"reason": allowed, "message": shortened(message)},
        }
    return status


_FAILURE_REASONS = frozenset(
    {"ModelLoadFailed", "RuntimeUnhealthy", "RuntimeDisabled", "NoSupportingRuntime", "RuntimeNotRecognized"}
    | {"InvalidPredictorSpec"}
)


def _refused_condition(reason: str, message: str, serving: str) -> Condition:
    if serving:
        return Condition(PREDICTOR_READY, Truth.TRUE, reason, f"{serving} goes on serving, since {message}")
    return Condition(PREDICTOR_READY, Truth.FALSE, reason, message)


def _ingress_condition(turn: Turn) -> Condition:
    wanted = names.predictor_name(turn.service.name)
    for manifest in turn.objects.children:
        if manifest.get("kind") == "Service" and manifest.get("metadata", {}).get("name") == wanted:
            return Condition(INGRESS_READY, Truth.TRUE)
    return Condition(INGRESS_READY, Truth.UNKNOWN, "ServiceNotCreated", f"Service {wanted} is not there yet")


def _ingress_kept(before: Manifest) -> Condition:
    truth = truth_in(before, INGRESS_READY)
    return (
        Condition(INGRESS_READY, Truth(truth))
        if truth in ("True", "False")
        else Condition(INGRESS_READY, Truth.UNKNOWN, "NothingServed", "there is nothing yet that a name could lead to")
    )


def _mode_condition(choice: Chosen) -> Condition:
    message = choice.mode.value + (f": {choice.message}" if choice.message else "")
    return Condition(MODE_CHOSEN, Truth.TRUE, choice.reason, message)


def _noted_condition(noted: tuple[str, ...]) -> tuple[Condition, ...]:
    if not noted:
        return ()
    return (Condition(FIELDS_HONOURED, Truth.FALSE, "NoEffect", f"without effect on the mesh: {', '.join(noted)}"),)


def _traffic(service: Service, rollout: Rollout) -> list[dict[str, Any]]:
    alias = next(alias for alias in rollout.aliases if alias.id == service.name)
    tags = {other.target: other.id for other in rollout.aliases if other.id != service.name}
    traffic: list[dict[str, Any]] = []
    for model, percent in sorted(alias.weights.items()) or [(alias.target, 100)]:
        entry: dict[str, Any] = {"revisionName": model, "percent": percent}
        if model == rollout.latest:
            entry["latestRevision"] = True
        if model in tags:
            entry["tag"] = "latest" if model == rollout.latest else "prev"
        traffic.append(entry)
    return traffic


def _reason(status: Manifest) -> str:
    for condition in status.get("conditions", ()):
        if isinstance(condition, dict) and condition.get("type") == READY and condition.get("status") != "True":
            return f"{condition.get('reason', '')}: {condition.get('message', '')}"
    return ""
