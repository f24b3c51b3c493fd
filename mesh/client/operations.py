"""Every call that a client can make, as a value: where it goes, its bytes, and how to read the answer.

The blocking and the asyncio client differ only in how they wait. What they send and what they make of the answer is
defined here once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NotRequired, TypedDict, TypeVar, Unpack

import numpy as np
from numpy.typing import ArrayLike

from mesh.client.errors import HexcombError, InvalidRequest, error_of
from mesh.transport.base import StatusCode
from mesh.wire import messages
from mesh.wire.errors import UnsendableOutput
from mesh.wire.generated import hexcomb_pb2, inference_pb2, mmesh_pb2
from mesh.wire.messages import Method
from mesh.wire.tensors import InferResult, decode_response, encode_request

Answer = TypeVar("Answer")
Req = TypeVar("Req", bound=messages.Message)
Res = TypeVar("Res", bound=messages.Message)

Parameters = Mapping[str, bool | int | float | str]
"""Of a request, beside its tensors. Triton's are understood: `priority`, `timeout` (µs), `sequence_id`,
`sequence_start`, `sequence_end`."""

CHUNK_BYTES_MAX = 1024 * 1024
"""Bulk calls are cut into messages of this size: far below any server's limit, each quick enough to retry."""
CHUNK_ENTRIES_MAX = 1000
"""... and of so many entries, so that progress is shown and no server is held up."""


@dataclass(frozen=True, slots=True)
class Operation(Generic[Answer]):
    """One unary call."""

    path: str
    body: bytes
    decode: Callable[[bytes], Answer]
    model: str = ""
    """Whose copy answers it; empty: any pod does."""
    repeats: bool = True
    """False: it has an effect each time, as a request of a sequence has."""


class SpecFields(TypedDict):
    """What may be said of a model; see ModelSpec in mesh/wire/protos/hexcomb.proto."""

    uri: str
    format: NotRequired[str]
    storage_key: NotRequired[str]
    capacity_hint_bytes: NotRequired[int]
    labels: NotRequired[Mapping[str, str]]
    priority: NotRequired[int]
    pinned: NotRequired[bool]
    copies_min: NotRequired[int]
    copies_max: NotRequired[int]
    ttl_s: NotRequired[float]
    checksum: NotRequired[str]
    isolation: NotRequired[str]
    parameters: NotRequired[Mapping[str, str]]
    load_timeout_s: NotRequired[float]
    batch_rows_max: NotRequired[int]
    batch_delay_s: NotRequired[float]
    if_generation: NotRequired[int]
    load_now: NotRequired[bool]


class AliasFields(TypedDict, total=False):
    """How an alias is set; see SetVModelRequest in mesh/wire/protos/mmesh.proto."""

    owner: str
    expected_target: str
    update_only: bool
    load_now: bool
    force: bool
    wait: bool


class PutAliasFields(TypedDict, total=False):
    """On which conditions an alias is set; see SetAliasRequest in mesh/wire/protos/hexcomb.proto."""

    owner: str
    expected_target: str
    update_only: bool
    force: bool
    wait: bool


def infer(
    model: str,
    inputs: Mapping[str, ArrayLike],
    outputs: Sequence[str] = (),
    version: str = "",
    request_id: str = "",
    parameters: Parameters | None = None,
) -> Operation[InferResult]:
    body = _request(model, inputs, outputs, version, request_id, parameters)
    return Operation(messages.MODEL_INFER.path, body, decode_response, model, _repeats(parameters))


def infer_stream(
    model: str,
    inputs: Mapping[str, ArrayLike],
    outputs: Sequence[str] = (),
    version: str = "",
    request_id: str = "",
    parameters: Parameters | None = None,
) -> Operation[InferResult]:
    """A call with any number of answers; it is decoded one by one, and an error that is one of them is raised."""
    method = messages.MODEL_STREAM_INFER

    def decode(body: bytes) -> InferResult:
        message = method.response.FromString(body)
        if message.error_message:
            raise _streamed_error(message)
        return decode_response(message.infer_response.SerializeToString())

    body = _request(model, inputs, outputs, version, request_id, parameters)
    return Operation(method.path, body, decode, model, _repeats(parameters))


def _repeats(parameters: Parameters | None) -> bool:
    return not (parameters and parameters.get("sequence_id"))


