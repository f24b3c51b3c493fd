"""The status of an InferenceService, whole, and the events that a change of it is worth.

`observedGeneration` is the object's own (KServe writes the Deployment's, and clients that wait for it are misled).
`url` and `address.url` are the predictor's name in the cluster, which stays the same wherever the service runs.

Beyond KServe's fields the status has `hexcomb`: what the next turn has to know (`controller.rollout`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from controller import names
from controller.conditions import (
    FIELDS_HONOURED,
    INGRESS_READY,
    MODE_CHOSEN,
    MOVING,
    PREDICTOR_READY,
    READY,
    STOPPED,
    Condition,
    Truth,
    conditions_in_status,
    ready_from,
    shortened,
    truth_in,
)
from controller.dedicated.beside import Beside
from controller.dedicated.readiness import find_child
from controller.modes import Chosen, Refused, Undecided
from controller.places import Made, old_place_condition
from controller.placing import Place, place_in_status
from controller.policy import Mode, Policy
from controller.reading import InvalidField, Manifest
from controller.turn import Turn

_KEPT = ("url", "address", "components", "deploymentMode", "servingRuntimeName", "clusterServingRuntimeName", "hexcomb")
"""Of an earlier turn, when this one changes nothing that serves."""


@dataclass(frozen=True, slots=True)
class Event:
    """`type` is Normal or Warning."""

    type: str
    reason: str
    message: str


def status_of(
    turn: Turn, choice: Chosen, made: Made, beside: tuple[Beside, ...], place: Place, memory: dict[str, Any]
) -> dict[str, Any]:
    """Of a service that is where it should be."""
    entry = next((one.url for one in beside if one.role == "transformer"), made.component["url"])
    conditions = [
        made.condition,
        _ingress_condition(turn, str(made.front["metadata"]["name"])),
        Condition(MODE_CHOSEN, Truth.TRUE, choice.reason, _mode_message(choice)),
        *_noted_condition(made),
        *(one.condition for one in beside),
    ]
    components = {one.role: {"url": one.url, "address": {"url": one.url}} for one in beside}
    status: dict[str, Any] = {
        **_conditions(turn.service.generation, conditions, turn.before, turn.now_s),
        "deploymentMode": _mode_in_status(made.mode, turn.policy),
        "url": entry,
        "address": {"url": entry},
        "components": {"predictor": made.component, **components},
        "modelStatus": made.model_status,
        "hexcomb": {**memory, **place_in_status(place)},
    }
    if made.runtime is not None:
        field = "clusterServingRuntimeName" if made.runtime.of_cluster else "servingRuntimeName"
        status[field] = made.runtime.name
    return status


def status_moving(
    turn: Turn, choice: Chosen, made: Made, beside: tuple[Beside, ...], place: Place, memory: dict[str, Any]
) -> dict[str, Any]:
    """Of a service that serves where it was, while `made` is being made ready."""
    message = f"to {made.mode.value}: {made.condition.message or 'it is being made ready'}"
    conditions = [
        old_place_condition(turn, place.runs_on or made.mode),
        _ingress_kept(turn.before),
        Condition(MODE_CHOSEN, Truth.TRUE, choice.reason, _mode_message(choice)),
        Condition(MOVING, Truth.TRUE, made.condition.reason or "Moving", message),
        *(one.condition for one in beside),
    ]
    status = _kept(turn.service.generation, conditions, turn.before, turn.now_s, "", "")
    status["modelStatus"] = {**made.model_status, "states": _states_while_moving(turn.before, made)}
    status["hexcomb"] = {**memory, **place_in_status(place)}
    return status


def status_refused(turn: Turn, refused: Refused) -> dict[str, Any]:
    """The object cannot be served as it is written; what served before does so still."""
    conditions = [
        _refused_condition(refused.reason, refused.message, turn.mesh.serving(turn.service.name)),
        _ingress_kept(turn.before),
        Condition(MODE_CHOSEN, Truth.FALSE, refused.reason, refused.message),
    ]
    return _kept(turn.service.generation, conditions, turn.before, turn.now_s, refused.reason, refused.message)


def status_invalid(
    generation: int, error: InvalidField, serving: str, before: Manifest, now_s: float
) -> dict[str, Any]:
    """The object cannot be read. `serving`: the model that goes on, if there is one."""
    conditions = [_refused_condition("InvalidPredictorSpec", str(error), serving), _ingress_kept(before)]
    return _kept(generation, conditions, before, now_s, "InvalidPredictorSpec", str(error))


def status_undecided(turn: Turn, undecided: Undecided) -> dict[str, Any]:
    """Nobody can say now whether it serves."""
    conditions = [
        Condition(PREDICTOR_READY, Truth.UNKNOWN, undecided.reason, undecided.message),
        _ingress_kept(turn.before),
    ]
    status = _kept(turn.service.generation, conditions, turn.before, turn.now_s, "", "")
    if "modelStatus" in turn.before:
        status["modelStatus"] = turn.before["modelStatus"]
    return status


def status_stopped(turn: Turn) -> dict[str, Any]:
    """Of a service that is to run nowhere."""
    message = f"the annotation {names.STOP} is true"
    conditions = [
        Condition(PREDICTOR_READY, Truth.FALSE, "Stopped", message),
        Condition(INGRESS_READY, Truth.FALSE, "Stopped", message),
        Condition(STOPPED, Truth.TRUE, "Stopped", message),
    ]
    return _conditions(turn.service.generation, conditions, turn.before, turn.now_s)


def status_blocked(decided: Manifest, before: Manifest, problem: str, now_s: float) -> dict[str, Any]:
    """What was decided could not be made: `Ready` says why, the other conditions what serves. Nothing else of the
    decision is told or remembered, `observedGeneration` neither."""
    conditions = [
        Condition(one["type"], Truth(one["status"]), one.get("reason", ""), one.get("message", ""))
        for one in decided["conditions"]
        if one["type"] != READY
    ]
    conditions.append(Condition(READY, Truth.FALSE, "ChildRefused", problem))
    return {**before, "conditions": conditions_in_status(conditions, before, now_s)}


def events_between(name: str, before: Manifest, after: Manifest) -> tuple[Event, ...]:
    """KServe's two, when `Ready` turns; and one for each new reason why the predictor is not."""
    was, now = truth_in(before, READY), truth_in(after, READY)
    if now == "True" and was != "True":
        return (Event("Normal", "InferenceServiceReady", f"InferenceService [{name}] is Ready"),)
    found: list[Event] = []
    if was == "True" and now != "True":
        text = f"InferenceService [{name}] is no longer Ready because of: {_reason(after)}"
        found.append(Event("Warning", "InferenceServiceNotReady", shortened(text)))
    elif truth_in(after, PREDICTOR_READY) == "False" and _reason(after) != _reason(before):
        found.append(Event("Warning", _reason(after).partition(":")[0] or "InternalError", shortened(_reason(after))))
    return tuple(found)


