"""What a pod reports of itself: capacities, use, counts, the runtimes it has. One report feeds status and metrics.

Of a pod that cannot be asked, the same report is made from what it published last: less, and a moment old.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import psutil

from cache.machine import CacheMachine
from cache.types import CopyState
from cache.views import Usage
from mesh.box import BoxLimit
from mesh.loading.loading import Loading
from mesh.overview import Overview
from mesh.serving import Serving
from mesh.telemetry import Sample
from placement.policy.snapshot import BusyModel, Pod, PoolView
from placement.registry import Registry
from runtime_adapters.artifacts.fetch import ArtifactStore
from runtime_adapters.frameworks import installed_version
from runtime_adapters.registry import adapters

_RESIDENT = (CopyState.SERVABLE, CopyState.RETIRING, CopyState.SETTLING, CopyState.STUCK)
_HOLDING = (*_RESIDENT, CopyState.PARKING, CopyState.PARKED, CopyState.WAITING_FOR_SPACE)
"""States in which bytes are taken by what is there: the last two hold such of the host tier alone."""
_RESERVED = (CopyState.LOADING, CopyState.CANCELLING_LOAD, CopyState.OVERDUE)
_ON_THE_WAY = (
    CopyState.QUEUED,
    CopyState.FETCHING,
    CopyState.WAITING_FOR_SPACE,
    CopyState.LOADING,
    CopyState.SETTLING,
)


@dataclass(frozen=True, slots=True)
class TierReport:
    """One place where bytes lie. On the disk tier, `resident` includes what downloads have set aside."""

    tier: str
    device: str
    capacity_bytes: int
    resident_bytes: int
    reserved_bytes: int = 0
    unloading_bytes: int = 0
    saved_bytes: int = 0
    """What equal content of several models would take more if each had its own copy."""
    dropped_bytes: int = 0
    """Of fetched originals that were deleted, since prepared forms stand for them."""


@dataclass(frozen=True, slots=True)
class TenantReport:
    """One tenant's part of a tier; a guarantee or a limit of 0 is none."""

    tenant: str
    tier: str
    device: str
    held_bytes: int
    guarantee_bytes: int
    limit_bytes: int


@dataclass(frozen=True, slots=True)
class RuntimeReport:
    """One framework: its version, or how to install it."""

    format: str
    version: str
    available: bool
    message: str = ""


@dataclass(frozen=True, slots=True)
class PodReport:
    """A pod at one moment; counts are since its start. What another pod does not publish has its default."""

    pod: str
    version: str
    addresses: tuple[str, ...]
    started_at_ms: int
    ready: bool
    draining: bool
    tiers: tuple[TierReport, ...]
    runtimes: tuple[RuntimeReport, ...]
    models_resident: int
    loads_queued: int
    requests_in_flight: int
    loads: int
    load_failures: int
    eviction_age_s: float
    models_registered: int = 0
    models_loading: int = 0
    requests_waiting: int = 0
    hits: int = 0
    misses: int = 0
    evictions: int = 0
    models_parked: int = 0
    """In the host tier now."""
    parkings: int = 0
    """Evicted copies that went into the host tier."""
    rss_bytes: int = 0
    zone: str = ""
    labels: tuple[str, ...] = ()
    why_unready: str = ""
    reachable: bool = True
    why_unreachable: str = ""
    leader: bool = False
    store_away_since_ms: int = 0
    requests_per_s: float = 0.0
    queue_delay_s: float = 0.0
    notices: tuple[str, ...] = ()
    busy: tuple[BusyModel, ...] = ()
    tenants: tuple[TenantReport, ...] = ()
    """Empty where no tenant has a share."""
    eviction_policy: str = ""
    prefetches: int = 0
    prefetches_used: int = 0
    prefetches_wasted: int = 0
    thrashing: str = ""
    """Why the cache serves by turns, or would if it were allowed to."""
    memory_pressure: str = ""
    """Why it holds less than its capacity."""
    box_limits: tuple[BoxLimit, ...] = ()
    transport: str = ""
    """What speaks gRPC, and why."""


