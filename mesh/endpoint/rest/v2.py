"""The Open Inference Protocol over HTTP: `/v2/...`.

    GET  /v2                                              the server
    GET  /v2/health/live, /v2/health/ready
    GET  /v2/models                                       names of the registered models
    GET  /v2/models/M[/versions/V]                        inputs and outputs; loads the model the first time
    GET  /v2/models/M[/versions/V]/ready
    POST /v2/models/M[/versions/V]/infer                  JSON, or JSON and binary tensors
    POST /v2/models/M[/versions/V]/explain                the same, and the outputs that explain

A model is ready when a request for it has a chance, as over gRPC: 200, else 404 (not registered) or 503 (it failed for
good, and why). Bodies and answers of some size are read and written on a thread: JSON takes 30 ms per MB.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mesh.endpoint.rest.calls import Handler, HttpCalls, json_response
from mesh.transport.base import StatusCode, TransportError
from mesh.wire import messages
from mesh.wire.errors import InvalidMessage
from mesh.wire.generated import hexcomb_pb2, inference_pb2
from mesh.wire.json_tensors import infer_request_from_json, infer_response_to_json
from runtime_adapters.base import EXPLANATION, is_explanation

JSON_LENGTH_HEADER = "inference-header-content-length"
EXTENSIONS = ("binary_tensor_data", "generate")
"""Beside those of the gRPC service."""
HERE_BYTES_MAX = 64 * 1024
"""Larger ones are translated on a thread."""
NAMES_PER_PAGE = 1000

T = TypeVar("T")


class V2Rest:
    """Handlers of `/v2`."""

    def __init__(self, calls: HttpCalls) -> None:
        self._calls = calls

    def routes(self) -> list[Route]:
        def get(path: str, handler: Handler) -> Route:
            return Route(path, self._calls.answering(handler), methods=["GET"])

        def post(path: str, handler: Handler) -> Route:
            return Route(path, self._calls.answering(handler), methods=["POST"])

        return [
            get("/v2", self.server_metadata),
            get("/v2/health/live", self.live),
            get("/v2/health/ready", self.ready),
            get("/v2/models", self.models),
            *(
                route
                for model in model_paths()
                for route in (
                    post(f"{model}/infer", self.infer),
                    post(f"{model}/explain", self.explain),
                    get(f"{model}/ready", self.model_ready),
                    get(model, self.model_metadata),
                )
            ),
        ]

    async def server_metadata(self, request: Request) -> Response:
        """Name, version, extensions."""
        found = await self._calls.ask_for(request, messages.SERVER_METADATA, inference_pb2.ServerMetadataRequest())
        extensions = [*found.extensions, *EXTENSIONS]
        return json_response({"name": found.name, "version": found.version, "extensions": extensions})

    async def live(self, request: Request) -> Response:
        """The process answers."""
        found = await self._calls.ask_for(request, messages.SERVER_LIVE, inference_pb2.ServerLiveRequest())
        return json_response({"live": found.live})

    async def ready(self, request: Request) -> Response:
        """The pod takes requests: 503 while it drains."""
        found = await self._calls.ask_for(request, messages.SERVER_READY, inference_pb2.ServerReadyRequest())
        return json_response({"ready": found.ready}, 200 if found.ready else 503)

    async def models(self, request: Request) -> Response:
        """Names, in order."""
        return json_response({"models": await model_names(self._calls, request)})

    async def model_metadata(self, request: Request) -> Response:
        """Inputs and outputs."""
        model, version = model_of(request)
        asked = inference_pb2.ModelMetadataRequest(name=model, version=version)
        found = await self._calls.ask_for(request, messages.MODEL_METADATA, asked)
        return json_response(
            {
                "name": found.name,
                "versions": list(found.versions),
                "platform": found.platform,
                "inputs": [_tensor(tensor) for tensor in found.inputs],
                "outputs": [_tensor(tensor) for tensor in found.outputs],
            }
        )

    async def model_ready(self, request: Request) -> Response:
        """Whether a request for the model has a chance."""
        model, version = model_of(request)
        await check_ready(self._calls, request, model, version)
        return json_response({"name": model, "ready": True})

    async def explain(self, request: Request) -> Response:
        """What made a model predict what it does."""

        async def wanted(model: str, version: str) -> bytes:
            asked = inference_pb2.ModelMetadataRequest(name=model, version=version)
            more = inference_pb2.ModelInferRequest()
            for name in explanations_of(await self._calls.ask_for(request, messages.MODEL_METADATA, asked)):
                more.outputs.add(name=name)
            return more.SerializeToString()

        return await self._run(request, wanted)

    async def infer(self, request: Request) -> Response:
        """Run a model once."""
        return await self._run(request)

    async def _run(self, request: Request, wanted: Callable[[str, str], Awaitable[bytes]] | None = None) -> Response:
        """`wanted` says what the message of a model and version has beside the body's, as protobuf joins messages."""
        model, version = model_of(request)
        length = _json_length(request)
        async with self._calls.body(request) as body:
            message, forms, _ = await off_the_loop(
                len(body), lambda: infer_request_from_json(body, length, model, version)
            )
            if wanted is not None:  # asked once the body is here: a call listens for what comes after it
                message += await wanted(model, version)
            reply = await self._calls.ask(request, messages.MODEL_INFER, message)
        answer, json_length = await off_the_loop(len(reply.body), lambda: infer_response_to_json(reply.body, forms))
        headers = dict(reply.trailers)
        if json_length is None:
            return Response(answer, headers=headers, media_type="application/json")
        headers[JSON_LENGTH_HEADER] = str(json_length)
        return Response(answer, headers=headers, media_type="application/octet-stream")


