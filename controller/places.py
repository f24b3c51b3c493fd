"""The two places where a service can run, each as it should be and as it stands.

Both are one value, `Made`, so that whoever moves a service between them treats them alike.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from controller import names
from controller.children import host_of, mesh_service
from controller.conditions import PREDICTOR_READY, Condition, Truth
from controller.dedicated.planning import InPods
from controller.dedicated.readiness import find_child, model_status_of, predictor_condition
from controller.mesh_view import ModelState
from controller.model_status import standing_of
from controller.policy import Mode
from controller.reading import Manifest
from controller.registration import OnMesh, Registration
from controller.rollout import Alias, Rollout, plan_rollout, read_remembered, remembered_in_status
from controller.runtimes import Runtime
from controller.turn import Turn


@dataclass(frozen=True, slots=True)
class Held:
    """What the mesh shall hold for a service."""

    registrations: tuple[Registration, ...] = ()
    aliases: tuple[Alias, ...] = ()
    keep_models: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Made:
    """A place, with all that it needs."""

    mode: Mode
    workload: tuple[Manifest, ...]
    """Children that serve, or say how many do."""
    front: Manifest
    """The Service that callers' name for the predictor is."""
    held: Held
    condition: Condition
    """`PredictorReady`, if the service is here."""
    model_status: dict[str, Any]
    settled: bool
    """Nothing is under way that a short while would change without an object's changing."""
    component: dict[str, Any]
    """Of the status's `components`."""
    runtime: Runtime | None
    noted: tuple[str, ...]
    memory: dict[str, Any] = field(default_factory=dict)
    """For the next turn, in the status."""


def on_the_mesh(turn: Turn, on_mesh: OnMesh) -> Made:
    """One alias, and the models that it needs."""
    service, policy = turn.service, turn.policy
    rollout = plan_rollout(service, on_mesh.registration, turn.mesh, read_remembered(turn.before))
    standing = standing_of(service, rollout, turn.mesh)
    host = host_of(service, policy)
    url = f"http://{host}" if policy.mesh_http_port == 80 else f"http://{host}:{policy.mesh_http_port}"
    component: dict[str, Any] = {
        # HTTP first: the host says the tenant there. Over gRPC callers send the namespace as `hexcomb-tenant`.
        "url": url,
        "restUrl": url,
        "grpcUrl": f"grpc://{host}:{policy.mesh_grpc_port}",
        "address": {"url": url},
        "latestCreatedRevision": rollout.latest,
        "traffic": _traffic(service.name, rollout),
    }
    remembered = rollout.remembered
    if rollout.latest in remembered.seen_loaded:
        component["latestReadyRevision"] = rollout.latest
    if remembered.stable is not None:
        component["latestRolledoutRevision"] = remembered.stable.id
    if remembered.previous:
        component["previousRolledoutRevision"] = remembered.previous
    return Made(
        mode=Mode.MESH,
        workload=(),
        front=mesh_service(service, policy),
        held=Held(rollout.registrations, rollout.aliases, rollout.keep),
        condition=standing.condition,
        model_status=standing.model_status,
        settled=standing.settled,
        component=component,
        runtime=on_mesh.runtime,
        noted=on_mesh.noted,
        memory=remembered_in_status(remembered),
    )


def in_own_pods(turn: Turn, in_pods: InPods) -> Made:
    """A Deployment and what belongs to it."""
    deployment = find_child(turn.objects, "Deployment", in_pods.deployment)
    condition = predictor_condition(deployment, in_pods.deployment)
    url = f"http://{host_of(turn.service, turn.policy)}"
    return Made(
        mode=Mode.DEDICATED,
        workload=in_pods.workload,
        front=in_pods.front,
        held=Held(),
        condition=condition,
        model_status=model_status_of(condition, deployment),
        settled=True,
        component={"url": url, "address": {"url": url}},
        runtime=in_pods.runtime,
        noted=in_pods.noted,
    )


def left_on_the_mesh(turn: Turn) -> tuple[Held, dict[str, Any]]:
    """What is there of a service that is about to go, or has gone a moment ago; and the memory of it."""
    remembered = read_remembered(turn.before)
    stable = (remembered.stable,) if remembered.stable is not None else ()
    aliases = tuple(Alias(one.id, one.target, one.weights) for one in turn.mesh.aliases.values())
    if not aliases and stable:
        aliases = (Alias(turn.service.name, stable[0].id),)
    referred = {model for one in turn.mesh.aliases.values() for model in (one.active, one.target, *one.weights)}
    return Held(stable, aliases, frozenset(referred)), remembered_in_status(remembered)


def old_place_condition(turn: Turn, runs_on: Mode) -> Condition:
    """`PredictorReady` of a service that serves where it was, while another place is being made."""
    moving = "it serves where it was until the new place is ready"
    if runs_on is Mode.DEDICATED:
        found = predictor_condition(_predictors_deployment(turn), "of the old place")
        return Condition(PREDICTOR_READY, found.truth, found.reason or "Moving", found.message or moving)
    alias = turn.mesh.aliases.get(turn.service.name)
    model = turn.mesh.models.get(alias.active) if alias is not None else None
    if not turn.mesh.reachable or model is None:
        return Condition(PREDICTOR_READY, Truth.UNKNOWN, "MeshUnreachable", "no pod of the mesh answers")
    if model.state is ModelState.FAILED:
        return Condition(PREDICTOR_READY, Truth.FALSE, "ModelLoadFailed", f"model {model.id} does not load any more")
    return Condition(PREDICTOR_READY, Truth.TRUE, "Moving", moving)


def _predictors_deployment(turn: Turn) -> Manifest | None:
    """By its label: its name has changed where the predictor's has."""
    for manifest in turn.objects.children:
        labels = manifest.get("metadata", {}).get("labels") or {}
        if manifest.get("kind") == "Deployment" and labels.get(names.COMPONENT_LABEL) == "predictor":
            return manifest
    return None


def _traffic(name: str, rollout: Rollout) -> list[dict[str, Any]]:
    alias = next(alias for alias in rollout.aliases if alias.id == name)
    tags = {other.target: other.id for other in rollout.aliases if other.id != name}
    traffic: list[dict[str, Any]] = []
    for model, percent in sorted(alias.weights.items()) or [(alias.target, 100)]:
        entry: dict[str, Any] = {"revisionName": model, "percent": percent}
        if model == rollout.latest:
            entry["latestRevision"] = True
        if model in tags:
            entry["tag"] = "latest" if model == rollout.latest else "prev"
        traffic.append(entry)
    return traffic
