"""What the server says of pods, as cells of a table. No effects, no network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from mesh.cli.sizes import show_age, show_size

POD_HEADINGS = (
    "pod", "state", "zone", "models", "used", "capacity", "in flight", "req/s", "queued", "oldest use", "version",
)  # fmt: skip
POD_NUMBERS = ("models", "used", "capacity", "in flight", "req/s", "queued", "oldest use")


def pod_state(pod: Any) -> str:
    """`ready`, `ready, leader`, `draining`, `not ready`, `unreachable`."""
    if not pod.reachable:
        state = "unreachable"
    elif pod.draining:
        state = "draining"
    else:
        state = "ready" if pod.ready else "not ready"
    return f"{state}, leader" if pod.leader else state


def capacity_bytes(pod: Any) -> int:
    """For models, on the devices that serve them."""
    return sum(tier.capacity_bytes for tier in pod.tiers if tier.tier == "device")


def used_bytes(pod: Any) -> int:
    """By models that are here, come or go."""
    return sum(
        tier.resident_bytes + tier.reserved_bytes + tier.unloading_bytes for tier in pod.tiers if tier.tier == "device"
    )


def show_used(pod: Any) -> str:
    """`512.0 MiB (50%)`."""
    capacity, used = capacity_bytes(pod), used_bytes(pod)
    return f"{show_size(used)} ({used / capacity:.0%})" if capacity else show_size(used)


def show_models(resident: int, parked: int) -> str:
    """`12`, or `12 +3 parked` where some lie in RAM beside a GPU."""
    return f"{resident} +{parked} parked" if parked else str(resident)


def show_rate(per_s: float) -> str:
    """Of requests: `0`, `0.4`, `12`, `1,250`."""
    return f"{per_s:,.0f}" if per_s >= 10 or not per_s else f"{per_s:.1f}"


def pod_row(pod: Any) -> list[str]:
    """One line of `pods`."""
    return [
        pod.pod,
        pod_state(pod),
        pod.zone or "-",
        show_models(pod.models_resident, pod.models_parked),
        show_used(pod),
        show_size(capacity_bytes(pod)),
        str(pod.requests_in_flight),
        show_rate(pod.requests_per_s),
        str(pod.models_loading + pod.loads_queued),
        show_age(pod.eviction_age_s) if pod.eviction_age_s else "-",
        pod.version,
    ]


def pod_details(pod: Any) -> list[tuple[str, str]]:
    """Everything of one pod, line by line."""
    tried = pod.hits + pod.misses
    lines = [
        ("pod", pod.pod),
        ("state", pod_state(pod)),
        ("addresses", ", ".join(pod.addresses)),
        ("transport", pod.transport),
        ("zone", pod.zone),
        ("labels", ", ".join(pod.labels)),
        ("capacity", show_size(capacity_bytes(pod))),
        ("used", show_used(pod)),
        *gpu_lines(pod),
        *disk_lines(pod),
        ("models", f"{pod.models_resident} here of {pod.models_registered} registered"),
        ("loading", f"{pod.models_loading}, and {pod.loads_queued} wait for it"),
        ("requests", f"{show_rate(pod.requests_per_s)}/s, {pod.requests_in_flight} in flight"),
        ("queue delay", f"{pod.queue_delay_s * 1000:.1f} ms" if pod.queue_delay_s else ""),
        ("hits", f"{pod.hits:,} of {tried:,} ({pod.hits / tried:.1%})" if tried else "0"),
        ("loads", f"{pod.loads:,}, {pod.load_failures:,} failed"),
        ("evicted", f"{pod.evictions:,}, by {pod.eviction_policy}" if pod.eviction_policy else f"{pod.evictions:,}"),
        ("prefetched", _show_prefetches(pod) if pod.prefetches else ""),
        ("oldest use", f"{show_age(pod.eviction_age_s)} ago" if pod.eviction_age_s else ""),
        ("memory", show_size(pod.rss_bytes) if pod.rss_bytes else ""),
        *((f"tenant {tenant.tenant}", show_tenant(tenant)) for tenant in pod.tenants),
        ("memory pressure", pod.memory_pressure),
        *((limit.name.replace("_", " "), show_limit(limit)) for limit in pod.box_limits),
        ("version", pod.version),
    ]
    return [(label, value) for label, value in lines if value]


def show_limit(limit: Any) -> str:
    """`13.9 GiB: 80% less 256 MiB of 17.76 GiB (...)`."""
    value = f"{limit.value:g}" if limit.name.endswith("threads") else show_size(int(limit.value))
    return f"{value}: {limit.origin}"


def gpu_lines(pod: Any) -> list[tuple[str, str]]:
    """Each device of a pod with GPUs, and what made room there for others."""
    devices = [tier for tier in pod.tiers if tier.tier == "device"]
    lines = []
    if any(tier.device != "cpu" for tier in devices):
        for tier in devices:
            taken = tier.resident_bytes + tier.reserved_bytes + tier.unloading_bytes
            lines.append((f"on {tier.device}", f"{show_size(taken)} of {show_size(tier.capacity_bytes)}"))
    for tier in pod.tiers:
        if tier.tier == "host":
            text = f"{show_size(tier.resident_bytes)} of {show_size(tier.capacity_bytes)} of RAM"
            lines.append(("parked", f"{pod.models_parked} models, {text}; {pod.parkings:,} since the start"))
    return lines


def disk_lines(pod: Any) -> list[tuple[str, str]]:
    """The disk tier, and what it saves; only the pod itself knows."""
    lines = []
    for tier in pod.tiers:
        if tier.tier == "disk":
            lines.append(("disk", f"{show_size(tier.resident_bytes)} of {show_size(tier.capacity_bytes)}"))
            saved = [
                f"{show_size(tier.saved_bytes)} by weights that models share" if tier.saved_bytes else "",
                f"{show_size(tier.dropped_bytes)} of originals that prepared forms stand for"
                if tier.dropped_bytes
                else "",
            ]
            lines.append(("saved on disk", ", ".join(filter(None, saved))))
    return lines


def _show_prefetches(pod: Any) -> str:
    return f"{pod.prefetches:,}, {pod.prefetches_used:,} of them asked for, {pod.prefetches_wasted:,} for nothing"


def show_tenant(tenant: Any) -> str:
    """`512.0 MiB on device:cpu, keeps 256.0 MiB, at most 1.0 GiB`."""
    place = f"{tenant.tier}:{tenant.device}" if tenant.device else tenant.tier
    text = f"{show_size(tenant.held_bytes)} on {place}"
    if tenant.guarantee_bytes:
        text += f", keeps {show_size(tenant.guarantee_bytes)}"
    return f"{text}, at most {show_size(tenant.limit_bytes)}" if tenant.limit_bytes else text


def remarks(pods: Iterable[Any], now_s: float) -> list[str]:
    """What a table has no room for, and nobody should overlook. `now_s` is Unix time."""
    found: list[str] = []
    for pod in pods:
        if not pod.reachable:
            found.append(f"{pod.pod} is unreachable, shown as it was last: {pod.why_unreachable or 'no answer'}")
        elif pod.why_unreachable:
            found.append(f"{pod.pod} is avoided: {pod.why_unreachable}")
        if pod.why_unready and not pod.draining:
            found.append(f"{pod.pod} is not ready: {pod.why_unready}")
        if pod.thrashing:
            found.append(f"{pod.pod}: {pod.thrashing}; raise --capacity, or add pods")
        if pod.memory_pressure:
            found.append(f"{pod.pod} holds less while memory is short: {pod.memory_pressure}")
        if pod.store_away_since_ms:
            away_s = now_s - pod.store_away_since_ms / 1000
            found.append(f"{pod.pod}: the store has not answered for {show_age(away_s)}; what is known goes on serving")
    notices = dict.fromkeys(notice for pod in pods for notice in pod.notices)
    return [*found, *(f"notice: {notice}" for notice in notices)]


def in_order(pods: Sequence[Any]) -> list[Any]:
    """By name."""
    return sorted(pods, key=lambda pod: str(pod.pod))
