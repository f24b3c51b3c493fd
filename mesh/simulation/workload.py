"""What is asked of the pool: predictions by popularity, crowds that come in a flash, and changes of what is registered.

The workload knows the names and the contents that it made up, and nothing of pods but where to call. It runs on any
engine that gives it a clock and a way to call; the simulator of whole pools is one, a planner may be another.

Popularity is Zipf's, over ranks that drift: every few changes two models trade places. A flash crowd gives one model
most of the requests for some seconds. Changes register, replace, pin and unregister models, and set, move and delete
aliases; each is sent to one pod, and may fail or get lost like anything else.
"""

from __future__ import annotations

import asyncio
import itertools
from bisect import bisect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

from mesh.client import operations
from mesh.client.operations import Operation, SpecFields
from mesh.simulation.chance import stream, weighted
from mesh.simulation.contents import MIB, Content, Contents
from mesh.simulation.scenario import Scenario
from placement.policy.snapshot import ModelName

CHANGE_TIMEOUT_S = 8.0
DEADLINES_S: tuple[tuple[float | None, float], ...] = ((None, 1.0), (20.0, 5.0), (5.0, 3.0), (1.0, 0.5), (0.1, 0.2))
"""Deadlines of requests, by weight; None: the client waits for as long as the pod lets it."""
CALM_REQUESTS_PER_S = 2.0
INSIST_TRIES_MAX = 60
DRIFT_SHARE = 0.2
"""Of changes after which two models trade popularity."""


class Pool(Protocol):
    """Whom the workload calls. Each call picks a pod by itself."""

    async def infer(self, name: ModelName, timeout_s: float | None) -> object:
        """One prediction."""

    async def manage(self, tenant: str, operation: Operation[object], timeout_s: float) -> bool | None:
        """One change; whether it was done. None: nobody knows."""

    def now_s(self) -> float:
        """The time of this pool."""


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """What the pool last said to have done with a name; `uri` None: it was unregistered."""

    uri: str | None
    at_s: float


@dataclass(frozen=True, slots=True)
class _Change:
    kind: str
    name: ModelName
    operation: Operation[object]
    uri: str | None = None
    """That the name has afterwards, if the change says so."""


@dataclass(slots=True)
class WorkloadCounts:
    """What was asked."""

    requests: int = 0
    flashes: int = 0
    changes: dict[str, int] = field(default_factory=dict)


