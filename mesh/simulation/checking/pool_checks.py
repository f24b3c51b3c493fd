"""What must hold across pods, looked at once a second or when it could break: leaders, calls, decisions, aliases."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

from mesh.simulation.chance import stream
from mesh.simulation.checking.pods import Run, undisturbed_since
from mesh.simulation.checking.truth import ServingTruth, StoreTruth
from mesh.simulation.checking.violation import Violation
from mesh.simulation.pod import SimulatedPod
from mesh.simulation.virtual_loop import Life
from placement import keys
from placement.policy.load_choice import choose_load_pod
from placement.policy.snapshot import ModelName, PoolView
from placement.pool_records import leader_from_json
from placement.records import AliasRecord

OVERSTAY_S = 2.0
"""A handler ends at its call's deadline, and has this long to clean up."""
UNLIMITED_WAIT_S = 150.0
"""A call without a deadline ends within the pod's own limits: a wait for a load, on two pods in turn, and a run."""
SWITCH_LAG_S = 15.0
"""A copy that answered so lately may have been believed in by whoever switched an alias to it, or away from it."""


class PoolChecks:
    """Belongs to the world."""

    def __init__(self, run: Run, store: StoreTruth, serving: ServingTruth) -> None:
        self.counts: Counter[str] = Counter()
        self._run = run
        self._store = store
        self._serving = serving
        self._random: Random = stream(run.scenario.seed, "checks")
        self._false_leaders: dict[str, float] = {}

    def look(self) -> None:
        """Once a second."""
        pods = [pod for pod in self._run.pods.values() if pod.process.life is Life.RUNNING and pod.ready_s is not None]
        self._look_at_leaders(pods)
        for pod in pods:
            self._look_at_calls(pod)
        if pods:
            self._look_at_decision(pods[self._random.randrange(len(pods))])

    def _look_at_leaders(self, pods: list[SimulatedPod]) -> None:
        """Whoever believes to lead has the key, or finds out within a lease."""
        kv = self._run.store.peek(keys.LEADER)
        leader = "" if kv is None else leader_from_json(kv.value).incarnation
        now_s = self._run.now_s()
        for pod in pods:
            if not pod.service.is_leader or pod.incarnation == leader:
                self._false_leaders.pop(pod.incarnation, None)
                continue
            since_s = max(self._false_leaders.setdefault(pod.incarnation, now_s), pod.thawed_s)
            if now_s - since_s > 2 * self._run.scenario.lease_ttl_s:
                raise Violation(
                    "there is one leader", f"{pod.incarnation} believes to lead since {since_s:.1f} s, {leader!r} does"
                )

    def _look_at_calls(self, pod: SimulatedPod) -> None:
        """Every waiter is answered: no call is in a pod long after its deadline."""
        assert pod.transport is not None
        now_s = self._run.now_s()
        for exchange in pod.transport.exchanges.values():
            deadline_s = exchange.call.deadline_s
            limit_s = exchange.sent_s + UNLIMITED_WAIT_S if deadline_s is None else deadline_s + OVERSTAY_S
            if now_s > max(limit_s, pod.thawed_s + OVERSTAY_S):
                raise Violation(
                    "every waiter is answered",
                    f"{exchange.call.method} from {exchange.source} is in {pod.incarnation} since "
                    f"{exchange.sent_s:.3f} s; its deadline was {deadline_s}",
                )

    def _look_at_decision(self, pod: SimulatedPod) -> None:
        """The same picture, told in another order, gives the same decision."""
        names = list(self._store.models)
        if not names:
            return
        record = self._store.models[names[self._random.randrange(len(names))]]
        view = pod.view
        facts = pod.pool.facts_of(record)
        healthy = frozenset(view.pods)
        one = choose_load_pod(view, facts, healthy=healthy, excluded=frozenset(), ordered=())
        other = choose_load_pod(self._shuffled(view), facts, healthy=healthy, excluded=frozenset(), ordered=())
        self.counts["decisions compared"] += 1
        self.counts["of which with it on a disk"] += bool(facts.on_disk)
        if one != other:
            raise Violation("the same view gives the same decision", f"{record.id}: {one} and {other}")

    def _shuffled(self, view: PoolView) -> PoolView:
        pods, copies = list(view.pods.items()), list(view.copies.items())
        self._random.shuffle(pods)
        self._random.shuffle(copies)
        return replace(
            view,
            pods=dict(pods),
            copies=dict(copies),
            parked=dict(reversed(list(view.parked.items()))),
            failures=dict(reversed(list(view.failures.items()))),
        )

    def alias_changed(self, before: AliasRecord | None, after: AliasRecord | None) -> None:
        """An alias that pointed at a model which served points at one that serves."""
        if before is None or after is None or after.active == before.active:
            return
        self.counts["aliases switched"] += 1
        alias = ModelName(after.tenant, after.id)
        old, new = ModelName(after.tenant, before.active), ModelName(after.tenant, after.active)
        since_s = self._run.now_s() - SWITCH_LAG_S
        if (alias, after.active) in self._run.workload.forced or self._serving.served_within(new, since_s):
            return
        if self._surely_serves(old, since_s):
            raise Violation(
                "an alias resolves to a model that serves, if one did before",
                f"{alias} was switched from {old}, which served, to {new}, which does not",
            )

    def _surely_serves(self, name: ModelName, since_s: float) -> bool:
        """A copy has answered all the while, on a pod that everybody could know to be well."""
        for machine, held in self._serving.holders(name).items():
            pod = self._run.pods.get(machine)
            if (
                pod is not None
                and any(serving.since_s <= since_s for serving in held.values())
                and undisturbed_since(pod, since_s)
                and self._run.store.reached_since(machine, since_s)
            ):
                return True
        return False
