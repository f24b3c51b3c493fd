"""ModelMesh's runtime interface: the methods that this pod calls, and none that it serves."""

from __future__ import annotations

from mesh.wire.generated import model_runtime_pb2
from mesh.wire.messages import Method

_RUNTIME = "/mmesh.ModelRuntime/"
LOAD_MODEL = Method(_RUNTIME + "loadModel", model_runtime_pb2.LoadModelRequest, model_runtime_pb2.LoadModelResponse)
UNLOAD_MODEL = Method(
    _RUNTIME + "unloadModel", model_runtime_pb2.UnloadModelRequest, model_runtime_pb2.UnloadModelResponse
)
PREDICT_MODEL_SIZE = Method(
    _RUNTIME + "predictModelSize",
    model_runtime_pb2.PredictModelSizeRequest,
    model_runtime_pb2.PredictModelSizeResponse,
)
MODEL_SIZE = Method(_RUNTIME + "modelSize", model_runtime_pb2.ModelSizeRequest, model_runtime_pb2.ModelSizeResponse)
RUNTIME_STATUS = Method(
    _RUNTIME + "runtimeStatus", model_runtime_pb2.RuntimeStatusRequest, model_runtime_pb2.RuntimeStatusResponse
)
