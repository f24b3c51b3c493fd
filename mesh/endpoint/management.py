"""Hexcomb's own management over gRPC: thousands of registrations in a call, whole specs, where models stand.

Only translation lives here: messages to values, values to messages. What the calls do is in `mesh.models`, what they
show in `mesh.status`. The methods about pods, aliases and explanations have files of their own beside this one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from mesh.endpoint.access import Access
from mesh.endpoint.descriptions import Describer, spec_from_message
from mesh.endpoint.revisions import written
from mesh.endpoint.status import status_of_refusal
from mesh.models import Models
from mesh.transport.base import Call, Reply, StreamHandler, UnaryHandler
from mesh.wire import messages
from mesh.wire.generated import hexcomb_pb2
from placement.errors import InvalidName, PlacementError
from placement.registration import Outcome, Registered, Registration
from placement.registry import Registry

if TYPE_CHECKING:
    from placement.view import ModelPage

PAGE_SIZE_DEFAULT = 500
PAGE_SIZE_MAX = 5000

_OUTCOMES = {
    Outcome.CREATED: hexcomb_pb2.RegistrationResult.CREATED,
    Outcome.UNCHANGED: hexcomb_pb2.RegistrationResult.UNCHANGED,
    Outcome.UPDATED: hexcomb_pb2.RegistrationResult.UPDATED,
}


class ManagementEndpoint:
    """Handlers of the models' methods of `hexcomb.v1.Management`."""

    def __init__(self, models: Models, registry: Registry, describer: Describer, access: Access) -> None:
        self._models = models
        self._registry = registry
        self._describer = describer
        self._access = access

    def routes(self) -> dict[str, UnaryHandler]:
        """Unary handlers by method."""
        return {
            messages.REGISTER_MODELS.path: self.register_models,
            messages.UNREGISTER_MODELS.path: self.unregister_models,
            messages.LIST_MODELS.path: self.list_models,
            messages.DESCRIBE_MODEL.path: self.describe_model,
            messages.SET_PINNED.path: self.set_pinned,
        }

    def streams(self) -> dict[str, StreamHandler]:
        """Streaming handlers by method."""
        return {messages.REGISTER_MODELS_STREAM.path: self.register_models_stream}

    async def register_models(self, call: Call) -> Reply:
        """Register many models in one call."""
        tenant = self._access.caller(call).tenant
        request = messages.parse(messages.REGISTER_MODELS, call.body)
        return written((await self._register(tenant, request)).SerializeToString(), self._registry)

    async def register_models_stream(self, call: Call, requests: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The same, message by message."""
        tenant = self._access.caller(call).tenant
        async for body in requests:
            request = messages.parse(messages.REGISTER_MODELS_STREAM, body)
            yield (await self._register(tenant, request)).SerializeToString()

    async def _register(
        self, tenant: str, request: hexcomb_pb2.RegisterModelsRequest
    ) -> hexcomb_pb2.RegisterModelsResponse:
        results: list[hexcomb_pb2.RegistrationResult | None] = [None] * len(request.entries)
        readable: list[tuple[int, Registration]] = []
        for index, entry in enumerate(request.entries):
            try:
                spec = spec_from_message(entry.spec)
                if_generation = entry.if_generation if entry.HasField("if_generation") else None
                readable.append((index, Registration(entry.id, spec, if_generation)))
            except PlacementError as error:
                results[index] = _refused(entry.id, error)
        outcomes = await self._models.register(tenant, [entry for _, entry in readable])
        for (index, registration), outcome in zip(readable, outcomes, strict=True):
            if isinstance(outcome, Registered):
                results[index] = hexcomb_pb2.RegistrationResult(
                    id=registration.id, outcome=_OUTCOMES[outcome.outcome], generation=outcome.record.generation
                )
                if request.entries[index].load_now:
                    self._models.load_ahead(outcome.record)
            else:
                results[index] = _refused(registration.id, outcome)
        return hexcomb_pb2.RegisterModelsResponse(results=[result for result in results if result is not None])

    async def unregister_models(self, call: Call) -> Reply:
        """Unregister many models in one call."""
        tenant = self._access.caller(call).tenant
        request = messages.parse(messages.UNREGISTER_MODELS, call.body)
        response = hexcomb_pb2.UnregisterModelsResponse()
        for model_id, result in zip(request.ids, await self._models.unregister(tenant, list(request.ids)), strict=True):
            if isinstance(result, PlacementError):
                error = status_of_refusal(result)
                existed = not isinstance(result, InvalidName)
                response.results.add(id=model_id, existed=existed, status_code=int(error.status), message=error.message)
            else:
                response.results.add(id=model_id, existed=result)
        return written(response.SerializeToString(), self._registry)

    async def list_models(self, call: Call) -> Reply:
        """Models in the order of their ids, a page at a time."""
        tenant = self._access.caller(call).tenant
        request = messages.parse(messages.LIST_MODELS, call.body)
        size = min(request.page_size or PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)
        labels = dict(request.labels)
        response = hexcomb_pb2.ListModelsResponse()
        after = request.page_token
        while len(response.models) < size:
            page: ModelPage = self._registry.list_models(
                tenant, limit=size - len(response.models), after=after, id_prefix=request.id_prefix
            )
            for record in page.records:
                if request.format and record.spec.format != request.format:
                    continue
                if any(record.spec.labels.get(name) != value for name, value in labels.items()):
                    continue
                described = self._describer.model(record)
                if not request.state or described.state == request.state:
                    response.models.append(described)
            after = page.next_after or ""
            if not after:
                break
            await asyncio.sleep(0)  # a filter that fits few of many models must not hold up other calls
        response.next_page_token = after
        return response.SerializeToString()

    async def describe_model(self, call: Call) -> Reply:
        """One model, by its id or by an alias."""
        tenant = self._access.caller(call).tenant
        name = messages.parse(messages.DESCRIBE_MODEL, call.body).id
        record = self._registry.resolve(tenant, name).record
        return self._describer.model(record).SerializeToString()

    async def set_pinned(self, call: Call) -> Reply:
        """Pin or unpin a model."""
        tenant = self._access.caller(call).tenant
        request = messages.parse(messages.SET_PINNED, call.body)
        record = await self._models.set_pinned(tenant, request.id, request.pinned)
        return written(self._describer.model(record).SerializeToString(), self._registry)


def _refused(model_id: str, error: PlacementError) -> hexcomb_pb2.RegistrationResult:
    refusal = status_of_refusal(error)
    return hexcomb_pb2.RegistrationResult(
        id=model_id,
        outcome=hexcomb_pb2.RegistrationResult.REFUSED,
        status_code=int(refusal.status),
        message=refusal.message,
    )
