"""All checkers of one run, and when each of them looks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Protocol

from cache.types import ModelKey
from mesh.simulation.checking.cache_checks import watch_cache
from mesh.simulation.checking.load_checks import LoadChecks
from mesh.simulation.checking.pods import Run
from mesh.simulation.checking.pool_checks import PoolChecks
from mesh.simulation.checking.request_checks import RequestChecks
from mesh.simulation.checking.rest_checks import RestChecks
from mesh.simulation.checking.truth import ServingTruth, StoreTruth
from mesh.simulation.checking.violation import Violation
from mesh.simulation.clients import Answered
from mesh.simulation.pod import SimulatedPod
from placement.policy.snapshot import ModelName
from placement.records import AliasRecord

LOOK_EVERY_S = 1.0


class CheckedRun(Run, Protocol):
    """What the checkers need of a run beside what they look at."""

    def broke(self, violation: Violation) -> None:
        """A promise is broken."""

    def tell(self, text: str) -> None:
        """A line of the story, for whoever wants to hear everything."""

    def infer_at(self, pod: SimulatedPod, name: ModelName, timeout_s: float) -> Awaitable[Answered]:
        """One prediction, from this pod."""


class Checkers:
    """Belongs to the world."""

    def __init__(self, run: CheckedRun) -> None:
        self._run = run
        self.store = StoreTruth(run.store, run.now_s)
        self.serving = ServingTruth(run.now_s)
        self.requests = RequestChecks(run, self.store, self.serving)
        self.pool = PoolChecks(run, self.store, self.serving)
        self.loads = LoadChecks(run, self.store, self.serving)
        self.rest = RestChecks(run, self.store, run.infer_at)
        self._gone: dict[str, int] = {}
        self.store.on_alias.append(self._alias_changed)

    def watch(self, pod: SimulatedPod) -> None:
        """A pod's process begins."""
        run, machine = self._run, pod.machine
        watch_cache(
            pod.node.cache,
            machine.name,
            machine.capacity_bytes,
            self.serving,
            self._load_begins,
            run.broke,
            run.tell,
        )
        self.loads.watch_orders(pod)

    def process_ended(self, pod: SimulatedPod) -> None:
        """It has ended, one way or the other."""
        self.serving.process_ended(pod.machine.name)
        counts = pod.node.loading.counts
        for what, number in (
            ("loads", counts.loads),
            ("loads that failed", counts.load_failures),
            ("evictions", pod.node.cache.usage().evictions_total),
            ("requests forwarded", pod.pool.router.forwarded),
        ):
            self._gone[what] = self._gone.get(what, 0) + number

    def answered(self, answered: Answered, asked: SimulatedPod) -> None:
        """A request has been answered."""
        if answered.failed is not None:
            failed, began_s = answered.failed, answered.began_s
            self._run.tell(
                f"{answered.name} at {answered.machine}, from {began_s:.3f}: {failed.status.name}: {failed.message}"
            )
        try:
            self.requests.judge(answered, asked)
        except Violation as violation:
            self._run.broke(violation)

    def _load_begins(self, machine: str, key: ModelKey) -> None:
        try:
            self.loads.begins(machine, key)
        except Violation as violation:
            self._run.broke(violation)

    def _alias_changed(self, before: AliasRecord | None, after: AliasRecord | None) -> None:
        try:
            self.pool.alias_changed(before, after)
        except Violation as violation:
            self._run.broke(violation)

    async def look_every_second(self) -> None:
        """Look at what no event tells, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                self.pool.look()
            except Violation as violation:
                self._run.broke(violation)

    async def check_rest(self) -> None:
        """All must be right again. Raises Violation."""
        await self.rest.check()

    def counts(self) -> dict[str, int]:
        """What the checkers saw."""
        for pod in list(self._run.pods.values()):
            self.process_ended(pod)
        counts = {
            "answers": self.requests.answered,
            "answers after a load": self.requests.cold,
            "models served at rest": self.rest.served_at_rest,
            "artifacts parked at rest": self.rest.parked_at_rest,
            "older generation at rest: no room beside pins": self.rest.older_at_rest,
            "changes remembered at rest": self.rest.acknowledged_at_rest,
            **self._gone,
            **self.pool.counts,
            **self.loads.counts,
        }
        for excuse, times in self.requests.excuses.items():
            counts[f"excused: {excuse}"] = times
        return counts
