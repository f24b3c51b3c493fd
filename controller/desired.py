"""What should exist for one InferenceService: children, models and aliases on the mesh, status, events.

    desired(objects, mesh, policy, now_s) -> Desired

The decision is one pure function of what was read. It is asked again after anything changed, and after everything that
it said was carried out it says the same again: then there is nothing to do. It never raises, whatever people wrote into
the object; what cannot be is in the status.

An object that cannot be served as it is written changes nothing that serves (`hold`): the last good revision goes on,
and the status says both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from controller.children import mesh_service
from controller.mesh_view import MeshView
from controller.modes import Chosen, Refused, Undecided, choose_mode, is_ours, mode_asked_for
from controller.objects import Objects
from controller.policy import Mode, Policy
from controller.reading import NOTHING, InvalidField, Manifest
from controller.registration import Against, OnMesh, Registration, plan_registration
from controller.rollout import Alias, plan_rollout, read_remembered
from controller.service_view import read_service
from controller.status import (
    Event,
    Turn,
    events_between,
    status_invalid,
    status_on_mesh,
    status_refused,
    status_stopped,
    status_undecided,
)


@dataclass(frozen=True, slots=True)
class Desired:
    """What whoever acts has to bring about, in the order of the fields.

    Owned children that are not listed go, after the aliases point elsewhere; so do models of the service that are in
    neither `registrations` nor `keep_models`, and aliases of ours that are not listed.
    """

    acts: bool = True
    """False: the object belongs to another controller; touch nothing."""
    hold: bool = False
    """Apply and remove nothing; only the status and events are of this turn."""
    mode: Mode | None = None
    """Where the service is, or is going; None where that is not decided."""
    children: tuple[Manifest, ...] = ()
    registrations: tuple[Registration, ...] = ()
    aliases: tuple[Alias, ...] = ()
    keep_models: frozenset[str] = frozenset()
    status: Manifest = field(default_factory=dict)
    """The whole of it; empty: leave it as it is."""
    events: tuple[Event, ...] = ()
    requeue_after_s: float | None = None
    """Look again then, even if nothing was seen to change."""


def desired(objects: Objects, mesh: MeshView, policy: Policy, now_s: float) -> Desired:
    """The decision for one service. `now_s` is Unix time, for the status."""
    if not is_ours(objects.service, policy):
        return Desired(acts=False)
    whole = objects.service
    if _object(whole.get("metadata")).get("deletionTimestamp") is not None:
        return Desired()
    before = _object(whole.get("status"))
    try:
        service = read_service(whole)
        asked = mode_asked_for(service.annotations, policy)
        turn = Turn(service, objects, mesh, policy, before, now_s)
        if service.stopped:
            return _told(Desired(status=status_stopped(turn)), service.name, before)
        on_mesh = plan_registration(service, objects, mesh, policy)
    except InvalidField as error:
        return _invalid(whole, error, mesh, before, now_s)
    return _told(_chosen(turn, choose_mode(asked, on_mesh, mesh), on_mesh), service.name, before)


def _chosen(turn: Turn, choice: Chosen | Refused | Undecided, on_mesh: OnMesh | tuple[Against, ...]) -> Desired:
    if isinstance(choice, Undecided):
        later_s = turn.policy.requeue_when_unreachable_s
        return Desired(hold=True, status=status_undecided(turn, choice), requeue_after_s=later_s)
    if isinstance(choice, Refused):
        # What a pod can load changes without any object's changing.
        later_s = turn.policy.requeue_steady_s
        return Desired(hold=True, mode=choice.mode, status=status_refused(turn, choice), requeue_after_s=later_s)
    assert isinstance(on_mesh, OnMesh)
    return _on_mesh(turn, choice, on_mesh)


def _on_mesh(turn: Turn, choice: Chosen, on_mesh: OnMesh) -> Desired:
    rollout = plan_rollout(turn.service, on_mesh.registration, turn.mesh, read_remembered(turn.before))
    status, settled = status_on_mesh(turn, choice, on_mesh, rollout)
    return Desired(
        mode=Mode.MESH,
        children=(mesh_service(turn.service, turn.policy),),
        registrations=rollout.registrations,
        aliases=rollout.aliases,
        keep_models=rollout.keep,
        status=status,
        requeue_after_s=turn.policy.requeue_steady_s if settled else turn.policy.requeue_while_loading_s,
    )


def _invalid(whole: Manifest, error: InvalidField, mesh: MeshView, before: Manifest, now_s: float) -> Desired:
    """`whole` may be anything at all."""
    metadata = _object(whole.get("metadata"))
    generation, name = metadata.get("generation"), str(metadata.get("name"))
    alias = mesh.aliases.get(name)
    serving = alias.active if alias is not None else ""
    status = status_invalid(generation if type(generation) is int else 0, error, serving, before, now_s)
    return _told(Desired(hold=True, status=status), name, before)


def _told(decided: Desired, name: str, before: Manifest) -> Desired:
    return replace(decided, events=events_between(name, before, decided.status))


def _object(value: object) -> Manifest:
    return value if isinstance(value, Mapping) else NOTHING
