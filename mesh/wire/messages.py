"""The table of methods: for each gRPC method its full name, its request and its response message.

Server and client both read this one table, so that neither spells a path or guesses a type. Whether a method
streams stands in its row; everything else about it (who may call it, what it does) belongs to the endpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, Self, TypeVar

from mesh.wire.errors import InvalidMessage
from mesh.wire.generated import health_pb2, hexcomb_pb2, inference_pb2, mmesh_pb2


class Message(Protocol):
    """What this product uses of a protobuf message."""

    @classmethod
    def FromString(cls, s: bytes) -> Self: ...

    def SerializeToString(self) -> bytes: ...


Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)


@dataclass(frozen=True, slots=True)
class Method(Generic[Request, Response]):
    """One row. `path` is the full name as it stands in HTTP/2's `:path`, with the leading slash."""

    path: str
    request: type[Request]
    response: type[Response]
    streams: bool = False


def parse(method: Method[Request, Response], body: bytes | memoryview) -> Request:
    """Read a request of this method. Raises InvalidMessage, and nothing else, whatever the bytes."""
    try:
        return method.request.FromString(bytes(body))
    except Exception as error:
        # protobuf's DecodeError; named by no import, because its home differs between protobuf's implementations.
        raise InvalidMessage(f"the message is not a {method.request.__name__}: protobuf cannot read it") from error


def parse_response(method: Method[Request, Response], body: bytes | memoryview) -> Response:
    """Read what came back from a pod. Raises InvalidMessage, and nothing else: it may be no pod that answered."""
    try:
        return method.response.FromString(bytes(body))
    except Exception as error:
        raise InvalidMessage(f"the answer is not a {method.response.__name__}: protobuf cannot read it") from error


_V2 = "/inference.GRPCInferenceService/"
SERVER_LIVE = Method(_V2 + "ServerLive", inference_pb2.ServerLiveRequest, inference_pb2.ServerLiveResponse)
SERVER_READY = Method(_V2 + "ServerReady", inference_pb2.ServerReadyRequest, inference_pb2.ServerReadyResponse)
SERVER_METADATA = Method(
    _V2 + "ServerMetadata", inference_pb2.ServerMetadataRequest, inference_pb2.ServerMetadataResponse
)
MODEL_READY = Method(_V2 + "ModelReady", inference_pb2.ModelReadyRequest, inference_pb2.ModelReadyResponse)
MODEL_METADATA = Method(_V2 + "ModelMetadata", inference_pb2.ModelMetadataRequest, inference_pb2.ModelMetadataResponse)
MODEL_INFER = Method(_V2 + "ModelInfer", inference_pb2.ModelInferRequest, inference_pb2.ModelInferResponse)
MODEL_STREAM_INFER = Method(
    _V2 + "ModelStreamInfer", inference_pb2.ModelInferRequest, inference_pb2.ModelStreamInferResponse, True
)
MODEL_CONFIG = Method(_V2 + "ModelConfig", inference_pb2.ModelConfigRequest, inference_pb2.ModelConfigResponse)
MODEL_STATISTICS = Method(
    _V2 + "ModelStatistics", inference_pb2.ModelStatisticsRequest, inference_pb2.ModelStatisticsResponse
)
REPOSITORY_INDEX = Method(
    _V2 + "RepositoryIndex", inference_pb2.RepositoryIndexRequest, inference_pb2.RepositoryIndexResponse
)
REPOSITORY_LOAD = Method(
    _V2 + "RepositoryModelLoad", inference_pb2.RepositoryModelLoadRequest, inference_pb2.RepositoryModelLoadResponse
)
REPOSITORY_UNLOAD = Method(
    _V2 + "RepositoryModelUnload",
    inference_pb2.RepositoryModelUnloadRequest,
    inference_pb2.RepositoryModelUnloadResponse,
)
SYSTEM_SHM_STATUS = Method(
    _V2 + "SystemSharedMemoryStatus",
    inference_pb2.SystemSharedMemoryStatusRequest,
    inference_pb2.SystemSharedMemoryStatusResponse,
)
SYSTEM_SHM_REGISTER = Method(
    _V2 + "SystemSharedMemoryRegister",
    inference_pb2.SystemSharedMemoryRegisterRequest,
    inference_pb2.SystemSharedMemoryRegisterResponse,
)
SYSTEM_SHM_UNREGISTER = Method(
    _V2 + "SystemSharedMemoryUnregister",
    inference_pb2.SystemSharedMemoryUnregisterRequest,
    inference_pb2.SystemSharedMemoryUnregisterResponse,
)
CUDA_SHM_STATUS = Method(
    _V2 + "CudaSharedMemoryStatus",
    inference_pb2.CudaSharedMemoryStatusRequest,
    inference_pb2.CudaSharedMemoryStatusResponse,
)
CUDA_SHM_REGISTER = Method(
    _V2 + "CudaSharedMemoryRegister",
    inference_pb2.CudaSharedMemoryRegisterRequest,
    inference_pb2.CudaSharedMemoryRegisterResponse,
)
CUDA_SHM_UNREGISTER = Method(
    _V2 + "CudaSharedMemoryUnregister",
    inference_pb2.CudaSharedMemoryUnregisterRequest,
    inference_pb2.CudaSharedMemoryUnregisterResponse,
)
TRACE_SETTING = Method(_V2 + "TraceSetting", inference_pb2.TraceSettingRequest, inference_pb2.TraceSettingResponse)
LOG_SETTINGS = Method(_V2 + "LogSettings", inference_pb2.LogSettingsRequest, inference_pb2.LogSettingsResponse)

