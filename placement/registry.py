"""The registry: every write of a model or an alias, and the view that requests read.

(Signatures first; the mesh is written against them.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from placement.errors import PlacementError
from placement.records import AliasRecord, ModelRecord, ModelSpec
from placement.registration import Registered, Registration
from placement.store.base import KeyValueStore
from placement.view import Changes, ModelPage, RegistryView, Resolved


class Registry:
    """Models and aliases of one pool."""

    def __init__(self, store: KeyValueStore, *, clock: Callable[[], float]) -> None:
        raise NotImplementedError

    async def start(self) -> None:
        """List everything, then follow the store."""
        raise NotImplementedError

    async def close(self) -> None:
        """Stop following. The store stays open: it belongs to the caller."""
        raise NotImplementedError

    # Reading: from the view, no store, no await

    @property
    def view(self) -> RegistryView:
        raise NotImplementedError

    def resolve(self, tenant: str, name: str, draw: float = 0.0) -> Resolved:
        raise NotImplementedError

    def model(self, tenant: str, model_id: str) -> ModelRecord | None:
        raise NotImplementedError

    def alias(self, tenant: str, alias_id: str) -> AliasRecord | None:
        raise NotImplementedError

    def aliases_of(self, tenant: str, model_id: str) -> frozenset[str]:
        raise NotImplementedError

    def list_models(self, tenant: str, *, limit: int = 1000, after: str = "", id_prefix: str = "") -> ModelPage:
        raise NotImplementedError

    def on_change(self, listener: Callable[[Changes], None]) -> Callable[[], None]:
        """Called on the loop after each change of the view; returns the function that ends it."""
        raise NotImplementedError

    # Models

    async def register(
        self, tenant: str, model_id: str, spec: ModelSpec, *, if_generation: int | None = None
    ) -> Registered:
        raise NotImplementedError

    async def register_many(self, tenant: str, entries: Sequence[Registration]) -> list[Registered | PlacementError]:
        raise NotImplementedError

    async def unregister(self, tenant: str, model_id: str) -> bool:
        raise NotImplementedError

    async def unregister_many(self, tenant: str, model_ids: Sequence[str]) -> list[bool | PlacementError]:
        raise NotImplementedError

    async def set_pinned(self, tenant: str, model_id: str, pinned: bool) -> ModelRecord:
        raise NotImplementedError

    # Aliases

    async def set_alias(
        self,
        tenant: str,
        alias_id: str,
        target: str,
        *,
        owner: str = "",
        expected_target: str | None = None,
        update_only: bool = False,
        force: bool = False,
        target_spec: ModelSpec | None = None,
        auto_delete_target: bool = False,
        weights: Mapping[str, int] | None = None,
    ) -> AliasRecord:
        """`force`: switch at once; the mesh also sets it when the active model has no copy to keep serving."""
        raise NotImplementedError

    async def finish_transition(self, tenant: str, alias_id: str, target: str) -> AliasRecord | None:
        raise NotImplementedError

    async def fail_transition(self, tenant: str, alias_id: str, target: str, reason: str) -> AliasRecord | None:
        raise NotImplementedError

    async def delete_alias(self, tenant: str, alias_id: str, *, owner: str = "") -> bool:
        raise NotImplementedError
