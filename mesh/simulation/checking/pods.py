"""What checkers want to know of the pods and of the ways between them, at any moment and for a while back."""

from __future__ import annotations

from typing import Protocol

from mesh.simulation.contents import Contents
from mesh.simulation.network import CLIENTS, Network
from mesh.simulation.pod import SimulatedPod
from mesh.simulation.scenario import Scenario
from mesh.simulation.store import StoreServer
from mesh.simulation.virtual_loop import Life
from mesh.simulation.workload import Workload


class Run(Protocol):
    """The run that is being checked."""

    scenario: Scenario
    pods: dict[str, SimulatedPod]
    """Machine -> its pod; none while the machine has no process."""
    network: Network
    store: StoreServer
    contents: Contents
    workload: Workload
    last_trouble_s: float
    """When a pod, or the network, was last seen in trouble. The store's troubles do not count: a pool must live with
    them."""

    def machines_of(self) -> list[str]:
        """Names of all machines."""

    def now_s(self) -> float:
        """Virtual time."""

    def troubled(self) -> bool:
        """A pod or the network is in trouble now."""


def undisturbed_since(pod: SimulatedPod, since_s: float) -> bool:
    """The pod was ready then, has run all the while, and has not been told to stop."""
    return (
        pod.process.life is Life.RUNNING
        and pod.ready_s is not None
        and pod.ready_s <= since_s
        and pod.thawed_s <= since_s
        and pod.leaving_s is None
    )


def open_since(network: Network, source: str, target: str, since_s: float) -> bool:
    """Messages got from one machine to the other all the while; those of clients always do."""
    if CLIENTS in (source, target) or source == target:
        return True
    way = (source, target)
    return way not in network.broken_since_s and network.mended_s.get(way, -1.0) < since_s


def connected_since(network: Network, one: str, other: str, since_s: float) -> bool:
    """Messages passed both ways."""
    return open_since(network, one, other, since_s) and open_since(network, other, one, since_s)


def room_bytes(pod: SimulatedPod) -> int:
    """What a model may take there, beside what is pinned."""
    usage = pod.node.cache.usage()
    return usage.capacity.total_bytes - sum(usage.pinned_bytes_by_tenant.values())
