"""Who acts on a service, and where it runs: on the mesh or in pods of its own, each with the reason.

**Whose it is.** Where KServe's controller runs too, only services that it leaves alone are ours: those whose
`serving.kserve.io/deploymentMode` is `ModelMesh`, by their status if they have one, as KServe looks. Their status must
go on saying `ModelMesh`, or KServe would take them over, so the condition `ModeChosen` says where they really are.
Without KServe every service is ours.

**What is asked for**, the first that is said: 1. our annotation `hexcomb.dev/mode` (KServe's webhook forbids changes of
the other one); 2. `serving.kserve.io/deploymentMode`, with `RawDeployment` and `Serverless` read as `Standard` and
`Knative`, and other words ignored, as KServe does; 3. the policy's default.

**Auto** is the mesh if it can serve the object as it is written; else pods of its own, if they can; else nothing, and
the status has both lists. In pods of its own it stays for as long as they can serve it and nobody changes the object.
While no pod of the mesh answers, or none that loads its format, nobody knows what the mesh can serve, and a service
that is there stays there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from controller import names
from controller.dedicated.planning import InPods
from controller.mesh_view import MeshView
from controller.placing import Place
from controller.policy import Mode, Policy
from controller.reading import InvalidField, Manifest
from controller.registration import Against, OnMesh

_LEGACY = {"RawDeployment": Mode.DEDICATED, "Serverless": Mode.KNATIVE}
_WORDS = {**{mode.value: mode for mode in Mode}, **_LEGACY}
_MOVES_SHOWN_MAX = 5


@dataclass(frozen=True, slots=True)
class Chosen:
    """Where a service runs, and why there."""

    mode: Mode
    reason: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class Refused:
    """It runs nowhere as it is written; `reason` is one of the status's."""

    mode: Mode
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Undecided:
    """Nobody can say now; it stays where it is."""

    reason: str
    message: str


def is_ours(service: Manifest, policy: Policy) -> bool:
    """Whether this controller acts on the object."""
    if not policy.beside_kserve:
        return True
    status, metadata = service.get("status"), service.get("metadata")
    annotations = metadata.get("annotations") if isinstance(metadata, Mapping) else None
    said = status.get("deploymentMode") if isinstance(status, Mapping) else None
    if not said and isinstance(annotations, Mapping):
        said = annotations.get(names.DEPLOYMENT_MODE)
    return said == Mode.MESH.value


def mode_asked_for(annotations: Mapping[str, str], policy: Policy) -> Mode:
    """Raises InvalidField for a word in our own annotation that we do not know."""
    ours = annotations.get(names.OUR_MODE)
    if ours is not None:
        if ours not in _WORDS:
            raise InvalidField(
                f"metadata.annotations[{names.OUR_MODE}]", f"is {ours!r}; allowed are {', '.join(_WORDS)}"
            )
        return _WORDS[ours]
    return _WORDS.get(annotations.get(names.DEPLOYMENT_MODE, ""), policy.default_mode)


def choose_mode(
    asked: Mode,
    on_mesh: OnMesh | tuple[Against, ...],
    in_pods: InPods | tuple[Against, ...],
    mesh: MeshView,
    place: Place,
    same_generation: bool,
) -> Chosen | Refused | Undecided:
    """One of `Mode.MESH` and `Mode.DEDICATED`, unless it is refused. `place`: where it is; `same_generation`: the
    object has not changed since that was decided."""
    if asked is Mode.KNATIVE:
        return Refused(
            asked,
            "ServerlessModeRejected",
            "mode Knative is not built; the mesh scales to zero by nature: use mode ModelMesh with minReplicas: 0",
        )
    if asked is Mode.DEDICATED:
        if isinstance(in_pods, InPods):
            return Chosen(asked, "AskedFor")
        return Refused(asked, in_pods[0].reason, _listed(in_pods))
    going_to = place.going_to or place.runs_on
    if asked is Mode.AUTO and going_to is Mode.DEDICATED and same_generation and isinstance(in_pods, InPods):
        return Chosen(Mode.DEDICATED, "NeedsOwnPods", "decided when this generation of the object came")
    if not mesh.reachable:
        return Undecided("MeshUnreachable", "no pod of the mesh answers")
    if isinstance(on_mesh, OnMesh):
        return Chosen(Mode.MESH, "AskedFor" if asked is Mode.MESH else "FitsMesh")
    listed = _listed(on_mesh)
    if place.runs_on is Mode.MESH and not any(one.of_object for one in on_mesh):
        return Undecided(on_mesh[0].reason, f"it stays on the mesh as it is: {listed}")
    if asked is Mode.MESH:
        return Refused(asked, on_mesh[0].reason, listed)
    if isinstance(in_pods, InPods):
        return Chosen(Mode.DEDICATED, "NeedsOwnPods", listed)
    message = f"on the mesh: {listed}; in pods of its own: {_listed(in_pods)}"
    return Refused(asked, on_mesh[0].reason, message)


def _listed(against: tuple[Against, ...]) -> str:
    shown = "; ".join(str(one) for one in against[:_MOVES_SHOWN_MAX])
    return shown + (f"; and {len(against) - _MOVES_SHOWN_MAX} more" if len(against) > _MOVES_SHOWN_MAX else "")