def _streamed_error(message: inference_pb2.ModelStreamInferResponse) -> HexcombError:
    """Other servers' streams say no status: then it is unknown whose fault it was."""
    said = message.infer_response.parameters
    status, retry_after_s = int(StatusCode.UNKNOWN), None
    if messages.STREAM_STATUS_PARAMETER in said:
        status = said[messages.STREAM_STATUS_PARAMETER].int64_param
    if messages.STREAM_RETRY_AFTER_PARAMETER in said:
        retry_after_s = max(0, said[messages.STREAM_RETRY_AFTER_PARAMETER].int64_param) / 1000
    return error_of(status, message.error_message, retry_after_s)


def _request(
    model: str,
    inputs: Mapping[str, ArrayLike],
    outputs: Sequence[str],
    version: str,
    request_id: str,
    parameters: Parameters | None,
) -> bytes:
    if isinstance(outputs, str) or not all(isinstance(name, str) for name in outputs):
        raise InvalidRequest(f"outputs is {outputs!r}; give a list of names", StatusCode.INVALID_ARGUMENT)
    if not isinstance(inputs, Mapping):
        raise InvalidRequest(
            f"inputs is a {type(inputs).__name__}; give arrays by the inputs' names (`infer_frame` takes a DataFrame)",
            StatusCode.INVALID_ARGUMENT,
        )
    try:
        arrays = {name: _array(name, value) for name, value in inputs.items()}
        return encode_request(model, arrays, outputs, version, request_id, parameters)
    except UnsendableOutput as error:
        raise InvalidRequest(f"cannot send this request: {error}", StatusCode.INVALID_ARGUMENT) from error


def _array(name: str, value: ArrayLike) -> np.ndarray[Any, Any]:
    """Lists, scalars, arrays and pandas Series, those with pandas' own datatypes too."""
    # A Series of nullable numbers is an array of objects to NumPy, unless it is asked for the numbers.
    numbers = getattr(getattr(value, "dtype", None), "numpy_dtype", None)
    try:
        return np.asarray(value, dtype=numbers if isinstance(numbers, np.dtype) else None)
    except (TypeError, ValueError) as error:
        raise UnsendableOutput(f"tensor {name!r} cannot be made an array: {error}") from error


def server_live() -> Operation[bool]:
    method = messages.SERVER_LIVE
    return Operation(method.path, b"", lambda body: method.response.FromString(body).live)


def server_ready() -> Operation[bool]:
    method = messages.SERVER_READY
    return Operation(method.path, b"", lambda body: method.response.FromString(body).ready)


def server_metadata() -> Operation[inference_pb2.ServerMetadataResponse]:
    return _plain(messages.SERVER_METADATA, inference_pb2.ServerMetadataRequest())


def model_ready(model: str, version: str) -> Operation[bool]:
    method = messages.MODEL_READY
    body = inference_pb2.ModelReadyRequest(name=model, version=version).SerializeToString()
    return Operation(method.path, body, lambda answer: method.response.FromString(answer).ready)


def model_metadata(model: str, version: str) -> Operation[inference_pb2.ModelMetadataResponse]:
    return _plain(messages.MODEL_METADATA, inference_pb2.ModelMetadataRequest(name=model, version=version))


def registration(model_id: str, **fields: Unpack[SpecFields]) -> hexcomb_pb2.Registration:
    """One entry of a registration. Raises InvalidRequest for a value that the message cannot hold."""
    spec = {key: value for key, value in fields.items() if key not in ("if_generation", "load_now")}
    try:
        entry = hexcomb_pb2.Registration(id=model_id, spec=hexcomb_pb2.ModelSpec(**spec))  # type: ignore[arg-type]
        if "if_generation" in fields:
            entry.if_generation = fields["if_generation"]
        entry.load_now = fields.get("load_now", False)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"model {model_id!r}: {error}", StatusCode.INVALID_ARGUMENT) from error
    return entry


def pipeline(name: str, graph: Mapping[str, Any], if_generation: int | None) -> hexcomb_pb2.Registration:
    """The registration of a pipeline. `graph`: an InferenceGraph of KServe's, its `spec`, or the nodes alone as such a
    spec has them. Raises InvalidRequest."""
    from mesh.pipelines.spec import URI, from_kserve, parameters_of
    from placement.errors import InvalidSpec
    from placement.records import PIPELINE_FORMAT

    try:
        found, _ = from_kserve(graph)
        fields: SpecFields = {"uri": URI, "format": PIPELINE_FORMAT, "parameters": parameters_of(found)}
    except InvalidSpec as error:
        raise InvalidRequest(f"pipeline {name!r}: {error}", StatusCode.INVALID_ARGUMENT) from error
    if if_generation is not None:
        fields["if_generation"] = if_generation
    return registration(name, **fields)


