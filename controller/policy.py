"""What the operator decides for all services: the pure part of the controller's settings.

The process's settings class has these fields among its own, with their environment variables; here they are a value, so
that a test states only what matters.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Mode(Enum):
    """Where a service runs, or how that is found."""

    MESH = "ModelMesh"
    DEDICATED = "Standard"
    KNATIVE = "Knative"
    AUTO = "Auto"
    """The mesh if it can serve the object as it is written, else dedicated pods."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Limits and defaults, each with its reason."""

    default_mode: Mode = Mode.AUTO
    """Of a service that names none, where we own the class."""
    beside_kserve: bool = False
    """KServe's own controller runs in this cluster too. Then only services with the annotation `ModelMesh` are ours,
    which KServe leaves alone."""
    mesh_host: str = "hexcomb.hexcomb.svc.cluster.local"
    """The Service in front of the mesh's pods, which every service's own name leads to."""
    mesh_http_port: int = 80
    """So that a URL of a service needs no port, on the mesh as in pods of its own."""
    mesh_grpc_port: int = 8033
    """ModelMesh's, which clients know."""
    cluster_domain: str = "cluster.local"
    load_when_applied: bool = True
    """A new service's model is loaded at once, so that its status tells whether it can be, unless minReplicas is 0."""
    storage_initialiser_image: str = "kserve/storage-initializer:v0.20.0"
    """Fetches the artifact in pods of a service's own: KServe's, so that what it fetched before is fetched again."""
    move_grace_s: float = 60.0
    """A service that has moved is left standing where it was for so long: names are cached for 30 s by many clusters'
    DNS, and requests that run may take as long again."""
    requeue_while_loading_s: float = 1.0
    """The mesh has no watch for clients; a model that is loading is looked at again this soon."""
    requeue_when_unreachable_s: float = 5.0
    """Until then a pool has often come back, and a hundred services ask no more than twenty times a second."""
    requeue_steady_s: float = 60.0
    """Copies come and go with traffic; a status that says how many may be a minute old."""
