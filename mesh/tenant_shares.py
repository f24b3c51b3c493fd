"""Tenants' parts of a pod, as the settings write them: `team-a=25%,team-b=2GiB`.

A percentage is of the capacity, in each place; bytes are of each place where models run (every GPU of the pod, if it
has one, else RAM). What the parts mean is in `cache.tenancy`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import ByteSize, TypeAdapter, ValidationError

from cache.tenancy import TenantShare
from cache.types import NO_BYTES, Bytes, Place

_PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*%")
_BYTES = TypeAdapter(ByteSize)


@dataclass(frozen=True, slots=True)
class Part:
    """So much of a pod: either a fraction of its capacity, or bytes."""

    tenant: str
    fraction: float = 0.0
    count_bytes: int = 0

    def of(self, capacity: Bytes, main: Sequence[Place]) -> Bytes:
        """The part of this capacity; `main` is where models run."""
        if self.count_bytes:
            return Bytes.from_mapping(dict.fromkeys(main, self.count_bytes))
        return Bytes.from_mapping({place: int(count * self.fraction) for place, count in capacity})


def parse_part(entry: str) -> Part:
    """`team-a=25%` or `team-b=2GiB`. Raises ValueError."""
    tenant, separator, amount = (piece.strip() for piece in entry.partition("="))
    allowed = "allowed are TENANT=N% with N above 0 and at most 100, and TENANT=SIZE such as 512MiB or 2GiB"
    if not tenant or not separator:
        raise ValueError(f"{entry[:80]!r} is not TENANT=AMOUNT; {allowed}")
    if percent := _PERCENT.fullmatch(amount):
        fraction = float(percent[1]) / 100
        if not 0 < fraction <= 1:
            raise ValueError(f"{entry[:80]!r}: {amount} is out of range; {allowed}")
        return Part(tenant, fraction=fraction)
    try:
        count_bytes = int(_BYTES.validate_python(amount))
    except ValidationError:
        count_bytes = 0
    if count_bytes <= 0:
        raise ValueError(f"{entry[:80]!r}: {amount[:40]!r} is no percentage and no size above zero; {allowed}")
    return Part(tenant, count_bytes=count_bytes)


def check_parts(entries: Sequence[str]) -> None:
    """Raises ValueError when an entry cannot be read, or a tenant is named twice."""
    seen: set[str] = set()
    for entry in entries:
        part = parse_part(entry)
        if part.tenant in seen:
            raise ValueError(f"{entry[:80]!r}: tenant {part.tenant[:40]!r} is named twice; name each tenant once")
        seen.add(part.tenant)


def tenant_shares(
    guarantees: Sequence[str], limits: Sequence[str], capacity: Bytes, main: Sequence[Place]
) -> dict[str, TenantShare]:
    """What both settings say together of a pod with this capacity."""
    guaranteed = {part.tenant: part.of(capacity, main) for part in map(parse_part, guarantees)}
    limited = {part.tenant: part.of(capacity, main) for part in map(parse_part, limits)}
    return {
        tenant: TenantShare(guaranteed.get(tenant, NO_BYTES), limited.get(tenant, NO_BYTES))
        for tenant in sorted({*guaranteed, *limited})
    }
