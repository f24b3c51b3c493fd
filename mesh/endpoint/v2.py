"""The Open Inference Protocol over gRPC, answered for every registered model.

The model's name is read from the message; no header is needed. ModelMesh's headers (`mm-model-id`, `mm-vmodel-id`) win
over the message when they are sent, and then the response carries the concrete id, as ModelMesh's does; else it carries
the name that the client sent. Outputs travel raw, because that is the only form that every client reads.

`ModelReady` of an unknown model is `false`, not an error; of a registered one it is `true` unless the model has failed
for good: whether it is resident at the moment is no client's concern.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import version
from math import inf

from mesh.endpoint.access import Access
from mesh.pipelines.requests import PipelineRequests
from mesh.request import Tensors
from mesh.resident import Resident
from mesh.routing.hop import Hop, hop_of
from mesh.routing.router import FirstTry, Router
from mesh.serving import Serving, UnknownModel
from mesh.transport.base import Call, Reply, ReplyWithTrailers, StatusCode, TransportError, UnaryHandler
from mesh.wire import messages
from mesh.wire.errors import InvalidMessage
from mesh.wire.generated import inference_pb2
from mesh.wire.peek import Envelope, peek
from mesh.wire.tensors import decode_request, encode_response
from placement.records import ModelRecord
from runtime_adapters.base import ModelMetadata

SERVER_NAME = "hexcomb"
DECODED_HERE_BYTES_MAX = 256 * 1024
"""Larger requests are decoded on a thread: strings and typed numbers take up to 65 ms per MB, all calls would wait."""
COLD_TRAILER: tuple[tuple[str, str], ...] = ((messages.COLD_METADATA, "1"),)
_DRAINING_TRAILER = (messages.DRAINING_METADATA, "1")


RunCurrent = Callable[[ModelRecord, float], Awaitable[Reply]]
"""Answers from this pod, by the generation that it is given; a load waits for room at most so many seconds."""


class V2Endpoint:
    """Handlers of `inference.GRPCInferenceService`."""

    def __init__(
        self,
        serving: Serving,
        access: Access,
        ready: Callable[[], str],
        router: Router | None = None,
        extensions: Sequence[str] = (),
        pipelines: PipelineRequests | None = None,
    ) -> None:
        """`router`: of a pod in a pool. `extensions`: those of Triton's that are served beside this."""
        self._pipelines = pipelines
        self._serving = serving
        self._access = access
        self._ready = ready
        self._router = router
        self._extensions = extensions

    def routes(self) -> dict[str, UnaryHandler]:
        """Handlers by method."""
        return {
            messages.SERVER_LIVE.path: self.server_live,
            messages.SERVER_READY.path: self.server_ready,
            messages.SERVER_METADATA.path: self.server_metadata,
            messages.MODEL_READY.path: self.model_ready,
            messages.MODEL_METADATA.path: self.model_metadata,
            messages.MODEL_INFER.path: self.model_infer,
        }

    async def model_infer(self, call: Call) -> Reply:
        """Run a model once: on this pod's copy if it has one, else where the pool's router says."""
        caller = self._access.caller(call)
        envelope = peek(call.body)
        name = asked_name(call, envelope.model_name)
        record, hop = await self.resolve(call, caller.tenant, name, envelope.model_version)
        if not record.spec.has_copies:
            return self._own_word(await self.run_pipeline(call, caller.tenant, envelope, name, record), hop)
        resident = self._serving.hit(record)
        if resident is not None:
            if self._router is None or hop is not None or not self._router.saturated(record, resident.copy.pins):
                return self._own_word(await self.run(call, envelope, name, record, resident), hop)
            resident.let_go()

        async def run_here(current: ModelRecord, space_wait_s: float) -> Reply:
            return await self.run(call, envelope, name, current, self._serving.hit(current), space_wait_s)

        return self._own_word(await self.routed(call, caller.tenant, hop, record, run_here), hop)

    async def go_on(self, first: FirstTry, call: Call) -> Reply:
        """Answer a client's call after a first try on another pod that was not waited for, for the model that it had
        then: an alias is not drawn again."""
        assert self._router is not None
        tenant = self._access.caller(call).tenant
        envelope = peek(call.body)
        name = asked_name(call, envelope.model_name)
        registered = self._serving.registered(first.sent.record) or first.sent.record

        async def run(space_wait_s: float) -> Reply:
            current = self._serving.current(registered)
            return await self.run(call, envelope, name, current, self._serving.hit(current), space_wait_s)

        return self._own_word(await self._router.from_client(call, tenant, registered, run, first), None)

    def _own_word(self, reply: Reply, hop: Hop | None) -> Reply:
        """The answer, and whether the pod that the client called is leaving: this one, not the one that ran it."""
        return reply if hop is not None or not self._ready() else from_draining(reply)

    async def resolve(self, call: Call, tenant: str, name: str, version: str) -> tuple[ModelRecord, Hop | None]:
        """The generation that answers here, and the hop that brought the call, if it came from another pod."""
        if self._router is None:
            return self._serving.resolve(tenant, name, version), None
        hop = hop_of(call) if self._access.is_peer(call) else None
        if hop is not None:
            return self._serving.current(await self._router.registered(tenant, hop)), hop
        try:
            return self._serving.resolve(tenant, name, version), None
        except UnknownModel:
            if not await self._router.names.look_up(tenant, name):
                raise
            return self._serving.resolve(tenant, name, version), None

    async def routed(
        self, call: Call, tenant: str, hop: Hop | None, record: ModelRecord, run_here: RunCurrent
    ) -> Reply:
        """The answer of whoever has, or gets, the model. Raises TransportError for a pipeline, which nobody has."""
        if not record.spec.has_copies:
            raise TransportError(
                StatusCode.UNIMPLEMENTED,
                f"{record.id!r} is a pipeline, which answers inference; ask this of the models that it asks",
            )
        if self._router is None:
            return await run_here(record, inf)
        registered = self._serving.registered(record) or record

        async def run(space_wait_s: float) -> Reply:
            return await run_here(self._serving.current(registered), space_wait_s)

        if hop is None:
            return await self._router.from_client(call, tenant, registered, run)
        return await self._router.from_pod(hop, registered, run)

    async def run(
        self,
        call: Call,
        envelope: Envelope,
        name: str,
        record: ModelRecord,
        resident: Resident | None,
        space_wait_s: float = inf,
    ) -> Reply:
        """Answer from this pod, by the copy that is pinned for it, or one that has to be waited for."""
        body = call.body

        async def decode() -> Tensors:
            return await decoded(body, envelope)

        answer = await self._serving.infer(record, resident, call.deadline_s, decode, space_wait_s)
        shown = shown_name(name, envelope, answer.record)
        encoded = encode_response(
            shown, str(answer.record.generation), envelope.request_id, answer.outputs, answer.order
        )
        return ReplyWithTrailers(encoded, COLD_TRAILER) if answer.cold else encoded

    async def run_pipeline(self, call: Call, tenant: str, envelope: Envelope, name: str, record: ModelRecord) -> Reply:
        """Answer from this pod, which asks the pipeline's models wherever they are."""
        tensors = await decoded(call.body, envelope)
        answer = await self._of_pipelines().infer(call, tenant, record, tensors)
        shown = shown_name(name, envelope, record)
        encoded = encode_response(shown, str(record.generation), envelope.request_id, answer.outputs)
        if answer.failed:
            told = inference_pb2.ModelInferResponse()
            for step, why in answer.failed.items():
                told.parameters[messages.FAILED_STEP + step].string_param = why
            encoded += told.SerializeToString()
        return ReplyWithTrailers(encoded, COLD_TRAILER) if answer.cold else encoded

    async def metadata_of_pipeline(self, call: Call, tenant: str, record: ModelRecord) -> ModelMetadata:
        """What it takes and gives."""
        return await self._of_pipelines().metadata(call, tenant, record)

    def _of_pipelines(self) -> PipelineRequests:
        assert self._pipelines is not None, "a pod that registers pipelines answers them"
        return self._pipelines

    async def model_metadata(self, call: Call) -> Reply:
        """Names, datatypes and shapes of a model's inputs and outputs; loads it the first time."""
        caller = self._access.caller(call)
        request = messages.parse(messages.MODEL_METADATA, call.body)
        name = asked_name(call, request.name)
        record, hop = await self.resolve(call, caller.tenant, name, request.version)

        def told(current: ModelRecord, metadata: ModelMetadata) -> Reply:
            response = inference_pb2.ModelMetadataResponse(
                name=request.name if name == request.name else current.id,
                versions=[str(current.generation)],
                platform=metadata.platform,
            )
            for tensor in metadata.inputs:
                response.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
            for tensor in metadata.outputs:
                response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
            return response.SerializeToString()

        async def answer(current: ModelRecord, space_wait_s: float = inf) -> Reply:
            return told(current, await self._serving.metadata(current, call.deadline_s, space_wait_s))

        if not record.spec.has_copies:
            return told(record, await self.metadata_of_pipeline(call, caller.tenant, record))
        if self._serving.knows_metadata(record):
            return await answer(record)
        return await self.routed(call, caller.tenant, hop, record, answer)

    async def model_ready(self, call: Call) -> Reply:
        """Whether a request for the model has a chance."""
        caller = self._access.caller(call)
        request = messages.parse(messages.MODEL_READY, call.body)
        name = asked_name(call, request.name)
        if self._router is not None and not self._serving.knows(caller.tenant, name):
            await self._router.names.look_up(caller.tenant, name)
        ready = self._serving.ready(caller.tenant, name, request.version)
        return inference_pb2.ModelReadyResponse(ready=ready).SerializeToString()

    async def server_live(self, call: Call) -> Reply:
        """The process answers."""
        self._access.caller(call)
        return inference_pb2.ServerLiveResponse(live=True).SerializeToString()

    async def server_ready(self, call: Call) -> Reply:
        """The pod takes requests: false while it drains."""
        self._access.caller(call)
        return inference_pb2.ServerReadyResponse(ready=not self._ready()).SerializeToString()

    async def server_metadata(self, call: Call) -> Reply:
        """Name, version, extensions (none is advertised that is not served)."""
        self._access.caller(call)
        return inference_pb2.ServerMetadataResponse(
            name=SERVER_NAME, version=version("hexcomb"), extensions=self._extensions
        ).SerializeToString()


