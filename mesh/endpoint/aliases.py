"""Aliases over gRPC: point a name at a model, split its traffic by weight, list, delete.

What setting an alias comes to is decided in `placement.alias_rules`; here is what the mesh adds, for ModelMesh's
interface as for ours: an active model that has no copy cannot serve on, so the alias switches at once; and the models
that an alias with weights names are loaded ahead, since from then on requests go to all of them.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field

from mesh.endpoint.access import Access
from mesh.endpoint.descriptions import Describer
from mesh.endpoint.revisions import written
from mesh.models import SYNC_WAIT_MAX_S, Models
from mesh.pipelines.registered import Pipelines
from mesh.status import ModelState
from mesh.transport.base import Call, Reply, UnaryHandler
from mesh.wire import messages
from mesh.wire.generated import hexcomb_pb2
from placement.records import AliasRecord, AliasState, ModelSpec
from placement.registry import Registry

PAGE_SIZE_DEFAULT = 500
PAGE_SIZE_MAX = 5000


@dataclass(frozen=True, slots=True)
class Wish:
    """Where an alias shall point, and on which conditions; see `placement.alias_rules.AliasRequest`."""

    tenant: str
    id: str
    target: str
    owner: str = ""
    expected_target: str = ""
    update_only: bool = False
    force: bool = False
    weights: Mapping[str, int] = field(default_factory=dict)
    target_spec: ModelSpec | None = None
    auto_delete_target: bool = False
    load_now: bool = False
    wait: bool = False


class AliasSetting:
    """Sets aliases, for every front."""

    def __init__(self, models: Models, registry: Registry, describer: Describer, pipelines: Pipelines) -> None:
        self._models = models
        self._pipelines = pipelines
        self._registry = registry
        self._describer = describer

    async def set(self, wish: Wish, deadline_s: float | None) -> AliasRecord:
        """The alias after the call, with `wait` after its transition. Raises PlacementError."""
        before = self._registry.alias(wish.tenant, wish.id)
        has_nothing_to_keep = before is not None and not wish.load_now and not self._is_loaded(before)
        self._pipelines.check_alias(wish.tenant, wish.id, (wish.target, *wish.weights))
        is_pipeline = self._pipelines.is_pipeline(wish.tenant, wish.target)  # nothing of it has to be loaded first
        alias = await self._registry.set_alias(
            wish.tenant,
            wish.id,
            wish.target,
            owner=wish.owner,
            expected_target=wish.expected_target or None,
            update_only=wish.update_only,
            force=wish.force or has_nothing_to_keep or is_pipeline,
            target_spec=wish.target_spec,
            auto_delete_target=wish.auto_delete_target,
            weights=wish.weights,
        )
        if alias.state is not AliasState.DEFINED:
            transition = self._models.begin_transition(alias)
            if wish.wait:
                await asyncio.wait([transition], timeout=SYNC_WAIT_MAX_S)
        elif wish.load_now or wish.weights or is_pipeline:
            for model_id in sorted(alias.weights) or [alias.active]:
                await self._models.load(self._models.required(wish.tenant, model_id), deadline_s, wait=wish.wait)
        return self._registry.alias(wish.tenant, wish.id) or alias

    async def delete(self, tenant: str, alias_id: str, owner: str) -> bool:
        """Whether there was such an alias, of that owner if one is given. Raises PlacementError, where pipelines ask it
        among others."""
        if (kept := self._pipelines.why_kept(tenant, alias_id)) is not None:
            raise kept
        return await self._registry.delete_alias(tenant, alias_id, owner=owner)

    def _is_loaded(self, alias: AliasRecord) -> bool:
        active = self._registry.model(alias.tenant, alias.active)
        return active is not None and self._describer.state(active) is ModelState.LOADED


class AliasesEndpoint:
    """Handlers of the alias methods of `hexcomb.v1.Management`."""

    def __init__(self, setting: AliasSetting, registry: Registry, describer: Describer, access: Access) -> None:
        self._setting = setting
        self._registry = registry
        self._describer = describer
        self._access = access

    def routes(self) -> dict[str, UnaryHandler]:
        """Handlers by method."""
        return {
            messages.SET_ALIAS.path: self.set_alias,
            messages.LIST_ALIASES.path: self.list_aliases,
            messages.DELETE_ALIAS.path: self.delete_alias,
        }

    async def set_alias(self, call: Call) -> Reply:
        """Create an alias, or move it."""
        tenant = self._access.caller(call).tenant
        request = messages.parse(messages.SET_ALIAS, call.body)
        wish = Wish(
            tenant,
            request.id,
            request.target,
            owner=request.owner,
            expected_target=request.expected_target,
            update_only=request.update_only,
            force=request.force,
            weights=dict(request.weights),
            wait=request.wait,
        )
        alias = await self._setting.set(wish, call.deadline_s)
        return written(self._describer.alias(alias).SerializeToString(), self._registry)

    async def list_aliases(self, call: Call) -> Reply:
        """In the order of their names, a page at a time."""
        tenant = self._access.caller(call).tenant
        request = messages.parse(messages.LIST_ALIASES, call.body)
        size = min(request.page_size or PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)
        view = self._registry.view.tenant(tenant)
        names = view.sorted_aliases()
        begin = max(bisect_right(names, request.page_token), bisect_left(names, request.id_prefix))
        page = [name for name in names[begin : begin + size + 1] if name.startswith(request.id_prefix)]
        response = hexcomb_pb2.ListAliasesResponse(
            aliases=[self._describer.alias(view.aliases[name]) for name in page[:size]],
            next_page_token=page[size - 1] if len(page) > size else "",
        )
        return response.SerializeToString()

    async def delete_alias(self, call: Call) -> Reply:
        """Delete an alias; an unknown one is no error."""
        tenant = self._access.caller(call).tenant
        request = messages.parse(messages.DELETE_ALIAS, call.body)
        existed = await self._setting.delete(tenant, request.id, request.owner)
        return written(hexcomb_pb2.DeleteAliasResponse(existed=existed).SerializeToString(), self._registry)