def _conditions(generation: int, conditions: Iterable[Condition], before: Manifest, now_s: float) -> dict[str, Any]:
    listed = list(conditions)
    return {
        "observedGeneration": generation,
        "conditions": conditions_in_status([*listed, ready_from(listed)], before, now_s),
    }


def _kept(
    generation: int, conditions: Iterable[Condition], before: Manifest, now_s: float, reason: str, message: str
) -> dict[str, Any]:
    status = {key: before[key] for key in _KEPT if key in before} | _conditions(generation, conditions, before, now_s)
    if reason:
        known = before.get("modelStatus")
        # The status's schema has an enumeration of reasons; others stay in the conditions.
        allowed = reason if reason in _FAILURE_REASONS else "InvalidPredictorSpec"
        status["modelStatus"] = {
            **(known if isinstance(known, dict) else {}),
            "transitionStatus": "InvalidSpec",
            "lastFailureInfo": {"reason": allowed, "message": shortened(message)},
        }
    return status


_FAILURE_REASONS = frozenset(
    {"ModelLoadFailed", "RuntimeUnhealthy", "RuntimeDisabled", "NoSupportingRuntime", "RuntimeNotRecognized"}
    | {"InvalidPredictorSpec"}
)


def _refused_condition(reason: str, message: str, serving: str) -> Condition:
    if serving:
        return Condition(PREDICTOR_READY, Truth.TRUE, reason, f"{serving} goes on serving, since {message}")
    return Condition(PREDICTOR_READY, Truth.FALSE, reason, message)


def _ingress_condition(turn: Turn, wanted: str) -> Condition:
    if find_child(turn.objects, "Service", wanted) is not None:
        return Condition(INGRESS_READY, Truth.TRUE)
    return Condition(INGRESS_READY, Truth.UNKNOWN, "ServiceNotCreated", f"Service {wanted} is not there yet")


def _ingress_kept(before: Manifest) -> Condition:
    truth = truth_in(before, INGRESS_READY)
    return (
        Condition(INGRESS_READY, Truth(truth))
        if truth in ("True", "False")
        else Condition(INGRESS_READY, Truth.UNKNOWN, "NothingServed", "there is nothing yet that a name could lead to")
    )


def _mode_message(choice: Chosen) -> str:
    return choice.mode.value + (f": {choice.message}" if choice.message else "")


def _mode_in_status(mode: Mode, policy: Policy) -> str:
    # Beside KServe any other word would make its controller take the service over.
    return Mode.MESH.value if policy.beside_kserve else mode.value


def _noted_condition(made: Made) -> tuple[Condition, ...]:
    if not made.noted:
        return ()
    where = "on the mesh" if made.mode is Mode.MESH else "in pods of its own"
    return (Condition(FIELDS_HONOURED, Truth.FALSE, "NoEffect", f"without effect {where}: {', '.join(made.noted)}"),)


def _states_while_moving(before: Manifest, made: Made) -> dict[str, Any]:
    """The active state is still that of the old place."""
    model_status = before.get("modelStatus")
    states = model_status.get("states") if isinstance(model_status, Mapping) else None
    active = states.get("activeModelState") if isinstance(states, Mapping) else None
    target = made.model_status["states"]["activeModelState"]
    return {"activeModelState": active if isinstance(active, str) else "Pending", "targetModelState": target}


def _reason(status: Manifest) -> str:
    conditions = status.get("conditions")
    for condition in conditions if isinstance(conditions, list) else ():
        if isinstance(condition, dict) and condition.get("type") == READY and condition.get("status") != "True":
            return f"{condition.get('reason', '')}: {condition.get('message', '')}"
    return ""
