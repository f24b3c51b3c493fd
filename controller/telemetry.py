"""What the controller tells about itself in Prometheus' words."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

_TURN_BUCKETS_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Telemetry:
    """All metrics of one controller. The registry is passed in: two of them in one process do not collide."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        ProcessCollector(registry=registry)
        self.turn_seconds = Histogram(
            "hexcomb_controller_turn_seconds",
            "One look at an InferenceService, writes included; outcome `ok`, or the error that ended it.",
            ["outcome"],
            buckets=_TURN_BUCKETS_S,
            registry=registry,
        )
        self._cluster_calls = Counter(
            "hexcomb_controller_cluster_calls_total",
            "Calls to the API server, by method and HTTP status; watches are not counted.",
            ["method", "outcome"],
            registry=registry,
        )
        self.is_leading = Gauge(
            "hexcomb_controller_leading", "1 while this controller acts, 0 while it stands by.", registry=registry
        )

    def called(self, method: str, outcome: str) -> None:
        """One call to the API server."""
        self._cluster_calls.labels(method=method, outcome=outcome).inc()

    def show(self, name: str, documentation: str, read: Callable[[], float]) -> None:
        """A gauge that is read when somebody scrapes."""
        Gauge(f"hexcomb_controller_{name}", documentation, registry=self.registry).set_function(read)
