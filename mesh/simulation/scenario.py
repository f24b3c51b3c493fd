"""What one seed simulates: how large the pool is, what it serves, and what is done to it.

Everything is drawn once, from the seed, so that seeds differ in kind and not only in luck: some pools are small and
tight, some have zones or bad clocks, in some only the store fails, in some nothing does (an error there is a bug).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from mesh.simulation.chance import stream, weighted
from mesh.simulation.contents import MIB
from mesh.simulation.network import NetworkConditions
from mesh.simulation.store import StoreConditions


class Fault(Enum):
    """What can be done to a pool."""

    CRASH = "crash"
    FREEZE = "freeze"
    SLOW = "slow pod"
    CUT_STORE = "pod cut off from the store"
    CUT_PODS = "two pods cut off from each other"
    ISOLATE = "pod cut off from all pods"
    STORE_AWAY = "store away"
    WIPE = "store wiped"
    COMPACT = "history compacted"
    EXPIRE = "lease lost"
    RESTART = "pod drained and restarted"


_KINDS: tuple[tuple[dict[Fault, float], float], ...] = (
    # Everything.
    (dict.fromkeys(Fault, 1.0) | {Fault.WIPE: 0.1}, 5.0),
    # Nothing: whatever goes wrong here is our own doing.
    ({}, 1.0),
    # Pods only.
    ({Fault.CRASH: 3, Fault.FREEZE: 2, Fault.SLOW: 1, Fault.RESTART: 1}, 2.0),
    # The store only.
    ({Fault.CUT_STORE: 2, Fault.STORE_AWAY: 2, Fault.WIPE: 0.5, Fault.COMPACT: 1, Fault.EXPIRE: 1}, 2.0),
    # The network only.
    ({Fault.CUT_PODS: 3, Fault.ISOLATE: 2, Fault.CUT_STORE: 2}, 1.0),
    # A rolling restart.
    ({Fault.RESTART: 1}, 1.0),
)
"""Faults by weight, and how often such a seed comes."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One run. Times in seconds, rates per second."""

    seed: int
    steps: int
    """Events between the first registrations and the end of the faults; what comes before and after is on top."""
    pods: int
    zones: int
    capacity_bytes: int
    lease_ttl_s: float
    clock_error_s: float
    """Wall clocks are wrong by up to this."""
    models: int
    tenants: int
    models_fit_share: float
    """How much of what is registered fits into the pool."""
    zipf_exponent: float
    requests_per_s: float
    flash_every_s: float
    """Mean time between flash crowds: one model takes most of the traffic for a while."""
    changes_every_s: float
    """Mean time between changes of registrations."""
    flawed_share: float
    """Of contents that fail now and then, always, or kill."""
    faults: tuple[tuple[Fault, float], ...]
    fault_every_s: float
    """Mean time between faults."""
    store: StoreConditions
    network: NetworkConditions
    disk_artifacts_max: int
    """Of a machine: in some runs disks forget what memory has forgotten."""


def draw_scenario(seed: int, steps: int) -> Scenario:
    """The scenario of a seed."""
    random = stream(seed, "scenario")
    faults = weighted(random, _KINDS)
    slow_line = random.random() < 0.2
    return Scenario(
        seed=seed,
        steps=steps,
        pods=random.choice((2, 3, 3, 4, 4, 5)),
        zones=random.choice((1, 1, 2, 3)),
        capacity_bytes=random.choice((600, 1000, 2000)) * MIB,
        lease_ttl_s=random.choice((2.0, 4.0, 8.0)),
        clock_error_s=random.choice((0.0, 0.0, 300.0)),
        models=random.choice((8, 20, 40)),
        tenants=random.choice((1, 1, 2)),
        models_fit_share=random.choice((0.5, 0.8, 1.5)),
        zipf_exponent=random.choice((0.6, 1.0, 1.4)),
        requests_per_s=random.choice((5.0, 15.0, 30.0)),
        flash_every_s=random.choice((15.0, 40.0)),
        changes_every_s=random.choice((2.0, 6.0)),
        flawed_share=random.choice((0.0, 0.0, 0.1, 0.2)),
        faults=tuple((fault, float(weight)) for fault, weight in faults.items()),
        fault_every_s=random.choice((2.0, 5.0, 10.0)),
        store=StoreConditions(one_way_s=0.03 if slow_line else 0.002, watch_s=0.06 if slow_line else 0.004),
        network=NetworkConditions(one_way_s=0.01 if slow_line else 0.0003),
        disk_artifacts_max=random.choice((6, 1_000)),
    )