_MMESH = "/mmesh.ModelMesh/"
REGISTER_MODEL = Method(_MMESH + "registerModel", mmesh_pb2.RegisterModelRequest, mmesh_pb2.ModelStatusInfo)
UNREGISTER_MODEL = Method(
    _MMESH + "unregisterModel", mmesh_pb2.UnregisterModelRequest, mmesh_pb2.UnregisterModelResponse
)
GET_MODEL_STATUS = Method(_MMESH + "getModelStatus", mmesh_pb2.GetStatusRequest, mmesh_pb2.ModelStatusInfo)
ENSURE_LOADED = Method(_MMESH + "ensureLoaded", mmesh_pb2.EnsureLoadedRequest, mmesh_pb2.ModelStatusInfo)
SET_VMODEL = Method(_MMESH + "setVModel", mmesh_pb2.SetVModelRequest, mmesh_pb2.VModelStatusInfo)
DELETE_VMODEL = Method(_MMESH + "deleteVModel", mmesh_pb2.DeleteVModelRequest, mmesh_pb2.DeleteVModelResponse)
GET_VMODEL_STATUS = Method(_MMESH + "getVModelStatus", mmesh_pb2.GetVModelStatusRequest, mmesh_pb2.VModelStatusInfo)

_HEXCOMB = "/hexcomb.v1.Management/"
REGISTER_MODELS = Method(
    _HEXCOMB + "RegisterModels", hexcomb_pb2.RegisterModelsRequest, hexcomb_pb2.RegisterModelsResponse
)
REGISTER_MODELS_STREAM = Method(
    _HEXCOMB + "RegisterModelsStream", hexcomb_pb2.RegisterModelsRequest, hexcomb_pb2.RegisterModelsResponse, True
)
UNREGISTER_MODELS = Method(
    _HEXCOMB + "UnregisterModels", hexcomb_pb2.UnregisterModelsRequest, hexcomb_pb2.UnregisterModelsResponse
)
LIST_MODELS = Method(_HEXCOMB + "ListModels", hexcomb_pb2.ListModelsRequest, hexcomb_pb2.ListModelsResponse)
DESCRIBE_MODEL = Method(_HEXCOMB + "DescribeModel", hexcomb_pb2.DescribeModelRequest, hexcomb_pb2.ModelDescription)
POD_STATUS = Method(_HEXCOMB + "PodStatus", hexcomb_pb2.PodStatusRequest, hexcomb_pb2.PodStatusResponse)
SET_PINNED = Method(_HEXCOMB + "SetPinned", hexcomb_pb2.SetPinnedRequest, hexcomb_pb2.ModelDescription)
EXPLAIN = Method(_HEXCOMB + "Explain", hexcomb_pb2.ExplainRequest, hexcomb_pb2.Explanation)
DRAIN_POD = Method(_HEXCOMB + "DrainPod", hexcomb_pb2.DrainPodRequest, hexcomb_pb2.DrainPodResponse)
RELEASE_MODEL = Method(_HEXCOMB + "ReleaseModel", hexcomb_pb2.ReleaseModelRequest, hexcomb_pb2.ModelDescription)
SET_ALIAS = Method(_HEXCOMB + "SetAlias", hexcomb_pb2.SetAliasRequest, hexcomb_pb2.AliasDescription)
LIST_ALIASES = Method(_HEXCOMB + "ListAliases", hexcomb_pb2.ListAliasesRequest, hexcomb_pb2.ListAliasesResponse)
DELETE_ALIAS = Method(_HEXCOMB + "DeleteAlias", hexcomb_pb2.DeleteAliasRequest, hexcomb_pb2.DeleteAliasResponse)

