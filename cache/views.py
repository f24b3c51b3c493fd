"""What others may look at: immutable pictures of the cache for eviction policies, status pages, metrics and `explain`.

A picture is taken on demand and stays as it was. Deliberately absent: anything that could change the cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cache.history import NEVER_USED, Uses
from cache.thrash import Thrashing
from cache.types import NO_BYTES, Bytes, CopyState, ModelKey, Shared


@dataclass(frozen=True, slots=True)
class CopyView:
    """One copy as it was at one moment."""

    copy_id: int
    key: ModelKey
    state: CopyState
    size: Bytes
    """Bytes that it is known to take; an estimate until it is loaded."""
    charged: Bytes
    """Bytes that the ledger holds for it; less than `size` only while others make room."""
    since_s: float
    """When it entered `state`."""
    last_used_s: float
    pins: int
    """Requests that hold it now."""
    waiters: int
    priority: int
    pinned: bool
    """Never evicted for another. Asked for by the spec and granted within the tenant's limit."""
    protected_until_s: float
    """Minimum residency: before this only a request that has waited long may evict it."""
    load_time_s: float
    """What fetching and loading it took last time; 0 before the first load."""
    return_time_s: float = 0.0
    """What bringing it back would take, from the tier below."""
    uses: Uses = NEVER_USED
    shared: Shared = ()
    """The parts of `charged` that other copies may hold as well."""
    comes_back: bool = False
    """Of those that may leave it is the last: its leaving would only cause another load."""

    @property
    def tenant(self) -> str:
        return self.key.tenant


@dataclass(frozen=True, slots=True)
class TenantUse:
    """One tenant's part of the pod."""

    held: Bytes
    """Every byte that is charged to it, those on their way out as well."""
    guarantee: Bytes = NO_BYTES
    """What it keeps, once it has it, whatever others want."""
    limit: Bytes = NO_BYTES
    """The most that it may hold; a place that is not named is not limited."""


@dataclass(frozen=True, slots=True)
class Usage:
    """The ledger and the counts at one moment."""

    capacity: Bytes
    used: Bytes
    """Reserved + resident + unloading; never above `capacity`."""
    free: Bytes
    overdraft: Bytes
    """Bytes that loaded copies were measured to take beyond what could be charged; victims are on their way."""
    bytes_by_state: Mapping[CopyState, Bytes]
    tenants: Mapping[str, TenantUse]
    """Those that hold something here, and those that have a share."""
    pinned_bytes_by_tenant: Mapping[str, int]
    copies_by_state: Mapping[CopyState, int]
    waiters: int
    oldest_use_s: float | None
    """When the longest unused servable copy was last used: now - this is the pod's eviction age."""
    saved_by_sharing: Bytes
    """What copies that share content would take more, if each had its own."""
    evictions_total: int
    """Copies that made room on a device, since the start."""
    parkings_total: int
    """Those of them that went into the host tier."""
    policy: str = ""
    """Who chooses them."""
    prefetches: int = 0
    """Copies that were to be brought in before anybody asked, since the start."""
    prefetches_used: int = 0
    """Of these, those that somebody asked for before they left."""
    prefetches_wasted: int = 0
    """Of these, those that nobody asked for."""
    thrashing: Thrashing | None = None
    """The working set exceeds the capacity."""
    thrashing_episodes: int = 0
    """Times that it began to, since the start."""


@dataclass(frozen=True, slots=True)
class QueueEntry:
    """One model on its way in, in the order in which loads are considered."""

    copy_id: int
    key: ModelKey
    state: CopyState
    waiters: int
    foreground: bool
    priority: int
    urgent_s: float
    """Earliest of its waiters' deadlines and of their arrivals + patience."""
    needed: Bytes
    """Bytes it will reserve; empty while unknown."""
    blocked: str | None
    """Why it cannot get its bytes now."""


@dataclass(frozen=True, slots=True)
class Note:
    """Something worth remembering: an eviction, a failure, a refusal to pin."""

    at_s: float
    key: ModelKey
    copy_id: int | None
    text: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a model is here, not here, or refused."""

    key: ModelKey
    summary: str
    copies: tuple[CopyView, ...]
    """The current copy first, then those on their way out."""
    known_size: Bytes | None
    predicted_load_s: float
    retry_at_s: float | None
    """A remembered failure keeps it out until then; infinite when permanent."""
    notes: tuple[Note, ...]
    """Oldest first; bounded."""
    tenant_share: str = ""
    """What its tenant holds, keeps and may hold on this pod; empty where it has no share of its own."""
