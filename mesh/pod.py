"""What a pod reports of itself: capacities, use, counts, the runtimes it has. One report feeds status and metrics."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version

import psutil

from cache.machine import CacheMachine
from cache.types import CopyState
from cache.views import Usage
from mesh.loading import Loading
from mesh.serving import Serving
from mesh.telemetry import Sample
from placement.registry import Registry
from runtime_adapters.artifacts.fetch import ArtifactStore
from runtime_adapters.frameworks import installed_version
from runtime_adapters.registry import adapters

_RESIDENT = (CopyState.SERVABLE, CopyState.RETIRING, CopyState.SETTLING, CopyState.STUCK)
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


@dataclass(frozen=True, slots=True)
class RuntimeReport:
    """One framework: its version, or how to install it."""

    format: str
    version: str
    available: bool
    message: str = ""


@dataclass(frozen=True, slots=True)
class PodReport:
    """The pod at one moment; counts are since its start."""

    pod: str
    version: str
    addresses: tuple[str, ...]
    started_at_ms: int
    ready: bool
    draining: bool
    tiers: tuple[TierReport, ...]
    runtimes: tuple[RuntimeReport, ...]
    models_registered: int
    models_resident: int
    models_loading: int
    loads_queued: int
    requests_in_flight: int
    requests_waiting: int
    hits: int
    misses: int
    loads: int
    load_failures: int
    evictions: int
    eviction_age_s: float
    rss_bytes: int


class PodView:
    """Makes reports."""

    def __init__(
        self,
        name: str,
        registry: Registry,
        cache: CacheMachine,
        artifacts: ArtifactStore,
        loading: Loading,
        serving: Serving,
        unready_reason: Callable[[], str],
        draining: Callable[[], bool],
        calls_in_flight: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._registry = registry
        self._cache = cache
        self._artifacts = artifacts
        self._loading = loading
        self._serving = serving
        self._unready_reason = unready_reason
        self._draining = draining
        self._calls_in_flight = calls_in_flight
        self._clock = clock
        self._started_at_ms = int(time.time() * 1e3)
        self._process = psutil.Process()
        self._runtimes: tuple[RuntimeReport, ...] | None = None
        self.addresses: tuple[str, ...] = ()

    def report(self) -> PodReport:
        """Everything, now."""
        usage = self._cache.usage()
        copies = usage.copies_by_state
        if self._runtimes is None:
            self._runtimes = runtime_reports()
        return PodReport(
            pod=self._name,
            version=version("hexcomb"),
            addresses=self.addresses,
            started_at_ms=self._started_at_ms,
            ready=not self._unready_reason(),
            draining=self._draining(),
            tiers=tuple(self._tiers(usage)),
            runtimes=self._runtimes,
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
            eviction_age_s=0.0 if usage.oldest_use_s is None else max(0.0, self._clock() - usage.oldest_use_s),
            rss_bytes=self._process.memory_info().rss,
        )

    def _tiers(self, usage: Usage) -> Iterator[TierReport]:
        for place, capacity_bytes in usage.capacity:
            in_state = {state: amount[place] for state, amount in usage.bytes_by_state.items()}
            yield TierReport(
                tier=place.tier,
                device=place.device,
                capacity_bytes=capacity_bytes,
                resident_bytes=sum(in_state.get(state, 0) for state in _RESIDENT),
                reserved_bytes=sum(in_state.get(state, 0) for state in _RESERVED),
                unloading_bytes=in_state.get(CopyState.UNLOADING, 0),
            )
        disk = self._artifacts.use()
        yield TierReport("disk", "", disk.capacity_bytes, disk.used_bytes)

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
        declared, estimated, measured = self._loading.size_totals()
        for source, amount in (("declared", declared), ("estimated", estimated), ("measured", measured)):
            yield Sample(
                "hexcomb_resident_model_bytes",
                "Bytes of all resident models: as their specs declare them (only those that do), as estimated before "
                "the load, and as measured after it.",
                (("source", source),),
                amount,
            )
        none: tuple[tuple[str, str], ...] = ()
        yield Sample(
            "hexcomb_lru_age_seconds", "Time since the longest unused copy was used.", none, report.eviction_age_s
        )
        yield Sample("hexcomb_models_registered", "Models in the registry.", none, report.models_registered)
        yield Sample("hexcomb_models_resident", "Models that are servable here.", none, report.models_resident)
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