def register(entry: hexcomb_pb2.Registration) -> Operation[hexcomb_pb2.RegistrationResult]:
    """Register one model: a refusal is raised, not returned."""
    method = messages.REGISTER_MODELS

    def decode(body: bytes) -> hexcomb_pb2.RegistrationResult:
        (result,) = method.response.FromString(body).results
        if result.status_code != StatusCode.OK:
            raise error_of(result.status_code, result.message)
        return result

    return Operation(method.path, hexcomb_pb2.RegisterModelsRequest(entries=[entry]).SerializeToString(), decode)


def register_many(
    entries: Iterable[hexcomb_pb2.Registration], entries_per_call: int = CHUNK_ENTRIES_MAX
) -> Iterator[tuple[Sequence[hexcomb_pb2.Registration], Operation[Sequence[hexcomb_pb2.RegistrationResult]]]]:
    """One operation per message, with what is in it. Results are in the order of the entries, refusals among them."""
    method = messages.REGISTER_MODELS
    if not 1 <= entries_per_call <= CHUNK_ENTRIES_MAX:
        raise ValueError(f"entries_per_call is {entries_per_call}; it must be from 1 to {CHUNK_ENTRIES_MAX}")
    for chunk in _chunks(entries, hexcomb_pb2.Registration.ByteSize, entries_per_call):
        body = hexcomb_pb2.RegisterModelsRequest(entries=chunk).SerializeToString()
        yield chunk, Operation(method.path, body, _results_of(method, len(chunk)))


def unregister_many(
    ids: Iterable[str],
) -> Iterator[tuple[Sequence[str], Operation[Sequence[hexcomb_pb2.UnregistrationResult]]]]:
    """The same, of ids."""
    method = messages.UNREGISTER_MODELS
    for chunk in _chunks(ids, lambda model_id: 4 * len(model_id), CHUNK_ENTRIES_MAX):
        body = hexcomb_pb2.UnregisterModelsRequest(ids=chunk).SerializeToString()
        yield chunk, Operation(method.path, body, _results_of(method, len(chunk)))


def unregister(model_id: str) -> Operation[bool]:
    """Whether there was such a model; a refusal is raised."""
    method = messages.UNREGISTER_MODELS

    def decode(body: bytes) -> bool:
        (result,) = method.response.FromString(body).results
        if result.status_code != StatusCode.OK:
            raise error_of(result.status_code, result.message)
        return result.existed

    return Operation(method.path, hexcomb_pb2.UnregisterModelsRequest(ids=[model_id]).SerializeToString(), decode)


def list_page(
    page_token: str, id_prefix: str, labels: Mapping[str, str] | None, page_size: int, format: str = ""
) -> Operation[hexcomb_pb2.ListModelsResponse]:
    request = hexcomb_pb2.ListModelsRequest(
        page_token=page_token, id_prefix=id_prefix, labels=labels or {}, page_size=page_size, format=format
    )
    return _plain(messages.LIST_MODELS, request)


def describe(model: str) -> Operation[hexcomb_pb2.ModelDescription]:
    return _plain(messages.DESCRIBE_MODEL, hexcomb_pb2.DescribeModelRequest(id=model))


def pod_status(pod: str) -> Operation[hexcomb_pb2.PodStatusResponse]:
    return _plain(messages.POD_STATUS, hexcomb_pb2.PodStatusRequest(pod=pod))


def set_pinned(model_id: str, pinned: bool) -> Operation[hexcomb_pb2.ModelDescription]:
    return _plain(messages.SET_PINNED, hexcomb_pb2.SetPinnedRequest(id=model_id, pinned=pinned))


def statistics(model: str, version: str) -> Operation[inference_pb2.ModelStatisticsResponse]:
    return _plain(messages.MODEL_STATISTICS, inference_pb2.ModelStatisticsRequest(name=model, version=version))


def unload(model: str) -> Operation[inference_pb2.RepositoryModelUnloadResponse]:
    return _plain(messages.REPOSITORY_UNLOAD, inference_pb2.RepositoryModelUnloadRequest(model_name=model))


def ensure_loaded(model_id: str, wait: bool) -> Operation[mmesh_pb2.ModelStatusInfo]:
    return _plain(messages.ENSURE_LOADED, mmesh_pb2.EnsureLoadedRequest(modelId=model_id, sync=wait))


