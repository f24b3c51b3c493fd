"""What a few servers need beyond their ServingRuntime: KServe's controller knows them by the runtime's name, so do we.

MLServer is told the model by its environment and the class by a label, TorchServe its protocol; Triton without a model
of its own must not load all that it finds; and the images of some have a second tag for GPUs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from controller.dedicated.model_volume import MODEL_DIR
from controller.service_view import Model

MLSERVER, TORCHSERVE, TRITON = "kserve-mlserver", "kserve-torchserve", "kserve-tritonserver"
_WITH_GPU_TAG = ("kserve-tensorflow-serving", TORCHSERVE, "kserve-huggingfaceserver")
_MODEL_CLASSES = {
    "sklearn": "mlserver_sklearn.SKLearnModel",
    "xgboost": "mlserver_xgboost.XGBoostModel",
    "lightgbm": "mlserver_lightgbm.LightGBMModel",
    "mlflow": "mlserver_mlflow.MLflowRuntime",
}
_GPUS = ("nvidia.com/gpu", "amd.com/gpu", "intel.com/gpu")
_TAG = re.compile(r":[\w.\-]*$")


def server_labels(runtime: str, model: Model) -> dict[str, str]:
    """Labels of the pod; runtimes read them in their templates."""
    if runtime == MLSERVER and model.format in _MODEL_CLASSES:
        return {"modelClass": _MODEL_CLASSES[model.format]}
    if runtime == TORCHSERVE:
        return {"serviceEnvelope": "kservev2" if model.protocol == "v2" else "kserve"}
    return {}


def server_additions(runtime: str, model: Model, service: str) -> dict[str, Any]:
    """To be merged into the container, below what the object says."""
    if runtime == MLSERVER and model.storage is not None:
        env = {"MLSERVER_MODEL_NAME": service, "MLSERVER_MODEL_URI": MODEL_DIR}
    elif runtime == MLSERVER:
        env = {"MLSERVER_LOAD_MODELS_AT_STARTUP": "false"}
    elif runtime == TORCHSERVE:
        env = {"PROTOCOL_VERSION": model.protocol_or_default}
    elif runtime == TRITON and model.storage is None:
        return {"args": ["--model-control-mode=explicit"]}
    else:
        return {}
    return {"env": [{"name": name, "value": value} for name, value in env.items()]}


def image_for(image: str, runtime: str, version: str, container: Mapping[str, Any]) -> str:
    """The runtime's image, with the version that the object says as its tag, or the tag for GPUs."""
    if "@sha256:" in image:
        return image
    if version:
        return f"{_TAG.sub('', image)}:{version}"
    resources = container.get("resources")
    limits = resources.get("limits") if isinstance(resources, Mapping) else None
    wants_gpu = isinstance(limits, Mapping) and any(limits.get(name) for name in _GPUS)
    if wants_gpu and runtime in _WITH_GPU_TAG and _TAG.search(image) and not image.endswith("-gpu"):
        return f"{image}-gpu"
    return image
