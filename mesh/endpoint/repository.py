"""Triton's model repository extension: which models are there, load one, unload one.

The repository is what is registered for the caller's tenant. A registered model is READY unless it has failed for good:
whether it is in memory at the moment is no client's concern. So what clients of Triton do before they ask is allowed
and not needed: *load* waits until the model is in memory somewhere in the pool, *unload* has every copy leave, and the
next request brings it back. To take a model away for good, unregister it. A load that brings a configuration or files
(`mesh.endpoint.load_overrides`) registers the model with them: they stay until it is registered otherwise.

Names are Triton's second field; where that is empty, KServe's first.
"""

from __future__ import annotations

import asyncio
from typing import Any

from mesh.endpoint.access import Access
from mesh.endpoint.load_overrides import Override, override_of
from mesh.endpoint.revisions import written
from mesh.models import Models
from mesh.status import StatusView
from mesh.transport.base import Call, Reply, StatusCode, TransportError, UnaryHandler
from mesh.uploads import BadUpload, Uploads, UploadsFull
from mesh.wire import messages
from mesh.wire.errors import InvalidMessage
from mesh.wire.generated import inference_pb2
from placement.errors import NotFound, PlacementError
from placement.records import ModelRecord, ModelSpec
from placement.registration import Registration
from placement.registry import Registry

EXTENSION = "model_repository"
PAGE = 500
"""Models that are described before other calls have their turn."""


class RepositoryEndpoint:
    """Handlers of the extension."""

    def __init__(
        self, models: Models, registry: Registry, status: StatusView, access: Access, uploads: Uploads | None
    ) -> None:
        """`uploads`: where files are kept that come with a load; None: they are refused."""
        self._uploads = uploads
        self._models = models
        self._registry = registry
        self._status = status
        self._access = access
        self._registering: set[asyncio.Task[ModelRecord]] = set()

    def routes(self) -> dict[str, UnaryHandler]:
        """Handlers by method."""
        return {
            messages.REPOSITORY_INDEX.path: self.index,
            messages.REPOSITORY_LOAD.path: self.load,
            messages.REPOSITORY_UNLOAD.path: self.unload,
        }

    async def index(self, call: Call) -> Reply:
        """Every model of the tenant, in order."""
        tenant = self._access.caller(call).tenant
        only_ready = messages.parse(messages.REPOSITORY_INDEX, call.body).ready
        response = inference_pb2.RepositoryIndexResponse()
        after = ""
        while True:
            page = self._registry.list_models(tenant, limit=PAGE, after=after)
            for record in page.records:
                reason = "" if self._status.has_chance(record) else self._why_not(record)
                if not (reason and only_ready):
                    state = "UNAVAILABLE" if reason else "READY"
                    response.models.add(name=record.id, version=str(record.generation), state=state, reason=reason)
            if page.next_after is None:
                return response.SerializeToString()
            after = page.next_after
            await asyncio.sleep(0)

    async def load(self, call: Call) -> Reply:
        """Wait until the model is servable."""
        tenant = self._access.caller(call).tenant
        request = messages.parse(messages.REPOSITORY_LOAD, call.body)
        name = _name(request)
        if not request.parameters:
            await self._models.ensure_loaded(self._registry.resolve(tenant, name).record, call.deadline_s)
            return inference_pb2.RepositoryModelLoadResponse().SerializeToString()
        record = await self._registered(tenant, name, override_of(request.parameters))
        await self._models.ensure_loaded(record, call.deadline_s)
        return written(inference_pb2.RepositoryModelLoadResponse().SerializeToString(), self._registry)

    async def _registered(self, tenant: str, name: str, override: Override) -> ModelRecord:
        """The model as the load wants it: registered anew, where that is another spec than it has."""
        if not override.files:
            return await self._register(tenant, name, dict(override.spec))
        if self._uploads is None:
            raise TransportError(
                StatusCode.FAILED_PRECONDITION,
                "files cannot come with a load in a pool: every pod must find them; put them where all can read them, "
                "and register their URI",
            )
        # A caller that leaves meanwhile must not have the files taken away from a registration on its way to the store.
        registering = asyncio.get_running_loop().create_task(
            self._register_files(self._uploads, tenant, name, override)
        )
        self._registering.add(registering)
        registering.add_done_callback(self._registering.discard)
        return await asyncio.shield(registering)

    async def _register_files(self, uploads: Uploads, tenant: str, name: str, override: Override) -> ModelRecord:
        try:
            async with uploads.kept(tenant, override.files) as uri:
                return await self._register(tenant, name, {**override.spec, "uri": uri})
        except BadUpload as error:
            raise InvalidMessage(str(error)) from error
        except UploadsFull as error:
            raise TransportError(StatusCode.RESOURCE_EXHAUSTED, str(error)) from error

    async def _register(self, tenant: str, name: str, changes: dict[str, Any]) -> ModelRecord:
        known = self._registry.model(tenant, name)
        if known is None and "uri" not in changes:
            raise NotFound(
                f"model {name[:200]!r} is not registered (tenant {tenant!r}); register it, or send its files"
            )
        spec = ModelSpec(**changes) if known is None else known.spec.replaced(**changes)
        if known is not None and "uri" in changes and "format" not in changes:
            spec = spec.replaced(format=None)
        if_generation = 0 if known is None else known.generation
        (result,) = await self._models.register(tenant, [Registration(name, spec, if_generation)])
        if isinstance(result, PlacementError):
            raise result
        return result.record

    async def unload(self, call: Call) -> Reply:
        """Have every copy leave."""
        tenant = self._access.caller(call).tenant
        name = _name(messages.parse(messages.REPOSITORY_UNLOAD, call.body))
        record = self._registry.resolve(tenant, name).record
        if record.spec.pinned or record.spec.copies_min:
            raise InvalidMessage(f"model {record.id!r} is to be in memory always; unpin it, or set copies_min to 0")
        if complaints := await self._models.unload(record):
            raise TransportError(StatusCode.UNAVAILABLE, f"not every copy leaves: {'; '.join(complaints)}", 1.0)
        return inference_pb2.RepositoryModelUnloadResponse().SerializeToString()

    def _why_not(self, record: ModelRecord) -> str:
        failures = self._status.model(record).failures
        return "; ".join(dict.fromkeys(failure.message for failure in failures)) or "no pod can load it"


def _name(request: inference_pb2.RepositoryModelLoadRequest | inference_pb2.RepositoryModelUnloadRequest) -> str:
    name = request.model_name or request.repository_name
    if not name:
        raise InvalidMessage("model_name is empty; name a registered model")
    return name
