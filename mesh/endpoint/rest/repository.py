"""The model repository extension over HTTP: `mesh.endpoint.repository` has what it means.

POST /v2/repository/index               {"ready": true} for those that are, or no body for all
POST /v2/repository/models/M/load       with {"parameters": {"config": "...", "file:1/model.onnx": "base64"}} if need be
POST /v2/repository/models/M/unload
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mesh.endpoint.load_overrides import FILE
from mesh.endpoint.rest.calls import HttpCalls, json_response
from mesh.endpoint.rest.v2 import off_the_loop
from mesh.wire import messages
from mesh.wire.errors import InvalidMessage
from mesh.wire.generated import inference_pb2
from mesh.wire.json_tensors import parse_object, to_json


class RepositoryRest:
    """Handlers of `/v2/repository`."""

    def __init__(self, calls: HttpCalls) -> None:
        self._calls = calls

    def routes(self) -> list[Route]:
        """A model's name may hold slashes."""
        answering = self._calls.answering
        return [
            Route("/v2/repository/index", answering(self.index), methods=["POST"]),
            Route("/v2/repository/models/{model:path}/load", answering(self.load), methods=["POST"]),
            Route("/v2/repository/models/{model:path}/unload", answering(self.unload), methods=["POST"]),
        ]

    async def index(self, request: Request) -> Response:
        """Every model of the tenant."""
        async with self._calls.body(request) as body:
            ready = (parse_object(body) if body.strip() else {}).get("ready", False)
            if not isinstance(ready, bool):
                raise InvalidMessage('"ready" must be true or false')
            asked = inference_pb2.RepositoryIndexRequest(ready=ready)
            reply = await self._calls.ask(request, messages.REPOSITORY_INDEX, asked.SerializeToString())
        answer = await off_the_loop(len(reply.body), lambda: _index_as_json(reply.body))
        return Response(answer, media_type="application/json")

    async def load(self, request: Request) -> Response:
        """Wait until a model is servable."""
        model = str(request.path_params["model"])
        asked = inference_pb2.RepositoryModelLoadRequest(model_name=model)
        async with self._calls.body(request) as body:
            for key, value in _parameters(parse_object(body) if body.strip() else {}).items():
                if key.startswith(FILE):
                    asked.parameters[key].bytes_param = _decoded(key, value)
                else:
                    asked.parameters[key].string_param = value
            await self._calls.ask_for(request, messages.REPOSITORY_LOAD, asked)
        return json_response({"name": model, "load": True})

    async def unload(self, request: Request) -> Response:
        """Have every copy of a model leave."""
        model = str(request.path_params["model"])
        asked = inference_pb2.RepositoryModelUnloadRequest(model_name=model)
        async with self._calls.body(request):
            await self._calls.ask_for(request, messages.REPOSITORY_UNLOAD, asked)
        return json_response({"name": model, "unload": True})


def _parameters(sent: Mapping[str, Any]) -> Mapping[str, str]:
    """Of a load. Raises InvalidMessage."""
    parameters = sent.get("parameters") or {}
    if not isinstance(parameters, dict) or not all(
        isinstance(value, str) and key.isascii() and value.isascii() for key, value in parameters.items()
    ):
        raise InvalidMessage("parameters must be an object of ASCII texts: config, and file:<path> in base64")
    return parameters


def _decoded(key: str, value: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except ValueError as error:
        raise InvalidMessage(f"parameter {key[:80]!r} is not base64: {error}") from error


def _index_as_json(body: bytes) -> bytes:
    found = messages.parse_response(messages.REPOSITORY_INDEX, body)
    return to_json(
        [
            {"name": model.name, "version": model.version, "state": model.state, "reason": model.reason}
            for model in found.models
        ]
    )
