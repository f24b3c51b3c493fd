"""The mesh as a decision sees it: what its pods can serve, and this service's models and aliases.

The tenant is the service's namespace. Only models with this service's labels (`controller.names.mesh_labels`) and
aliases of our owner are in the view, so whatever is decided cannot touch what somebody else registered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class ModelState(Enum):
    """As `hexcomb.v1.ModelState`."""

    NOT_LOADED = "not-loaded"
    LOADING = "loading"
    LOADED = "loaded"
    UNLOADING = "unloading"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class MeshFailure:
    """A load that failed, on one pod."""

    message: str
    permanent: bool
    """Not tried again until the spec changes."""
    pod: str = ""
    failed_at_s: float = 0.0
    """Unix time."""


@dataclass(frozen=True, slots=True)
class MeshModel:
    """A registered model."""

    id: str
    spec: Mapping[str, Any] = field(default_factory=dict)
    """The fields that were said, as in `mesh.client.SpecFields`."""
    generation: int = 1
    state: ModelState = ModelState.NOT_LOADED
    copies: tuple[str, ...] = ()
    """Pods that serve it."""
    failures: tuple[MeshFailure, ...] = ()


@dataclass(frozen=True, slots=True)
class MeshAlias:
    """A name, and where its requests go."""

    id: str
    active: str
    target: str
    owner: str = ""
    weights: Mapping[str, int] = field(default_factory=dict)
    """Model -> its share; empty: all to `active`."""
    failure: str = ""
    """Why the target could not be loaded; the active model serves on."""


@dataclass(frozen=True, slots=True)
class MeshView:
    """`reachable`: False where no pod answered; all else is then empty and means nothing."""

    reachable: bool = False
    formats: frozenset[str] = frozenset()
    """That some pod can load."""
    capacity_bytes: int = 0
    """Of the largest pod's device tier; 0: not known."""
    models: Mapping[str, MeshModel] = field(default_factory=dict)
    aliases: Mapping[str, MeshAlias] = field(default_factory=dict)
    refusals: Mapping[str, str] = field(default_factory=dict)
    """Model or alias -> why the mesh refused it as it was last asked for, until it is asked for otherwise."""

    def serving(self, alias: str) -> str:
        """The model that answers under a name, so far as is known; empty: none does."""
        known = self.aliases.get(alias)
        model = self.models.get(known.target if known.weights else known.active) if known is not None else None
        return model.id if model is not None and model.state is not ModelState.FAILED else ""