def model_status(model_id: str) -> Operation[mmesh_pb2.ModelStatusInfo]:
    return _plain(messages.GET_MODEL_STATUS, mmesh_pb2.GetStatusRequest(modelId=model_id))


def set_alias(alias: str, target: str, fields: AliasFields) -> Operation[mmesh_pb2.VModelStatusInfo]:
    request = mmesh_pb2.SetVModelRequest(
        vModelId=alias,
        targetModelId=target,
        owner=fields.get("owner", ""),
        expectedTargetModelId=fields.get("expected_target", ""),
        updateOnly=fields.get("update_only", False),
        loadNow=fields.get("load_now", False),
        force=fields.get("force", False),
        sync=fields.get("wait", False),
    )
    return _plain(messages.SET_VMODEL, request)


def alias_status(alias: str, owner: str) -> Operation[mmesh_pb2.VModelStatusInfo]:
    return _plain(messages.GET_VMODEL_STATUS, mmesh_pb2.GetVModelStatusRequest(vModelId=alias, owner=owner))


def delete_alias(alias: str, owner: str) -> Operation[None]:
    method = messages.DELETE_VMODEL
    body = mmesh_pb2.DeleteVModelRequest(vModelId=alias, owner=owner).SerializeToString()
    return Operation(method.path, body, lambda answer: None)


def put_alias(
    alias: str, target: str, weights: Mapping[str, int] | None, fields: PutAliasFields
) -> Operation[hexcomb_pb2.AliasDescription]:
    """Without a target, that of an alias with weights is the model with the largest share."""
    shares = dict(weights or {})
    if not target and shares:
        target = min(shares, key=lambda model: (-shares[model], model))
    try:
        request = hexcomb_pb2.SetAliasRequest(id=alias, target=target, weights=shares, **fields)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"alias {alias!r}: {error}", StatusCode.INVALID_ARGUMENT) from error
    return _plain(messages.SET_ALIAS, request)


def aliases_page(page_token: str, id_prefix: str) -> Operation[hexcomb_pb2.ListAliasesResponse]:
    return _plain(messages.LIST_ALIASES, hexcomb_pb2.ListAliasesRequest(page_token=page_token, id_prefix=id_prefix))


def remove_alias(alias: str, owner: str) -> Operation[hexcomb_pb2.DeleteAliasResponse]:
    return _plain(messages.DELETE_ALIAS, hexcomb_pb2.DeleteAliasRequest(id=alias, owner=owner))


def explain(model: str) -> Operation[hexcomb_pb2.Explanation]:
    return _plain(messages.EXPLAIN, hexcomb_pb2.ExplainRequest(id=model))


def release(model_id: str) -> Operation[hexcomb_pb2.ModelDescription]:
    return _plain(messages.RELEASE_MODEL, hexcomb_pb2.ReleaseModelRequest(id=model_id))


def drain_pod(pod: str) -> Operation[hexcomb_pb2.DrainPodResponse]:
    """By name: a call for whichever pod is asked, tried once more elsewhere, would drain two."""
    if not pod:
        raise InvalidRequest("name the pod that is to be drained", StatusCode.INVALID_ARGUMENT)
    return _plain(messages.DRAIN_POD, hexcomb_pb2.DrainPodRequest(pod=pod))


def _plain(method: Method[Req, Res], request: Req) -> Operation[Res]:
    return Operation(method.path, request.SerializeToString(), method.response.FromString)


def _results_of(method: Method[Req, Any], entries: int) -> Callable[[bytes], Sequence[Any]]:
    """Reads a bulk answer; callers match results with entries by position, so their numbers must agree."""

    def decode(body: bytes) -> Sequence[Any]:
        results = list(method.response.FromString(body).results)
        if len(results) != entries:
            raise error_of(StatusCode.INTERNAL, f"{entries} entries were sent and {len(results)} results came back")
        return results

    return decode


Entry = TypeVar("Entry")


def _chunks(entries: Iterable[Entry], bytes_of: Callable[[Entry], int], entries_max: int) -> Iterator[list[Entry]]:
    chunk: list[Entry] = []
    chunk_bytes = 0
    for entry in entries:
        entry_bytes = bytes_of(entry)
        if chunk and (chunk_bytes + entry_bytes > CHUNK_BYTES_MAX or len(chunk) >= entries_max):
            yield chunk
            chunk, chunk_bytes = [], 0
        chunk.append(entry)
        chunk_bytes += entry_bytes
    if chunk:
        yield chunk
