"""What every child of a service has: whose it is, and the labels by which people find it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from controller import names
from controller.policy import Policy
from controller.service_view import Service


def child(
    api_version: str,
    kind: str,
    name: str,
    service: Service,
    spec: Mapping[str, Any],
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """A whole manifest for server-side apply. It goes when the service goes, by the cluster's garbage collector."""
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": service.namespace,
        "labels": {
            **(labels or {}),
            names.SERVICE_LABEL: service.name,
            names.MANAGED_BY_LABEL: names.FIELD_MANAGER,
        },
        "ownerReferences": [
            {
                "apiVersion": names.API_VERSION,
                "kind": names.KIND,
                "name": service.name,
                "uid": service.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }
    if annotations:
        metadata["annotations"] = dict(annotations)
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, "spec": dict(spec)}


def host_of(service: Service, policy: Policy) -> str:
    """The predictor's name in the cluster: the same on the mesh and in pods of its own."""
    return (
        f"{names.predictor_name(service.name, service.predictor.name)}.{service.namespace}.svc.{policy.cluster_domain}"
    )


def mesh_service(service: Service, policy: Policy) -> dict[str, Any]:
    """The predictor's name, leading to the mesh. The host that callers ask for says the namespace: the tenant."""
    spec = {"type": "ExternalName", "externalName": policy.mesh_host}
    labels = {**service.labels, names.COMPONENT_LABEL: "predictor"}
    name = names.predictor_name(service.name, service.predictor.name)
    return child("v1", "Service", name, service, spec, labels)
