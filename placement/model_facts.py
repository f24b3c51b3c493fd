"""What is known of a model when a place is sought for it: from its spec, from measurements, from the pool's rules.

Every pod gathers the same facts from the same views, so that ingress pods and the leader choose alike. The size is the
declared one; else what a copy of it last measured; else the mean of what the pool holds, and for an empty pool a
constant: a guess is corrected by the pod that fetches the artifact, before anything is evicted for it.

Deliberately absent: which disks hold the artifact (pods do not publish it yet); rendezvous hashing brings a model back
to where it was, so a guess is not needed for that.
"""

from __future__ import annotations

from collections.abc import Callable

from placement.constraints import NO_CONSTRAINTS, Constraints
from placement.policy.snapshot import ModelFacts, ModelName, PoolView
from placement.records import ModelRecord

SIZE_UNKNOWN_BYTES = 64 * 1024 * 1024
"""Of a model in a pool without copies: the tabular models are far below it, the neural ones around it."""
LOAD_FIRST_S = 0.2
LOAD_BYTES_PER_S = 200e6
"""Object storage to servable, over all formats: only the order of pods depends on it."""
DISK_BYTES_PER_S = 1e9


class FactsGatherer:
    """Facts as of one picture of the pool. Cheap to make: what costs is computed when it is asked for first."""

    def __init__(
        self,
        view: PoolView,
        known_size: Callable[[ModelName], int | None],
        constraints: Constraints = NO_CONSTRAINTS,
    ) -> None:
        """`known_size`: bytes of a model's last measured copy, if there was one (`Membership.known_size`)."""
        self._view = view
        self._known_size = known_size
        self._constraints = constraints
        self._mean_copy_bytes = 0

    def facts(self, record: ModelRecord) -> ModelFacts:
        """Of one registered model."""
        spec = record.spec
        name = ModelName(record.tenant, record.id)
        size_bytes = spec.capacity_hint_bytes or self._known_size(name) or self.mean_copy_bytes()
        rule = self._constraints.rule(spec.format or "", spec.labels)
        return ModelFacts(
            name,
            record.generation,
            size_bytes,
            format=spec.format or "",
            priority=spec.priority,
            pinned=spec.pinned,
            copies_min=spec.copies_min,
            copies_max=spec.copies_max,
            labels_required=rule.required,
            labels_preferred=rule.preferred,
            load_s=LOAD_FIRST_S + size_bytes / LOAD_BYTES_PER_S,
            disk_load_s=LOAD_FIRST_S + size_bytes / DISK_BYTES_PER_S,
        )

    def mean_copy_bytes(self) -> int:
        """Of the pool's copies, as the pods account for them."""
        if not self._mean_copy_bytes:
            pods, models = self._view.pods.values(), len(self._view.copies)
            used_bytes = sum(max(0, pod.capacity_bytes - pod.free_bytes) for pod in pods)
            self._mean_copy_bytes = max(1, used_bytes // models) if models and used_bytes else SIZE_UNKNOWN_BYTES
        return self._mean_copy_bytes
