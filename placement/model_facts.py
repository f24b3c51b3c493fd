"""What is known of a model when a place is sought for it: from its spec, from measurements, from the pool's rules.

Every pod gathers the same facts from the same views, so that ingress pods and the leader choose alike. The size is what
a copy of it last measured; else the declared one, which may be wrong and therefore never rules the largest pod out;
else a guess: the mean of what the pool holds, and for an empty pool a constant, but never so much that a guess rules a
pod out. The pod that fetches the artifact corrects it before it evicts anything for it.

How long a load takes from a disk is what pods measured that have the artifact there: the lower median of them, so that
one slow pod does not speak for all. A load from afar is never taken to be quicker than that and the fetch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from placement.constraints import NO_CONSTRAINTS, Constraints
from placement.policy.snapshot import ModelFacts, ModelName, Parked, PoolView
from placement.records import ModelRecord, ModelSpec

SIZE_UNKNOWN_BYTES = 64 * 1024 * 1024
"""Of a model in a pool without copies: the tabular models are far below it, the neural ones around it."""
GUESS_SHARE_MAX = 1 / 16
"""Of the largest pod's capacity."""
LOAD_FIRST_S = 0.2
LOAD_BYTES_PER_S = 200e6
"""Object storage to servable, over all formats: only the order of pods depends on it."""
DISK_BYTES_PER_S = 1e9

NOWHERE: frozenset[str] = frozenset()


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
        self._guessed_bytes = 0
        self._largest_pod_bytes = 0

    def facts(self, record: ModelRecord) -> ModelFacts:
        """Of one registered model."""
        spec = record.spec
        name = ModelName(record.tenant, record.id)
        size_bytes = self._known_size(name) or self._declared_bytes(spec) or self.guessed_bytes()
        rule = self._constraints.rule(spec.format or "", spec.label)
        parked = self._view.parked.get(name, ())
        on_disk = [each for each in parked if each.disk == record.generation] if parked else ()
        measured_s = _measured_s(on_disk) if on_disk else 0.0
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
            load_s=max(LOAD_FIRST_S, measured_s) + size_bytes / LOAD_BYTES_PER_S,
            disk_load_s=measured_s or LOAD_FIRST_S + size_bytes / DISK_BYTES_PER_S,
            on_disk=frozenset(each.pod for each in on_disk) if on_disk else NOWHERE,
        )

    def _declared_bytes(self, spec: ModelSpec) -> int:
        declared_bytes = spec.capacity_hint_bytes or 0
        return min(declared_bytes, self._largest_bytes() or declared_bytes)

    def _largest_bytes(self) -> int:
        if not self._largest_pod_bytes:
            self._largest_pod_bytes = max((pod.capacity_bytes for pod in self._view.pods.values()), default=0)
        return self._largest_pod_bytes

    def guessed_bytes(self) -> int:
        """The size of a model that nothing is known of."""
        if not self._guessed_bytes:
            pods, models = self._view.pods.values(), len(self._view.copies)
            used_bytes = sum(max(0, pod.capacity_bytes - pod.free_bytes) for pod in pods)
            mean_bytes = used_bytes // models if models and used_bytes else SIZE_UNKNOWN_BYTES
            self._guessed_bytes = max(1, min(mean_bytes, int(self._largest_bytes() * GUESS_SHARE_MAX)))
        return self._guessed_bytes


def _measured_s(parked: Iterable[Parked]) -> float:
    """The lower median of the pods that have measured it; 0: none has."""
    measured = sorted(each.disk_load_s for each in parked if each.disk_load_s)
    return measured[(len(measured) - 1) // 2] if measured else 0.0
