"""Brings about on the mesh what a decision wants of one service: models, aliases, and what has to go.

Everything is compared with what the mesh holds first, so that a service at rest costs no call. The order keeps requests
answered: models are registered before a name leads to them, names are moved before models go.

What the mesh refuses (a spec that it does not take, a name that is somebody else's) is kept, by the model or alias that
it was about, for the next decision to tell; it is tried again at every turn, since only the mesh knows what changed. A
mesh that does not answer is another matter: that is raised, and the whole turn comes again later.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

from controller.desired import Desired
from controller.mesh_mirror import MeshMirror
from controller.mesh_view import MeshView, ModelState
from controller.registration import Registration
from controller.rollout import Alias
from mesh.client import AlreadyExists, AsyncClient, InvalidRequest, NotFound, Refused, SpecFields

_REFUSALS = (InvalidRequest, Refused, AlreadyExists)
MESSAGE_LENGTH_MAX = 1000
"""Of a refusal that is kept for the status."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """`moved`: something was registered, pointed elsewhere or taken away, so the next decision may be another one."""

    moved: bool
    refusals: Mapping[str, str]


class MeshEffects:
    """Of one service, in one turn."""

    def __init__(self, mirror: MeshMirror, namespace: str, service: str, view: MeshView) -> None:
        self._mirror = mirror
        self._client: AsyncClient = mirror.client(namespace)
        self._namespace = namespace
        self._service = service
        self._view = view
        self._asked = self._moved = False
        self._refusals: dict[str, str] = {}

    async def apply(self, decided: Desired) -> Outcome:
        """Raises HexcombError when the mesh does not answer."""
        try:
            for registration in decided.registrations:
                await self._register(registration)
            for alias in decided.aliases:
                await self._point(alias)
            await self._remove(
                {alias.id for alias in decided.aliases},
                {registration.id for registration in decided.registrations} | decided.keep_models,
            )
        finally:
            if self._asked:
                self._mirror.wrote(self._namespace, self._service)
        return Outcome(self._moved, self._refusals)

    async def _register(self, registration: Registration) -> None:
        known = self._view.models.get(registration.id)
        if known is None:
            await self._try(registration.id, self._client.register(registration.id, **_said(registration)))
        elif dict(known.spec) != registration.spec:
            said = _said(registration)
            said["if_generation"] = known.generation
            await self._try(registration.id, self._client.register(registration.id, **said))
        elif registration.load_now and known.state is ModelState.NOT_LOADED:
            await self._try(registration.id, self._client.ensure_loaded(registration.id, wait=False), moves=False)

    async def _point(self, alias: Alias) -> None:
        known = self._view.aliases.get(alias.id)
        if known is not None and known.target == alias.target and dict(known.weights) == dict(alias.weights):
            return
        holder = "" if known is not None else self._mirror.owner_of_alias(self._namespace, alias.id)
        if holder and holder != self._service:
            self._refusals[alias.id] = f"the name {alias.id} is taken on the mesh: {holder}"
            return
        target = self._view.models.get(alias.target)
        if alias.target in self._refusals and target is None:
            return  # the refusal of the model says it all
        await self._try(
            alias.id,
            self._client.put_alias(alias.id, alias.target, weights=alias.weights or None, owner=alias.owner),
        )

    async def _remove(self, aliases: set[str], models: set[str]) -> None:
        for alias in self._view.aliases.values():
            if alias.id not in aliases:
                self._asked = self._moved = True
                with suppress(NotFound):
                    await self._client.delete_alias(alias.id, owner=alias.owner)
        for model in self._view.models:
            if model not in models:
                await self._try(model, self._client.unregister(model))

    async def _try(self, about: str, call: Awaitable[object], *, moves: bool = True) -> None:
        self._asked = True
        try:
            await call
            self._moved = self._moved or moves
        except _REFUSALS as refusal:
            self._refusals[about] = refusal.message[:MESSAGE_LENGTH_MAX]


def _said(registration: Registration) -> SpecFields:
    said = cast(SpecFields, dict(registration.spec))
    if registration.load_now:
        said["load_now"] = True
    return said
