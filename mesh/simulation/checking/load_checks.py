"""How many pods load one model, and why more than one does.

A cold model is loaded once: whoever begins has claimed it in the store. A pod may begin although another has the model
when somebody ordered it to (the leader wants more copies, a drain hands over), when it replaces its own older
generation, or when it cannot know better: one of the two does not reach the store, or is out of this one's reach. Any
other second load is a duplicate, and breaks the promise of one first load.
"""

from __future__ import annotations

from collections import Counter

from cache.types import ModelKey
from mesh.routing.pool_side import PoolSide
from mesh.simulation.checking.pods import Run, connected_since, undisturbed_since
from mesh.simulation.checking.truth import ServingTruth, StoreTruth
from mesh.simulation.checking.violation import Violation
from mesh.simulation.pod import SimulatedPod
from placement.peers import LoadOrder
from placement.policy.snapshot import ModelName

ORDER_LASTS_S = 120.0
"""A load that was ordered begins, or begins again after a failure, within this."""
ORDER_SEEN_WITHIN_S = 5.0
"""What was ordered so lately, whoever claimed meanwhile could not know of."""
REACHABLE_FOR_S = 20.0
"""Two pods that have reached each other and the store for so long know of each other's copies."""


class LoadChecks:
    """Belongs to the world; hears of each load as it enters a pod's queue, and of each order."""

    def __init__(self, run: Run, store: StoreTruth, serving: ServingTruth) -> None:
        self.counts: Counter[str] = Counter()
        self._run = run
        self._store = store
        self._serving = serving
        self._ordered: dict[tuple[str, ModelName], float] = {}

    def watch_orders(self, pod: SimulatedPod) -> None:
        """Hear of the orders that this pod takes. Replaces a method of this one instance."""
        pool: PoolSide = pod.pool
        take = pool._take_load

        def noted(order: LoadOrder):  # type: ignore[no-untyped-def]  # whatever the method returns
            self._ordered[(pod.machine.name, order.name)] = self._run.now_s()
            return take(order)

        pool._take_load = noted  # type: ignore[method-assign]

    def begins(self, machine: str, key: ModelKey) -> None:
        """A copy enters the queue of a pod. Raises Violation for a duplicate."""
        name = ModelName(key.tenant, key.model_id)
        pod = self._run.pods.get(machine)
        others = [other for other in self._serving.present(name) if other != machine]
        if pod is None or not others:
            self.counts["loads: first"] += 1
            return
        reason = self._reason(pod, name, others)
        if not reason:
            self.counts["loads: duplicate"] += 1
            raise Violation(
                "at most one first load of a model",
                f"{machine} begins to load {key}, which {others} have, and nobody ordered it",
            )
        self.counts[f"loads: {reason}"] += 1

    def _reason(self, pod: SimulatedPod, name: ModelName, others: list[str]) -> str:
        run, machine = self._run, pod.machine.name
        now_s = run.now_s()
        if now_s - self._ordered.get((machine, name), -ORDER_LASTS_S) < ORDER_LASTS_S:
            return "ordered"
        if machine in self._serving.holders(name):
            return "a newer generation"
        since_s = now_s - REACHABLE_FOR_S
        for other in others:
            holder = run.pods.get(other)
            if now_s - self._ordered.get((other, name), -ORDER_LASTS_S) < ORDER_SEEN_WITHIN_S:
                continue  # it claims nothing, and this claim was there first
            if (
                holder is not None
                and undisturbed_since(pod, since_s)
                and undisturbed_since(holder, since_s)
                and connected_since(run.network, machine, other, since_s)
                and max(pod.machine.slow_until_s, holder.machine.slow_until_s) < since_s
                and run.store.reached_since(machine, since_s)
                and run.store.reached_since(other, since_s)
                and other in self._store.copy_keys.get(name, {})
            ):
                return ""
        return "the holders are out of reach"
