"""gRPC services of a runtime's own, answered for the pool: ModelMesh's data-plane configuration.

A client of TensorFlow Serving, say, calls the pool as if it were that server. Which model is meant says a field of its
message, by the path of field numbers that the configuration names (`idExtractionPath`), else ModelMesh's headers. The
message goes to the runtime as it came, but for the model's name in that runtime, which it wants in its place
(`methodInfos`). What it means is nobody's business here.

    {"rpcConfigs": {"tensorflow.serving.PredictionService/Predict": {"idExtractionPath": [1, 1], "vModelId": true}},
     "allowOtherRpcs": false}

Without a configuration, and with `allowOtherRpcs`, the methods that the runtimes name are served by header. `vModelId`
says that the field names an alias: models and aliases share their names here, so it changes nothing. Methods that the
pod answers itself stay its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mesh.endpoint.access import Access
from mesh.endpoint.v2 import V2Endpoint, asked_name
from mesh.serving import Serving
from mesh.transport.base import Call, Reply, UnaryHandler
from mesh.wire import messages
from mesh.wire.field_paths import text_at
from placement.records import ModelRecord
from runtime_adapters.external import ExternalModel


class InvalidDataPlane(Exception):
    """The data-plane configuration cannot be read; the message says where."""


class _Rpc(BaseModel):
    model_config = ConfigDict(extra="forbid")

    idExtractionPath: tuple[int, ...] = Field((), max_length=16)
    vModelId: bool = False


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    rpcConfigs: dict[str, _Rpc] = Field(default_factory=dict)
    allowOtherRpcs: bool = False


@dataclass(frozen=True, slots=True)
class DataPlane:
    """Where each method, by path, has its model's name; an empty path: in a header alone."""

    paths: Mapping[str, tuple[int, ...]]
    allows_others: bool = True

    def methods(self, of_runtimes: Iterable[str]) -> Mapping[str, tuple[int, ...]]:
        """All that are served, with those of runtimes that no configuration needs to name."""
        return {**(dict.fromkeys(of_runtimes, ()) if self.allows_others else {}), **self.paths}


BY_HEADER = DataPlane({})


def parse_data_plane(text: str) -> DataPlane:
    """ModelMesh's JSON. Raises InvalidDataPlane."""
    try:
        found = _File.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InvalidDataPlane(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    for method, rpc in found.rpcConfigs.items():
        if any(number < 1 for number in rpc.idExtractionPath):
            raise InvalidDataPlane(f"rpcConfigs.{method}: field numbers begin at 1")
    paths = {f"/{method.removeprefix('/')}": rpc.idExtractionPath for method, rpc in found.rpcConfigs.items()}
    return DataPlane(paths, found.allowOtherRpcs)


class RelayEndpoint:
    """Handlers of methods that only runtimes understand."""

    def __init__(
        self, v2: V2Endpoint, serving: Serving, access: Access, methods: Mapping[str, tuple[int, ...]]
    ) -> None:
        self._v2 = v2
        self._serving = serving
        self._access = access
        self._methods = methods

    def routes(self) -> dict[str, UnaryHandler]:
        """Handlers by method."""
        return dict.fromkeys(self._methods, self.relay)

    async def relay(self, call: Call) -> Reply:
        """Have the model's runtime answer. It is asked like an inference: by whoever may infer, where the model is."""
        tenant = self._access.caller(replace(call, method=messages.MODEL_INFER.path)).tenant
        message = bytes(call.body)
        path = self._methods[call.method]
        name = (text_at(message, path) if path else None) or asked_name(call, "")
        record, hop = await self._v2.resolve(call, tenant, name, "")

        async def run_here(current: ModelRecord, space_wait_s: float) -> Reply:
            def ask(model: ExternalModel, timeout_s: float | None) -> bytes:
                return model.relay(call.method, message, timeout_s)

            resident = self._serving.hit(current)
            return await self._serving.relay(current, resident, call.deadline_s, ask, space_wait_s)

        return await self._v2.routed(call, tenant, hop, record, run_here)