class Workload:
    """The requests and changes of one scenario. Belongs to the world."""

    def __init__(self, scenario: Scenario, contents: Contents, pool: Pool, spawn: Callable[[Awaitable[None]], None]):
        """`spawn` starts something that nobody waits for."""
        self.counts = WorkloadCounts()
        self._scenario = scenario
        self._contents = contents
        self._pool = pool
        self._spawn = spawn
        self._requests = stream(scenario.seed, "requests")
        self._changes = stream(scenario.seed, "changes")
        self._names: list[ModelName] = []
        self._aliases: list[ModelName] = []
        self._specs: dict[ModelName, SpecFields] = {}
        self._versions = itertools.count(1)
        self._ids = itertools.count()
        self._weights = list(
            itertools.accumulate(1 / (rank + 1) ** scenario.zipf_exponent for rank in range(4 * scenario.models))
        )
        self._requests_per_s = scenario.requests_per_s
        self._crowd: ModelName | None = None
        self.acknowledged: dict[ModelName, Acknowledged] = {}
        """Names whose state is known for certain: their last change was answered."""
        self.forced: dict[tuple[ModelName, str], None] = {}
        """(alias, target) that was to be switched to at once, served or not."""

    # What is registered ---------------------------------------------------------------------------------------------

    async def register_first(self) -> None:
        """All models that the run begins with. Repeats what fails: without models there is nothing to see."""
        for _ in range(self._scenario.models):
            await self._insist(self._registration("register", self._new_name(), {}))
        for _ in range(max(1, self._scenario.models // 8)):
            await self._insist(self._set_alias(self._changes))

    async def _insist(self, change: _Change) -> None:
        for _ in range(INSIST_TRIES_MAX):
            if await self._make(change):
                return
            await asyncio.sleep(0.5)

    async def _make(self, change: _Change) -> bool:
        """Send one change, and remember what came of it."""
        before = self.acknowledged.pop(change.name, None)
        done = await self._pool.manage(change.name.tenant, change.operation, CHANGE_TIMEOUT_S)
        now_s = self._pool.now_s()
        if done is False:
            after = before
        elif done and change.kind in ("register", "replace", "copies", "unregister"):
            after = Acknowledged(change.uri, now_s)
        elif done and before is not None:
            after = Acknowledged(before.uri, now_s)
        else:
            after = None
        if after is not None:
            self.acknowledged[change.name] = after
        return bool(done)

    def _new_name(self) -> ModelName:
        tenant = f"t{self._changes.randrange(self._scenario.tenants)}"
        name = ModelName(tenant, f"m{next(self._ids):03d}")
        self._names.insert(self._changes.randint(0, len(self._names)), name)
        return name

    def _registration(self, kind: str, name: ModelName, fields: dict[str, object]) -> _Change:
        """Registers a name with a new content."""
        uri = f"file:///sim/{name.tenant}-{name.id}-{next(self._versions)}"
        self._contents.publish(uri, self._draw_content(self._changes))
        spec: SpecFields = {"uri": uri}
        spec.update(fields)  # type: ignore[typeddict-item]
        self._specs[name] = spec
        operation = operations.register(operations.registration(name.id, **spec))
        return _Change(kind, name, operation, uri)  # type: ignore[arg-type]

    def _draw_content(self, random: Random) -> Content:
        scenario = self._scenario
        pool_bytes = scenario.pods * scenario.capacity_bytes
        mean_bytes = pool_bytes * (1 / scenario.models_fit_share) / scenario.models
        # Half a pod at most: what can only be served alone on a pod would fight with everything else for ever.
        size_bytes = int(min(mean_bytes * random.choice((0.3, 0.6, 1.0, 1.6)), scenario.capacity_bytes / 2))
        size_bytes = max(size_bytes, MIB)
        flawed = random.random() < scenario.flawed_share
        flaw = weighted(random, (("transient", 4.0), ("broken", 2.0), ("load", 1.0), ("run", 1.0))) if flawed else ""
        return Content(
            size_bytes=size_bytes,
            estimate_bytes=int(size_bytes * random.choice((1.0, 1.0, 1.0, 0.7, 1.4))),
            fetch_s=random.choice((0.05, 0.3, 1.0)),
            load_s=random.choice((0.02, 0.1, 0.5)),
            run_s=random.choice((0.001, 0.005, 0.02)),
            transient_share=0.5 if flaw == "transient" else 0.0,
            broken=flaw == "broken",
            kills_loads=flaw == "load",
            kills_runs=flaw == "run",
        )

    # Requests -------------------------------------------------------------------------------------------------------

    def calm_down(self) -> None:
        """From now on few requests, and no crowds."""
        self._requests_per_s = CALM_REQUESTS_PER_S
        self._crowd = None

    async def send_requests(self) -> None:
        """Requests for ever, each on its own."""
        random = self._requests
        while True:
            await asyncio.sleep(random.expovariate(self._requests_per_s))
            name = self._pick(random)
            if name is not None:
                self.counts.requests += 1
                self._spawn(self._one(name, weighted(random, DEADLINES_S)))

    async def _one(self, name: ModelName, timeout_s: float | None) -> None:
        await self._pool.infer(name, timeout_s)

    def _pick(self, random: Random) -> ModelName | None:
        if self._crowd is not None and random.random() < 0.8:
            return self._crowd
        if self._aliases and random.random() < 0.15:
            return self._aliases[random.randrange(len(self._aliases))]
        if not self._names:
            return None
        top = self._weights[min(len(self._names), len(self._weights)) - 1]
        return self._names[bisect(self._weights, random.random() * top)]

    async def send_crowds(self) -> None:
        """Flash crowds for ever."""
        random = stream(self._scenario.seed, "crowds")
        while True:
            await asyncio.sleep(random.expovariate(1 / self._scenario.flash_every_s))
            if self._names:
                self.counts.flashes += 1
                self._crowd = self._names[random.randrange(len(self._names))]
                await asyncio.sleep(3 + 7 * random.random())
                self._crowd = None

    # Changes --------------------------------------------------------------------------------------------------------

    async def send_changes(self) -> None:
        """Changes for ever, one at a time."""
        random = self._changes
        while True:
            await asyncio.sleep(random.expovariate(1 / self._scenario.changes_every_s))
            change = self._draw_change(random)
            self.counts.changes[change.kind] = self.counts.changes.get(change.kind, 0) + 1
            await self._make(change)
            if len(self._names) > 1 and random.random() < DRIFT_SHARE:
                one, other = random.randrange(len(self._names)), random.randrange(len(self._names))
                self._names[one], self._names[other] = self._names[other], self._names[one]

    def _draw_change(self, random: Random) -> _Change:
        kind = weighted(
            random, (("register", 2.0), ("replace", 3.0), ("unregister", 1.0), ("alias", 3.0), ("drop alias", 0.5),
                     ("pin", 0.5), ("unpin", 0.5), ("copies", 0.7))
        )  # fmt: skip
        if kind == "register" or len(self._names) < 4:
            return self._registration("register", self._new_name(), {})
        name = self._names[random.randrange(len(self._names))]
        match kind:
            case "replace" | "copies":
                # The generation is the pool's to know; clients that replace read it first. Here any will do, since a
                # wrong one is refused: most names are in their first few.
                fields: dict[str, object] = {"if_generation": random.choice((1, 1, 2, 3))}
                if kind == "copies":
                    fields["copies_min"] = min(2, self._scenario.pods)
                return self._registration(kind, name, fields)
            case "unregister":
                self._names.remove(name)
                return _Change(kind, name, operations.unregister(name.id))  # type: ignore[arg-type]
            case "drop alias" if self._aliases:
                alias = self._aliases.pop(random.randrange(len(self._aliases)))
                return _Change(kind, alias, operations.delete_alias(alias.id, ""))  # type: ignore[arg-type]
            case "pin" | "unpin":
                return _Change(kind, name, operations.set_pinned(name.id, kind == "pin"))  # type: ignore[arg-type]
            case _:
                return self._set_alias(random)

    def _set_alias(self, random: Random) -> _Change:
        target = self._names[random.randrange(len(self._names))]
        mine = [alias for alias in self._aliases if alias.tenant == target.tenant]
        if mine and random.random() < 0.7:
            alias = mine[random.randrange(len(mine))]
        else:
            alias = ModelName(target.tenant, f"a{next(self._ids):03d}")
            self._aliases.append(alias)
        force = random.random() < 0.1
        if force:
            self.forced[(alias, target.id)] = None
        return _Change("alias", alias, operations.set_alias(alias.id, target.id, {"force": force}))  # type: ignore[arg-type]
