"""What each tenant is sure to keep on this pod, and the most that it may hold.

The problem: tenants share a pod's memory so that one's idle bytes serve another's models; but then one tenant's scan
(every model once) empties the pod of everybody's models. The idea is a guarantee and a limit per tenant, in bytes per
place:

* What a tenant holds up to its guarantee is not evicted for another. Beyond it, it borrows: such copies go like any
  others, in the order of the eviction policy.
* A tenant that is still within its guarantee gets its bytes from borrowers first, and only then from its own copies:
  it must fare no worse than with a cache of its own of that size.
* A tenant at its limit evicts its own copies, however much is free. While it waits for them it holds no place in the
  line and owes no bytes: its own limit is nobody else's concern.

A copy leaves whole or not at all. So that a guarantee always holds, a copy that lies across it stays: a tenant may
thus keep up to one copy more than its guarantee, and what is left for others is less by as much.

A guarantee counts servable copies alone: what is still being loaded cannot serve in the place of what would leave.
A limit counts every byte, those on their way out as well.

Pure. `TenantTally` is the account of one plan, changed while the plan is made and thrown away with it.
Deliberately absent: the pool. Shares are the same on every pod that is started with them; who loads where is
placement's. A smaller capacity (memory pressure) is no tenant's doing: what leaves then is not guaranteed, and
guarantees shrink with the capacity.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from cache.sharing import Holding, bytes_of, counted_once
from cache.types import NO_BYTES, Bytes, ModelKey, Shared, SharedPart
from cache.views import CopyView


@dataclass(frozen=True, slots=True)
class TenantShare:
    """One tenant's part of a pod. A place that `limit` does not name is not limited."""

    guarantee: Bytes = NO_BYTES
    limit: Bytes = NO_BYTES

    def beyond_limit(self, held: Bytes) -> Bytes:
        """By how much this exceeds the limit, where there is one."""
        over = ((place, held[place] - limit_bytes) for place, limit_bytes in self.limit)
        return Bytes(tuple((place, count) for place, count in over if count > 0))


NO_SHARE = TenantShare()

TenantShares = Mapping[str, TenantShare]
"""By tenant; one that is not named has no guarantee and no limit."""


def check_shares(shares: TenantShares, capacity: Bytes) -> None:
    """Raise ValueError when the guarantees cannot all be kept at once, or one is above its own limit."""
    for tenant, share in sorted(shares.items()):
        if over := share.beyond_limit(share.guarantee):
            raise ValueError(
                f"tenant {tenant!r} is guaranteed {share.guarantee} and limited to {share.limit}: {over} too much; "
                "a guarantee must lie within the limit"
            )
    promised = Bytes.sum(share.guarantee for share in shares.values())
    if lacking := promised.missing_from(capacity):
        named = ", ".join(f"{tenant}: {share.guarantee}" for tenant, share in sorted(shares.items()) if share.guarantee)
        raise ValueError(
            f"the tenants' guarantees add up to {promised} ({named}), {lacking} more than the capacity of {capacity}; "
            "lower the shares, or raise --capacity"
        )


