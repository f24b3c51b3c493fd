"""What things are called in the cluster: annotations, labels, and the names of children.

KServe's names, letter for letter, since people's dashboards, network policies and scripts know them; what KServe has no
word for begins with `hexcomb.dev/`.
"""

from __future__ import annotations

API_VERSION = "serving.kserve.io/v1beta1"
KIND = "InferenceService"
FIELD_MANAGER = "hexcomb-controller"
"""Of server-side apply; also the owner of aliases and the manager of models on the mesh."""

DEPLOYMENT_MODE = "serving.kserve.io/deploymentMode"
OUR_MODE = "hexcomb.dev/mode"
"""What KServe's webhook lets nobody change. Goes before `DEPLOYMENT_MODE`."""
AUTOSCALER_CLASS = "serving.kserve.io/autoscalerClass"
STOP = "serving.kserve.io/stop"
TAG_ROUTING = "serving.kserve.io/enable-tag-routing"
SECRET_KEY = "serving.kserve.io/secretKey"
SCHEMA_PATH = "serving.kserve.io/schemaPath"
SERVING_RUNTIME = "serving.kserve.io/servingRuntime"

SERVICE_LABEL = "serving.kserve.io/inferenceservice"
COMPONENT_LABEL = "component"
VISIBILITY_LABEL = "networking.kserve.io/visibility"
CLUSTER_LOCAL = "cluster-local"
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"

LABEL_LENGTH_MAX = 63
"""Of a Service's name, which is one in the DNS, and of a label's value."""

MESH_MANAGED_BY = "managed-by"
MESH_SERVICE = "inferenceservice"
"""Labels of a model on the mesh: by these the controller knows what is its own, and whose."""


def predictor_name(service: str, predictor: str = "") -> str:
    """Deployment, Service and autoscaler of the predictor; `predictor` is its own name, if it has one."""
    return f"{service}-{predictor}-predictor" if predictor else f"{service}-predictor"


def mesh_labels(service: str) -> dict[str, str]:
    """Of every model that the controller registers."""
    return {MESH_MANAGED_BY: FIELD_MANAGER, MESH_SERVICE: service}
