"""Hexcomb's own management over gRPC: thousands of registrations in a call, whole specs, what the pod holds.

Only translation lives here: messages to values, values to messages. What the calls do is in `mesh.models`, what they
show in `mesh.status`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from mesh.endpoint.access import Access
from mesh.endpoint.status import status_of_refusal
from mesh.models import Models
from mesh.pod import PodReport
from mesh.status import ModelState, ModelStatus, StatusView
from mesh.transport.base import Call, StatusCode, StreamHandler, TransportError, UnaryHandler
from mesh.wire import messages
from mesh.wire.generated import hexcomb_pb2
from placement.errors import InvalidName, PlacementError
from placement.records import Isolation, ModelSpec
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

_STATES = {
    ModelState.NOT_LOADED: hexcomb_pb2.NOT_LOADED,
    ModelState.LOADING: hexcomb_pb2.LOADING,
    ModelState.LOADED: hexcomb_pb2.LOADED,
    ModelState.UNLOADING: hexcomb_pb2.UNLOADING,
    ModelState.FAILED: hexcomb_pb2.FAILED,
}


class ManagementEndpoint:
    """Handlers of `hexcomb.v1.Management`."""

    def __init__(
        self,
        models: Models,
        registry: Registry,
        status: StatusView,
        access: Access,
        pod_name: str,
        pod_report: Callable[[], PodReport],
    ) -> None:
        self._models = models
        self._registry = registry
        self._status = status
        self._access = access
        self._pod_name = pod_name
        self._pod_report = pod_report

    def routes(self) -> dict[str, UnaryHandler]:
        """Unary handlers by method."""
        return {
            messages.REGISTER_MODELS.path: self.register_models,
            messages.UNREGISTER_MODELS.path: self.unregister_models,
            messages.LIST_MODELS.path: self.list_models,
            messages.DESCRIBE_MODEL.path: self.describe_model,
            messages.SET_PINNED.path: self.set_pinned,
            messages.POD_STATUS.path: self.pod_status,
        }

    def streams(self) -> dict[str, StreamHandler]:
        """Streaming handlers by method."""
        return {messages.REGISTER_MODELS_STREAM.path: self.register_models_stream}

    async def register_models(self, call: Call) -> bytes:
        """Register many models in one call."""
        tenant = self._access.caller(call).tenant
        request = messages.parse(messages.REGISTER_MODELS, call.body)
        return (await self._register(tenant, request)).SerializeToString()

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

    async def unregister_models(self, call: Call) -> bytes:
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
        return response.SerializeToString()

    async def list_models(self, call: Call) -> bytes:
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
                if any(record.spec.labels.get(name) != value for name, value in labels.items()):
                    continue
                status = self._status.model(record)
                if request.state and _STATES[status.state] != request.state:
                    continue
                self._describe(status, response.models.add())
            after = page.next_after or ""
            if not after:
                break
            await asyncio.sleep(0)  # a filter that fits few of many models must not hold up other calls
        response.next_page_token = after
        return response.SerializeToString()

    async def describe_model(self, call: Call) -> bytes:
        """One model, by its id or by an alias."""
        tenant = self._access.caller(call).tenant
        name = messages.parse(messages.DESCRIBE_MODEL, call.body).id
        record = self._registry.resolve(tenant, name).record
        description = hexcomb_pb2.ModelDescription()
        self._describe(self._status.model(record), description)
        return description.SerializeToString()

    async def set_pinned(self, call: Call) -> bytes:
        """Pin or unpin a model."""
        tenant = self._access.caller(call).tenant
        request = messages.parse(messages.SET_PINNED, call.body)
        record = await self._models.set_pinned(tenant, request.id, request.pinned)
        description = hexcomb_pb2.ModelDescription()
        self._describe(self._status.model(record), description)
        return description.SerializeToString()

    async def pod_status(self, call: Call) -> bytes:
        """What this pod holds and has done."""
        self._access.caller(call)
        wanted = messages.parse(messages.POD_STATUS, call.body).pod
        if wanted and wanted != self._pod_name:
            raise TransportError(
                StatusCode.NOT_FOUND, f"pod {wanted[:100]!r} is not known here; this pool has {self._pod_name!r} only"
            )
        response = hexcomb_pb2.PodStatusResponse()
        report = self._pod_report()
        _put_pod(replace(report, requests_in_flight=report.requests_in_flight - 1), response.pods.add())  # but this one
        return response.SerializeToString()

    def _describe(self, status: ModelStatus, into: hexcomb_pb2.ModelDescription) -> None:
        record = status.record
        into.id, into.tenant, into.generation = record.id, record.tenant, record.generation
        into.registered_at_ms = int(record.registered_at_s * 1e3)
        into.state = _STATES[status.state]
        into.format = status.format
        into.aliases.extend(sorted(self._registry.aliases_of(record.tenant, record.id)))
        put_spec(record.spec, into.spec)
        for copy in status.copies:
            into.copies.add(
                pod=self._pod_name,
                state=_STATES[copy.state],
                device=copy.device,
                host_bytes=copy.size.host_bytes,
                mapped_bytes=copy.size.mapped_bytes,
                device_bytes=copy.size.device_bytes,
                measured=copy.measured,
                since_ms=int(copy.since_s * 1e3),
                last_used_ms=int(copy.last_used_s * 1e3),
                requests_in_flight=copy.requests_in_flight,
                load_s=copy.load_s,
                generation=copy.generation,
            )
        if status.failure is not None:
            failure = status.failure
            into.failure.message = failure.message
            into.failure.permanent = failure.retry_at_s is None
            into.failure.failed_at_ms = int(failure.failed_at_s * 1e3)
            into.failure.retry_at_ms = int((failure.retry_at_s or 0) * 1e3)
            into.failure.attempts = failure.attempts
            into.failure.pod = self._pod_name


def _refused(model_id: str, error: PlacementError) -> hexcomb_pb2.RegistrationResult:
    refusal = status_of_refusal(error)
    return hexcomb_pb2.RegistrationResult(
        id=model_id,
        outcome=hexcomb_pb2.RegistrationResult.REFUSED,
        status_code=int(refusal.status),
        message=refusal.message,
    )


def spec_from_message(message: hexcomb_pb2.ModelSpec) -> ModelSpec:
    """A spec as a record holds it. Raises InvalidSpec."""
    return ModelSpec(
        uri=message.uri,
        format=message.format or None,
        storage_key=message.storage_key or None,
        capacity_hint_bytes=message.capacity_hint_bytes if message.HasField("capacity_hint_bytes") else None,
        labels=dict(message.labels),
        priority=message.priority,
        pinned=message.pinned,
        copies_min=message.copies_min,
        copies_max=message.copies_max if message.HasField("copies_max") else None,
        ttl_s=message.ttl_s if message.HasField("ttl_s") else None,
        checksum=message.checksum or None,
        isolation=cast("Isolation | None", message.isolation or None),  # ModelSpec checks it
        parameters=dict(message.parameters),
        load_timeout_s=message.load_timeout_s if message.HasField("load_timeout_s") else None,
    )


def put_spec(spec: ModelSpec, into: hexcomb_pb2.ModelSpec) -> None:
    """A spec as the wire shows it; what was not said stays unset."""
    for name in ("uri", "priority", "pinned", "copies_min"):
        setattr(into, name, getattr(spec, name))
    for name in (
        "format",
        "storage_key",
        "capacity_hint_bytes",
        "copies_max",
        "ttl_s",
        "checksum",
        "isolation",
        "load_timeout_s",
    ):
        value = getattr(spec, name)
        if value is not None:
            setattr(into, name, value)
    into.labels.update(spec.labels)
    into.parameters.update(spec.parameters)


def _put_pod(report: PodReport, into: hexcomb_pb2.PodDescription) -> None:
    for name in _POD_FIELDS:
        setattr(into, name, getattr(report, name))
    into.addresses.extend(report.addresses)
    for tier in report.tiers:
        into.tiers.add(
            tier=tier.tier,
            device=tier.device,
            capacity_bytes=tier.capacity_bytes,
            resident_bytes=tier.resident_bytes,
            reserved_bytes=tier.reserved_bytes,
            unloading_bytes=tier.unloading_bytes,
        )
    for runtime in report.runtimes:
        into.runtimes.add(
            format=runtime.format, version=runtime.version, available=runtime.available, message=runtime.message
        )


_POD_FIELDS = (
    "pod",
    "version",
    "started_at_ms",
    "ready",
    "draining",
    "models_registered",
    "models_resident",
    "models_loading",
    "loads_queued",
    "requests_in_flight",
    "requests_waiting",
    "hits",
    "misses",
    "loads",
    "load_failures",
    "evictions",
    "eviction_age_s",
    "rss_bytes",
)
