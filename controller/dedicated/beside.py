"""Transformers and explainers: pods of their own beside a predictor, wherever that runs.

They find the predictor by its name in the cluster, which leads to the mesh or to pods: so a service moves without their
noticing, and none of them needs Knative. They are told what KServe's Python SDK takes on its command line. The host is
the whole name, `<service>-predictor.<namespace>.svc.<domain>`: on the mesh it says whose the model is.

With a transformer the service's address is the transformer's, and the service is ready when that is, too. An explainer
has its own name, and `:explain` is asked there.

Beside KServe, transformers are left to its controller: it makes them for services in mode ModelMesh too (as Knative
services), and two makers of one name would fight.

Deliberately absent: keeping a transformer and a predictor of one revision together per request. A change of both is
two rollouts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from controller.children import host_of
from controller.conditions import EXPLAINER_READY, TRANSFORMER_READY, Condition
from controller.dedicated.planning import component_children
from controller.dedicated.pod import PORT_DEFAULT, container_pod
from controller.dedicated.readiness import deployment_condition, find_child
from controller.objects import Objects
from controller.policy import Policy
from controller.reading import Manifest
from controller.service_view import Component, Service

_CONDITIONS = {"transformer": TRANSFORMER_READY, "explainer": EXPLAINER_READY}


@dataclass(frozen=True, slots=True)
class Beside:
    """One transformer or explainer."""

    role: str
    children: tuple[Manifest, ...]
    condition: Condition
    url: str


def plan_beside(service: Service, objects: Objects, policy: Policy) -> tuple[Beside, ...]:
    """Those that the object has. Raises InvalidField."""
    roles = (("transformer", None if policy.beside_kserve else service.transformer), ("explainer", service.explainer))
    return tuple(
        _beside(role, component, service, objects, policy) for role, component in roles if component is not None
    )


def _beside(role: str, component: Component, service: Service, objects: Objects, policy: Policy) -> Beside:
    name = f"{service.name}-{role}"
    pod = container_pod(service, component, policy, _arguments(service, component, policy))
    workload, front = component_children(service, component, role, name, pod, objects.kinds)
    condition = deployment_condition(_CONDITIONS[role], find_child(objects, "Deployment", name), name)
    url = f"http://{name}.{service.namespace}.svc.{policy.cluster_domain}"
    return Beside(role, (*workload, front), condition, url)


def _arguments(service: Service, component: Component, policy: Policy) -> tuple[str, ...]:
    said: dict[str, Any] = {
        "--model_name": service.name,
        "--predictor_host": host_of(service, policy),
        "--http_port": PORT_DEFAULT,
    }
    if service.model is not None and service.model.protocol:
        said["--predictor_protocol"] = service.model.protocol
    if component.container_concurrency:
        said["--workers"] = component.container_concurrency
    return tuple(str(word) for pair in said.items() for word in pair)