class PodView:
    """Makes reports."""

    def __init__(
        self,
        overview: Overview,
        registry: Registry,
        cache: CacheMachine,
        artifacts: ArtifactStore,
        loading: Loading,
        serving: Serving,
        unready_reason: Callable[[], str],
        draining: Callable[[], bool],
        calls_in_flight: Callable[[], int],
        memory_pressure: Callable[[], str] = str,
        box_limits: tuple[BoxLimit, ...] = (),
        transport: str = "",
        beside: Callable[[], Sequence[RuntimeReport]] = tuple,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._overview = overview
        self._registry = registry
        self._cache = cache
        self._artifacts = artifacts
        self._loading = loading
        self._serving = serving
        self._unready_reason = unready_reason
        self._draining = draining
        self._calls_in_flight = calls_in_flight
        self._memory_pressure = memory_pressure
        self._box_limits = box_limits
        self._transport = transport
        self._beside = beside
        self._clock = clock
        self._wall_clock = wall_clock
        self._started_at_ms = int(wall_clock() * 1e3)
        self._process = psutil.Process()
        self._runtimes: tuple[RuntimeReport, ...] | None = None
        self.addresses: tuple[str, ...] = ()

    def report(self) -> PodReport:
        """Everything, now."""
        overview, usage = self._overview, self._cache.usage()
        record, unready, store_away_s = overview.own_record(), self._unready_reason(), overview.store_away_for_s
        copies = usage.copies_by_state
        if self._runtimes is None:
            self._runtimes = runtime_reports()
        return PodReport(
            pod=overview.own_pod,
            version=version("hexcomb"),
            addresses=self.addresses,
            started_at_ms=self._started_at_ms,
            ready=not unready,
            draining=self._draining(),
            tiers=tuple(self._tiers(usage)),
            runtimes=(*self._runtimes, *self._beside()),
            models_registered=self._registry.view.model_count(),
            models_resident=sum(copies.get(state, 0) for state in _RESIDENT),
            models_loading=copies.get(CopyState.LOADING, 0),
            loads_queued=sum(copies.get(state, 0) for state in _ON_THE_WAY) - copies.get(CopyState.LOADING, 0),
            requests_in_flight=self._calls_in_flight(),
            requests_waiting=self._loading.waiting,
            hits=self._serving.hits,
            misses=self._serving.misses,
            loads=self._loading.counts.loads,
            load_failures=self._loading.counts.load_failures,
            evictions=usage.evictions_total,
            models_parked=copies.get(CopyState.PARKED, 0),
            parkings=usage.parkings_total,
            eviction_age_s=0.0 if usage.oldest_use_s is None else max(0.0, self._clock() - usage.oldest_use_s),
            rss_bytes=self._process.memory_info().rss,
            zone=record.zone,
            labels=tuple(sorted(record.labels)),
            why_unready=unready,
            leader=overview.leader == overview.own_pod,
            store_away_since_ms=0 if store_away_s is None else int((self._wall_clock() - store_away_s) * 1e3),
            requests_per_s=record.rate_per_s,
            queue_delay_s=record.queue_delay_s,
            notices=overview.notices(),
            busy=record.busy,
            tenants=tuple(self._tenants(usage)),
            memory_pressure=self._memory_pressure(),
            box_limits=self._box_limits,
            transport=self._transport,
            eviction_policy=usage.policy,
            prefetches=usage.prefetches,
            prefetches_used=usage.prefetches_used,
            prefetches_wasted=usage.prefetches_wasted,
            thrashing="" if usage.thrashing is None else str(usage.thrashing),
        )

    def _tenants(self, usage: Usage) -> Iterator[TenantReport]:
        if not any(use.guarantee or use.limit for use in usage.tenants.values()):
            return
        for tenant, use in usage.tenants.items():
            for place, _ in usage.capacity:
                amounts = use.held[place], use.guarantee[place], use.limit[place]
                if any(amounts):
                    yield TenantReport(tenant, place.tier, place.device, *amounts)

    def _tiers(self, usage: Usage) -> Iterator[TierReport]:
        for place, capacity_bytes in usage.capacity:
            in_state = {state: amount[place] for state, amount in usage.bytes_by_state.items()}
            yield TierReport(
                tier=place.tier,
                device=place.device,
                capacity_bytes=capacity_bytes,
                resident_bytes=sum(in_state.get(state, 0) for state in _HOLDING),
                reserved_bytes=sum(in_state.get(state, 0) for state in _RESERVED),
                unloading_bytes=in_state.get(CopyState.UNLOADING, 0),
                saved_bytes=usage.saved_by_sharing[place],
            )
        disk = self._artifacts.use()
        yield TierReport(
            "disk",
            "",
            disk.capacity_bytes,
            disk.used_bytes,
            saved_bytes=disk.saved_bytes,
            dropped_bytes=disk.dropped_bytes,
        )

    def samples(self) -> Iterator[Sample]:
        """The report as lines of a scrape."""
        report = self.report()
        for tier in report.tiers:
            labels = (("tier", tier.tier), ("device", tier.device))
            yield Sample("hexcomb_capacity_bytes", "Bytes that the tier may hold.", labels, tier.capacity_bytes)
            for state, amount in (
                ("resident", tier.resident_bytes),
                ("reserved", tier.reserved_bytes),
                ("unloading", tier.unloading_bytes),
            ):
                yield Sample("hexcomb_used_bytes", "Bytes in use, by state.", (*labels, ("state", state)), amount)
            for what, amount in (("shared", tier.saved_bytes), ("originals", tier.dropped_bytes)):
                yield Sample(
                    "hexcomb_saved_bytes",
                    "Bytes that are not taken: `shared`, by equal content of several models that is held once; "
                    "`originals`, by fetched artifacts that prepared forms stand for.",
                    (*labels, ("by", what)),
                    amount,
                )
        forms = self._loading.residents.copies_by_form()
        for form, count in forms.items():
            yield Sample(
                "hexcomb_copies_by_form",
                "Copies of models that have two forms: `cold`, with mapped weights, and `hot`, with packed ones.",
                (("form", form),),
                count,
            )
        declared, estimated, measured = self._loading.residents.size_totals()
        for source, amount in (("declared", declared), ("estimated", estimated), ("measured", measured)):
            yield Sample(
                "hexcomb_resident_model_bytes",
                "Bytes of all resident models: as their specs declare them (only those that do), as estimated before "
                "the load, and as measured after it.",
                (("source", source),),
                amount,
            )
        for tenant in report.tenants:
            for what, amount in (
                ("held", tenant.held_bytes),
                ("guarantee", tenant.guarantee_bytes),
                ("limit", tenant.limit_bytes),
            ):
                yield Sample(
                    "hexcomb_tenant_bytes",
                    "Of tenants on a pod that gives tenants shares: what each holds, keeps, and may hold at most.",
                    (("tenant", tenant.tenant), ("tier", tenant.tier), ("device", tenant.device), ("what", what)),
                    amount,
                )
        none: tuple[tuple[str, str], ...] = ()
        for outcome, count in (
            ("begun", report.prefetches),
            ("used", report.prefetches_used),
            ("wasted", report.prefetches_wasted),
        ):
            yield Sample(
                "hexcomb_prefetches_total",
                "Copies to be brought in before anybody asked: all; those asked for later; those that never were.",
                (("outcome", outcome),),
                count,
            )
        yield Sample(
            "hexcomb_parked_total",
            "Copies that made room on a device and went into the host tier, since the start.",
            none,
            report.parkings,
        )
        yield Sample(
            "hexcomb_cache_thrashing",
            "1 while the models in use exceed the capacity, and loads bring back what was evicted a moment before.",
            none,
            float(bool(report.thrashing)),
        )
        yield Sample(
            "hexcomb_lru_age_seconds", "Time since the longest unused copy was used.", none, report.eviction_age_s
        )
        yield Sample("hexcomb_models_registered", "Models in the registry.", none, report.models_registered)
        yield Sample("hexcomb_models_resident", "Models that are servable here.", none, report.models_resident)
        yield Sample("hexcomb_models_parked", "Models in the host tier.", none, report.models_parked)
        yield Sample("hexcomb_models_loading", "Models that are being loaded.", none, report.models_loading)
        yield Sample("hexcomb_loads_queued", "Models that wait to be fetched or loaded.", none, report.loads_queued)
        yield Sample("hexcomb_requests_waiting", "Requests that wait for a load.", none, report.requests_waiting)
        yield Sample("hexcomb_requests_in_flight", "Calls in the pod.", none, report.requests_in_flight)
        yield Sample(
            "hexcomb_cache_hits_total", "Requests that found a servable copy, since the start.", none, report.hits
        )
        yield Sample(
            "hexcomb_cache_misses_total", "Requests that had to wait for a load, since the start.", none, report.misses
        )
        yield Sample("hexcomb_ready", "1 when the pod takes requests.", none, float(report.ready))


def reports_from_records(
    pods: Iterable[Pod], view: PoolView, why_unreachable: Callable[[str], str], leader: str
) -> list[PodReport]:
    """Pods as they described themselves last, for want of an answer. Looks at every copy in the view, once."""
    pods = list(pods)
    if not pods:
        return []
    copies: dict[str, int] = {}
    for holders in view.copies.values():
        for copy in holders:
            if copy.servable:
                copies[copy.pod] = copies.get(copy.pod, 0) + 1
    return [
        PodReport(
            pod=pod.id,
            version=pod.version,
            addresses=(f"grpc://{pod.address}",),
            started_at_ms=int(pod.started_at_s * 1e3),
            ready=pod.ready,
            draining=pod.draining,
            tiers=tuple(
                TierReport(tier.tier, tier.device, tier.capacity_bytes, max(0, tier.capacity_bytes - tier.free_bytes))
                for tier in pod.tiers
            ),
            runtimes=tuple(RuntimeReport(name, "", True) for name in sorted(pod.formats)),
            models_resident=copies.get(pod.id, 0),
            loads_queued=pod.loads_queued,
            requests_in_flight=pod.requests_in_flight,
            loads=pod.loads,
            load_failures=pod.load_failures,
            eviction_age_s=pod.eviction_age_s,
            zone=pod.zone,
            labels=tuple(sorted(pod.labels)),
            why_unready=pod.why_unready,
            reachable=False,
            why_unreachable=why_unreachable(pod.id),
            leader=leader == pod.id,
            requests_per_s=pod.rate_per_s,
            queue_delay_s=pod.queue_delay_s,
            busy=pod.busy,
        )
        for pod in pods
    ]


def runtime_reports() -> tuple[RuntimeReport, ...]:
    """Which frameworks are installed; imports none of them."""
    found = []
    for name, adapter in adapters().items():
        installed = installed_version(adapter.extra)
        hint = "" if installed else f"install it with: pip install 'hexcomb[{adapter.extra}]'"
        found.append(RuntimeReport(name, installed or "", installed is not None, hint))
    return tuple(found)


def default_pod_name() -> str:
    """Host name and pid: unique enough on one machine, readable everywhere."""
    return f"{os.uname().nodename}-{os.getpid()}"
