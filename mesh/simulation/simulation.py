"""One run: a pool of real pods on virtual time, what is asked of it, what is done to it, and whether it keeps its word.

The story of every run is the same. The pods start; the first models are registered; requests, changes and faults go on
for as many steps as were asked for; then the faults end, all is mended, and the pool is given time to come to rest.
Checkers look on all the while, and at the end once more, when everything must be right again.

A run is a function of its scenario. Its trace, a checksum over the times of all events, is the same each time.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import shutil
import struct
import sys
import tempfile
import traceback
import warnings
import zlib
from collections import deque
from collections.abc import Awaitable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mesh.client.operations import Operation
from mesh.simulation.chance import stream
from mesh.simulation.checking.checkers import Checkers
from mesh.simulation.checking.rest_checks import RESTORED_WITHIN_S
from mesh.simulation.checking.violation import Violation
from mesh.simulation.clients import Clients, Failed
from mesh.simulation.contents import Contents
from mesh.simulation.faults import Faults
from mesh.simulation.machine import Machine
from mesh.simulation.network import Network
from mesh.simulation.pod import SimulatedPod, Surroundings
from mesh.simulation.scenario import Fault, Scenario
from mesh.simulation.store import StoreServer
from mesh.simulation.virtual_loop import Life, VirtualLoop
from mesh.simulation.workload import Workload
from mesh.transport.base import StatusCode
from placement import keys
from placement.policy.snapshot import ModelName
from placement.store.base import Put

STORY_LINES_MAX = 400
"""The last events that a failure is told with."""
BOOT_LIMIT_S = 120
SETTLE_EXTRA_S = 10.0
"""Beyond four lease ttls: how long the pool may take to come to rest once everything is mended."""
REFUSALS = (
    StatusCode.INVALID_ARGUMENT,
    StatusCode.NOT_FOUND,
    StatusCode.ALREADY_EXISTS,
    StatusCode.FAILED_PRECONDITION,
    StatusCode.ABORTED,
)
"""Answers to a change that say that it was not made; after any other, nobody knows."""
CRASH_LOOP_S = (1.0, 2.0, 4.0, 8.0)
"""How long a machine waits before it starts a pod again that has killed itself, by how often it did lately."""
TROUBLE_EVERY_STEPS = 16
COLLECT_EVERY_STEPS = 8_000
VIRTUAL_LIMIT_S = 1_800.0
"""A run of 10,000 steps takes a minute or two."""
BURNT_REVISIONS = 1_000
"""Revisions that a store has behind it at the start: one that is wiped begins at 1, which then differs for certain."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one run."""

    seed: int
    failure: str = ""
    """What broke, and the story of it; empty: all promises were kept."""
    promise: str = ""
    steps: int = 0
    virtual_s: float = 0.0
    trace: int = 0
    """A checksum over the run: equal for equal runs."""
    counts: dict[str, int] = field(default_factory=dict)
    """What the run exercised."""


