"""What this pod measures of itself, each time that it is asked, for the pool to place copies by.

Mean requests at a copy come from Little's law: seconds that requests spent there, divided by the seconds that passed.
Requests that wait or run at the moment of measuring have not been counted yet when they take long, so the number that
holds the copy just now is a floor.

Deliberately absent: what follows from the figures (`placement.policy.scaling`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from cache.machine import CacheMachine
from cache.types import CopyState
from mesh.loading.loading import Loading
from mesh.resident import Resident
from placement.policy.snapshot import BusyModel, ModelName, Pod, Tier

BUSY_MODELS_MAX = 64
"""As many as a pod's record holds."""
_ON_THE_WAY = (
    CopyState.QUEUED,
    CopyState.FETCHING,
    CopyState.WAITING_FOR_SPACE,
    CopyState.LOADING,
    CopyState.SETTLING,
)


@dataclass(slots=True)
class _Seen:
    runs: int = 0
    queued_s: float = 0.0
    run_s: float = 0.0


class Measuring:
    """Turns counters into a Pod record. Belongs to the event loop."""

    def __init__(
        self,
        cache: CacheMachine,
        loading: Loading,
        *,
        threads: int,
        calls_in_flight: Callable[[], int],
        clock: Callable[[], float],
    ) -> None:
        self._cache = cache
        self._loading = loading
        self._threads = threads
        self._calls_in_flight = calls_in_flight
        self._clock = clock
        self._at_s = clock()
        self._seen: dict[int, _Seen] = {}

    def measured(self, pod: Pod, *, ready: bool, draining: bool, why_unready: str) -> Pod:
        """The pod's record with the figures of the time since the last call."""
        now_s = self._clock()
        passed_s = max(now_s - self._at_s, 1e-3)
        self._at_s = now_s
        busy, rate_per_s, queued_s, runs = self._busy(self._loading.every_resident(), passed_s)
        usage = self._cache.usage()
        counts = self._loading.counts
        return replace(
            pod,
            capacity_bytes=usage.capacity.total_bytes,
            free_bytes=usage.free.total_bytes,
            tiers=tuple(
                Tier(place.tier, place.device, capacity_bytes, usage.free[place])
                for place, capacity_bytes in usage.capacity
            ),
            pinned_bytes=sum(usage.pinned_bytes_by_tenant.values()),
            eviction_age_s=0.0 if usage.oldest_use_s is None else round(max(0.0, now_s - usage.oldest_use_s), 1),
            loads_queued=sum(usage.copies_by_state.get(state, 0) for state in _ON_THE_WAY),
            load_wait_s=round(self._load_wait_s(usage.copies_by_state.get(CopyState.QUEUED, 0)), 3),
            requests_in_flight=self._calls_in_flight(),
            queue_delay_s=round(queued_s / runs, 4) if runs else 0.0,
            rate_per_s=round(rate_per_s, 1),
            busy=busy,
            ready=ready,
            draining=draining,
            why_unready=why_unready,
            loads=counts.loads,
            load_failures=counts.load_failures,
        )

    def _busy(self, residents: Iterable[Resident], passed_s: float) -> tuple[tuple[BusyModel, ...], float, float, int]:
        seen: dict[int, _Seen] = {}
        busy: list[BusyModel] = []
        all_runs, all_queued_s = 0, 0.0
        for resident in residents:
            copy = resident.copy
            before = self._seen.get(copy.copy_id)
            runs = resident.runs - (before.runs if before is not None else 0)
            if runs == 0 and copy.pins == 0:
                if before is not None:
                    seen[copy.copy_id] = before
                continue
            queued_s = resident.queued_total_s - (before.queued_s if before is not None else 0.0)
            run_s = resident.run_total_s - (before.run_s if before is not None else 0.0)
            seen[copy.copy_id] = _Seen(resident.runs, resident.queued_total_s, resident.run_total_s)
            all_runs += runs
            all_queued_s += queued_s
            # Queued for a run now, and not counted yet: with long runs most of the truth.
            concurrency = 1 if resident.isolated else self._threads
            in_flight = max((queued_s + run_s) / passed_s, float(copy.pins))
            busy.append(
                BusyModel(
                    ModelName(copy.key.tenant, copy.key.model_id),
                    round(runs / passed_s, 2),
                    round(in_flight, 2),
                    round(queued_s / runs, 4) if runs else 0.0,
                    round(resident.run_s, 6),
                    concurrency,
                )
            )
        self._seen = seen
        busy.sort(key=lambda model: (-model.in_flight, -model.rate_per_s, model.name))
        return tuple(busy[:BUSY_MODELS_MAX]), all_runs / passed_s, all_queued_s, all_runs

    def _load_wait_s(self, queued: int) -> float:
        """Loads that have not begun, at what loads have taken here lately."""
        return queued * self._loading.mean_load_s / max(1, self._loading.loads_concurrent_max)
