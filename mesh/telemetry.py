"""What a pod tells about itself in Prometheus' words.

The registry is passed in: two pods in one process do not collide. Children of labelled metrics are looked up once, when
a model becomes known, never per request: a request costs two `observe`/`inc` calls on bound objects. Gauges (capacity,
use, ages) are computed when somebody scrapes.

Labels are by model format. Labels by model name appear only when `metrics_per_model` is on, since a dense pod has
thousands of models; their series are removed with the model.

Seconds and bytes everywhere, as Prometheus' naming rules ask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mesh.tally import Tallies

_REQUEST_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
_LOAD_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 90.0)
_IDLE_BUCKETS_S = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0)
_RUN_REQUESTS = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True, slots=True)
class Sample:
    """One line of a scrape, computed when asked for: a counter if its name ends in `_total`, else a gauge."""

    name: str
    help: str
    labels: tuple[tuple[str, str], ...]
    value: float


class _OnScrape(Collector):
    def __init__(self, read: Callable[[], Iterable[Sample]]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        for sample in self._read():
            family = families.get(sample.name)
            if family is None:
                kind = CounterMetricFamily if sample.name.endswith("_total") else GaugeMetricFamily
                family = families[sample.name] = kind(
                    sample.name, sample.help, labels=[name for name, _ in sample.labels]
                )
            family.add_metric([value for _, value in sample.labels], sample.value)
        yield from families.values()


class RequestMeter:
    """The bound metrics of one model's requests (shared by all models of a format unless per-model is on)."""

    __slots__ = ("_errors", "_hit_seconds", "_labels", "_miss_seconds", "_run_requests")

    def __init__(
        self,
        hit_seconds: Histogram,
        miss_seconds: Histogram,
        run_requests: Histogram,
        errors: Counter,
        labels: dict[str, str],
    ) -> None:
        self._hit_seconds = hit_seconds
        self._miss_seconds = miss_seconds
        self._run_requests = run_requests
        self._errors = errors
        self._labels = labels

    def answered(self, seconds: float, *, cold: bool) -> None:
        """One request was answered with a prediction."""
        (self._miss_seconds if cold else self._hit_seconds).observe(seconds)

    def ran(self, requests: int) -> None:
        """One run was made for so many requests."""
        self._run_requests.observe(requests)

    def failed(self, code: str) -> None:
        """One request was answered with an error of this gRPC code."""
        self._errors.labels(code=code, **self._labels).inc()


class Telemetry:
    """All metrics of one pod."""

    def __init__(self, registry: CollectorRegistry, *, per_model: bool = False) -> None:
        self.registry = registry
        self._per_model = per_model
        self._meters: dict[tuple[str, ...], RequestMeter] = {}
        self.tallies = Tallies()
        labels = ["format", "tenant", "model"] if per_model else ["format"]
        self._label_names = labels
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter, which nobody asks for
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        self._request_seconds = Histogram(
            "hexcomb_request_seconds",
            "Time from receiving an inference request to its answer; outcome `hit`: a copy was servable, `miss`: it "
            "waited for a load.",
            [*labels, "outcome"],
            buckets=_REQUEST_BUCKETS_S,
            registry=registry,
        )
        self._run_requests = Histogram(
            "hexcomb_run_requests",
            "Requests that shared one run, of runs on worker threads and of requests that arrived together; runs of "
            "single requests on the event loop are not counted.",
            labels,
            buckets=_RUN_REQUESTS,
            registry=registry,
        )
        self._request_errors = Counter(
            "hexcomb_request_errors",
            "Inference requests that had a copy and were answered with an error, by gRPC code.",
            [*labels, "code"],
            registry=registry,
        )
        self._load_seconds = Histogram(
            "hexcomb_load_seconds",
            "Time of one stage of a load: fetch, prepare, load (in the framework), warm_up.",
            ["format", "stage"],
            buckets=_LOAD_BUCKETS_S,
            registry=registry,
        )
        self._load_failures = Counter(
            "hexcomb_load_failures",
            "Loads that failed, by stage and kind.",
            ["format", "stage", "kind"],
            registry=registry,
        )
        self.out_of_memory = Counter(
            "hexcomb_out_of_memory",
            "Loads and runs for which a framework found no memory, by stage (load, run).",
            ["format", "stage"],
            registry=registry,
        )
        self._unload_seconds = Histogram(
            "hexcomb_unload_seconds", "Time of one unload.", ["format"], buckets=_LOAD_BUCKETS_S, registry=registry
        )
        self._eviction_idle_seconds = Histogram(
            "hexcomb_eviction_idle_seconds",
            "For each copy that was unloaded to make room: how long ago it was used last. Short times mean that the "
            "models in use do not fit.",
            ["format"],
            buckets=_IDLE_BUCKETS_S,
            registry=registry,
        )
        self.queue_wait_seconds = Histogram(
            "hexcomb_queue_wait_seconds",
            "Time that a request waited for its model to become servable.",
            buckets=_REQUEST_BUCKETS_S,
            registry=registry,
        )
        self.run_queue_seconds = Histogram(
            "hexcomb_run_queue_seconds",
            "Time that a request for a servable model waited for a worker thread.",
            buckets=_REQUEST_BUCKETS_S,
            registry=registry,
        )
        self.refused = Counter(
            "hexcomb_requests_refused", "Requests refused before they ran, by reason.", ["reason"], registry=registry
        )

    def add_samples(self, read: Callable[[], Iterable[Sample]]) -> None:
        """Compute more lines on each scrape from `read()`."""
        self.registry.register(_OnScrape(read))

    def meter(self, format_name: str, tenant: str, model: str) -> RequestMeter:
        """The request metrics for a model; kept by the caller, so that requests look nothing up."""
        key = (format_name, tenant, model) if self._per_model else (format_name,)
        meter = self._meters.get(key)
        if meter is None:
            labels = dict(zip(self._label_names, key, strict=True))
            meter = RequestMeter(
                self._request_seconds.labels(outcome="hit", **labels),
                self._request_seconds.labels(outcome="miss", **labels),
                self._run_requests.labels(**labels),
                self._request_errors,
                labels,
            )
            self._meters[key] = meter
        return meter

    def forget(self, format_name: str, tenant: str, model: str) -> None:
        """Drop a model's own series when it is unregistered."""
        if not self._per_model or self._meters.pop((format_name, tenant, model), None) is None:
            return
        for outcome in ("hit", "miss"):
            self._request_seconds.remove(format_name, tenant, model, outcome)
        self._run_requests.remove(format_name, tenant, model)
        self._request_errors.remove_by_labels({"format": format_name, "tenant": tenant, "model": model})

    def load_stage(self, format_name: str, stage: str, seconds: float) -> None:
        """One stage of a load took this long."""
        self._load_seconds.labels(format_name, stage).observe(seconds)

    def load_failed(self, format_name: str, stage: str, kind: str) -> None:
        """A load failed in this stage; kind is `permanent` or `transient`."""
        self._load_failures.labels(format_name, stage, kind).inc()

    def unloaded(self, format_name: str, seconds: float) -> None:
        """A copy was unloaded."""
        self._unload_seconds.labels(format_name).observe(seconds)

    def evicted(self, format_name: str, idle_s: float) -> None:
        """A copy is being unloaded to make room for another."""
        self._eviction_idle_seconds.labels(format_name).observe(idle_s)
