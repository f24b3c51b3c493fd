"""The `modelStatus` of a service on the mesh, and what its predictor's condition says.

States are of models, not of pods: Loaded - servable somewhere; Standby - registered and not in memory, the next request
loads it; Loading; Pending - never seen servable, and no load has begun; FailedToLoad. A model that was servable once is
Standby when it was evicted, and its service stays ready: that is what the mesh is for. One that never was is not ready
before its first load has gone well, so `Ready` means that somebody has seen it work (or that `minReplicas: 0` asked for
none).

A load that failed for good (a bad artifact) and one that is tried again (a full pool, storage that is away) have the
same state, as KServe's words know no other; the condition's reason tells them apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from controller.conditions import PREDICTOR_READY, Condition, Truth, shortened, time_text
from controller.mesh_view import MeshFailure, MeshModel, MeshView, ModelState
from controller.rollout import Rollout
from controller.service_view import Service


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the models of a service stand."""

    model_status: dict[str, Any]
    condition: Condition
    settled: bool
    """Nothing is under way that a short while would change."""


def standing_of(service: Service, rollout: Rollout, mesh: MeshView) -> Standing:
    """Of a service whose registration is accepted."""
    alias = mesh.aliases.get(service.name)
    weights = alias.weights if alias is not None else {}
    active_id = rollout.latest
    if alias is not None:
        active_id = alias.target if weights else alias.active
    latest, active = mesh.models.get(rollout.latest), mesh.models.get(active_id)
    active_state = _state(active, active_id, rollout)
    latest_state = _state(latest, rollout.latest, rollout)
    arrived = rollout.latest == active_id or rollout.latest in weights or _pinned(service, rollout)
    failure = _failure(latest)
    refusal = mesh.refusals.get(rollout.latest) or mesh.refusals.get(service.name)
    if refusal:
        transition = "InvalidSpec"
    elif latest_state == "FailedToLoad":
        transition = "BlockedByFailedLoad"
    elif not arrived or active_state in ("Pending", "Loading") or latest_state in ("Pending", "Loading"):
        transition = "InProgress"
    else:
        transition = "UpToDate"
    states = {"activeModelState": active_state}
    if transition != "UpToDate":
        states["targetModelState"] = latest_state
    failing = latest if latest is not None else active
    status: dict[str, Any] = {
        "transitionStatus": transition,
        "states": states,
        "copies": {
            "totalCopies": len(active.copies) if active is not None else 0,
            "failedCopies": len(failing.failures) if failing is not None else 0,
        },
    }
    if refusal:
        status["lastFailureInfo"] = {"reason": "InvalidPredictorSpec", "message": shortened(refusal)}
    elif failure is not None and transition != "UpToDate":
        status["lastFailureInfo"] = _failure_info(failure, rollout.latest)
    if alias is None and refusal:
        # The model may be there; the name does not lead to it.
        condition = Condition(PREDICTOR_READY, Truth.FALSE, "InvalidPredictorSpec", f"the mesh refused it: {refusal}")
    else:
        condition = _condition(active_state, active, active_id, rollout, refusal or "")
    return Standing(status, condition, settled=transition != "InProgress")


def _pinned(service: Service, rollout: Rollout) -> bool:
    """`canaryTrafficPercent: 0`: the latest revision is not to be reached."""
    return service.predictor.canary_percent == 0 and rollout.remembered.stable is not None


def _state(model: MeshModel | None, model_id: str, rollout: Rollout) -> str:
    if model is None:
        return "Pending"
    if model.state is ModelState.LOADED or model.copies:
        return "Loaded"
    if model.state is ModelState.FAILED:
        return "FailedToLoad"
    if model.state is ModelState.LOADING:
        return "Loading"
    awaited = any(entry.id == model_id and entry.load_now for entry in rollout.registrations)
    return "Pending" if awaited and model_id not in rollout.remembered.seen_loaded else "Standby"


def _condition(state: str, model: MeshModel | None, model_id: str, rollout: Rollout, refusal: str) -> Condition:
    if state == "Loaded":
        return Condition(PREDICTOR_READY, Truth.TRUE)
    if refusal:
        return Condition(PREDICTOR_READY, Truth.FALSE, "InvalidPredictorSpec", f"the mesh refused it: {refusal}")
    if state == "Standby":
        message = f"model {model_id} is not in memory; its next request loads it"
        return Condition(PREDICTOR_READY, Truth.TRUE, "Standby", message)
    if state == "Loading" and model_id in rollout.remembered.seen_loaded:
        return Condition(PREDICTOR_READY, Truth.TRUE, "Loading", f"model {model_id} is being loaded again")
    if state == "FailedToLoad":
        failure = _failure(model)
        lasting = failure is not None and failure.permanent
        message = failure.message if failure is not None else "the mesh gives no reason"
        what_next = "register another artifact" if lasting else "it is tried again"
        reason = "ModelLoadFailed" if lasting else "ModelLoadRetrying"
        return Condition(PREDICTOR_READY, Truth.FALSE, reason, f"model {model_id}: {message}; {what_next}")
    return Condition(PREDICTOR_READY, Truth.UNKNOWN, state, f"model {model_id} is not servable yet")


def _failure(model: MeshModel | None) -> MeshFailure | None:
    """The one that matters most: one for good before others, then the latest."""
    if model is None or not model.failures:
        return None
    return max(model.failures, key=lambda failure: (failure.permanent, failure.failed_at_s, failure.pod))


def _failure_info(failure: MeshFailure, model_id: str) -> dict[str, Any]:
    info: dict[str, Any] = {
        "reason": "ModelLoadFailed",
        "message": shortened(failure.message),
        "modelRevisionName": model_id,
    }
    if failure.pod:
        info["location"] = failure.pod
    if failure.failed_at_s > 0:
        info["time"] = time_text(failure.failed_at_s)
    return info
