"""The loaded copies of a pod: their loaded sides, and what the cache is told of their sizes.

A copy is entered here in the same turn of the loop in which the cache hears that it is loaded, and taken out in the
turn in which it hears that the copy has left its device; in between it is found by its copy's number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from cache.copies import Copy
from cache.events import Loaded, Resized
from cache.types import Bytes
from mesh.batching.rules import rules_for
from mesh.batching.settings import BatchSettings
from mesh.loading.measured_load import MeasuredLoad
from mesh.loading.places import bytes_on, bytes_parked, shared_parts
from mesh.loading.pool_hooks import PoolHooks
from mesh.resident import LARGER_FACTOR, SMALL_REQUEST_BYTES, Resident
from mesh.staging import Staged
from mesh.telemetry import Telemetry
from runtime_adapters.base import CPU, Parkable, Size
from runtime_adapters.validation import InputChecker


class Residents:
    """Owned by the event loop."""

    def __init__(
        self,
        telemetry: Telemetry,
        hooks: PoolHooks,
        batching: BatchSettings,
        *,
        pin: Callable[[Copy], None],
        unpin: Callable[[Copy], None],
    ) -> None:
        self._telemetry = telemetry
        self._hooks = hooks
        self._batching = batching
        self._pin = pin
        self._unpin = unpin
        self.by_copy: dict[int, Resident] = {}
        self.two_forms: dict[int, Resident] = {}
        """Those that `mesh.promoting` may change, by copy."""

    def every(self) -> Iterable[Resident]:
        """All loaded copies."""
        return self.by_copy.values()

    def made(self, copy: Copy, staged: Staged, loaded: MeasuredLoad) -> Resident:
        """The loaded side of a copy, not entered yet."""
        format_name, key = staged.adapter.format, copy.key
        return Resident(
            copy=copy,
            model=loaded.model,
            format=format_name,
            checker=InputChecker(loaded.model.metadata),
            meter=self._telemetry.meter(format_name, key.tenant, key.model_id),
            tally=self._telemetry.tallies.of(key),
            artifact=staged.artifact,
            device=staged.options.device,
            size=loaded.size,
            estimated_bytes=staged.estimate.total_bytes,
            declared_bytes=staged.record.spec.capacity_hint_bytes,
            run_s=loaded.run_s,
            load_s=loaded.load_s,
            isolated=staged.isolated,
            pin=self._pin,
            unpin=self._unpin,
            loadable=staged.loadable,
            as_fetched=staged.options.as_fetched,
            rules=rules_for(self._batching, staged.record.spec, loaded.model.metadata),
            workspace_bytes=staged.workspace_bytes,
            request_bytes_measured=staged.request_bytes,
            request_bytes_max=max(SMALL_REQUEST_BYTES, int(LARGER_FACTOR * staged.request_bytes)),
        )

    def enter(self, resident: Resident, remark: str = "") -> Loaded:
        """The copy is on its device; what the cache is told, `remark` among it."""
        copy_id = resident.copy.copy_id
        self.by_copy[copy_id] = resident
        if resident.hot_size() is not None:
            self.two_forms[copy_id] = resident
        self._hooks.resident_changed(resident, True)
        return Loaded(
            copy_id,
            self._counted(resident),
            remark,
            shared_parts(resident.size),
            parks=_parks(resident),
        )

    def take_out(self, copy_id: int) -> None:
        """The copy has left its device."""
        resident = self.by_copy.pop(copy_id)
        self.two_forms.pop(copy_id, None)
        self._hooks.resident_changed(resident, False)

    def remeasured(self, resident: Resident, size: Size | None, workspace_bytes: int | None) -> Resized | None:
        """A copy was measured anew, or its runs were; None for what was not. What the cache must hear of it: None
        where that changes nothing that it counts."""
        before = self._counted(resident), resident.size.shared
        if size is not None:
            resident.size = size
        if workspace_bytes is not None:
            resident.workspace_bytes = workspace_bytes
        after = self._counted(resident), resident.size.shared
        if after == before or resident.copy.copy_id not in self.by_copy:
            return None
        return Resized(resident.copy.copy_id, after[0], shared_parts(resident.size))

    def size_totals(self) -> tuple[int, int, int]:
        """Bytes of all residents: declared by specs that do, estimated before their loads, measured after."""
        residents = self.by_copy.values()
        return (
            sum(resident.declared_bytes or 0 for resident in residents),
            sum(resident.estimated_bytes for resident in residents),
            sum(resident.size.total_bytes for resident in residents),
        )

    def copies_by_form(self) -> dict[str, int]:
        """Copies of models that have two forms, by the one that they are in."""
        forms = {"cold": 0, "hot": 0}
        for resident in self.two_forms.values():
            forms["hot" if resident.is_hot else "cold"] += 1
        return forms

    def _counted(self, resident: Resident) -> Bytes:
        return bytes_on(resident.device, resident.size, resident.workspace_bytes)


def _parks(resident: Resident) -> Bytes | None:
    """What the copy would take in the tier below; None where there is none for it: RAM is what a CPU copy takes."""
    if resident.device.kind == CPU.kind or not isinstance(resident.model, Parkable):
        return None
    size = resident.model.parked_size()
    return None if size is None else bytes_parked(size)
