"""One model asked by a pipeline's step: here, with the arrays as they are, or on the pod that has it.

This is what the endpoint does with a client's request, less the bytes: the name is resolved the same way, a copy that
is here runs through `mesh.serving` (batching, accounting, cold starts, retries), anything else goes through the
pool's router. Only a request that goes to another pod is written as a message.

What a model takes has to be known before it is asked, since a step's tensors are named after it. A copy that is here
says so; else it is asked for as a client's ModelMetadata is, which loads the model the first time, and remembered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from cachetools import LRUCache

from cache.types import ModelKey
from mesh.generations import key_of
from mesh.pipelines.values import Values, as_sent, inputs_for
from mesh.request import Answer, Tensors
from mesh.routing.router import Router
from mesh.serving import Serving, UnknownModel
from mesh.transport.base import Call, Metadata, ReplyWithTrailers
from mesh.wire import messages
from mesh.wire.generated import inference_pb2
from mesh.wire.request_options import RequestOptions
from mesh.wire.tensors import decode_response, encode_request
from placement.records import ModelRecord
from runtime_adapters.base import Array, ModelMetadata, TensorSpec

T = TypeVar("T")

METADATA_KEPT_MAX = 4096
"""Models of other pods, whose inputs are remembered."""
TRANSLATED_HERE_BYTES_MAX = 256 * 1024
"""Larger messages to and from other pods are written and read on a thread: of texts a megabyte takes up to 65 ms."""
_OF_THE_PIPELINE = frozenset(
    {
        *(f"{key}{form}" for key in (messages.MODEL_ID_METADATA, messages.VMODEL_ID_METADATA) for form in ("", "-bin")),
        # A client that tries again does not say which step's model was running when a pod died.
        messages.PREVIOUS_ATTEMPTS_METADATA,
        "grpc-previous-rpc-attempts",
    }
)
"""Metadata that mean the pipeline, not a model of its steps."""


@dataclass(frozen=True, slots=True)
class Asking:
    """On whose behalf a step asks, and how: what its client's call says."""

    call: Call
    tenant: str
    deadline_s: float | None
    options: RequestOptions


@dataclass(frozen=True, slots=True)
class Answered:
    """What a model answered; `cold`: a load was waited for."""

    outputs: dict[str, Array]
    cold: bool