PREDICT = Method("/hexcomb.v1.Pipelines/Predict", hexcomb_pb2.PredictRequest, hexcomb_pb2.PredictResponse)

_POOL = "/hexcomb.v1.Pool/"
PROBE = Method(_POOL + "Probe", hexcomb_pb2.ProbeRequest, hexcomb_pb2.ProbeResponse)
ORDER = Method(_POOL + "Order", hexcomb_pb2.OrderRequest, hexcomb_pb2.OrderResponse)
EXPORT_NAMES = Method(_POOL + "ExportNames", hexcomb_pb2.ExportNamesRequest, hexcomb_pb2.ExportNamesResponse)
DIAL_BACK = Method(_POOL + "DialBack", hexcomb_pb2.DialBackRequest, hexcomb_pb2.DialBackResponse)
BEGIN_STREAM = Method(_POOL + "BeginStream", inference_pb2.ModelInferRequest, hexcomb_pb2.StreamPart)
NEXT_PART = Method(_POOL + "NextPart", hexcomb_pb2.NextPartRequest, hexcomb_pb2.StreamPart)

_HEALTH = "/grpc.health.v1.Health/"
HEALTH_CHECK = Method(_HEALTH + "Check", health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse)
HEALTH_WATCH = Method(_HEALTH + "Watch", health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse, True)

TENANT_METADATA = "hexcomb-tenant"
"""Metadata key by which a caller names its tenant; its verified identity, where there is one, goes first."""
MODEL_ID_METADATA = "mm-model-id"
VMODEL_ID_METADATA = "mm-vmodel-id"
"""ModelMesh's metadata keys: they name a concrete model or an alias, before the message does."""

PEER_KEY_METADATA = "hexcomb-peer-key"
"""With every call of a pod to a pod: the key that the called one publishes in the pool's store, beside its address. Who
shows it can read the store, and is believed to be a pod."""
PREVIOUS_ATTEMPTS_METADATA = "hexcomb-previous-attempts"
"""With a call that our client repeats: how many tries of it ended without anybody's answer."""
COLD_METADATA = "hexcomb-cold"
"""Trailing metadata of an inference that waited for its model to be loaded."""
FAILED_STEP = "failed_step."
"""What the names of an answer's parameters begin with that say which steps of a pipeline it lacks, and why."""
DRAINING_METADATA = "hexcomb-draining"
"""Trailing metadata of an answer: this pod is about to stop, use another one from now on."""
STREAM_STATUS_PARAMETER = "hexcomb_status_code"
STREAM_RETRY_AFTER_PARAMETER = "hexcomb_retry_after_ms"
"""Parameters of an error that is told in a stream of V2 answers, where there is a place for its message alone: its gRPC
status, and when to try again."""
OWNER_METADATA = "hexcomb-owner"
"""Trailing metadata of an answer that another pod gave: HOST:PORT of that pod, which has the model."""
REVISION_METADATA = "hexcomb-revision"
"""Trailing metadata of an answer to a write: the revision of the store that has it. A client sends the highest that it
was told with its next calls, so that another pod, whose view is a moment behind, waits for it instead of answering
"unknown"."""
