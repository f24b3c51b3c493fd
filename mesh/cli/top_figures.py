"""What `hexcomb top` shows, worked out of two looks at the pods. No effects, no network, no clock.

Pods count since their start, so what happened between two looks is a difference; a pod that restarted in between, or
is seen for the first time, has none, and counts from the next look on. Requests per second and what is in flight come
from the pods as they measured it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mesh.cli.pod_tables import capacity_bytes, in_order, pod_state, remarks, show_models, show_rate, used_bytes
from mesh.cli.sizes import show_age, show_size

POD_HEADINGS = (
    "pod", "state", "req/s", "in flight", "waiting", "hit", "queue", "models", "used", "loading", "loads/s", "evict/s",
    "oldest use",
)  # fmt: skip
MODEL_HEADINGS = ("model", "req/s", "in flight", "queue", "run", "copies busy", "on")
_PODS_NAMED_MAX = 4


@dataclass(frozen=True, slots=True)
class PodFigures:
    """One pod between two looks."""

    pod: str
    state: str
    requests_per_s: float
    requests_in_flight: int
    requests_waiting: int
    hit_fraction: float | None
    """Of the requests between the looks; None: there were none."""
    queue_delay_s: float
    models: int
    models_parked: int
    used_bytes: int
    capacity_bytes: int
    loading: int
    loads_per_s: float
    evictions_per_s: float
    eviction_age_s: float


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """One model, over all pods that run it just now."""

    tenant: str
    id: str
    requests_per_s: float
    requests_in_flight: float
    queue_delay_s: float
    """The longest of its copies'."""
    run_s: float
    pods: tuple[str, ...]
    """The busiest first."""


@dataclass(frozen=True, slots=True)
class Look:
    """The pool between two looks."""

    pods: tuple[PodFigures, ...]
    models: tuple[ModelFigures, ...]
    """The hottest, hottest first."""
    models_registered: int
    remarks: tuple[str, ...]


def look(before: Sequence[Any], after: Sequence[Any], passed_s: float, models_max: int, now_s: float) -> Look:
    """The figures; both are lists of PodDescription. `now_s` is Unix time."""
    known = {pod.pod: pod for pod in before}
    return Look(
        tuple(_pod(known.get(pod.pod), pod, max(passed_s, 1e-3)) for pod in in_order(after)),
        tuple(_hottest(after)[:models_max]),
        max((pod.models_registered for pod in after), default=0),
        tuple(remarks(in_order(after), now_s)),
    )


def _pod(before: Any | None, pod: Any, passed_s: float) -> PodFigures:
    def per_s(count: str) -> float:
        if before is None or before.started_at_ms != pod.started_at_ms:
            return 0.0
        return float(max(0, getattr(pod, count) - getattr(before, count)) / passed_s)

    hits, misses = per_s("hits"), per_s("misses")
    return PodFigures(
        pod=pod.pod,
        state=pod_state(pod),
        requests_per_s=pod.requests_per_s,
        requests_in_flight=pod.requests_in_flight,
        requests_waiting=pod.requests_waiting,
        hit_fraction=hits / (hits + misses) if hits + misses else None,
        queue_delay_s=pod.queue_delay_s,
        models=pod.models_resident,
        models_parked=pod.models_parked,
        used_bytes=used_bytes(pod),
        capacity_bytes=capacity_bytes(pod),
        loading=pod.models_loading + pod.loads_queued,
        loads_per_s=per_s("loads"),
        evictions_per_s=per_s("evictions"),
        eviction_age_s=pod.eviction_age_s,
    )


def _hottest(pods: Sequence[Any]) -> list[ModelFigures]:
    found: dict[tuple[str, str], list[tuple[str, Any]]] = {}
    for pod in in_order(pods):
        for model in pod.busy:
            found.setdefault((model.tenant, model.id), []).append((pod.pod, model))
    figures = [_model(*name, copies) for name, copies in found.items()]
    # 1. the most requests; 2. the most in flight; 3. the name.
    return sorted(figures, key=lambda model: (-model.requests_per_s, -model.requests_in_flight, model.tenant, model.id))


def _model(tenant: str, model_id: str, copies: list[tuple[str, Any]]) -> ModelFigures:
    busiest_first = sorted(copies, key=lambda copy: (-copy[1].requests_per_s, copy[0]))
    rate = sum(model.requests_per_s for _, model in copies)
    runs_s = sum(model.requests_per_s * model.run_s for _, model in copies)
    return ModelFigures(
        tenant,
        model_id,
        requests_per_s=rate,
        requests_in_flight=sum(model.requests_in_flight for _, model in copies),
        queue_delay_s=max(model.queue_delay_s for _, model in copies),
        run_s=runs_s / rate if rate else max(model.run_s for _, model in copies),
        pods=tuple(pod for pod, _ in busiest_first),
    )


def headline(taken: Look) -> str:
    """The pool in one line."""
    ready = sum(pod.state.startswith("ready") for pod in taken.pods)
    used = sum(pod.used_bytes for pod in taken.pods)
    capacity = sum(pod.capacity_bytes for pod in taken.pods)
    share = f" ({used / capacity:.0%})" if capacity else ""
    return (
        f"{ready} of {len(taken.pods)} pods ready · {taken.models_registered:,} models, "
        f"{sum(pod.models for pod in taken.pods):,} copies · {show_size(used)} of {show_size(capacity)}{share} · "
        f"{show_rate(sum(pod.requests_per_s for pod in taken.pods))} req/s, "
        f"{sum(pod.requests_in_flight for pod in taken.pods)} in flight"
    )


def pod_row(pod: PodFigures) -> list[str]:
    """One line."""
    return [
        pod.pod,
        pod.state,
        show_rate(pod.requests_per_s),
        str(pod.requests_in_flight),
        str(pod.requests_waiting),
        "-" if pod.hit_fraction is None else f"{pod.hit_fraction:.0%}",
        _milliseconds(pod.queue_delay_s),
        show_models(pod.models, pod.models_parked),
        f"{pod.used_bytes / pod.capacity_bytes:.0%}" if pod.capacity_bytes else "-",
        str(pod.loading),
        show_rate(pod.loads_per_s),
        show_rate(pod.evictions_per_s),
        show_age(pod.eviction_age_s) if pod.eviction_age_s else "-",
    ]


def model_row(model: ModelFigures) -> list[str]:
    """One line."""
    more = len(model.pods) - _PODS_NAMED_MAX
    pods = ", ".join(model.pods[:_PODS_NAMED_MAX]) + (f" and {more} more" if more > 0 else "")
    return [
        model.id if model.tenant == "default" else f"{model.tenant}/{model.id}",
        show_rate(model.requests_per_s),
        f"{model.requests_in_flight:.1f}",
        _milliseconds(model.queue_delay_s),
        _milliseconds(model.run_s),
        str(len(model.pods)),
        pods,
    ]


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds else "-"


def as_values(taken: Look) -> dict[str, Any]:
    """For JSON."""
    return asdict(taken)