class ModelCalls:
    """Asks models. One per pod; belongs to the event loop."""

    def __init__(self, serving: Serving, router: Router | None) -> None:
        """`router`: of a pod in a pool."""
        self._serving = serving
        self._router = router
        self._elsewhere: LRUCache[tuple[ModelKey, float], ModelMetadata] = LRUCache(METADATA_KEPT_MAX)
        """By generation and its time: a name that was given up long ago begins at generation 1 again."""

    async def resolve(self, tenant: str, name: str) -> ModelRecord:
        """What a name stands for now. Raises UnknownModel."""
        try:
            return self._serving.resolve(tenant, name)
        except UnknownModel:
            if self._router is None or not await self._router.names.look_up(tenant, name):
                raise
            return self._serving.resolve(tenant, name)

    async def metadata(self, asking: Asking, record: ModelRecord) -> ModelMetadata:
        """What a model takes and gives. Raises as `mesh.serving.Serving.metadata`, or TransportError."""
        if self._router is None or self._serving.knows_metadata(record):
            return await self._serving.metadata(record, asking.deadline_s)
        key = (key_of(record), record.generation_at_s)
        known = self._elsewhere.get(key)
        if known is not None:
            return known
        registered = self._serving.registered(record) or record
        here: list[ModelMetadata] = []

        async def run_here(space_wait_s: float) -> bytes:
            current = self._serving.current(registered)
            here.append(await self._serving.metadata(current, asking.deadline_s, space_wait_s))
            return b""

        asked = inference_pb2.ModelMetadataRequest(name=record.id).SerializeToString()
        call = _step_call(asking, messages.MODEL_METADATA.path, asked)
        reply = await self._router.from_client(call, asking.tenant, registered, run_here)
        if here:
            return here[-1]
        body = reply.body if isinstance(reply, ReplyWithTrailers) else reply
        found = _metadata(messages.parse_response(messages.MODEL_METADATA, body))
        self._elsewhere[key] = found
        return found

    async def ask(self, asking: Asking, record: ModelRecord, given: Values, outputs: tuple[str, ...]) -> Answered:
        """Run a model once. Raises as `mesh.serving.Serving.infer`, or TransportError."""
        resident = self._serving.hit(record)
        if resident is not None:
            if self._router is None or not self._router.saturated(record, resident.copy.pins):
                try:
                    tensors = _tensors(given, resident.model.metadata, outputs, asking.options)
                except Exception:
                    resident.let_go()
                    raise

                async def read() -> Tensors:
                    return tensors

                answer = await self._serving.infer(record, resident, asking.deadline_s, read)
                return Answered(as_sent(answer.outputs), answer.cold)
            resident.let_go()
        return await self._ask_wherever(asking, record, given, outputs)

    async def _ask_wherever(
        self, asking: Asking, record: ModelRecord, given: Values, outputs: tuple[str, ...]
    ) -> Answered:
        was_unknown = not self._serving.knows_metadata(record)
        tensors = _tensors(given, await self.metadata(asking, record), outputs, asking.options)
        loaded = was_unknown and self._serving.knows_metadata(record)  # here, and for this

        async def read() -> Tensors:
            return tensors

        if self._router is None:
            answer = await self._serving.infer(record, self._serving.hit(record), asking.deadline_s, read)
            return Answered(as_sent(answer.outputs), answer.cold or loaded)
        registered = self._serving.registered(record) or record
        here: list[Answer] = []

        async def run_here(space_wait_s: float) -> bytes:
            current = self._serving.current(registered)
            resident = self._serving.hit(current)
            here.append(await self._serving.infer(current, resident, asking.deadline_s, read, space_wait_s))
            return b""

        message = await _off_the_loop(tensors.size_bytes, partial(encode_request, record.id, tensors.inputs, outputs))
        message += _parameters(asking.options)
        call = _step_call(asking, messages.MODEL_INFER.path, message)
        reply = await self._router.from_client(call, asking.tenant, registered, run_here)
        if here:
            return Answered(as_sent(here[-1].outputs), here[-1].cold or loaded)
        body, trailers = (reply.body, reply.trailers) if isinstance(reply, ReplyWithTrailers) else (reply, ())
        decoded = await _off_the_loop(len(body), partial(decode_response, body))
        return Answered(decoded.outputs, cold=any(key == messages.COLD_METADATA for key, _ in trailers))


async def _off_the_loop(size_bytes: int, translate: Callable[[], T]) -> T:
    """What it gives; other calls do not wait for a large translation."""
    return translate() if size_bytes <= TRANSLATED_HERE_BYTES_MAX else await asyncio.to_thread(translate)


def _tensors(given: Values, metadata: ModelMetadata, outputs: tuple[str, ...], options: RequestOptions) -> Tensors:
    inputs = dict(given) if metadata.unchecked else inputs_for(given, metadata.inputs)
    return Tensors(inputs, {}, outputs, sum(size_bytes(array) for array in inputs.values()), options=options)


def size_bytes(array: Array) -> int:
    """What an array takes as a message, nearly."""
    return sum(4 + len(element) for element in array.flat) if array.dtype.hasobject else array.nbytes


def _step_call(asking: Asking, method: str, body: bytes) -> Call:
    metadata: Metadata = tuple(entry for entry in asking.call.metadata if entry[0] not in _OF_THE_PIPELINE)
    return replace(asking.call, method=method, body=body, metadata=metadata, deadline_s=asking.deadline_s)


def _parameters(options: RequestOptions) -> bytes:
    """What a request says beside its tensors, but for its timeout, which is in the deadline; messages are joined by
    writing them after one another."""
    message = inference_pb2.ModelInferRequest()
    if options.priority:
        message.parameters["priority"].int64_param = options.priority
    if options.sequence is not None:
        message.parameters["sequence_id"].string_param = options.sequence.id
        message.parameters["sequence_start"].bool_param = options.sequence.start
        message.parameters["sequence_end"].bool_param = options.sequence.end
    return message.SerializeToString()


def _metadata(message: inference_pb2.ModelMetadataResponse) -> ModelMetadata:
    inputs, outputs = (
        tuple(TensorSpec(each.name, each.datatype, tuple(each.shape)) for each in tensors)
        for tensors in (message.inputs, message.outputs)
    )
    return ModelMetadata(message.platform, inputs, outputs)
