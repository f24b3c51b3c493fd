"""What a copy is expected to take, and by how much an expectation is corrected. Pure.

Before its first load a model's size is the adapter's estimate from the artifact, which for every format is within a few
percent (`make bench`, sizes), or what another pod has measured. How far a declared size is believed beside it is the
cache's rule (`cache.admission.first_reservation`). The first load measures, and from then on neither counts.

After a framework ran out of memory, what it was given was too little: half as much again.
"""

from __future__ import annotations

from cache.types import Bytes

MIB = 1 << 20
DECLARED_OFF_SHARE = 0.25
"""A declaration this far from the measured size is worth telling its author."""
RAN_OUT_FACTOR = 1.5
WORKSPACE_PER_REQUEST_BYTE = 8
"""Of a run that found no memory: a few activations of the size of its input at the same time."""
WORKSPACE_MIN_BYTES = 16 * MIB
WORKSPACE_SHARE_MAX = 0.25
"""Of the capacity: one client's request must not make a model too big for the pod."""


def reserved_after_running_out(reserved: Bytes) -> Bytes:
    """What the second try of a load reserves."""
    return Bytes.from_mapping({place: int(count * RAN_OUT_FACTOR) for place, count in reserved})


def workspace_after_running_out(copy_bytes: int, request_bytes: int, capacity_bytes: int) -> int:
    """What a copy's runs are counted with after one found no memory."""
    wanted_bytes = max(copy_bytes // 2, WORKSPACE_PER_REQUEST_BYTE * request_bytes, WORKSPACE_MIN_BYTES)
    return min(wanted_bytes, int(WORKSPACE_SHARE_MAX * capacity_bytes))


def wrong_declaration(declared_bytes: int | None, measured_bytes: int) -> str:
    """A sentence where a declared size is far off; else empty."""
    if declared_bytes is None or abs(declared_bytes - measured_bytes) <= DECLARED_OFF_SHARE * measured_bytes:
        return ""
    return f"its spec declares {declared_bytes:,} bytes and it takes {measured_bytes:,}: the measured size counts"
