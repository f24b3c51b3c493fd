"""InferenceServices as tests write and read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.cluster.control_plane import Admin, Json
from tests.e2e.conftest import Example, Pod

FORMAT = "onnx"


def path_of(namespace: str, name: str = "") -> str:
    """Of all services of a namespace, or of one."""
    services = f"/apis/serving.kserve.io/v1beta1/namespaces/{namespace}/inferenceservices"
    return f"{services}/{name}" if name else services


def isvc(
    name: str, uri: str, model_format: str = FORMAT, annotations: Mapping[str, str] | None = None, **said: Any
) -> Json:
    """In mode ModelMesh; `said` of the predictor."""
    mode = {"serving.kserve.io/deploymentMode": "ModelMesh"}
    model = {"modelFormat": {"name": model_format}, "storageUri": uri}
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name, "annotations": {**mode, **(annotations or {})}},
        "spec": {"predictor": {"model": model, **said}},
    }


def condition(service: Json, kind: str) -> Json:
    """An empty one where the status has none of this kind."""
    found = service.get("status", {}).get("conditions", [])
    return next((one for one in found if one["type"] == kind), {})


def is_seen(service: Json) -> bool:
    """Whether the status is about the newest spec."""
    return bool(service.get("status", {}).get("observedGeneration") == service["metadata"]["generation"])


def model_status(service: Json) -> Json:
    """An empty one where there is none yet."""
    found: Json = service.get("status", {}).get("modelStatus", {})
    return found


def wait_ready(admin: Admin, namespace: str, name: str, is_ready: str = "True", timeout_s: float = 60.0) -> Json:
    """The service, once its condition Ready says so about its newest spec."""

    def ready() -> Json | None:
        service = admin.get(path_of(namespace, name))
        return service if is_seen(service) and condition(service, "Ready").get("status") == is_ready else None

    found: Json = admin.wait_until(ready, f"{name} is Ready={is_ready}", timeout_s)
    return found


def predicts(pod: Pod, namespace: str, name: str, example: Example) -> bool:
    """Whether the name answers as the example's own framework does."""
    with pod.client(tenant=namespace) as client:
        outputs = client.infer(name, dict(example.inputs)).outputs
    return all(np.allclose(outputs[key], value) for key, value in example.expected.items())
