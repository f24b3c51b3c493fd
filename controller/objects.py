"""What a decision is made from: the objects of the cluster that concern one InferenceService, as they were read.

Everything is a snapshot: whoever reads the cluster puts it together, and the decision sees nothing else. Objects are
the API server's JSON; `controller.service_view` and `controller.runtimes` read them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from controller.reading import Manifest


@dataclass(frozen=True, slots=True)
class Objects:
    """One InferenceService, and what lies around it."""

    service: Manifest
    runtimes: tuple[Manifest, ...] = ()
    """ServingRuntimes of its namespace."""
    cluster_runtimes: tuple[Manifest, ...] = ()
    storage_types: Mapping[str, str] = field(default_factory=dict)
    """Keys of its namespace's Secret `storage-config`, and the `type` that each says. Nothing else of a Secret is
    needed here: credentials are read by whoever fetches."""
    children: tuple[Manifest, ...] = ()
    """Objects that the service owns, with their status."""
    kinds: frozenset[str] = frozenset()
    """What the cluster has beyond Kubernetes itself, as `serving.knative.dev/v1/Service`."""
