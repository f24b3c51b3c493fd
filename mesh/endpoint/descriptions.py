"""Models, aliases and pods as the messages of `hexcomb.v1` show them, and specs as those messages bring them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from mesh.explaining import suspicion_in_words
from mesh.overview import Overview
from mesh.pod import PodReport
from mesh.status import FailureStatus, ModelState, ModelStatus, StatusView
from mesh.wire.generated import hexcomb_pb2
from placement.policy.snapshot import ModelName
from placement.records import AliasRecord, AliasState, ModelRecord, ModelSpec
from placement.registry import Registry
from placement.spec_terms import Isolation

STATES = {
    ModelState.NOT_LOADED: hexcomb_pb2.NOT_LOADED,
    ModelState.LOADING: hexcomb_pb2.LOADING,
    ModelState.LOADED: hexcomb_pb2.LOADED,
    ModelState.UNLOADING: hexcomb_pb2.UNLOADING,
    ModelState.FAILED: hexcomb_pb2.FAILED,
}
_ALIAS_STATES = {
    AliasState.DEFINED: hexcomb_pb2.AliasDescription.DEFINED,
    AliasState.TRANSITIONING: hexcomb_pb2.AliasDescription.TRANSITIONING,
    AliasState.TRANSITION_FAILED: hexcomb_pb2.AliasDescription.TRANSITION_FAILED,
}


class Describer:
    """Describes what is registered, with where it stands."""

    def __init__(self, registry: Registry, status: StatusView, overview: Overview) -> None:
        self._registry = registry
        self._status = status
        self._overview = overview

    def state(self, record: ModelRecord) -> ModelState:
        """Where a model stands."""
        return self._status.model(record).state

    def model(self, record: ModelRecord) -> hexcomb_pb2.ModelDescription:
        """A model as it stands now."""
        return self.described(self._status.model(record))

    def described(self, status: ModelStatus) -> hexcomb_pb2.ModelDescription:
        """A model whose status is known."""
        record = status.record
        suspicion = self._overview.view.suspicions.get(ModelName(record.tenant, record.id))
        into = hexcomb_pb2.ModelDescription(
            id=record.id,
            tenant=record.tenant,
            generation=record.generation,
            registered_at_ms=int(record.registered_at_s * 1e3),
            state=STATES[status.state],
            format=status.format,
            aliases=sorted(self._registry.aliases_of(record.tenant, record.id)),
            suspicion=suspicion_in_words(suspicion, record.generation),
        )
        put_spec(record.spec, into.spec)
        for copy in status.copies:
            into.copies.add(
                pod=copy.pod,
                state=STATES[copy.state],
                device=copy.device,
                host_bytes=copy.size.host_bytes,
                mapped_bytes=copy.size.mapped_bytes,
                device_bytes=copy.size.device_bytes,
                measured=copy.measured,
                form=copy.form,
                since_ms=int(copy.since_s * 1e3),
                last_used_ms=int(copy.last_used_s * 1e3),
                requests_in_flight=copy.requests_in_flight,
                load_s=copy.load_s,
                generation=copy.generation,
                batching=copy.batching,
            )
        for failure in status.failures:
            _put_failure(failure, into.failures.add())
        if status.failure is not None:
            _put_failure(status.failure, into.failure)
        return into

    def alias(self, alias: AliasRecord) -> hexcomb_pb2.AliasDescription:
        """An alias as it stands now."""
        return hexcomb_pb2.AliasDescription(
            id=alias.id,
            tenant=alias.tenant,
            active=alias.active,
            target=alias.target,
            weights=alias.weights,
            owner=alias.owner,
            state=_ALIAS_STATES[alias.state],
            failure=alias.failure or "",
            changed_at_ms=int(alias.changed_at_s * 1e3),
            active_state=self._state_of(alias.tenant, alias.active),
            target_state=self._state_of(alias.tenant, alias.target),
        )

    def _state_of(self, tenant: str, model_id: str) -> hexcomb_pb2.ModelState:
        record = self._registry.model(tenant, model_id)
        return hexcomb_pb2.MODEL_STATE_UNSPECIFIED if record is None else STATES[self.state(record)]


def _put_failure(failure: FailureStatus, into: hexcomb_pb2.FailureDescription) -> None:
    into.message = failure.message
    into.permanent = failure.retry_at_s is None
    into.failed_at_ms = int(failure.failed_at_s * 1e3)
    into.retry_at_ms = int((failure.retry_at_s or 0) * 1e3)
    into.attempts = failure.attempts
    into.pod = failure.pod


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
        batch_rows_max=message.batch_rows_max if message.HasField("batch_rows_max") else None,
        batch_delay_s=message.batch_delay_s if message.HasField("batch_delay_s") else None,
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
        "batch_rows_max",
        "batch_delay_s",
    ):
        value = getattr(spec, name)
        if value is not None:
            setattr(into, name, value)
    into.labels.update(spec.labels)
    into.parameters.update(spec.parameters)


def described_pods(reports: Iterable[PodReport]) -> list[hexcomb_pb2.PodDescription]:
    """Reports as messages."""
    found = []
    for report in reports:
        into = hexcomb_pb2.PodDescription(**{name: getattr(report, name) for name in _POD_FIELDS})
        into.addresses.extend(report.addresses)
        into.labels.extend(report.labels)
        into.notices.extend(report.notices)
        for tier in report.tiers:
            into.tiers.add(
                tier=tier.tier,
                device=tier.device,
                capacity_bytes=tier.capacity_bytes,
                resident_bytes=tier.resident_bytes,
                reserved_bytes=tier.reserved_bytes,
                unloading_bytes=tier.unloading_bytes,
                saved_bytes=tier.saved_bytes,
                dropped_bytes=tier.dropped_bytes,
            )
        for tenant in report.tenants:
            into.tenants.add(
                tenant=tenant.tenant,
                tier=tenant.tier,
                device=tenant.device,
                held_bytes=tenant.held_bytes,
                guarantee_bytes=tenant.guarantee_bytes,
                limit_bytes=tenant.limit_bytes,
            )
        for limit in report.box_limits:
            into.box_limits.add(name=limit.name, value=limit.value, origin=limit.origin)
        for runtime in report.runtimes:
            into.runtimes.add(
                format=runtime.format, version=runtime.version, available=runtime.available, message=runtime.message
            )
        for model in report.busy:
            into.busy.add(
                tenant=model.name.tenant,
                id=model.name.id,
                requests_per_s=model.rate_per_s,
                requests_in_flight=model.in_flight,
                queue_delay_s=model.queue_delay_s,
                run_s=model.run_s,
                concurrency=model.concurrency,
            )
        found.append(into)
    return found


_POD_FIELDS = (
    "pod", "version", "started_at_ms", "ready", "draining", "models_registered", "models_resident", "models_loading",
    "loads_queued", "requests_in_flight", "requests_waiting", "hits", "misses", "loads", "load_failures", "evictions",
    "eviction_age_s", "rss_bytes", "zone", "why_unready", "reachable", "why_unreachable", "leader",
    "store_away_since_ms", "requests_per_s", "queue_delay_s", "thrashing", "transport",
    "memory_pressure", "eviction_policy", "prefetches", "prefetches_used", "prefetches_wasted",
    "models_parked", "parkings",
)  # fmt: skip
