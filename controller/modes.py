"""Who acts on a service, and where it runs: on the mesh or in pods of its own, each with the reason.

**Whose it is.** Where KServe's controller runs too, only services that it leaves alone are ours: those whose
`serving.kserve.io/deploymentMode` is `ModelMesh`, by their status if they have one, as KServe looks. Their status must
go on saying `ModelMesh`, or KServe would take them over, so the condition `ModeChosen` says where they really are.
Without KServe every service is ours.

**What is asked for**, the first that is said: 1. our annotation `hexcomb.dev/mode` (KServe's webhook forbids changes of
the other one); 2. `serving.kserve.io/deploymentMode`, with `RawDeployment` and `Serverless` read as `Standard` and
`Knative`, and other words ignored, as KServe does; 3. the policy's default.

**Auto** is the mesh if it can serve the object as it is written; else pods of its own, if what is in the way would not
be there; else nothing, and the status has the list. While no pod of the mesh answers, nobody knows what it can serve,
and a service stays where it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from controller import names
from controller.mesh_view import MeshView
from controller.policy import Mode, Policy
from controller.reading import InvalidField, Manifest
from controller.registration import Against, OnMesh

_LEGACY = {"RawDeployment": Mode.DEDICATED, "Serverless": Mode.KNATIVE}
_WORDS = {**{mode.value: mode for mode in Mode}, **_LEGACY}
_MOVES_SHOWN_MAX = 5
_NOT_BUILT = "are not built yet; use mode ModelMesh"


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
    """Nobody can say now."""

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


def choose_mode(asked: Mode, on_mesh: OnMesh | tuple[Against, ...], mesh: MeshView) -> Chosen | Refused | Undecided:
    """One of `Mode.MESH` and `Mode.DEDICATED`, unless it is refused."""
    if asked is Mode.KNATIVE:
        return Refused(
            asked,
            "ServerlessModeRejected",
            "mode Knative is not built; the mesh scales to zero by nature: use mode ModelMesh with minReplicas: 0",
        )
    if asked is Mode.DEDICATED:
        return Refused(asked, "InvalidPredictorSpec", f"pods of its own {_NOT_BUILT}")
    if not mesh.reachable:
        return Undecided("no pod of the mesh answers")
    if isinstance(on_mesh, OnMesh):
        return Chosen(Mode.MESH, "AskedFor" if asked is Mode.MESH else "FitsMesh")
    listed = _listed(on_mesh)
    if asked is Mode.AUTO and all(one.moves for one in on_mesh):
        listed = f"needs pods of its own, which {_NOT_BUILT}: {listed}"
    first = next((one for one in on_mesh if asked is Mode.MESH or not one.moves), on_mesh[0])
    return Refused(asked, first.reason, listed)


def _listed(against: tuple[Against, ...]) -> str:
    shown = "; ".join(str(one) for one in against[:_MOVES_SHOWN_MAX])
    return shown + (f"; and {len(against) - _MOVES_SHOWN_MAX} more" if len(against) > _MOVES_SHOWN_MAX else "")
