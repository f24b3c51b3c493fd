"""What the mesh holds of ours, as views that decisions are made from.

The mesh has no watch for clients, and a pool holds thousands of models, so it is not asked for each service. It is
asked for everything that we registered for one namespace (its tenant), page by page, and the answer serves every
service of that namespace whose decision does not need a younger one. A view is younger than the service's own last
write there, or a decision would be made from before it; and it is at most so old that it does not matter. One
question per namespace is on its way at a time, whoever waits for it shares the answer, and a namespace is not asked
again before a multiple of the time that its last answer took: a large one gets older views, not a busier mesh.

An alias belongs to the service whose model it leads to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from controller import names
from controller.mesh_view import MeshAlias, MeshFailure, MeshModel, MeshView, ModelState
from mesh.client import AsyncClient

IDLE_SHARE = 2
"""A namespace is left alone for so many times what its last answer took."""
PAGE_MODELS = 1000
POOL_AGE_MAX_S = 10.0
"""Of what pods can load and hold: it changes when pods come and go."""


@dataclass(frozen=True, slots=True)
class _Pool:
    formats: frozenset[str]
    capacity_bytes: int
    asked_at_s: float


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """One namespace's."""

    asked_at_s: float
    models: Mapping[str, Mapping[str, MeshModel]] = field(default_factory=dict)
    """By service, then by id."""
    aliases: Mapping[str, Mapping[str, MeshAlias]] = field(default_factory=dict)
    taken: Mapping[str, str] = field(default_factory=dict)
    """Every alias, and whose it is: a service's name, or what it is that is not ours."""


