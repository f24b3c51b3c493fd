"""The V1 protocol, which TensorFlow Serving began and KServe goes on with: `/v1/models`.

    GET  /                          {"status": "alive"}, as KServe's servers say it
    GET  /v1/models                 names of the registered models
    GET  /v1/models/M               whether M is ready
    POST /v1/models/M:explain       the same body -> {"explanations": ...}, or {"outputs": ...}
    POST /v1/models/M:predict       {"instances": ...} -> {"predictions": ...}, or {"inputs": ...} -> {"outputs": ...}

What the bodies mean says `mesh.wire.v1_bodies`. A pipeline gets them as they are: its steps do, one after another
(`mesh.endpoint.pipelines`).

A model with an input and an output V1_BODY (`runtime_adapters.base`) reads the body itself, and what it answers is the
answer.

`:explain` asks for the model's explanations in place of its predictions (`runtime_adapters.base.EXPLANATION`): tree
models answer with exact contributions, custom Python models with their `explain`. Others have none, which is 501.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mesh.endpoint.rest.calls import HttpCalls, json_response
from mesh.endpoint.rest.v2 import check_ready, explanations_of, model_names, off_the_loop
from mesh.transport.base import StatusCode, TransportError
from mesh.wire import messages
from mesh.wire.generated import hexcomb_pb2, inference_pb2
from mesh.wire.json_tensors import parse_object, to_json
from mesh.wire.tensors import decode_response, encode_request
from mesh.wire.v1_bodies import answer_of, arrays_of
from runtime_adapters.base import V1_BODY


class V1Rest:
    """Handlers of `/v1`."""

    def __init__(self, calls: HttpCalls) -> None:
        self._calls = calls

    def routes(self) -> list[Route]:
        """A model's name may hold slashes and colons."""
        answering = self._calls.answering
        return [
            Route("/", answering(self.alive), methods=["GET"]),
            Route("/v1/models", answering(self.models), methods=["GET"]),
            Route("/v1/models/{model:path}:predict", answering(self.predict), methods=["POST"]),
            Route("/v1/models/{model:path}:explain", answering(self.explain), methods=["POST"]),
            Route("/v1/models/{model:path}", answering(self.model), methods=["GET"]),
        ]

    async def alive(self, request: Request) -> Response:
        """The process answers."""
        await self._calls.ask_for(request, messages.SERVER_LIVE, inference_pb2.ServerLiveRequest())
        return json_response({"status": "alive"})

    async def models(self, request: Request) -> Response:
        """Names, in order."""
        return json_response({"models": await model_names(self._calls, request)})

    async def model(self, request: Request) -> Response:
        """Whether it is ready."""
        model = str(request.path_params["model"])
        await check_ready(self._calls, request, model)
        return json_response({"name": model, "ready": True})

    async def predict(self, request: Request) -> Response:
        """Run a model once, or a pipeline."""
        return await self._run(request, "predictions", lambda metadata: (), of_pipeline=True)

    async def explain(self, request: Request) -> Response:
        """What made a model predict what it does."""
        return await self._run(request, "explanations", explanations_of)

    async def _run(
        self,
        request: Request,
        word: str,
        outputs_of: Callable[[inference_pb2.ModelMetadataResponse], tuple[str, ...]],
        *,
        of_pipeline: bool = False,
    ) -> Response:
        """`word`: for what comes back by row. `outputs_of`: those asked for; none: those that nobody has to name.
        `of_pipeline`: a pipeline answers this by itself."""
        model = str(request.path_params["model"])
        async with self._calls.body(request) as body:
            if of_pipeline:
                # Not kept: while a model runs, the body is in memory once.
                whole = hexcomb_pb2.PredictRequest(name=model, body=body).SerializeToString
                reply = await self._calls.ask(request, messages.PREDICT, await off_the_loop(len(body), whole))
                del whole
                predicted = messages.parse_response(messages.PREDICT, reply.body)
                if predicted.is_pipeline:
                    return Response(predicted.body, headers=dict(reply.trailers), media_type="application/json")
            asked = inference_pb2.ModelMetadataRequest(name=model)
            metadata = await self._calls.ask_for(request, messages.MODEL_METADATA, asked)
            inputs = {tensor.name: tensor.datatype for tensor in metadata.inputs}
            outputs = outputs_of(metadata)
            if V1_BODY in inputs and any(tensor.name == V1_BODY for tensor in metadata.outputs):
                return await self._read_by_the_model(request, model, body, outputs or (V1_BODY,))

            def translate() -> tuple[bytes, bool]:
                arrays, by_row = arrays_of(parse_object(body), inputs)
                return encode_request(model, arrays, outputs), by_row

            message, by_row = await off_the_loop(len(body), translate)
            reply = await self._calls.ask(request, messages.MODEL_INFER, message)

        def answered() -> bytes:
            return to_json(answer_of(decode_response(reply.body).outputs, by_row, word))

        answer = await off_the_loop(len(reply.body), answered)
        return Response(answer, headers=dict(reply.trailers), media_type="application/json")

    async def _read_by_the_model(self, request: Request, model: str, body: bytes, outputs: tuple[str, ...]) -> Response:
        await off_the_loop(len(body), lambda: parse_object(body))
        message = encode_request(model, {V1_BODY: np.array([body], np.object_)}, outputs)
        reply = await self._calls.ask(request, messages.MODEL_INFER, message)
        found = [array for array in decode_response(reply.body).outputs.values() if array.dtype == np.object_]
        if len(found) != 1 or found[0].size != 1:
            raise TransportError(StatusCode.INTERNAL, f"model {model!r} answered a V1 request, but not with one body")
        return Response(found[0].item(), headers=dict(reply.trailers), media_type="application/json")
