"""Which leases stand, and until when. Pure: `now_s` comes from the caller, on any clock that does not jump."""

from __future__ import annotations

from dataclasses import dataclass

from placement.errors import LeaseNotFound, LimitExceeded

TTL_MAX_S = 9_000_000_000.0
"""etcd's bound on a lease."""


@dataclass(slots=True)
class _Lease:
    ttl_s: float
    expires_at_s: float


def check_ttl(ttl_s: float) -> None:
    """Raise LimitExceeded unless a lease can have this time to live."""
    if not 0 < ttl_s <= TTL_MAX_S:
        raise LimitExceeded(f"ttl_s is {ttl_s}; a lease lives above 0 and up to {TTL_MAX_S:.0f} seconds")


class LeaseTable:
    """The leases of one store in this process."""

    def __init__(self) -> None:
        self._leases: dict[int, _Lease] = {}

    def __len__(self) -> int:
        return len(self._leases)

    def __contains__(self, lease: int) -> bool:
        return lease in self._leases

    def add(self, lease: int, ttl_s: float, now_s: float) -> None:
        """A lease that begins now."""
        self._leases[lease] = _Lease(ttl_s, now_s + ttl_s)

    def renew(self, lease: int, now_s: float) -> None:
        """Its time begins anew. Raises LeaseNotFound, also for one whose time is up though nobody has looked yet."""
        held = self._leases.get(lease)
        if held is None or held.expires_at_s <= now_s:
            raise LeaseNotFound(lease)
        held.expires_at_s = now_s + held.ttl_s

    def remove(self, lease: int) -> None:
        """It is gone, by time or by revocation."""
        self._leases.pop(lease, None)

    def expired(self, now_s: float) -> list[int]:
        """Leases whose time is up, in order."""
        return sorted(lease for lease, held in self._leases.items() if held.expires_at_s <= now_s)
