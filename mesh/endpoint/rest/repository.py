"""The model repository extension over HTTP: `mesh.endpoint.repository` has what it means.

POST /v2/repository/index               {"ready": true} for those that are, or no body for all
POST /v2/repository/models/M/load
POST /v2/repository/models/M/unload
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

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
            if (parse_object(body) if body.strip() else {}).get("parameters"):
                asked.parameters["parameters"].bool_param = True  # whatever they say, the handler refuses them
            await self._calls.ask_for(request, messages.REPOSITORY_LOAD, asked)
        return json_response({"name": model, "load": True})

    async def unload(self, request: Request) -> Response:
        """Have every copy of a model leave."""
        model = str(request.path_params["model"])
        asked = inference_pb2.RepositoryModelUnloadRequest(model_name=model)
        async with self._calls.body(request):
            await self._calls.ask_for(request, messages.REPOSITORY_UNLOAD, asked)
        return json_response({"name": model, "unload": True})


def _index_as_json(body: bytes) -> bytes:
    found = messages.parse_response(messages.REPOSITORY_INDEX, body)
    return to_json(
        [
            {"name": model.name, "version": model.version, "state": model.state, "reason": model.reason}
            for model in found.models
        ]
    )