class Simulation:
    """A run. Build it, `run` it, once."""

    def __init__(self, scenario: Scenario, *, log_level: int = logging.WARNING, echo: bool = False) -> None:
        """`log_level`: of the pods' log lines that become part of the story; `echo`: the story goes to stderr, too."""
        self.scenario = scenario
        self.loop = VirtualLoop(self._on_quiet)
        self.network = Network(self.loop, stream(scenario.seed, "network"), scenario.network)
        self.store = StoreServer(self.loop, stream(scenario.seed, "store"), scenario.store)
        self.contents = Contents()
        self.pods: dict[str, SimulatedPod] = {}
        self.machines = [self._machine(number) for number in range(scenario.pods)]
        self.last_trouble_s = 0.0
        self.story: deque[tuple[float, str]] = deque(maxlen=STORY_LINES_MAX)
        self.violation: Violation | None = None
        self.checkers = Checkers(self)
        self.workload = Workload(scenario, self.contents, self, self.spawn)
        self.faults = Faults(scenario, self, self.network, self.store, self.spawn)
        self.crashes = 0
        self._log_level = log_level
        self._echo = echo
        self._clients = Clients(self.network)
        self._ingress = stream(scenario.seed, "ingress")
        self._incarnations: dict[str, int] = {}
        self._suicides: dict[str, list[float]] = {}
        self._spawned: dict[asyncio.Task[Any], None] = {}
        self._scratch = Path(tempfile.mkdtemp(prefix="hexcomb-simulation-"))
        self._trace = 0
        self._collect_at_step = COLLECT_EVERY_STEPS
        self._last_step = 1 << 62
        """After which the faults end."""
        self._steps_done = self.loop.create_future()

    def _machine(self, number: int) -> Machine:
        luck = stream(self.scenario.seed, f"machine {number}")
        machine = Machine(
            name=f"pod-{number}",
            zone=f"zone-{number % self.scenario.zones}",
            capacity_bytes=self.scenario.capacity_bytes,
            clock_offset_s=luck.uniform(-self.scenario.clock_error_s, self.scenario.clock_error_s),
            disk_artifacts_max=self.scenario.disk_artifacts_max,
        )
        machine.crash = lambda why: self._killed_itself(machine, why)
        return machine

    # The run --------------------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """From the first pod's start to the last check."""
        random.seed(self.scenario.seed)  # whoever draws without a stream of his own is at least repeatable
        stories = _Stories(self)
        loggers = [logging.getLogger(name) for name in ("hexcomb", "placement", "mesh")]
        before = [(logger.level, logger.propagate) for logger in loggers]
        for logger in loggers:
            logger.addHandler(stories)
            logger.setLevel(self._log_level)
            logger.propagate = False
        failure, promise = "", ""
        # A task that failed unseen tells so when it is collected: that must be at the same step each time.
        gc.freeze()
        gc.disable()
        try:
            self.loop.run(self._play())
        except Violation as violation:
            failure, promise = self._told(str(violation)), violation.promise
        except Exception as error:  # of the simulator itself, or a loop without end
            failure, promise = self._told(f"{type(error).__name__}: {error}"), type(error).__name__
        finally:
            steps, virtual_s = self.loop.steps, self.loop.time()
            counts = self._counts()
            stories.over = True
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # of what was about to be awaited
                self.loop.discard()
                gc.unfreeze()
                gc.enable()
                gc.collect()
            for logger, (level, propagate) in zip(loggers, before, strict=True):
                logger.removeHandler(stories)
                logger.setLevel(level)
                logger.propagate = propagate
            shutil.rmtree(self._scratch, ignore_errors=True)
        return Outcome(self.scenario.seed, failure, promise, steps, virtual_s, self._trace, counts)

    async def _play(self) -> None:
        scenario = self.scenario
        if any(fault is Fault.WIPE for fault, _ in scenario.faults):
            for _ in range(BURNT_REVISIONS):
                await self.store.memory.txn([], [Put("burnt", b"")])
        for machine in self.machines:
            self.boot(machine)
        await self._all_well()
        await self.workload.register_first()
        self.note("all is registered")
        self.last_trouble_s = self.loop.time()
        self._last_step = self.loop.steps + scenario.steps
        busy = [
            self.loop.world_start(work)
            for work in (
                self.workload.send_requests(),
                self.workload.send_crowds(),
                self.workload.send_changes(),
                self.faults.strike(),
                self.checkers.look_every_second(),
            )
        ]
        await self._steps_done
        self.note("the faults end")
        for task in busy[1:4]:
            task.cancel()
        self.faults.end()
        self.workload.calm_down()
        await self._all_well()
        self.last_trouble_s = self.loop.time()
        await asyncio.sleep(4 * scenario.lease_ttl_s + SETTLE_EXTRA_S)
        busy[0].cancel()
        await self._all_well()
        await self.checkers.check_rest()
        gc.collect()
        if self.loop.mishaps:
            raise Violation("no error goes unhandled", "; ".join(self.loop.mishaps[:3]))

    async def _all_well(self) -> None:
        for _ in range(BOOT_LIMIT_S):
            if all(self.is_well(machine) for machine in self.machines):
                return
            await asyncio.sleep(1.0)
        raise Violation("pods start", f"not all are ready after {BOOT_LIMIT_S} s")

    def _on_quiet(self) -> None:
        self._trace = zlib.crc32(struct.pack("<d", self.loop.time()), self._trace)
        if self.loop.steps % TROUBLE_EVERY_STEPS == 0 and self.troubled():
            self.last_trouble_s = self.loop.time()
        if self.loop.steps >= self._collect_at_step:
            self._collect_at_step = self.loop.steps + COLLECT_EVERY_STEPS
            gc.collect()
        if self.loop.mishaps:
            raise Violation("no error goes unhandled", "; ".join(self.loop.mishaps[:3]))
        if self.violation is not None:
            raise self.violation
        if self.loop.time() > VIRTUAL_LIMIT_S:
            raise Violation("a run ends", f"it has not after {VIRTUAL_LIMIT_S:.0f} s")
        if self.loop.steps >= self._last_step and not self._steps_done.done():
            self._steps_done.set_result(None)

    def broke(self, violation: Violation) -> None:
        """A checker has found something; the run ends when the present instant does."""
        if self.violation is None:
            self.violation = violation

    def spawn(self, work: Awaitable[None]) -> None:
        """Start something of the world that nobody waits for."""

        async def guarded() -> None:
            try:
                await work
            except Violation as violation:
                self.broke(violation)

        task = self.loop.world_start(guarded())
        self._spawned[task] = None
        task.add_done_callback(lambda done: self._spawned.pop(done, None))

    def note(self, text: str) -> None:
        """A line of the story."""
        self.story.append((self.loop.time(), text))
        if self._echo:
            sys.stderr.write(f"{self.loop.time():10.3f}  {text}\n")

    def tell(self, text: str) -> None:
        """A line of the story, for whoever wants to hear everything."""
        if self._log_level <= logging.INFO:
            self.note(text)

    def machines_of(self) -> list[str]:
        """Names of all machines."""
        return [machine.name for machine in self.machines]

    def now_s(self) -> float:
        """Virtual time."""
        return self.loop.time()

    def _told(self, what: str) -> str:
        lines = "\n".join(f"  {at_s:10.3f}  {text}" for at_s, text in self.story)
        return f"at {self.loop.time():.3f} s, step {self.loop.steps}: {what}\nthe last lines of its story:\n{lines}"

    def _counts(self) -> dict[str, int]:
        counts: dict[str, int] = {"pod crashes": self.crashes}
        for fault, times in self.faults.counts.items():
            counts[f"fault: {fault.value}"] = times
        for name in (
            "calls_lost",
            "answers_lost",
            "leases_expired",
            "watches_broken",
            "compactions",
            "outages",
            "wipes",
        ):
            counts[f"store: {name.replace('_', ' ')}"] = getattr(self.store.counts, name)
        for name in ("calls", "refused", "reset", "lost"):
            counts[f"network: {name}"] = getattr(self.network.counts, name)
        counts["requests"] = self.workload.counts.requests
        counts["flash crowds"] = self.workload.counts.flashes
        for kind, times in self.workload.counts.changes.items():
            counts[f"change: {kind}"] = times
        counts |= self.checkers.counts()
        return counts

    # The pods -------------------------------------------------------------------------------------------------------

    def boot(self, machine: Machine) -> None:
        """Start a pod there, if none runs."""
        if machine.name in self.pods:
            return
        number = self._incarnations[machine.name] = self._incarnations.get(machine.name, 0) + 1
        around = Surroundings(self.scenario, self.loop, self.network, self.store, self.contents, self._scratch)
        pod = self.pods[machine.name] = SimulatedPod(around, machine, number)
        self.checkers.watch(pod)
        pod.start(self._ended)
        self.note(f"{pod.incarnation} starts")

    def _ended(self, pod: SimulatedPod, why: str) -> None:
        """Its process has come to its end by itself."""
        self.note(f"{pod.incarnation} ended: {why or 'stopped'}")
        self._gone(pod)
        if why:
            self.loop.world_later(1.0, self.boot, pod.machine)

    def _gone(self, pod: SimulatedPod) -> None:
        name = pod.machine.name
        pod.process.kill()
        self.network.machine_died(name)
        self.store.forget_client(name)
        self.checkers.process_ended(pod)
        if self.pods.get(name) is pod:
            del self.pods[name]
        self._forget_what_nobody_knows()

    def _forget_what_nobody_knows(self) -> None:
        """What a wiped store lost is written back from the pods' views: it is gone if none that knew it is left."""
        wiped = self.checkers.store.wiped_s
        if wiped and self.loop.time() - wiped[-1] < RESTORED_WITHIN_S:
            knows = [pod for pod in self.pods.values() if pod.ready_s is not None and pod.ready_s < wiped[-1]]
            if not knows:
                self.workload.acknowledged.clear()

    def crash(self, machine: Machine, why: str) -> None:
        """Its process ends without a word."""
        pod = self.pods.get(machine.name)
        if pod is not None:
            self.crashes += 1
            self.last_trouble_s = self.loop.time()
            self.note(f"{pod.incarnation} dies: {why}")
            self._gone(pod)

    def _killed_itself(self, machine: Machine, why: str) -> None:
        # Later, as the world: this is called by the process that is to die.
        self.loop.world_later(0.0, self._bury, machine, self.pods.get(machine.name), why)

    def _bury(self, machine: Machine, pod: SimulatedPod | None, why: str) -> None:
        if pod is None or self.pods.get(machine.name) is not pod:
            return
        self.crash(machine, why)
        now_s = self.loop.time()
        lately = [at_s for at_s in self._suicides.get(machine.name, []) if now_s - at_s < 60] + [now_s]
        self._suicides[machine.name] = lately
        self.loop.world_later(CRASH_LOOP_S[min(len(lately), len(CRASH_LOOP_S)) - 1], self.boot, machine)

    def is_well(self, machine: Machine) -> bool:
        """A pod runs there, undisturbed."""
        pod = self.pods.get(machine.name)
        return (
            pod is not None and pod.process.life is Life.RUNNING and pod.ready_s is not None and pod.leaving_s is None
        )

    def freeze(self, machine: Machine) -> None:
        """Its process stops running."""
        self.pods[machine.name].process.freeze()

    def thaw(self, machine: Machine) -> None:
        """It goes on, if it still lives."""
        pod = self.pods.get(machine.name)
        if pod is not None and pod.process.life is Life.FROZEN:
            pod.thawed_s = self.last_trouble_s = self.loop.time()
            pod.process.thaw()
            self.note(f"{pod.incarnation} thaws")

    async def drain(self, machine: Machine) -> None:
        """Stop its pod as an operator does, and wait for the end."""
        pod = self.pods.get(machine.name)
        if pod is None:
            return
        self.note(f"{pod.incarnation} is told to stop")
        await pod.leave()
        if self.pods.get(machine.name) is pod:
            self.note(f"{pod.incarnation} does not stop, and is killed")
            self.crash(machine, "its grace was over")

    def store_wiped(self) -> None:
        """The store has just lost everything."""
        self._forget_what_nobody_knows()

    def lose_lease(self, machine: Machine) -> None:
        """The store forgets the lease of its pod."""
        kv = self.store.peek(keys.pod_key(machine.name))
        if kv is not None:
            self.store.revoke(machine.name, kv.lease)

    def troubled(self) -> bool:
        """A pod is down, frozen, slow, leaving or not there yet, or the way between two is cut."""
        return bool(
            self.network.broken_since_s
            or any(machine.slowness != 1 or not self.is_well(machine) for machine in self.machines)
        )

    # Those who call it ----------------------------------------------------------------------------------------------

    def _pick(self) -> SimulatedPod | None:
        open_pods = [pod for pod in self.pods.values() if pod.ready_s is not None and pod.leaving_s is None]
        return open_pods[self._ingress.randrange(len(open_pods))] if open_pods else None

    async def infer(self, name: ModelName, timeout_s: float | None) -> object:
        """One prediction, from any pod that says it is ready."""
        pod = self._pick()
        if pod is None:
            return None
        answered = await self._clients.infer(pod.machine, name, timeout_s)
        self.checkers.answered(answered, pod)
        return answered

    async def infer_at(self, pod: SimulatedPod, name: ModelName, timeout_s: float) -> Any:
        """One prediction, from this pod."""
        return await self._clients.infer(pod.machine, name, timeout_s)

    async def manage(self, tenant: str, operation: Operation[object], timeout_s: float) -> bool | None:
        """One change, at any pod that says it is ready."""
        pod = self._pick()
        if pod is None:
            return False
        outcome = await self._clients.manage(pod.machine, tenant, operation, timeout_s)
        if isinstance(outcome, Failed):
            self.note(f"{operation.path.rpartition('/')[2]} at {pod.incarnation}: {outcome.status.name}")
            return False if outcome.status in REFUSALS else None
        return True


class _Stories(logging.Handler):
    """Log lines become part of the story, with virtual times. An exception that somebody caught and could only log is
    a defect."""

    def __init__(self, simulation: Simulation) -> None:
        super().__init__()
        self.over = False
        """The run has ended; what its remains say is of no interest."""
        self._simulation = simulation

    def emit(self, record: logging.LogRecord) -> None:
        if self.over:
            return
        simulation = self._simulation
        text = f"{record.levelname.lower()} {record.name}: {record.getMessage()}"
        simulation.note(text)
        if record.levelno >= logging.ERROR and record.exc_info and (error := record.exc_info[1]) is not None:
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{place.filename}:{place.lineno}"
            simulation.broke(Violation("no defect is logged", f"{text} ({error!r} at {where})"))


def play(scenario: Scenario, *, log_level: int = logging.WARNING, echo: bool = False) -> Outcome:
    """One run of a scenario, in this process."""
    return Simulation(scenario, log_level=log_level, echo=echo).run()
