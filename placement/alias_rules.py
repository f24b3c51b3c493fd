"""What setting an alias comes to: a pure decision, with ModelMesh's rules.

Order of the cases, for an alias that is not there yet: 1. `update_only` refuses; 2. an `expected_target` other than
the target refuses; 3. else it points at the target at once: there is nothing to keep serving.

For one that is there: 1. another owner refuses; 2. an `expected_target` that is neither the present target nor made
true already by a repeated call refuses; 3. weights, or `force`, or a target that serves already, switch at once;
4. the target it has already changes nothing; 5. else it goes into transition: the active model serves on until the
target is ready.

`force` comes from the client, or from the mesh when the active model has no copy that could serve on.

Against ModelMesh, in addition: `weights` split the traffic (and a call without them ends a split).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from placement.errors import AlreadyExists, NotFound, TargetMismatch
from placement.record_checks import VALUE_LENGTH_MAX
from placement.records import AliasRecord
from placement.registration import Refused


@dataclass(frozen=True, slots=True)
class AliasRequest:
    """Where an alias shall point, and on which conditions."""

    tenant: str
    id: str
    target: str
    owner: str = ""
    """Empty: whoever owns it."""
    expected_target: str | None = None
    update_only: bool = False
    force: bool = False
    weights: Mapping[str, int] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Keep:
    """It is as asked for, or on its way there."""

    record: AliasRecord


@dataclass(frozen=True, slots=True)
class Write:
    """The record to write."""

    record: AliasRecord


def plan_alias(request: AliasRequest, known: AliasRecord | None, now_s: float) -> Write | Keep | Refused:
    """What to write, if anything. Raises InvalidSpec for weights that cannot be."""
    expected = request.expected_target
    if known is None:
        if request.update_only:
            return Refused(
                NotFound(
                    f"alias {request.id!r} (tenant {request.tenant!r}) does not exist, and update_only is set; create "
                    "it without update_only"
                )
            )
        if expected not in (None, request.target):
            return Refused(_target_mismatch(request, "does not exist"))
        return Write(
            AliasRecord(
                request.tenant,
                request.id,
                request.target,
                request.target,
                request.owner,
                request.weights,
                changed_at_s=now_s,
            )
        )
    if owner_refusal := check_owner(known, request.owner):
        return owner_refusal
    if expected not in (None, known.target) and request.target != known.target:
        return Refused(_target_mismatch(request, f"has target {known.target!r}"))
    at_once = request.force or bool(request.weights) or request.target == known.active
    if request.target == known.target and not at_once and not known.weights:
        return Keep(known)
    active = request.target if at_once else known.active
    if known.active == active and known.target == request.target and dict(known.weights) == dict(request.weights):
        return Keep(known)
    record = replace(
        known,
        active=active,
        target=request.target,
        weights=request.weights,
        failure=None,
        changed_at_s=now_s,
        revision=0,
    )
    return Write(record)


def plan_finish(known: AliasRecord | None, target: str, now_s: float) -> Write | Keep | None:
    """The target is ready: it becomes active. None: the alias has gone or has another target by now."""
    if known is None or known.target != target:
        return None
    if known.active == target:
        return Keep(known)
    return Write(replace(known, active=target, failure=None, changed_at_s=now_s, revision=0))


def plan_fail(known: AliasRecord | None, target: str, reason: str, now_s: float) -> Write | Keep | None:
    """The target could not be loaded: the active model serves on, and the alias says why."""
    if known is None or known.target != target:
        return None
    reason = reason.encode(errors="replace").decode()[:VALUE_LENGTH_MAX]
    if known.active == target or known.failure == reason:
        return Keep(known)
    return Write(replace(known, failure=reason, changed_at_s=now_s, revision=0))


def check_owner(known: AliasRecord, owner: str) -> Refused | None:
    """An owner that was given must be the alias's."""
    if not owner or owner == known.owner:
        return None
    return Refused(
        AlreadyExists(
            f"alias {known.id!r} (tenant {known.tenant!r}) belongs to {known.owner or 'no owner'!r}, not to {owner!r}; "
            "choose another name, or let its owner delete it"
        )
    )


def _target_mismatch(request: AliasRequest, found: str) -> TargetMismatch:
    return TargetMismatch(
        f"alias {request.id!r} (tenant {request.tenant!r}) {found}, but {request.expected_target!r} was expected; "
        "read it again and decide anew"
    )
