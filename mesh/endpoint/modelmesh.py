"""ModelMesh's management interface, so that its clients and controllers talk to this pod unchanged.

`ModelInfo.type` is the format (`onnx`, or ModelMesh's `mt:onnx:1`), `path` the artifact's URI, `key` the name of
stored credentials or ModelMesh's JSON object that holds it under `storage_key`. ModelMesh's `storage_params` in that
object say in which bucket the path lies (`storage_params`).

Deliberately absent: ModelMesh's debug ids and its guess of a copy's state; the state here is the copy's own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mesh.endpoint.access import Access
from mesh.endpoint.aliases import AliasSetting, Wish
from mesh.endpoint.revisions import written
from mesh.endpoint.storage_params import uri_of
from mesh.models import Models
from mesh.status import ModelState, StatusView
from mesh.transport.base import Call, Reply, UnaryHandler
from mesh.wire import messages
from mesh.wire.generated import mmesh_pb2
from placement.errors import InvalidSpec, PlacementError
from placement.records import AliasRecord, AliasState, ModelRecord, ModelSpec
from placement.registration import Registration
from placement.registry import Registry

_STATUS = mmesh_pb2.ModelStatusInfo

_STATES = {
    ModelState.NOT_LOADED: _STATUS.NOT_LOADED,
    ModelState.LOADING: _STATUS.LOADING,
    ModelState.LOADED: _STATUS.LOADED,
    ModelState.UNLOADING: _STATUS.NOT_LOADED,
    ModelState.FAILED: _STATUS.LOADING_FAILED,
}

_ALIAS_STATES = {
    AliasState.DEFINED: mmesh_pb2.VModelStatusInfo.DEFINED,
    AliasState.TRANSITIONING: mmesh_pb2.VModelStatusInfo.TRANSITIONING,
    AliasState.TRANSITION_FAILED: mmesh_pb2.VModelStatusInfo.TRANSITION_FAILED,
}


class ModelMeshEndpoint:
    """Handlers of `mmesh.ModelMesh`."""

    def __init__(
        self, models: Models, registry: Registry, status: StatusView, aliases: AliasSetting, access: Access
    ) -> None:
        self._models = models
        self._registry = registry
        self._status = status
        self._aliases = aliases
        self._access = access

    def routes(self) -> dict[str, UnaryHandler]:
        """Handlers by method."""
        return {
            messages.REGISTER_MODEL.path: self.register_model,
            messages.UNREGISTER_MODEL.path: self.unregister_model,
            messages.GET_MODEL_STATUS.path: self.get_model_status,
            messages.ENSURE_LOADED.path: self.ensure_loaded,
            messages.SET_VMODEL.path: self.set_vmodel,
            messages.DELETE_VMODEL.path: self.delete_vmodel,
            messages.GET_VMODEL_STATUS.path: self.get_vmodel_status,
        }

    async def register_model(self, call: Call) -> Reply:
        """Register; the same registration again is no error."""
        tenant = self._access.caller(call).tenant
        request = messages.parse(messages.REGISTER_MODEL, call.body)
        entry = Registration(request.modelId, spec_from_model_info(request.modelInfo))
        (result,) = await self._models.register(tenant, [entry])
        if isinstance(result, PlacementError):
            raise result
        if request.loadNow:
            await self._models.load(result.record, call.deadline_s, wait=request.sync, background=True)
        return written(self._model_status(result.record).SerializeToString(), self._registry)

    async def unregister_model(self, call: Call) -> Reply:
        """Unregister; an unknown model is no error."""
        tenant = self._access.caller(call).tenant
        request = messages.parse(messages.UNREGISTER_MODEL, call.body)
        (result,) = await self._models.unregister(tenant, [request.modelId])
        if isinstance(result, PlacementError):
            raise result
        return written(mmesh_pb2.UnregisterModelResponse().SerializeToString(), self._registry)

    async def get_model_status(self, call: Call) -> Reply:
        """The state of a model; NOT_FOUND is a state here, not an error."""
        tenant = self._access.caller(call).tenant
        request = messages.parse(messages.GET_MODEL_STATUS, call.body)
        return self._status_of(tenant, request.modelId).SerializeToString()

    async def ensure_loaded(self, call: Call) -> Reply:
        """Load; with `sync`, answer when it is done."""
        tenant = self._access.caller(call).tenant
        request = messages.parse(messages.ENSURE_LOADED, call.body)
        record = self._models.required(tenant, request.modelId)
        await self._models.load(record, call.deadline_s, wait=request.sync)
        return self._model_status(record).SerializeToString()

    async def set_vmodel(self, call: Call) -> Reply:
        """Point an alias at a model: at once where nothing would be lost by it, else when the target serves."""
        tenant = self._access.caller(call).tenant
        request = messages.parse(messages.SET_VMODEL, call.body)
        spec = spec_from_model_info(request.modelInfo) if request.HasField("modelInfo") else None
        if spec is not None:
            self._models.check(spec)
        wish = Wish(
            tenant,
            request.vModelId,
            request.targetModelId,
            owner=request.owner,
            expected_target=request.expectedTargetModelId,
            update_only=request.updateOnly,
            force=request.force,
            target_spec=spec,
            auto_delete_target=request.autoDeleteTargetModel,
            load_now=request.loadNow,
            wait=request.sync,
        )
        alias = await self._aliases.set(wish, call.deadline_s)
        return written(self._alias_status(alias).SerializeToString(), self._registry)

    async def delete_vmodel(self, call: Call) -> Reply:
        """Delete an alias; an unknown one is no error."""
        tenant = self._access.caller(call).tenant
        request = messages.parse(messages.DELETE_VMODEL, call.body)
        await self._aliases.delete(tenant, request.vModelId, request.owner)
        return written(mmesh_pb2.DeleteVModelResponse().SerializeToString(), self._registry)

    async def get_vmodel_status(self, call: Call) -> Reply:
        """The state of an alias; NOT_FOUND is a state here, not an error."""
        tenant = self._access.caller(call).tenant
        request = messages.parse(messages.GET_VMODEL_STATUS, call.body)
        alias = self._registry.alias(tenant, request.vModelId)
        if alias is None or (request.owner and request.owner != alias.owner):
            return mmesh_pb2.VModelStatusInfo(status=mmesh_pb2.VModelStatusInfo.NOT_FOUND).SerializeToString()
        return self._alias_status(alias).SerializeToString()

    def _status_of(self, tenant: str, model_id: str) -> mmesh_pb2.ModelStatusInfo:
        record = self._registry.model(tenant, model_id)
        return _STATUS(status=_STATUS.NOT_FOUND) if record is None else self._model_status(record)

    def _model_status(self, record: ModelRecord) -> mmesh_pb2.ModelStatusInfo:
        status = self._status.model(record)
        info = _STATUS(status=_STATES[status.state])
        info.errors.extend(dict.fromkeys(failure.message for failure in status.failures))
        for copy in status.copies:
            info.modelCopyInfos.add(location=copy.pod, copyStatus=_STATES[copy.state], time=int(copy.since_s * 1e3))
        return info

    def _alias_status(self, alias: AliasRecord) -> mmesh_pb2.VModelStatusInfo:
        info = mmesh_pb2.VModelStatusInfo(
            status=_ALIAS_STATES[alias.state],
            activeModelId=alias.active,
            targetModelId=alias.target,
            owner=alias.owner,
            activeModelStatus=self._status_of(alias.tenant, alias.active),
        )
        if alias.target != alias.active:
            info.targetModelStatus.CopyFrom(self._status_of(alias.tenant, alias.target))
            if alias.failure:
                info.targetModelStatus.errors.append(alias.failure)
        return info


def spec_from_model_info(info: mmesh_pb2.ModelInfo) -> ModelSpec:
    """ModelMesh's three strings as a spec. Raises InvalidSpec."""
    if not info.type:
        raise InvalidSpec("modelInfo.type is empty; it names the format, such as `onnx` or `xgboost`")
    storage_key, params = _storage(info.key)
    uri = uri_of(info.path, params) if params else info.path
    return ModelSpec(uri=uri, format=_format(info.type), storage_key=storage_key)


def _format(type_name: str) -> str:
    """`mt:onnx:1.14|pv:v2` -> `onnx`; a plain name is itself."""
    if type_name.startswith("rt:"):
        raise InvalidSpec(
            f"modelInfo.type {type_name[:80]!r} names a ModelMesh runtime; name the format instead, such as `onnx`"
        )
    if type_name.startswith("mt:"):
        return type_name[3:].split("|")[0].split(":")[0]
    return type_name


def _storage(key: str) -> tuple[str | None, Mapping[str, Any]]:
    """The storage key's name, and what stands beside it."""
    if not key.startswith("{"):
        return key or None, {}
    try:
        described = json.loads(key)
    except (ValueError, RecursionError) as error:
        raise InvalidSpec(f"modelInfo.key begins like a JSON object but is none: {error}") from error
    params = described.get("storage_params") or {}
    if not isinstance(params, Mapping):
        raise InvalidSpec("modelInfo.key: storage_params is an object")
    storage_key = described.get("storage_key")
    if storage_key is not None and not isinstance(storage_key, str):
        raise InvalidSpec("modelInfo.key: storage_key must be text")
    return storage_key or None, params
