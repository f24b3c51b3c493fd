"""Everything of a pod that touches the world, as one value: clocks, threads, sockets, chance.

The defaults are the real ones. A simulator puts others in their place and runs the same `Node` on virtual time; tests
replace single ones. What is not here, a pod cannot get from anywhere else.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cache.types import ModelKey
from mesh.parking import DiskListener
from mesh.running import Runs
from mesh.settings import Settings
from mesh.staging import Stages
from mesh.threads import InThread, in_thread
from mesh.transport.admission import Admission
from mesh.transport.base import (
    Dial,
    Line,
    ListenAddress,
    PeerDoor,
    PeerWays,
    Routes,
    Transport,
    TransportLimits,
)
from mesh.transport.batched_line import BatchedLine
from mesh.transport.choosing import Choice
from mesh.transport.pooled_transport import PooledTransport
from runtime_adapters.memory_reading import MemoryReading, read_memory


def _listen(
    choice: Choice, routes: Routes, addresses: Sequence[ListenAddress], limits: TransportLimits, door: PeerDoor | None
) -> Transport:
    def within(admission: Admission | None = None) -> Transport:
        if choice.name == "native":
            from mesh.transport.native_transport import NativeTransport

            return NativeTransport(routes, addresses, limits, admission)
        from mesh.transport.grpcio_transport import GrpcioTransport

        return GrpcioTransport(routes, addresses, limits, admission=admission)

    return within() if door is None else PooledTransport(within, routes, limits, door)


def _dial(ways: PeerWays) -> Line:
    from mesh.transport.grpcio_line import GrpcioLine

    return BatchedLine(GrpcioLine(ways.address), ways)


@dataclass(frozen=True, slots=True)
class World:
    """What a Node gets from outside."""

    clock: Callable[[], float] = time.monotonic
    """The event loop's."""
    wall_clock: Callable[[], float] = time.time
    in_thread: InThread = in_thread
    """Runs what blocks."""
    listen: Callable[[Choice, Routes, Sequence[ListenAddress], TransportLimits, PeerDoor | None], Transport] = _listen
    dial: Dial = _dial
    staging: Callable[[Callable[[ModelKey], bool], DiskListener], Stages] | None = None
    """Made with what says which models must run apart, and with who hears what is on the disk. None: artifacts are
    fetched, and prepared, for real."""
    runner: Callable[[Settings, Callable[[float], None]], Runs] | None = None
    """Made with the settings and what observes waits. None: models run on threads."""
    read_memory: Callable[[], MemoryReading] | None = read_memory
    """The memory of the box, now; blocks. None: there is nothing to watch."""
    serves_http: bool = True
    draw: Callable[[], float] = random.random
    """In [0, 1): which model of an alias with weights serves."""
    incarnation: str = field(default_factory=lambda: secrets.token_hex(8))
    """Of this process."""
    peer_key: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    """What other pods show when they call this one; told to nobody but the pool's store."""
