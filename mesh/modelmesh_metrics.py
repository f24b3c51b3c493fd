"""This pod's figures under ModelMesh's names, so that its dashboards and alerts go on working.

Nothing is counted twice: each line is made from ours when somebody scrapes. ModelMesh counts in milliseconds, and calls
its inference `method` and its outcome `code`.

| theirs (`modelmesh_...`) | ours (`hexcomb_...`) |
|---|---|
| `api_request_milliseconds`, `invoke_model_milliseconds` | `request_seconds`: answers, so `code` is OK |
| `cache_miss_milliseconds` | `queue_wait_seconds` |
| `loadmodel_milliseconds` | `load_seconds`, stage `load` |
| `loadmodel_failure` | `load_failures_total` |
| `unloadmodel_milliseconds` | `unload_seconds` |
| `req_queue_delay_milliseconds` | `run_queue_seconds` |
| `age_at_eviction_milliseconds` | `eviction_idle_seconds` |
| `instance_capacity_bytes`, `instance_used_bytes`, `instance_used_bps` | `capacity_bytes`, `used_bytes`: device tier |
| `instance_lru_age_seconds`, `instance_lru_seconds` | `lru_age_seconds`, and now less that |
| `instance_models_total` | `models_resident` |
| `models_managed_total` | `models_registered`; of every pod, where ModelMesh's leader alone tells it |

Deliberately absent, since nothing here counts them: `request_size_bytes`, `response_size_bytes`,
`loading_queue_delay_milliseconds`, `model_sizing_milliseconds`, `unloadmodel_failure`, `loaded_model_size_bytes`,
`models_loaded_total`, `models_with_failure_total`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric, UntypedMetricFamily

_MS = 1000.0
_INFER = ("inference.GRPCInferenceService/ModelInfer", "OK")


@dataclass(frozen=True, slots=True)
class _Times:
    """A histogram of theirs, from one of ours."""

    ours: str
    only: Mapping[str, str] = field(default_factory=dict)
    """Labels of the series that count; the others are added up."""
    is_of_requests: bool = False


_TIMES = {
    "modelmesh_api_request_milliseconds": _Times("hexcomb_request_seconds", is_of_requests=True),
    "modelmesh_invoke_model_milliseconds": _Times("hexcomb_request_seconds", is_of_requests=True),
    "modelmesh_cache_miss_milliseconds": _Times("hexcomb_queue_wait_seconds"),
    "modelmesh_loadmodel_milliseconds": _Times("hexcomb_load_seconds", {"stage": "load"}),
    "modelmesh_unloadmodel_milliseconds": _Times("hexcomb_unload_seconds"),
    "modelmesh_req_queue_delay_milliseconds": _Times("hexcomb_run_queue_seconds"),
    "modelmesh_age_at_eviction_milliseconds": _Times("hexcomb_eviction_idle_seconds"),
}
_DEVICE = {"tier": "device"}


class WithModelMeshNames(CollectorRegistry):
    """A registry that gives what another one gives, and the same again under ModelMesh's names."""

    def __init__(self, ours: CollectorRegistry, wall_clock: Callable[[], float] = time.time) -> None:
        super().__init__()
        self._ours = ours
        self._wall_clock = wall_clock

    def collect(self) -> Iterator[Metric]:
        """Ours, then theirs."""
        families = list(self._ours.collect())
        yield from families
        yield from modelmesh_metrics({family.name: family for family in families}, self._wall_clock())


def modelmesh_metrics(ours: Mapping[str, Metric], now_s: float) -> Iterator[Metric]:
    """ModelMesh's lines from ours, by name. What ours does not have yet is left out."""
    for name, times in _TIMES.items():
        if (family := ours.get(times.ours)) is not None:
            yield _in_milliseconds(name, family, times)
    if (failures := ours.get("hexcomb_load_failures")) is not None:
        failed = UntypedMetricFamily("modelmesh_loadmodel_failure", f"See {failures.name}.")
        failed.add_metric([], _total(failures, "_total"))
        yield failed
    yield from _gauges(ours, now_s)


def _in_milliseconds(name: str, family: Metric, times: _Times) -> HistogramMetricFamily:
    buckets: dict[str, float] = {}
    sum_ms = 0.0
    for sample in family.samples:
        if any(sample.labels.get(label) != value for label, value in times.only.items()):
            continue
        if sample.name.endswith("_bucket"):
            limit = sample.labels["le"]
            limit_ms = limit if limit == "+Inf" else f"{float(limit) * _MS:g}"
            buckets[limit_ms] = buckets.get(limit_ms, 0.0) + sample.value
        elif sample.name.endswith("_sum"):
            sum_ms += sample.value * _MS
    labels = ["method", "code"] if times.is_of_requests else []
    made = HistogramMetricFamily(name, f"See {times.ours}.", labels=labels)
    if buckets:  # else nothing of the kind has happened yet
        made.add_metric(list(_INFER) if times.is_of_requests else [], list(buckets.items()), sum_ms)
    return made


def _gauges(ours: Mapping[str, Metric], now_s: float) -> Iterator[GaugeMetricFamily]:
    def value_of(name: str, only: Mapping[str, str] | None = None) -> float | None:
        family = ours.get(name)
        return None if family is None else _total(family, "", only)

    capacity, used = value_of("hexcomb_capacity_bytes", _DEVICE), value_of("hexcomb_used_bytes", _DEVICE)
    age_s = value_of("hexcomb_lru_age_seconds")
    known: Iterable[tuple[str, float | None]] = (
        ("instance_capacity_bytes", capacity),
        ("instance_used_bytes", used),
        ("instance_used_bps", 10_000 * used / capacity if capacity and used is not None else None),
        ("instance_lru_age_seconds", age_s),
        ("instance_lru_seconds", None if age_s is None else now_s - age_s),
        ("instance_models_total", value_of("hexcomb_models_resident")),
        ("models_managed_total", value_of("hexcomb_models_registered")),
    )
    for name, value in known:
        if value is not None:
            yield GaugeMetricFamily(f"modelmesh_{name}", "As ModelMesh has it.", value=value)


def _total(family: Metric, ending: str, only: Mapping[str, str] | None = None) -> float:
    return sum(
        sample.value
        for sample in family.samples
        if sample.name == family.name + ending
        and all(sample.labels.get(label) == value for label, value in (only or {}).items())
    )
