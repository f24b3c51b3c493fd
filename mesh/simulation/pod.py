"""One pod: the real `Node`, as a process of the virtual loop, on a machine that may fail.

The process of a pod is started, may be frozen, and ends by itself (a drain) or is killed; the machine then starts
another one, which finds the disk of the one before it and nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from cache.types import ModelKey
from mesh.node import Node
from mesh.node_settings import CannotStart
from mesh.parking import DiskListener
from mesh.routing.pool_side import PoolSide
from mesh.running import Runs
from mesh.settings import Settings
from mesh.simulation.chance import stream
from mesh.simulation.contents import Contents
from mesh.simulation.execution import SimulatedRunner, SimulatedStaging, SimulatedThreads
from mesh.simulation.machine import Machine
from mesh.simulation.network import Network, SimulatedTransport
from mesh.simulation.scenario import Scenario
from mesh.simulation.store import StoreServer
from mesh.simulation.virtual_loop import Process, VirtualLoop
from mesh.staging import Stages
from mesh.transport.base import ListenAddress, PeerDoor, Routes, Transport, TransportLimits
from mesh.transport.choosing import Choice
from mesh.world import World
from placement.errors import PlacementError
from placement.policy.snapshot import PoolView
from placement.service import PlacementService

WALL_CLOCK_START_S = 1_800_000_000.0
"""Unix time at the beginning of every run."""
LEAVE_LIMIT_S = 60.0
"""How long a pod that was told to stop may take, before it is killed: so does Kubernetes."""
INFER_THREADS = 4


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all pods of a run share."""

    scenario: Scenario
    loop: VirtualLoop
    network: Network
    store: StoreServer
    contents: Contents
    scratch: Path
    """A directory for what pods keep on their disks."""


class SimulatedPod:
    """A machine's pod, in its present incarnation. Owned by the world."""

    def __init__(self, surroundings: Surroundings, machine: Machine, incarnation: int) -> None:
        self.machine = machine
        self.incarnation = f"{machine.name}.{incarnation}"
        self.process = Process(surroundings.loop, self.incarnation)
        self.transport: SimulatedTransport | None = None
        self.ready_s: float | None = None
        """When it began to serve; None before."""
        self.thawed_s = 0.0
        """When it was last woken."""
        self.leaving_s: float | None = None
        """When it was told to stop."""
        self.client = surroundings.store.connect(machine.name)
        self._around = surroundings
        self._random = stream(surroundings.scenario.seed, self.incarnation)
        self._told_to_stop = asyncio.Event()
        self._ended: asyncio.Future[None] = surroundings.loop.create_future()
        self.node: Node = self.process.call(self._build)

    @property
    def pool(self) -> PoolSide:
        """Its part in the pool."""
        assert self.node.pool is not None
        return self.node.pool

    @property
    def service(self) -> PlacementService:
        """Its placement service."""
        return self.pool.service

    @property
    def view(self) -> PoolView:
        """The pool as this pod sees it."""
        return self.pool.membership.view

    def start(self, on_end: Callable[[SimulatedPod, str], None]) -> None:
        """Run the process. `on_end` is told when it ends by itself, and why if it should not have."""
        self.process.start(self._live(on_end))

    async def _live(self, on_end: Callable[[SimulatedPod, str], None]) -> None:
        why = ""
        try:
            await self.node.start()
        except (CannotStart, PlacementError) as error:
            why = f"it cannot start: {error}"
        else:
            self.ready_s = self._around.loop.time()
            await self._told_to_stop.wait()
            await self.node.drain()
            await self.node.stop()
        self._around.loop.world_later(0.0, self._end, on_end, why)

    def _end(self, on_end: Callable[[SimulatedPod, str], None], why: str) -> None:
        on_end(self, why)
        if not self._ended.done():
            self._ended.set_result(None)

    async def leave(self) -> None:
        """Tell it to stop, and wait until it has, or has had time enough."""
        self.leaving_s = self._around.loop.time()
        self._told_to_stop.set()
        await asyncio.wait([self._ended], timeout=LEAVE_LIMIT_S)

    def _build(self) -> Node:
        machine, loop = self.machine, self._around.loop
        directory = self._around.scratch / machine.name
        directory.mkdir(exist_ok=True)
        settings = _settings(
            directory,
            machine.name,
            machine.address,
            machine.zone,
            machine.capacity_bytes,
            self._around.scenario.lease_ttl_s,
        )
        world = World(
            clock=loop.time,
            wall_clock=lambda: WALL_CLOCK_START_S + machine.clock_offset_s + loop.time(),
            in_thread=SimulatedThreads(machine, self._around.contents, self._random),
            listen=self._listen,
            dial=self._around.network.dial(machine.name),
            staging=self._make_staging,
            runner=self._make_runner,
            read_memory=None,
            serves_http=False,
            draw=self._random.random,
            incarnation=self.incarnation,
            peer_key=f"key-of-{self.incarnation}",
        )
        return Node(settings, self.client, world)

    def _listen(
        self,
        choice: Choice,
        routes: Routes,
        addresses: Sequence[ListenAddress],
        limits: TransportLimits,
        door: PeerDoor | None,
    ) -> Transport:
        self.transport = SimulatedTransport(
            self._around.network, self.process, self.machine.name, self.machine.address, routes, limits
        )
        return self.transport

    def _make_staging(self, must_isolate: Callable[[ModelKey], bool], disk_listener: DiskListener) -> Stages:
        return SimulatedStaging(self.machine, self._around.contents, self._random, must_isolate, disk_listener)

    def _make_runner(self, settings: Settings, observe_queue_s: Callable[[float], None]) -> Runs:
        return SimulatedRunner(settings.infer_threads, self.machine, self._random, observe_queue_s)


@lru_cache(maxsize=64)
def _settings(data_dir: Path, name: str, address: str, zone: str, capacity_bytes: int, lease_ttl_s: float) -> Settings:
    """Kept for a machine's next pod: reading settings takes longer than starting a pod."""
    return Settings.model_validate(
        {
            "store": "etcd://simulated:2379/pool",
            "data_dir": data_dir,
            "pod_name": name,
            "advertise_address": address,
            "zone": zone,
            "capacity": capacity_bytes,
            "device": "cpu",
            "lease_ttl_s": lease_ttl_s,
            "stop_grace_s": 10.0,
            "infer_threads": INFER_THREADS,
        }
    )
