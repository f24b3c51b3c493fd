"""A model runtime as ModelMesh knows them: scikit-learn models behind `mmesh.ModelRuntime`, in a process of its own.

    python -m tests.e2e.runtimes.spi_server SOCKET CAPACITY_BYTES [--no-sizes]

Models are asked by V2's ModelInfer, or by `test.Doubler/Double`, a method of the runtime's own whose request has the
model's id in field 1 of the message in field 2, and a text in field 3: it answers with both. A model's file holds the
rows that it is fitted to; one that says `"fails"` is refused in that way. `--no-sizes`: it implements neither of the
calls that ask for sizes.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from sklearn.linear_model import LinearRegression

from mesh.runtimes import methods
from mesh.wire import messages
from mesh.wire.field_paths import text_at
from mesh.wire.generated import inference_pb2
from mesh.wire.generated import model_runtime_pb2 as pb
from mesh.wire.tensors import decode_request, encode_response

DOUBLE = "/test.Doubler/Double"
SIZE_FACTOR = 3
"""What a model takes, by its file."""


class Runtime:
    """What the runtime holds; every answer is made from it."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.models: dict[str, Any] = {}
        self.sizes: dict[str, int] = {}

    def status(self, request: Any, context: Any) -> Any:
        self.models.clear()
        status = pb.RuntimeStatusResponse(
            status=pb.RuntimeStatusResponse.READY,
            capacityInBytes=self.capacity_bytes,
            modelLoadingTimeoutMs=20_000,
            defaultModelSizeInBytes=1_000_000,
            runtimeVersion="test 1",
        )
        status.methodInfos[messages.MODEL_INFER.path[1:]].idInjectionPath.append(1)
        status.methodInfos[DOUBLE[1:]].idInjectionPath.extend([2, 1])
        return status

    def load(self, request: Any, context: Any) -> Any:
        path = Path(request.modelPath)
        told = json.loads(request.modelKey)
        if told["model_type"]["name"] != request.modelType or told["disk_size_bytes"] != path.stat().st_size:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"modelKey {request.modelKey} does not fit")
        content = json.loads(path.read_bytes())
        if "fails" in content:
            context.abort(getattr(grpc.StatusCode, content["fails"]), "it was told to fail")
        self.models[request.modelId] = LinearRegression().fit(content["x"], content["y"])
        self.sizes[request.modelId] = SIZE_FACTOR * path.stat().st_size
        return pb.LoadModelResponse(maxConcurrency=2)

    def unload(self, request: Any, context: Any) -> Any:
        if self.models.pop(request.modelId, None) is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "it is not here")
        return pb.UnloadModelResponse()

    def predict_size(self, request: Any, context: Any) -> Any:
        return pb.PredictModelSizeResponse(sizeInBytes=2 * Path(request.modelPath).stat().st_size)

    def size(self, request: Any, context: Any) -> Any:
        self._known(request.modelId, context)
        return pb.ModelSizeResponse(sizeInBytes=self.sizes[request.modelId])

    def metadata(self, request: Any, context: Any) -> Any:
        model = self._known(request.name, context)
        answer = inference_pb2.ModelMetadataResponse(name=request.name, platform="scikit-learn")
        answer.inputs.add(name="x", datatype="FP32", shape=[-1, model.n_features_in_])
        answer.outputs.add(name="y", datatype="FP64", shape=[-1])
        return answer

    def infer(self, body: bytes, context: Any) -> bytes:
        request = decode_request(body)
        model = self._known(request.model_name, context)
        x = request.tensors["x"]
        if np.isnan(x).any():
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "NaN")
        return encode_response(request.model_name, "1", request.request_id, {"y": model.predict(x)})

    def double(self, body: bytes, context: Any) -> bytes:
        model_id = text_at(body, (2, 1)) or ""
        self._known(model_id, context)
        header = dict(context.invocation_metadata())["mm-model-id"]
        return f"{model_id}|{header}|{2 * (text_at(body, (3,)) or '')}".encode()

    def _known(self, model_id: str, context: Any) -> Any:
        if model_id not in self.models:
            context.abort(grpc.StatusCode.NOT_FOUND, f"model {model_id} is not loaded")
        return self.models[model_id]


def serve(address: str, capacity_bytes: int, *, sizes: bool) -> None:
    """Until the process is killed."""
    runtime = Runtime(capacity_bytes)
    typed = {
        methods.RUNTIME_STATUS: runtime.status,
        methods.LOAD_MODEL: runtime.load,
        methods.UNLOAD_MODEL: runtime.unload,
        messages.MODEL_METADATA: runtime.metadata,
    }
    if sizes:
        typed |= {methods.PREDICT_MODEL_SIZE: runtime.predict_size, methods.MODEL_SIZE: runtime.size}
    handlers = {
        method.path: grpc.unary_unary_rpc_method_handler(
            answer,
            request_deserializer=method.request.FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )
        for method, answer in typed.items()
    }
    handlers[messages.MODEL_INFER.path] = grpc.unary_unary_rpc_method_handler(runtime.infer)
    handlers[DOUBLE] = grpc.unary_unary_rpc_method_handler(runtime.double)

    class Dispatch(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, details: Any) -> Any:
            return handlers.get(details.method)

    server = grpc.server(ThreadPoolExecutor(8), handlers=[Dispatch()])
    server.add_insecure_port(address)
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), sizes="--no-sizes" not in sys.argv)
