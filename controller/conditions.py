"""Conditions of an InferenceService: what is true, since when, and what follows for `Ready`.

`PredictorReady` and `IngressReady` decide `Ready`, and `TransformerReady` and `ExplainerReady` where there are such
(in KServe these two do not, so a service may be ready whose transformer is not): one that is False makes it False, else
one that is Unknown makes it Unknown, and `Ready` says the reason of the first such. All others are for information
(severity `Info`). They stand
in the order of their types, and `lastTransitionTime` moves only when a status does, so that an object that rests is
never written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from controller.reading import Manifest

READY, PREDICTOR_READY, INGRESS_READY = "Ready", "PredictorReady", "IngressReady"
MODE_CHOSEN, FIELDS_HONOURED, MOVING, STOPPED = "ModeChosen", "FieldsHonoured", "Moving", "Stopped"
TRANSFORMER_READY, EXPLAINER_READY = "TransformerReady", "ExplainerReady"
_DECISIVE = (PREDICTOR_READY, INGRESS_READY)
_DECISIVE_IF_THERE = (TRANSFORMER_READY, EXPLAINER_READY)
MESSAGE_LENGTH_MAX = 2048
"""Enough for a dozen fields with their reasons; etcd holds it for every service."""


class Truth(Enum):
    """Of a condition."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition, as it is decided."""

    type: str
    truth: Truth
    reason: str = ""
    message: str = ""


def ready_from(conditions: Iterable[Condition]) -> Condition:
    """`Ready`, of the conditions that decide it; one of these that is missing is Unknown."""
    by_type = {condition.type: condition for condition in conditions}
    decisive = [by_type.get(name, Condition(name, Truth.UNKNOWN)) for name in _DECISIVE]
    decisive += [by_type[name] for name in _DECISIVE_IF_THERE if name in by_type]
    for truth in (Truth.FALSE, Truth.UNKNOWN):
        for condition in decisive:
            if condition.truth is truth:
                return Condition(READY, truth, condition.reason, condition.message)
    return Condition(READY, Truth.TRUE)


def conditions_in_status(conditions: Iterable[Condition], before: Manifest, now_s: float) -> list[dict[str, Any]]:
    """As the status has them; `before` is the status that the object has now."""
    known = {str(old.get("type")): old for old in _list(before.get("conditions")) if isinstance(old, Mapping)}
    written: list[dict[str, Any]] = []
    for condition in sorted(conditions, key=lambda one: one.type):
        old = known.get(condition.type, {})
        since = old.get("lastTransitionTime") if old.get("status") == condition.truth.value else None
        entry: dict[str, Any] = {
            "type": condition.type,
            "status": condition.truth.value,
            "lastTransitionTime": since if isinstance(since, str) else time_text(now_s),
        }
        if condition.type not in (READY, *_DECISIVE, *_DECISIVE_IF_THERE):
            entry["severity"] = "Info"
        if condition.reason:
            entry["reason"] = condition.reason
        if condition.message:
            entry["message"] = shortened(condition.message)
        written.append(entry)
    return written


def truth_in(status: Manifest, condition_type: str) -> str:
    """`True`, `False`, `Unknown`; empty where the status has no such condition."""
    for condition in _list(status.get("conditions")):
        if isinstance(condition, Mapping) and condition.get("type") == condition_type:
            return str(condition.get("status", ""))
    return ""


def time_text(at_s: float) -> str:
    """Unix time as Kubernetes writes it."""
    return datetime.fromtimestamp(int(at_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def shortened(message: str) -> str:
    """A message that fits into a status."""
    return message if len(message) <= MESSAGE_LENGTH_MAX else message[: MESSAGE_LENGTH_MAX - 3] + "..."


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
