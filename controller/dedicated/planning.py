"""The children of a service that runs in pods of its own, with KServe's names, labels and ports.

A Deployment, its autoscaler, and the Service in front, all named `<service>-predictor` (`<service>-<name>-predictor`
where the predictor has a name). Selected by the label `app` alone, so that other labels may change.

The Service is apart from the others: a service that moves here from the mesh gets it last, once pods answer.

KServe's faults that are not copied: labels and annotations of the predictor reach its autoscaler too; replicas are
written where nobody else scales, and only there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from controller import names
from controller.children import child
from controller.dedicated.autoscaling import scaling_of
from controller.dedicated.pod import PORT_DEFAULT, PodTemplate, predictor_pod
from controller.fields import Handling, spoken_fields
from controller.objects import Objects
from controller.policy import Policy
from controller.reading import InvalidField
from controller.registration import Against
from controller.runtimes import NoRuntime, Runtime, choose_runtime, readable
from controller.service_view import Component, Service

_ROLLING = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}}
_PROGRESS_DEADLINE_S = 600
_REVISIONS_KEPT = 10
_NOT_PASSED_ON = ("kubectl.kubernetes.io/last-applied-configuration", names.OUR_MODE, "modelFormat")


@dataclass(frozen=True, slots=True)
class InPods:
    """What a service needs to run in pods of its own."""

    workload: tuple[dict[str, Any], ...]
    """The Deployment, and its autoscaler if it has one."""
    front: dict[str, Any]
    """The Service."""
    deployment: str
    runtime: Runtime | None
    """None: the predictor is a container of its own."""
    noted: tuple[str, ...]


def plan_dedicated(service: Service, objects: Objects, policy: Policy) -> InPods | tuple[Against, ...]:
    """The children, or all that is against them."""
    spoken = spoken_fields(objects.service)
    against = [
        Against(field.path, field.row.how, moves=False)
        for field in spoken
        if field.row.dedicated in (Handling.MOVED, Handling.REFUSED)
    ]
    runtime: Runtime | NoRuntime | None = None
    if service.model is not None:
        runtimes = readable(objects.runtimes, objects.cluster_runtimes)
        runtime = choose_runtime(service.model, runtimes, multi_model=False)
        if isinstance(runtime, NoRuntime):
            against.append(Against(f"{service.model.where}.runtime", runtime.message, runtime.reason, moves=False))
    if against or isinstance(runtime, NoRuntime):
        return tuple(against)
    name = names.predictor_name(service.name, service.predictor.name)
    try:
        pod = predictor_pod(service, runtime, policy)
        workload, front = component_children(service, service.predictor, "predictor", name, pod, objects.kinds)
    except InvalidField as error:
        return (Against(error.path, error.problem, moves=False),)
    noted = [field.path for field in spoken if field.row.dedicated is Handling.NOTED]
    if service.predictor.replicas_min == 0:
        noted.append(service.predictor.pod.at("minReplicas") + " (0 is 1: nothing wakes a pod)")
    return InPods(workload, front, name, runtime, tuple(noted))


def component_children(
    service: Service, component: Component, role: str, name: str, pod: PodTemplate, kinds: frozenset[str]
) -> tuple[tuple[dict[str, Any], ...], dict[str, Any]]:
    """The Deployment and its autoscaler, and the Service, of a predictor, transformer or explainer (`role`). Raises
    InvalidField."""
    app = f"isvc.{name}"
    if len(app) > names.LABEL_LENGTH_MAX:
        problem = f"is too long for pods: their label app is {app}, and {names.LABEL_LENGTH_MAX} letters are allowed"
        raise InvalidField("metadata.name", problem)
    scaling = scaling_of(service, component, name, kinds)
    labels = {**pod.labels, **service.labels, **component.pod.texts("labels")}
    labels |= {names.COMPONENT_LABEL: role, "app": app}
    annotations = {**pod.annotations, **service.annotations, **component.pod.texts("annotations")}
    annotations = {key: value for key, value in annotations.items() if key not in _NOT_PASSED_ON}
    workload = [_deployment(service, component, name, pod, scaling.replicas, labels, annotations)]
    if scaling.spec is not None:
        scaler = child(scaling.api_version, scaling.kind, name, service, scaling.spec, labels, annotations)
        workload.append(scaler)
    front = child("v1", "Service", name, service, _front(name, pod, labels["app"]), labels, annotations)
    return tuple(workload), front


def _deployment(
    service: Service,
    component: Component,
    name: str,
    pod: PodTemplate,
    replicas: int | None,
    labels: Mapping[str, str],
    annotations: Mapping[str, str],
) -> dict[str, Any]:
    strategy = component.pod.part("deploymentStrategy").value
    spec: dict[str, Any] = {
        "selector": {"matchLabels": {"app": labels["app"]}},
        "strategy": dict(strategy) or _ROLLING,
        "progressDeadlineSeconds": _PROGRESS_DEADLINE_S,
        "revisionHistoryLimit": _REVISIONS_KEPT,
        "template": {
            "metadata": {
                "labels": {**labels, names.SERVICE_LABEL: service.name},
                "annotations": dict(annotations),
            },
            "spec": pod.spec,
        },
    }
    if replicas is not None:
        spec["replicas"] = replicas
    return child("apps/v1", "Deployment", name, service, spec, labels, annotations)


def _front(name: str, pod: PodTemplate, app: str) -> dict[str, Any]:
    """The first port of the container is port 80 of the Service, all others keep their numbers."""
    ports = pod.main.get("ports")
    entries = [port for port in ports if isinstance(port, Mapping)] if isinstance(ports, list) else []
    if not entries:
        only = {"name": name, "port": 80, "targetPort": PORT_DEFAULT, "protocol": "TCP"}
        return {"type": "ClusterIP", "selector": {"app": app}, "ports": [only]}
    written: list[dict[str, Any]] = []
    for index, port in enumerate(entries):
        number = port.get("containerPort", PORT_DEFAULT)
        port_name = str(port.get("name") or ("http" if index == 0 else f"port-{number}"))
        entry: dict[str, Any] = {
            "name": port_name,
            "port": 80 if index == 0 else number,
            "targetPort": number,
            "protocol": port.get("protocol", "TCP"),
        }
        if "grpc" in port_name or "h2c" in port_name:
            entry["appProtocol"] = "kubernetes.io/h2c"
        written.append(entry)
    return {"type": "ClusterIP", "selector": {"app": app}, "ports": written}
