"""Whether the disk tier's capacity is there: checked when the pod starts, against the file system that it lies on.

A capacity that the file system could never hold, and that somebody asked for, is a mistake, and the pod says so instead
of failing at some fetch weeks later. One that is not free now may become so, and a default was asked for by nobody:
those are told, and the pod starts. A fetch that meets a full disk fails for the time being and evicts nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class DiskRoom:
    """What there is to say; both empty when all is well."""

    error: str = ""
    warning: str = ""


def disk_room(
    capacity_bytes: int, *, asked_for: bool, used_bytes: int, free_bytes: int, total_bytes: int, where: str
) -> DiskRoom:
    """`used_bytes`: what the disk tier itself holds already."""
    attainable_bytes = used_bytes + free_bytes
    if capacity_bytes <= attainable_bytes:
        return DiskRoom()
    have = f"the file system of {where} has {free_bytes // MIB:,} MiB free of {total_bytes // MIB:,} MiB"
    if asked_for and capacity_bytes > total_bytes:
        return DiskRoom(
            error=f"disk_capacity: {capacity_bytes // MIB:,} MiB asked for, but {have}; lower --disk-capacity, or give "
            "--data-dir a larger volume"
        )
    return DiskRoom(
        warning=f"the disk tier may hold {capacity_bytes // MIB:,} MiB, but {have}, and {used_bytes // MIB:,} MiB are "
        "its own: fetches will fail when it is full; lower --disk-capacity, or give --data-dir a larger volume"
    )
