"""The seam between the leader and the pods: orders go out, and a pod's last view can be asked for.

An order is accepted or not, quickly; what comes of it shows in the copies and failures that the pod publishes, like
everything else that it does. So nothing waits here, an order that is lost is given again by the next turn that still
wants it, and one that is given twice does no harm. Orders to the leader's own pod go through the same seam.

The mesh carries this over gRPC, the simulator over a fake network; `placement.fake_peers` is the fake that ships.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from placement.policy.snapshot import ModelName
from placement.records import AliasRecord, ModelRecord


@dataclass(frozen=True, slots=True)
class LoadOrder:
    """Load this generation, whoever else holds it: the leader wants a copy on this pod."""

    name: ModelName
    generation: int
    reason: str
    wait: bool = False
    """Answer only when it is servable (a drain that hands over); else when it is accepted."""


@dataclass(frozen=True, slots=True)
class UnloadOrder:
    """Let go of this generation: the pool has enough of it. The pod refuses what only it knows to be wrong."""

    name: ModelName
    generation: int
    reason: str
    even_last: bool = False
    """Somebody wants it out of memory everywhere; else a pod keeps the last copy."""


Order = LoadOrder | UnloadOrder


class PeerError(Exception):
    """The pod cannot be reached, or does not take the order. The next turn decides anew."""

    def __init__(self, pod: str, message: str) -> None:
        super().__init__(f"pod {pod!r}: {message}")
        self.pod = pod
        self.message = message


class Peers(Protocol):
    """Every pod of the pool, this one included. Calls are bounded in time by the implementation."""

    async def order(self, pod: str, orders: Sequence[Order]) -> None:
        """All are accepted when this returns (with `wait`: done). Raises PeerError; some may be accepted then."""

    async def export_names(self, pod: str) -> tuple[list[ModelRecord], list[AliasRecord]]:
        """What the pod last knew to be registered, for the time after the store lost it. Raises PeerError."""
