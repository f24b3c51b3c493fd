"""Every limit of the cache in one place: unit in the name, a default, and the reason for it.

Deliberately absent: where the values come from. The pod's settings read the environment once and pass this in.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cache.tenancy import TenantShares, check_shares
from cache.types import Bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheLimits:
    """What this pod may hold, run and remember. Raises ValueError on a value that could stop the machine."""

    capacity: Bytes
    """Bytes per place. A place that is missing here has none: a model that needs it is TOO_BIG."""

    loads_concurrent_max: int = 4
    """Loads at once. Loads are CPU-bound after the fetch; more than the cores only stretches each of them."""

    fetches_concurrent_max: int = 16
    """Fetches at once. They wait for networks, so more of them than loads; bounded for disk and sockets."""

    loads_pending_max: int = 4096
    """Models that are queued, fetched or wait for space at once; one more is OVERLOADED. Bounds the queues."""

    waiters_per_model_max: int = 1024
    """Requests that wait for one model; bounds what a single cold model can hold back in memory."""

    waiters_total_max: int = 16384
    """Requests that wait in all; each holds its message in memory."""

    wait_max_s: float = 300.0
    """A waiter without a deadline, or with a later one, is answered by then, whatever hangs."""

    patience_s: float = 5.0
    """In the load queue a waiter's deadline counts as at most its arrival + this. So a stream of short deadlines
    passes a patient request for this long only."""

    space_wait_max_s: float = 10.0
    """How long the first of the queue may hold its claim while all else is in use, before it is refused as FULL.
    Loads behind it wait meanwhile, which is why it is short."""

    residency_min_s: float = 3.0
    """A copy stays for a while after its load, or it was loaded in vain (churn): at most this long."""

    residency_load_times: float = 10.0
    """And at most this many times what its load took: what comes back in milliseconds need not be held for seconds."""

    residency_override_wait_s: float = 1.0
    """A request that has waited this long for space may evict younger copies than `residency_min_s`."""

    ttl_s: float | None = None
    """An idle copy is unloaded after this; None (or zero) keeps it until its bytes are needed."""

    background_may_evict: bool = False
    """May a background load evict copies that are past their residency? Off: a guess must not cost a sure thing."""

    prefetch: bool = False
    """Bring in models before their next use where that can be told (`cache.prefetch`)."""

    prefetch_period_min_s: float = 30.0
    """The shortest period of a timer whose model is brought in: what comes more often stays, or should."""

    prefetches_pending_max: int = 4
    """Prefetches on their way in at once; further ones are dropped. They take load slots that requests may need."""

    failure_backoff_base_s: float = 1.0
    """First pause after a transient failure; doubles with each one."""

    failure_backoff_max_s: float = 60.0
    """The longest pause: how late the end of an outage is noticed."""

    failures_remembered_max: int = 10_000
    """Failed models that are remembered; beyond it the oldest is forgotten, which costs one more attempt."""

    models_remembered_max: int = 100_000
    """Models whose measured size and load time are remembered after their copy left."""

    retired_remembered_s: float = 10.0
    """A Want that raced with its model's retirement is refused for this long; then the registry has the word."""

    load_time_default_s: float = 0.0
    """Predicted load time of a model that was never loaded here. Zero: without evidence nobody is turned away."""

    load_time_weight: float = 0.3
    """Weight of the newest load in the moving average of load times: three loads settle a change."""

    pinned_bytes_per_tenant_max: int | None = None
    """Bytes (all places together) that one tenant may pin; None is half of the capacity, so that others can load."""

    thrash_control: bool = True
    """While the working set exceeds the capacity: do loads that must evict something wait for their turns?"""

    thrash_load_share: float = 0.15
    """Of the time of all load slots, what such loads may take then. The rest is for serving what is resident; less
    makes cold requests wait longer."""

    tenants: TenantShares = field(default_factory=dict)
    """What each tenant is guaranteed, and may hold at most; who is not named has neither."""

    history_max: int = 512
    """Evictions, failures and other notes that `explain` can look back on."""

    def __post_init__(self) -> None:
        for name in (
            "loads_concurrent_max",
            "fetches_concurrent_max",
            "loads_pending_max",
            "waiters_per_model_max",
            "waiters_total_max",
            "failures_remembered_max",
            "models_remembered_max",
            "history_max",
            "wait_max_s",
            "patience_s",
            "failure_backoff_base_s",
            "failure_backoff_max_s",
        ):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above zero, or nothing could be served.")
        for name in (
            "space_wait_max_s",
            "residency_min_s",
            "residency_load_times",
            "residency_override_wait_s",
            "retired_remembered_s",
            "load_time_default_s",
            "prefetch_period_min_s",
        ):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be zero or more seconds.")
        if not 0 < self.load_time_weight <= 1:
            raise ValueError(f"load_time_weight is {self.load_time_weight}; it must lie in (0, 1].")
        if not 0 < self.thrash_load_share <= 1:
            raise ValueError(f"thrash_load_share is {self.thrash_load_share}; it must lie in (0, 1].")
        if any(count < 0 for _, count in self.capacity):
            raise ValueError(f"capacity is {self.capacity}; every component must be zero or more bytes.")
        check_shares(self.tenants, self.capacity)

    @property
    def pinned_bytes_max(self) -> int:
        """The pin limit of one tenant in bytes."""
        if self.pinned_bytes_per_tenant_max is not None:
            return self.pinned_bytes_per_tenant_max
        return self.capacity.total_bytes // 2
