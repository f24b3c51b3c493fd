"""Triton's extensions over HTTP: what `mesh.endpoint` has beside each method, in JSON.

GET  /v2/models/M[/versions/V]/config
GET  /v2/models/M[/versions/V]/stats, /v2/models/stats
GET  /v2/systemsharedmemory[/region/R]/status        likewise /v2/cudasharedmemory
POST /v2/systemsharedmemory/region/R/register
POST /v2/systemsharedmemory[/region/R]/unregister
GET, POST /v2[/models/M]/trace/setting
GET, POST /v2/logging
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mesh.endpoint.rest.calls import HttpCalls, json_response
from mesh.endpoint.rest.v2 import model_of, model_paths
from mesh.wire import messages
from mesh.wire.errors import InvalidMessage
from mesh.wire.generated import inference_pb2
from mesh.wire.json_messages import message_as_json
from mesh.wire.json_tensors import parse_object


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
            *(
                Route(path, answering(handler), methods=["GET", "POST"])
                for path, handler in (
                    ("/v2/logging", self.log_settings),
                    ("/v2/trace/setting", self.trace_setting),
                    ("/v2/models/{model:path}/trace/setting", self.trace_setting),
                )
            ),
            *(
                Route(f"/v2/{kind}sharedmemory{region}/{verb}", answering(handler), methods=[method])
                for kind, status, register, unregister in (
                    ("system", self.system_status, self.system_register, self.system_unregister),
                    ("cuda", self.cuda_status, self.cuda_register, self.cuda_unregister),
                )
                for region, verb, method, handler in (
                    ("", "status", "GET", status),
                    ("", "unregister", "POST", unregister),
                    ("/region/{region}", "status", "GET", status),
                    ("/region/{region}", "register", "POST", register),
                    ("/region/{region}", "unregister", "POST", unregister),
                )
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

    async def trace_setting(self, request: Request) -> Response:
        """What is set, after what the body changes."""
        asked = inference_pb2.TraceSettingRequest(model_name=model_of(request)[0])
        async with self._calls.body(request) as body:
            for key, value in (parse_object(body) if body.strip() else {}).items():
                values = [] if value is None else value if isinstance(value, list) else [value]
                if not all(isinstance(each, str | int) for each in values):
                    raise InvalidMessage(f"trace setting {key[:80]!r} must be text, an array of text, or null")
                asked.settings[_named(key)].value.extend(_named(str(each)) for each in values)
            found = await self._calls.ask_for(request, messages.TRACE_SETTING, asked)
        return json_response(
            {
                key: list(found.settings[key].value) if key == "trace_level" else "".join(found.settings[key].value)
                for key in sorted(found.settings)
            }
        )

    async def log_settings(self, request: Request) -> Response:
        """What is set, after what the body changes."""
        asked = inference_pb2.LogSettingsRequest()
        async with self._calls.body(request) as body:
            for key, value in (parse_object(body) if body.strip() else {}).items():
                setting = asked.settings[_named(key)]
                if isinstance(value, bool):
                    setting.bool_param = value
                elif isinstance(value, int):
                    if not 0 <= value < 2**32:
                        raise InvalidMessage(f"log setting {key[:80]!r} must be a number from 0, of 32 bits")
                    setting.uint32_param = value
                elif isinstance(value, str):
                    setting.string_param = _named(value)
                elif value is not None:
                    raise InvalidMessage(f"log setting {key[:80]!r} must be true, false, a number or text")
            found = await self._calls.ask_for(request, messages.LOG_SETTINGS, asked)
        return json_response(
            {key: next(iter(message_as_json(found.settings[key]).values()), None) for key in sorted(found.settings)}
        )

    # Shared memory ------------------------------------------------------------------------------------------

    async def system_status(self, request: Request) -> Response:
        """Regions, in an array."""
        asked = inference_pb2.SystemSharedMemoryStatusRequest(name=_region(request))
        found = await self._calls.ask_for(request, messages.SYSTEM_SHM_STATUS, asked)
        return json_response([message_as_json(found.regions[name]) for name in sorted(found.regions)])

    async def system_register(self, request: Request) -> Response:
        """Open an object of this machine."""
        async with self._calls.body(request) as body:
            sent = parse_object(body)
            asked = inference_pb2.SystemSharedMemoryRegisterRequest(
                name=_region(request), key=_text(sent, "key"), offset=_size(sent, "offset", 0)
            )
            asked.byte_size = _size(sent, "byte_size")
            await self._calls.ask_for(request, messages.SYSTEM_SHM_REGISTER, asked)
        return json_response({})

    async def system_unregister(self, request: Request) -> Response:
        """Let go of a region, or of all."""
        asked = inference_pb2.SystemSharedMemoryUnregisterRequest(name=_region(request))
        async with self._calls.body(request):
            await self._calls.ask_for(request, messages.SYSTEM_SHM_UNREGISTER, asked)
        return json_response({})

    async def cuda_status(self, request: Request) -> Response:
        """Regions, in an array."""
        asked = inference_pb2.CudaSharedMemoryStatusRequest(name=_region(request))
        found = await self._calls.ask_for(request, messages.CUDA_SHM_STATUS, asked)
        return json_response([message_as_json(found.regions[name]) for name in sorted(found.regions)])

    async def cuda_register(self, request: Request) -> Response:
        """What the gRPC handler says to it."""
        async with self._calls.body(request) as body:
            sent = parse_object(body)
            asked = inference_pb2.CudaSharedMemoryRegisterRequest(
                name=_region(request),
                device_id=_size(sent, "device_id", 0, _INT64_MAX),
                byte_size=_size(sent, "byte_size"),
            )
            await self._calls.ask_for(request, messages.CUDA_SHM_REGISTER, asked)
        return json_response({})

    async def cuda_unregister(self, request: Request) -> Response:
        """Nothing is there to let go of."""
        asked = inference_pb2.CudaSharedMemoryUnregisterRequest(name=_region(request))
        async with self._calls.body(request):
            await self._calls.ask_for(request, messages.CUDA_SHM_UNREGISTER, asked)
        return json_response({})


def _region(request: Request) -> str:
    return str(request.path_params.get("region", ""))


def _named(text: str) -> str:
    if not text.isascii():
        raise InvalidMessage(f"{text[:80]!r} is not ASCII, as all settings are")
    return text


def _text(sent: Mapping[str, Any], field: str) -> str:
    value = sent.get(field)
    if not isinstance(value, str) or not value.isascii():
        raise InvalidMessage(f"{field} must be ASCII text")
    return value


def _size(sent: Mapping[str, Any], field: str, default: int | None = None, at_most: int = 2**64 - 1) -> int:
    value = sent.get(field, default)
    if type(value) is not int or not 0 <= value <= at_most:
        raise InvalidMessage(f"{field} must be a whole number from 0 to {at_most}")
    return value


_INT64_MAX = 2**63 - 1
