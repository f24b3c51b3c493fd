"""From a key of the store to an event of the pool; what cannot be read is as good as not there, for every pod alike.

That and why is logged once for each such record, with its key.

Names and pods recur in very many records, so equal ones are one object in memory.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from placement import keys
from placement.errors import InvalidName, UnsupportedRecord
from placement.policy.snapshot import Intent, ModelName
from placement.pool_records import (
    HotModel,
    LeaderRecord,
    copy_from_json,
    failure_from_json,
    hot_from_json,
    intent_from_json,
    leader_from_json,
    parked_from_json,
    pod_from_json,
    suspicion_from_json,
)
from placement.pool_view import CopyEvent, FailureEvent, ParkedEvent, PodEvent, PoolEvent, SuspicionEvent
from placement.shared_values import shared_parked
from placement.store.base import KeyValue

log = logging.getLogger(__name__)

T = TypeVar("T")

REPORTED_MAX = 1000
"""Keys remembered as reported; then all are forgotten, and may be reported again."""


@dataclass(frozen=True, slots=True)
class IntentEvent:
    """An intent was written or deleted."""

    key: str
    name: ModelName
    intent: Intent | None


@dataclass(frozen=True, slots=True)
class LeaderEvent:
    """Somebody began to lead, or nobody does."""

    leader: LeaderRecord | None


@dataclass(frozen=True, slots=True)
class HotEvent:
    """The leader wrote which models are the hottest."""

    models: tuple[HotModel, ...]


SideEvent = IntentEvent | LeaderEvent | HotEvent
"""What is not part of the view."""


class PoolReader:
    """Reads keys and remembers what it has complained of."""

    def __init__(self, shared_name: Callable[[ModelName], ModelName]) -> None:
        """`shared_name` gives the equal name that others hold already."""
        self._shared_name = shared_name
        self._reported: dict[str, int] = {}

    def read(self, kv: KeyValue, revision: int, *, deleted: bool) -> PoolEvent | SideEvent | None:
        """What the key says, as of `revision`; None for a key that no version of hexcomb writes."""
        kind = kv.key.split("/", 1)[0] + "/"
        try:
            return self._read(kind, kv, revision, deleted=deleted)
        except InvalidName as error:
            self._report(kv, error)
            return None

    def _read(self, kind: str, kv: KeyValue, revision: int, *, deleted: bool) -> PoolEvent | SideEvent:
        def parsed(parse: Callable[[], T]) -> T | None:
            return None if deleted else self._parsed(kv, parse)

        if kind == keys.COPIES:
            name, pod = self._name_and_pod(kv.key)
            return CopyEvent(revision, name, pod, parsed(lambda: copy_from_json(pod, kv.value)))
        if kind == keys.PARKED:
            name, pod = self._name_and_pod(kv.key)
            return ParkedEvent(revision, name, pod, parsed(lambda: shared_parked(parked_from_json(pod, kv.value))))
        if kind == keys.PODS:
            pod = sys.intern(keys.split_key(kv.key, 1)[0])
            record, settled = parsed(lambda: pod_from_json(pod, kv.value)) or (None, True)
            return PodEvent(revision, pod, record, settled)
        if kind == keys.FAILURES:
            name, pod = self._name_and_pod(kv.key)
            return FailureEvent(revision, name, pod, parsed(lambda: failure_from_json(pod, kv.value)))
        if kind == keys.SUSPICIONS:
            tenant, model_id = keys.split_key(kv.key, 2)
            suspicion = parsed(lambda: suspicion_from_json(kv.value))
            return SuspicionEvent(revision, self._name(tenant, model_id), suspicion)
        if kind == keys.INTENTS:
            tenant, model_id, pod, incarnation = keys.split_key(kv.key, 4)
            intent = parsed(lambda: intent_from_json(sys.intern(pod), incarnation, kv.value))
            return IntentEvent(kv.key, self._name(tenant, model_id), intent)
        if kv.key == keys.LEADER:
            return LeaderEvent(parsed(lambda: leader_from_json(kv.value)))
        if kv.key == keys.HOT:
            return HotEvent(parsed(lambda: hot_from_json(kv.value)) or ())
        raise InvalidName("no version of hexcomb writes such a key")

    def _name_and_pod(self, key: str) -> tuple[ModelName, str]:
        tenant, model_id, pod = keys.split_key(key, 3)
        return self._name(tenant, model_id), sys.intern(pod)

    def _name(self, tenant: str, model_id: str) -> ModelName:
        return self._shared_name(ModelName(sys.intern(tenant), model_id))

    def _parsed(self, kv: KeyValue, parse: Callable[[], T]) -> T | None:
        try:
            return parse()
        except UnsupportedRecord as error:
            self._report(kv, error)
            return None

    def _report(self, kv: KeyValue, error: Exception) -> None:
        if self._reported.get(kv.key) == kv.mod_revision:
            return
        if len(self._reported) >= REPORTED_MAX:
            self._reported.clear()
        self._reported[kv.key] = kv.mod_revision
        log.warning("key %r in the store is ignored: %s", kv.key[:200], error)