class MeshMirror:
    """Belongs to one loop. `close` it."""

    def __init__(self, connect: Callable[[str], AsyncClient], *, age_max_s: float) -> None:
        """`connect`: to the mesh as a tenant. `age_max_s`: of a view."""
        self._connect = connect
        self._age_max_s = age_max_s
        self._clients: dict[str, AsyncClient] = {}
        self._snapshots: dict[str, _Snapshot] = {}
        self._compared: dict[str, _Snapshot] = {}
        """What `changed_services` saw last: others look in between, and each at its own service only."""
        self._asking: dict[str, asyncio.Task[_Snapshot]] = {}
        self._not_before_s: dict[str, float] = {}
        self._written_at_s: dict[str, dict[str, float]] = {}
        self._pool: _Pool | None = None

    def client(self, namespace: str) -> AsyncClient:
        """The mesh, as this tenant."""
        if namespace not in self._clients:
            self._clients[namespace] = self._connect(namespace)
        return self._clients[namespace]

    def wrote(self, namespace: str, service: str) -> None:
        """From now on views of this service must be younger than this moment."""
        self._written_at_s.setdefault(namespace, {})[service] = asyncio.get_running_loop().time()

    async def view(self, namespace: str, service: str, refusals: Mapping[str, str]) -> MeshView:
        """Raises HexcombError when the mesh does not answer."""
        now_s = asyncio.get_running_loop().time()
        wanted_s = max(now_s - self._age_max_s, self._written_at_s.get(namespace, {}).get(service, 0.0))
        snapshot = await self._snapshot(namespace, wanted_s)
        pool = await self._pool_at(namespace, now_s)
        return MeshView(
            reachable=True,
            formats=pool.formats,
            capacity_bytes=pool.capacity_bytes,
            models=snapshot.models.get(service, MappingProxyType({})),
            aliases=snapshot.aliases.get(service, MappingProxyType({})),
            refusals=refusals,
        )

    def owner_of_alias(self, namespace: str, alias: str) -> str:
        """Whose alias this is, as last seen; empty: nobody's."""
        snapshot = self._snapshots.get(namespace)
        return snapshot.taken.get(alias, "") if snapshot is not None else ""

    async def changed_services(self, namespace: str) -> set[str]:
        """Ask anew; the services of which something differs from what was seen before. Raises HexcombError."""
        before = self._compared.get(namespace) or self._snapshots.get(namespace, _Snapshot(0.0))
        after = await self._snapshot(namespace, asyncio.get_running_loop().time())
        self._compared[namespace] = after
        known = {*before.models, *before.aliases, *after.models, *after.aliases}
        return {
            service
            for service in known
            if before.models.get(service) != after.models.get(service)
            or before.aliases.get(service) != after.aliases.get(service)
        }

    def namespaces(self) -> set[str]:
        """That were ever asked about, and are not forgotten."""
        return set(self._snapshots)

    def services(self, namespace: str) -> set[str]:
        """Of which something was there when it was last asked about."""
        snapshot = self._snapshots.get(namespace)
        return {*snapshot.models, *snapshot.aliases} if snapshot is not None else set()

    async def forget(self, namespace: str) -> None:
        """Nothing of ours is left there."""
        self._snapshots.pop(namespace, None)
        self._compared.pop(namespace, None)
        self._not_before_s.pop(namespace, None)
        self._written_at_s.pop(namespace, None)
        client = self._clients.pop(namespace, None)
        if client is not None:
            await client.close()

    async def close(self) -> None:
        """End all connections."""
        for task in self._asking.values():
            task.cancel()
        await asyncio.gather(*self._asking.values(), return_exceptions=True)
        await asyncio.gather(*(client.close() for client in self._clients.values()))

    async def _snapshot(self, namespace: str, wanted_s: float) -> _Snapshot:
        known = self._snapshots.get(namespace)
        while known is None or known.asked_at_s < wanted_s:
            task = self._asking.get(namespace)
            if task is None:
                task = self._asking[namespace] = asyncio.create_task(self._ask(namespace))
                task.add_done_callback(lambda done: self._asking.pop(namespace, None))
            known = await asyncio.shield(task)
        return known

    async def _ask(self, namespace: str) -> _Snapshot:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(0.0, self._not_before_s.get(namespace, 0.0) - loop.time()))
        asked_at_s = loop.time()
        client = self.client(namespace)
        models: dict[str, dict[str, MeshModel]] = {}
        ours = {names.MESH_MANAGED_BY: names.FIELD_MANAGER}
        async for model in client.list_models(labels=ours, page_size=PAGE_MODELS):
            service = model.spec.labels.get(names.MESH_SERVICE, "")
            models.setdefault(service, {})[model.id] = _model(model)
        service_of = {model: service for service, group in models.items() for model in group}
        aliases: dict[str, dict[str, MeshAlias]] = {}
        taken: dict[str, str] = {}
        async for alias in client.list_aliases():
            owner = service_of.get(alias.target) or service_of.get(alias.active) or ""
            if alias.owner == names.FIELD_MANAGER and owner:
                aliases.setdefault(owner, {})[alias.id] = _alias(alias)
                taken[alias.id] = owner
            else:
                taken[alias.id] = f"(owner {alias.owner or 'nobody'})"
        snapshot = _Snapshot(asked_at_s, models, aliases, taken)
        self._snapshots[namespace] = snapshot
        written = self._written_at_s.get(namespace, {})
        self._written_at_s[namespace] = {service: at_s for service, at_s in written.items() if at_s > asked_at_s}
        self._not_before_s[namespace] = loop.time() + IDLE_SHARE * (loop.time() - asked_at_s)
        return snapshot

    async def _pool_at(self, namespace: str, now_s: float) -> _Pool:
        if self._pool is None or now_s - self._pool.asked_at_s > POOL_AGE_MAX_S:
            pods = await self.client(namespace).pod_status()
            formats = {report.format for pod in pods for report in pod.runtimes if report.available}
            capacities = [
                sum(tier.capacity_bytes for tier in pod.tiers if tier.tier == "device") for pod in pods if pod.ready
            ]
            self._pool = _Pool(frozenset(formats), max(capacities, default=0), now_s)
        return self._pool


def _model(said: Any) -> MeshModel:
    return MeshModel(
        id=said.id,
        spec=spec_of(said.spec),
        generation=said.generation,
        state=_STATES.get(said.state, ModelState.NOT_LOADED),
        copies=tuple(sorted(copy.pod for copy in said.copies if _STATES.get(copy.state) is ModelState.LOADED)),
        failures=tuple(
            MeshFailure(failure.message, failure.permanent, failure.pod, failure.failed_at_ms / 1000)
            for failure in (said.failures or ([said.failure] if said.HasField("failure") else []))
        ),
    )


def _alias(said: Any) -> MeshAlias:
    return MeshAlias(
        id=said.id,
        active=said.active,
        target=said.target,
        owner=said.owner,
        weights=dict(said.weights),
        failure=said.failure,
    )


def spec_of(message: Any) -> dict[str, Any]:
    """The fields of a spec that were said, as `mesh.client.SpecFields`."""
    return {
        descriptor.name: dict(value) if isinstance(value, Mapping) or hasattr(value, "items") else value
        for descriptor, value in message.ListFields()
    }


_STATES = {
    1: ModelState.NOT_LOADED,
    2: ModelState.LOADING,
    3: ModelState.LOADED,
    4: ModelState.UNLOADING,
    5: ModelState.FAILED,
}
"""By the numbers of `hexcomb.v1.ModelState`."""