def guarantees_within(shares: TenantShares, capacity: Bytes) -> dict[str, Bytes]:
    """Each tenant's guarantee on a pod that can hold only `capacity` now: less of each in a place that is too small."""
    promised = Bytes.sum(share.guarantee for share in shares.values())
    kept = {place: (min(count, capacity[place]), count) for place, count in promised}
    return {
        tenant: Bytes.from_mapping(
            {place: count * kept[place][0] // kept[place][1] for place, count in share.guarantee}
        )
        for tenant, share in shares.items()
        if share.guarantee
    }


@dataclass(frozen=True, slots=True)
class Claimant:
    """For whom others would leave, and who is protected against it."""

    tenant: str
    within_guarantee: bool
    """With what it claims its tenant holds no more than its guarantee."""
    spare: Mapping[str, Bytes]
    """Of each tenant with a guarantee: what it holds beyond it; negative where it holds less."""

    def may_take(self, copy: CopyView, spare: Mapping[str, Bytes]) -> bool:
        """Whether this copy may leave for the claimant. `spare` is what is left of it in the course of the plan."""
        if copy.key.tenant == self.tenant:
            return True
        left = spare.get(copy.key.tenant)
        return left is None or not copy.charged.missing_from(left)


class TenantTally:
    """What the tenants hold, while one plan is made."""

    __slots__ = ("_guarantees", "_now", "_parts", "_planned", "_shares", "_spare")

    def __init__(
        self,
        shares: TenantShares,
        guarantees: Mapping[str, Bytes],
        *,
        held: Mapping[str, Bytes],
        leaving: Mapping[str, Bytes],
        servable: Mapping[str, Bytes],
        parts: Mapping[str, Collection[SharedPart]],
    ) -> None:
        """`held`: all bytes charged to each tenant; `leaving`: those that come free in a moment; `servable`: those of
        copies that are of use where they are.

        A part that several of a tenant's copies share counts once for it, and once for each tenant. `parts`: those
        that each tenant holds.
        """
        self._shares = shares
        self._parts = parts
        self._guarantees = guarantees
        self._now = dict(held)
        self._planned = {tenant: amount - leaving.get(tenant, NO_BYTES) for tenant, amount in held.items()}
        self._spare = {tenant: servable.get(tenant, NO_BYTES) - amount for tenant, amount in guarantees.items()}

    def held(self, tenant: str) -> Bytes:
        """What the tenant holds, without what is leaving."""
        return self._planned.get(tenant, NO_BYTES)

    def lacking(self, tenant: str, needed: Bytes, parts: Shared) -> Bytes:
        """What the tenant would hold more, since it holds some of these parts already."""
        held = self._parts.get(tenant, ())
        return needed - bytes_of(part for part in parts if part in held)

    def beyond_limit(self, tenant: str, needed: Bytes) -> Bytes:
        """What the tenant's own copies must free before it may hold `needed` more."""
        share = self._shares.get(tenant)
        return NO_BYTES if share is None else share.beyond_limit(self._planned.get(tenant, NO_BYTES) + needed)

    def must_wait(self, tenant: str, needed: Bytes) -> bool:
        """Whether bytes of the tenant must come free, as planned, before it may hold `needed` more."""
        share = self._shares.get(tenant)
        return share is not None and bool(share.beyond_limit(self._now.get(tenant, NO_BYTES) + needed))

    def claimant(self, tenant: str, needed: Bytes) -> Claimant:
        """The tenant, about to claim bytes from others."""
        guarantee = self._guarantees.get(tenant)
        within = guarantee is not None and not (self._planned.get(tenant, NO_BYTES) + needed).missing_from(guarantee)
        return Claimant(tenant, within, self._spare)

    def claimed(self, tenant: str, needed: Bytes, *, starts: bool) -> None:
        """The claim is granted; `starts`: at once."""
        if tenant in self._shares:
            self._planned[tenant] = self._planned.get(tenant, NO_BYTES) + needed
            if starts:
                self._now[tenant] = self._now.get(tenant, NO_BYTES) + needed

    def leaves(self, tenant: str, freed: Bytes) -> None:
        """One of the tenant's servable copies will go."""
        if tenant in self._spare:
            self._spare[tenant] -= freed
        if tenant in self._planned:
            self._planned[tenant] -= freed


@dataclass(frozen=True, slots=True)
class Crossing:
    """One eviction of a tenant's copy for another tenant, and what that left."""

    key: ModelKey
    for_tenant: str
    freed: Bytes
    left: Bytes
    """Servable bytes of the tenant without this copy."""
    guarantee: Bytes

    def is_allowed(self) -> bool:
        """Whether the tenant keeps its guarantee in every place in which it lost bytes."""
        return all(self.left[place] >= self.guarantee[place] for place, count in self.freed if count > 0)


class Charged(Holding, Protocol):
    """A copy, or a picture of one."""

    @property
    def key(self) -> ModelKey:
        """Whose model it is a copy of."""


def sums_by_tenant(copies: Iterable[Charged]) -> dict[str, Bytes]:
    """What each tenant holds in all; what several of its copies share counts once."""
    by_tenant: dict[str, list[Charged]] = {}
    for copy in copies:
        by_tenant.setdefault(copy.key.tenant, []).append(copy)
    return {tenant: counted_once(each) for tenant, each in by_tenant.items()}
