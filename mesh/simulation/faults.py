"""What is done to the pool, and undone: one fault after the other, some at the same time.

Each fault has an end of its own, so that what a pool must survive stays within what it promises: at least one pod is
left alone at any time, and a store that was wiped is not wiped again at once. Which faults a seed knows is in its
scenario; when they strike and whom is drawn from a stream of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from math import inf
from typing import Protocol

from mesh.simulation.chance import stream, weighted
from mesh.simulation.machine import Machine
from mesh.simulation.network import Network
from mesh.simulation.scenario import Fault, Scenario
from mesh.simulation.store import StoreServer

SLOWNESS = 10.0
RESTART_AFTER_S = (0.5, 3.0, 12.0)
FREEZE_S = (0.1, 1.0, 4.0, 15.0)
CUT_S = (0.5, 3.0, 12.0)
AWAY_S = (0.5, 3.0, 15.0)
WIPE_PAUSE_S = 60.0


class Patients(Protocol):
    """The pods, as the faults see them."""

    @property
    def machines(self) -> list[Machine]:
        """All of them, with a pod or without."""

    def is_well(self, machine: Machine) -> bool:
        """A pod runs there, undisturbed."""

    def crash(self, machine: Machine, why: str) -> None:
        """Its process ends without a word."""

    def freeze(self, machine: Machine) -> None:
        """Its process stops running."""

    def thaw(self, machine: Machine) -> None:
        """It goes on, if it still lives."""

    async def drain(self, machine: Machine) -> None:
        """Stop its pod as an operator does, and wait for the end."""

    def boot(self, machine: Machine) -> None:
        """Start a pod there, if none runs."""

    def lose_lease(self, machine: Machine) -> None:
        """The store forgets the lease of its pod."""

    def store_wiped(self) -> None:
        """The store has just lost everything."""

    def note(self, text: str) -> None:
        """For the story of the run."""


class Faults:
    """Strikes for as long as it runs. Belongs to the world."""

    def __init__(
        self,
        scenario: Scenario,
        patients: Patients,
        network: Network,
        store: StoreServer,
        spawn: Callable[[Awaitable[None]], None],
    ) -> None:
        self.counts: dict[Fault, int] = {}
        self._scenario = scenario
        self._patients = patients
        self._network = network
        self._store = store
        self._spawn = spawn
        self._random = stream(scenario.seed, "faults")
        self._wiped_s = -WIPE_PAUSE_S
        self._over = False

    async def strike(self) -> None:
        """Faults for ever."""
        if not self._scenario.faults:
            return
        while True:
            await asyncio.sleep(self._random.expovariate(1 / self._scenario.fault_every_s))
            fault = weighted(self._random, self._scenario.faults)
            # All is drawn whether it is used or not, so that one fault less does not change those that follow.
            machine = self._random.choice(self._patients.machines)
            other = self._random.choice(self._patients.machines)
            draw = self._random.random()
            length = self._random.randrange(3)
            if self._strike_once(fault, machine, other, length, draw):
                self.counts[fault] = self.counts.get(fault, 0) + 1

    def end(self) -> None:
        """No more faults; those that run are undone now."""
        self._over = True
        for machine in self._patients.machines:
            self._hasten(machine)
            self._patients.thaw(machine)
            self._store.mend(machine.name)
            self._patients.boot(machine)
        self._network.mend_all()
        self._store.come_back()

    def _strike_once(self, fault: Fault, machine: Machine, other: Machine, length: int, draw: float) -> bool:
        patients, store = self._patients, self._store
        name = machine.name
        spare = sum(patients.is_well(each) for each in patients.machines) > 1
        match fault:
            case Fault.CRASH if spare and patients.is_well(machine):
                patients.crash(machine, "a fault")
                if draw < 0.1:
                    machine.disk.clear()
                self._then(RESTART_AFTER_S[length], lambda: patients.boot(machine))
            case Fault.FREEZE if spare and patients.is_well(machine):
                patients.freeze(machine)
                self._then(FREEZE_S[length + (draw < 0.5)], lambda: patients.thaw(machine))
            case Fault.RESTART if spare and patients.is_well(machine):
                self._spawn(self._restart(machine, RESTART_AFTER_S[0] * draw))
            case Fault.SLOW:
                machine.slowness, machine.slow_until_s = SLOWNESS, inf
                self._network.slow_down(name, SLOWNESS if draw < 0.5 else 1)
                self._then(CUT_S[length], lambda: self._hasten(machine))
            case Fault.CUT_STORE:
                store.cut(name)
                self._then(CUT_S[length], lambda: store.mend(name))
            case Fault.CUT_PODS if other is not machine:
                ways = [(name, other.name), (other.name, name)][: 1 if draw < 0.2 else 2]
                self._cut(ways, CUT_S[length])
            case Fault.ISOLATE:
                ways = [(name, each.name) for each in patients.machines if each is not machine]
                self._cut(ways + [(target, source) for source, target in ways], CUT_S[length])
            case Fault.STORE_AWAY:
                store.go_away("refusing" if draw < 0.5 else "silent")
                self._then(AWAY_S[length], store.come_back)
            case Fault.WIPE if self._loop_s() - self._wiped_s > WIPE_PAUSE_S:
                self._wiped_s = self._loop_s()
                store.wipe()
                patients.store_wiped()
            case Fault.COMPACT:
                store.compact()
            case Fault.EXPIRE:
                patients.lose_lease(machine)
            case _:
                return False
        patients.note(f"fault: {fault.value}: {name}" + (f" and {other.name}" if fault is Fault.CUT_PODS else ""))
        return True

    async def _restart(self, machine: Machine, pause_s: float) -> None:
        await self._patients.drain(machine)
        await asyncio.sleep(pause_s)
        self._patients.boot(machine)

    def _hasten(self, machine: Machine) -> None:
        self._network.slow_down(machine.name, 1)
        if machine.slowness != 1.0:
            machine.slowness, machine.slow_until_s = 1.0, self._loop_s()

    def _cut(self, ways: list[tuple[str, str]], for_s: float) -> None:
        for source, target in ways:
            self._network.cut(source, target)

        def mend() -> None:
            for source, target in ways:
                self._network.mend(source, target)

        self._then(for_s, mend)

    def _then(self, mean_s: float, undo: Callable[[], None]) -> None:
        def at_its_end() -> None:
            if not self._over:
                undo()

        self._network.loop.world_later(mean_s * (0.5 + self._random.random()), at_its_end)

    def _loop_s(self) -> float:
        return self._network.loop.time()