async def decoded(body: bytes | memoryview, envelope: Envelope) -> Tensors:
    """A request's tensors. Raises InvalidMessage."""
    if len(body) <= DECODED_HERE_BYTES_MAX:
        request = decode_request(body, envelope)
    else:
        request = await asyncio.to_thread(decode_request, body, envelope)
    return Tensors(request.tensors, request.datatypes, request.outputs, len(body), options=request.options)


def shown_name(name: str, envelope: Envelope, record: ModelRecord) -> str:
    """What an answer calls the model that was asked for by `name`: as the message does, else by its id."""
    return envelope.model_name if name == envelope.model_name else record.id


def from_draining(reply: Reply) -> Reply:
    """The answer of a pod that is leaving."""
    if isinstance(reply, ReplyWithTrailers):
        return ReplyWithTrailers(reply.body, (*reply.trailers, _DRAINING_TRAILER))
    return ReplyWithTrailers(reply, (_DRAINING_TRAILER,))


def asked_name(call: Call, in_message: str) -> str:
    """The model that is asked for: ModelMesh's headers first, then the message."""
    if call.metadata:
        name = _header(call, messages.MODEL_ID_METADATA) or _header(call, messages.VMODEL_ID_METADATA)
        if name:
            return name
    if not in_message:
        raise InvalidMessage("model_name is empty; name a registered model")
    return in_message


def _header(call: Call, key: str) -> str | None:
    """ModelMesh's headers have a binary form beside the plain one, for names that are not ASCII."""
    plain = call.metadata_value(key)
    if plain:
        return plain
    binary = next((value for name, value in reversed(call.metadata) if name == f"{key}-bin"), None)
    if not isinstance(binary, bytes):
        return None
    try:
        return binary.decode()
    except UnicodeDecodeError:
        raise InvalidMessage(f"metadata {key}-bin is not valid UTF-8") from None
