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

from controller.conditions import Truth
from controller.dedicated.beside import Beside, plan_beside
from controller.dedicated.planning import InPods, plan_dedicated
from controller.mesh_view import MeshView
from controller.modes import Chosen, Refused, Undecided, choose_mode, is_ours, mode_asked_for
from controller.objects import Objects
from controller.places import Made, in_own_pods, left_on_the_mesh, on_the_mesh
from controller.placing import Step, plan_step, read_place
from controller.policy import Mode, Policy
from controller.reading import NOTHING, InvalidField, Manifest
from controller.registration import Against, OnMesh, Registration, plan_registration
from controller.rollout import Alias
from controller.service_view import read_service
from controller.status import (
    Event,
    events_between,
    status_invalid,
    status_moving,
    status_of,
    status_refused,
    status_stopped,
    status_undecided,
)
from controller.turn import Turn


@dataclass(frozen=True, slots=True)
class Desired:
    """What whoever acts has to bring about, in the order of the fields.

    Owned children that are in neither `children` nor `keep_children` go, after the aliases point elsewhere; so do
    models of the service in neither `registrations` nor `keep_models`, and aliases of ours that are not listed.
    """

    acts: bool = True
    """False: the object belongs to another controller; touch nothing."""
    hold: bool = False
    """Apply and remove nothing; only the status and events are of this turn."""
    mode: Mode | None = None
    """Where the service is, or is going; None where that is not decided."""
    children: tuple[Manifest, ...] = ()
    keep_children: frozenset[tuple[str, str]] = frozenset()
    """Kind and name of owned children that are neither applied nor removed."""
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
            # What the mesh holds goes once it answers: one that comes back with what it had changes nothing to be seen.
            waits_s = None if mesh.reachable else policy.requeue_when_unreachable_s
            return _told(Desired(status=status_stopped(turn), requeue_after_s=waits_s), service.name, before)
        on_mesh = plan_registration(service, objects, mesh, policy)
        in_pods = plan_dedicated(service, objects, policy)
    except InvalidField as error:
        return _invalid(whole, error, mesh, policy, before, now_s)
    place, known = read_place(before), before.get("observedGeneration")
    choice = choose_mode(asked, on_mesh, in_pods, mesh, place, same_generation=known == service.generation)
    if isinstance(choice, Undecided):
        status, later_s = status_undecided(turn, choice), policy.requeue_when_unreachable_s
        decided = Desired(hold=True, status=status, requeue_after_s=later_s)
    elif isinstance(choice, Refused):
        # What a pod can load changes without any object's changing.
        status, later_s = status_refused(turn, choice), policy.requeue_steady_s
        decided = Desired(hold=True, mode=choice.mode, status=status, requeue_after_s=later_s)
    else:
        try:
            beside = plan_beside(service, objects, policy)
        except InvalidField as error:
            return _invalid(whole, error, mesh, policy, before, now_s)
        decided = _placed(turn, choice, _made(turn, choice, on_mesh, in_pods), beside)
    return _told(decided, service.name, before)


def _made(
    turn: Turn, choice: Chosen, on_mesh: OnMesh | tuple[Against, ...], in_pods: InPods | tuple[Against, ...]
) -> Made:
    """The place that was chosen, which has a plan."""
    if choice.mode is Mode.MESH and isinstance(on_mesh, OnMesh):
        return on_the_mesh(turn, on_mesh)
    assert isinstance(in_pods, InPods), "chosen without a plan"
    return in_own_pods(turn, in_pods)


def _placed(turn: Turn, choice: Chosen, made: Made, beside: tuple[Beside, ...]) -> Desired:
    """One step on the way to where the service should be; mostly it is there."""
    policy = turn.policy
    is_ready = made.condition.truth is Truth.TRUE
    step, place = plan_step(read_place(turn.before), made.mode, is_ready, turn.before, policy.move_grace_s, turn.now_s)
    held, memory = made.held, made.memory
    if step is not Step.SETTLED and made.mode is Mode.DEDICATED:
        held, memory = left_on_the_mesh(turn)
    making = step is Step.MAKING
    others = tuple(child for one in beside for child in one.children)
    tell = status_moving if making else status_of
    later_s = policy.requeue_steady_s if made.settled and step is Step.SETTLED else policy.requeue_while_loading_s
    return Desired(
        mode=made.mode,
        children=(*made.workload, *(() if making else (made.front,)), *others),
        keep_children=frozenset() if step is Step.SETTLED else _all_children(turn.objects),
        registrations=held.registrations,
        aliases=held.aliases,
        keep_models=held.keep_models,
        status=tell(turn, choice, made, beside, place, memory),
        requeue_after_s=later_s,
    )


def _all_children(objects: Objects) -> frozenset[tuple[str, str]]:
    return frozenset(
        (str(child.get("kind")), str(_object(child.get("metadata")).get("name"))) for child in objects.children
    )


def _invalid(
    whole: Manifest, error: InvalidField, mesh: MeshView, policy: Policy, before: Manifest, now_s: float
) -> Desired:
    """`whole` may be anything at all."""
    metadata = _object(whole.get("metadata"))
    generation, name = metadata.get("generation"), str(metadata.get("name"))
    serving = mesh.serving(name)
    status = status_invalid(generation if type(generation) is int else 0, error, serving, before, now_s)
    # What the cluster has (KEDA) may be what is wrong, and changes without the object's changing.
    later_s = policy.requeue_steady_s if mesh.reachable else policy.requeue_when_unreachable_s
    return _told(Desired(hold=True, status=status, requeue_after_s=later_s), name, before)


def _told(decided: Desired, name: str, before: Manifest) -> Desired:
    return replace(decided, events=events_between(name, before, decided.status))


def _object(value: object) -> Manifest:
    return value if isinstance(value, Mapping) else NOTHING
