"""Triton's extensions over HTTP: what `mesh.endpoint` has beside each method, in JSON.

GET  /v2/models/M[/versions/V]/config
GET  /v2/models/M[/versions/V]/stats, /v2/models/stats
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mesh.endpoint.rest.calls import HttpCalls, json_response
from mesh.endpoint.rest.v2 import model_of, model_paths
from mesh.wire import messages
from mesh.wire.generated import inference_pb2
from mesh.wire.json_messages import message_as_json


class ExtensionsRest:
    """Handlers."""

    def __init__(self, calls: HttpCalls) -> None:
        self._calls = calls

    def routes(self) -> list[Route]:
        """To stand before the routes of V2: a model's name may hold slashes, and be `stats`."""
        answering = self._calls.answering
        return [
            Route("/v2/models/stats", answering(self.statistics), methods=["GET"]),
            *(
                Route(f"{model}/{what}", answering(handler), methods=["GET"])
                for model in model_paths()
                for what, handler in (("config", self.model_config), ("stats", self.statistics))
            ),
        ]

    async def model_config(self, request: Request) -> Response:
        """As Triton would configure the model; loads it the first time."""
        model, version = model_of(request)
        asked = inference_pb2.ModelConfigRequest(name=model, version=version)
        found = await self._calls.ask_for(request, messages.MODEL_CONFIG, asked)
        return json_response(message_as_json(found.config))

    async def statistics(self, request: Request) -> Response:
        """What all pods have done for a model, or for all."""
        model, version = model_of(request)
        asked = inference_pb2.ModelStatisticsRequest(name=model, version=version)
        found = await self._calls.ask_for(request, messages.MODEL_STATISTICS, asked)
        return json_response(message_as_json(found))
