"""Which models of a service are registered, and where its name leads: a change of the artifact, step by step.

`latest` is what the object says now, `stable` what last took all of the service's requests. Without a canary the alias
is pointed at `latest` at once: the mesh itself loads the target beside the active model, switches when it is servable,
and goes on with the active one when it cannot be.

With `canaryTrafficPercent` p the alias stays at `stable`, and `latest` gets p of 100 requests once it has been
servable; until then, and with p = 0, nothing changes for callers. 100, or no percent, promotes. As in KServe, the first
revision of a service takes everything, whatever the percent says.

The spec of `stable` is no longer in the object, so it is kept in the status: a mesh that lost its store is given it
back first, and then goes the same way to `latest` again.

With KServe's tag routing, `<service>.latest` and `<service>.prev` lead to the two directly; KServe's own form,
`latest-<service>`, could be another service's name, which no name with a dot is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from controller import names
from controller.mesh_view import MeshAlias, MeshView, ModelState
from controller.reading import Manifest
from controller.registration import Registration
from controller.service_view import Service


@dataclass(frozen=True, slots=True)
class Alias:
    """Where a name shall lead."""

    id: str
    target: str
    weights: Mapping[str, int] = field(default_factory=dict)
    owner: str = names.FIELD_MANAGER


@dataclass(frozen=True, slots=True)
class Remembered:
    """What the status keeps of earlier turns."""

    stable: Registration | None = None
    """The revision that last took all requests."""
    previous: str = ""
    """The one before it."""
    seen_loaded: frozenset[str] = frozenset()
    """Models that were servable once."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """What the mesh shall hold for one service, and where it stands."""

    registrations: tuple[Registration, ...]
    aliases: tuple[Alias, ...]
    keep: frozenset[str]
    """Models that are still referred to: not to be unregistered yet."""
    latest: str
    remembered: Remembered


def read_remembered(status: Manifest) -> Remembered:
    """What does not fit is not remembered: people may write a status, too."""
    ours = status.get("hexcomb")
    if not isinstance(ours, Mapping):
        return Remembered()
    stable, previous, seen = ours.get("stable"), ours.get("previous"), ours.get("seenLoaded")
    registration = None
    if isinstance(stable, Mapping) and isinstance(stable.get("id"), str) and isinstance(stable.get("spec"), Mapping):
        registration = Registration(stable["id"], dict(stable["spec"]))
    return Remembered(
        registration,
        previous if isinstance(previous, str) else "",
        frozenset(str(model) for model in seen) if isinstance(seen, list | tuple) else frozenset(),
    )


def remembered_in_status(remembered: Remembered) -> dict[str, Any]:
    """The other way round."""
    said: dict[str, Any] = {"seenLoaded": sorted(remembered.seen_loaded)}
    if remembered.stable is not None:
        said["stable"] = {"id": remembered.stable.id, "spec": remembered.stable.spec}
    if remembered.previous:
        said["previous"] = remembered.previous
    return said


def plan_rollout(service: Service, latest: Registration, mesh: MeshView, before: Remembered) -> Rollout:
    """One turn. Asked again with what it led to, it comes to rest."""
    alias = mesh.aliases.get(service.name)
    referred = frozenset((alias.active, alias.target, *alias.weights)) if alias is not None else frozenset[str]()
    remembered = _remember(service, latest, mesh, before, referred)
    stable = remembered.stable if remembered.stable is not None and remembered.stable.id != latest.id else None
    percent = service.predictor.canary_percent
    canary = stable is not None and percent is not None and percent < 100
    known = mesh.models.get(latest.id)
    # A load that failed is tried again by the mesh, in its own time, if that has a point.
    failed = known is not None and known.state is ModelState.FAILED
    load_now = (latest.load_now or canary) and not failed and latest.id not in remembered.seen_loaded
    registrations = [replace(latest, load_now=load_now)]
    weights: Mapping[str, int] = {}
    target = latest.id
    # A mesh that lost its names begins with the revision that is known to be good.
    if stable is not None and (canary or alias is None or stable.id in referred):
        registrations.insert(0, stable)
    if stable is not None and (canary or alias is None):
        target = stable.id
    if canary and stable is not None and percent:
        if latest.id in remembered.seen_loaded or (alias is not None and latest.id in alias.weights):
            weights = {stable.id: 100 - percent, latest.id: percent}
        elif alias is not None and stable.id in alias.weights:
            weights = dict(alias.weights)
    aliases = [Alias(service.name, target, weights)]
    if service.annotations.get(names.TAG_ROUTING, "").lower() == "true":
        aliases.append(Alias(f"{service.name}.latest", latest.id))
        if canary and stable is not None:
            aliases.append(Alias(f"{service.name}.prev", stable.id))
    return Rollout(
        tuple(registrations),
        tuple(aliases),
        referred | frozenset(other.target for other in aliases) | frozenset(weights),
        latest.id,
        remembered,
    )


def _remember(
    service: Service, latest: Registration, mesh: MeshView, before: Remembered, referred: frozenset[str]
) -> Remembered:
    alias = mesh.aliases.get(service.name)
    stable, previous = before.stable or _serving(alias, latest.id, mesh), before.previous
    known = {latest.id, *referred} | ({stable.id} if stable is not None else set())
    loaded = {model.id for model in mesh.models.values() if model.state is ModelState.LOADED}
    seen = frozenset((before.seen_loaded | loaded) & known)
    # An alias that was somewhere else has come here because the model was servable; the first one begins here.
    arrived = alias is not None and alias.active == alias.target == latest.id and not alias.weights
    if arrived and stable is not None and stable.id != latest.id:
        previous = stable.id
    if (arrived and (stable is not None or latest.id in seen or not latest.load_now)) or (
        stable is not None and stable.id == latest.id
    ):
        stable = replace(latest, load_now=False)
    return Remembered(stable, previous, seen)


def _serving(alias: MeshAlias | None, latest: str, mesh: MeshView) -> Registration | None:
    """Where a status was lost: what the name leads to, if that serves."""
    if alias is None:
        return None
    model = mesh.models.get(alias.target if alias.weights else alias.active)
    if model is None or model.id == latest or model.state is ModelState.FAILED:
        return None
    return Registration(model.id, dict(model.spec))