def explanations_of(metadata: inference_pb2.ModelMetadataResponse) -> tuple[str, ...]:
    """The outputs by which a model explains itself. Raises TransportError where there is none."""
    names = tuple(tensor.name for tensor in metadata.outputs if is_explanation(tensor.name))
    if not names:
        raise TransportError(
            StatusCode.UNIMPLEMENTED,
            f"model {metadata.name!r} does not explain itself: XGBoost and LightGBM models do, and custom Python "
            f"models with an `explain` method and an output {EXPLANATION!r}",
        )
    return names


async def off_the_loop(size_bytes: int, translate: Callable[[], T]) -> T:
    """What it gives; other calls do not wait for a large translation."""
    return translate() if size_bytes <= HERE_BYTES_MAX else await asyncio.to_thread(translate)


def model_paths() -> tuple[str, str]:
    """The one with a version first: a model's name may hold slashes."""
    return "/v2/models/{model:path}/versions/{version}", "/v2/models/{model:path}"


def model_of(request: Request) -> tuple[str, str]:
    """The model's name (empty: all) and version (empty: current) in the path."""
    return str(request.path_params.get("model", "")), str(request.path_params.get("version", ""))


async def model_names(calls: HttpCalls, request: Request) -> list[str]:
    """Of the caller's tenant, in order."""
    names: list[str] = []
    asked = hexcomb_pb2.ListModelsRequest(page_size=NAMES_PER_PAGE)
    while True:
        page = await calls.ask_for(request, messages.LIST_MODELS, asked)
        names.extend(model.id for model in page.models)
        if not page.next_page_token:
            return names
        asked.page_token = page.next_page_token


async def check_ready(calls: HttpCalls, request: Request, model: str, version: str = "") -> None:
    """Raises TransportError: NOT_FOUND, or UNAVAILABLE with what is wrong."""
    asked = inference_pb2.ModelReadyRequest(name=model, version=version)
    if (await calls.ask_for(request, messages.MODEL_READY, asked)).ready:
        return
    described = await calls.ask_for(request, messages.DESCRIBE_MODEL, hexcomb_pb2.DescribeModelRequest(id=model))
    if version and version != str(described.generation):
        raise TransportError(StatusCode.NOT_FOUND, f"model {model!r} has version {described.generation}, not {version}")
    why = "; ".join(dict.fromkeys(failure.message for failure in described.failures))
    raise TransportError(StatusCode.UNAVAILABLE, f"model {model!r} is not ready: {why or 'no pod can load it'}")


def _tensor(tensor: inference_pb2.ModelMetadataResponse.TensorMetadata) -> dict[str, object]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}


def _json_length(request: Request) -> int | None:
    text = request.headers.get(JSON_LENGTH_HEADER)
    if text is None:
        return None
    if not text.isdecimal() or len(text) > 12:
        raise InvalidMessage(f"{JSON_LENGTH_HEADER} is {text[:40]!r}; it is the number of bytes of the JSON")
    return int(text)
