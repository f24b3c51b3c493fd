"""The peers for tests: orders are recorded, and carried out on the pods' memberships when the test says so.

`carry_out` is one step of every pod: what was ordered begins to load, what was loading serves. With `at_once` each
order is carried out to its end as soon as it is given. A pod in `unreachable` takes no orders; a model in `failing`
does not load.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from placement.peers import LoadOrder, Order, PeerError
from placement.policy.snapshot import Copy, LoadFailure, ModelName
from placement.records import AliasRecord, ModelRecord
from placement.view import RegistryView


class Publishing(Protocol):
    """What is used of a Membership."""

    pod_id: str

    def set_copy(self, name: ModelName, copy: Copy | None) -> None:
        """What the pod has of this model."""

    def set_failure(self, name: ModelName, failure: LoadFailure | None) -> None:
        """Why the pod does not have it."""

    async def flush(self) -> None:
        """All of it is in the store."""


class FakePeers:
    """Peers of a pool in one process."""

    def __init__(self, *, at_once: bool = False, size_bytes: int = 1000) -> None:
        self.orders: list[tuple[str, Order]] = []
        """All that were accepted, in the order in which they came."""
        self.unreachable: set[str] = set()
        self.deaf: set[str] = set()
        """Pods that take orders and do nothing."""
        self.failing: dict[ModelName, str] = {}
        """Why a model does not load, for good."""
        self._at_once = at_once
        self._size_bytes = size_bytes
        self._pods: dict[str, Publishing] = {}
        self._names: dict[str, Callable[[], RegistryView]] = {}
        self._copies: dict[str, dict[ModelName, Copy]] = {}
        self._pending: list[tuple[str, Order]] = []

    def join(self, pod: Publishing, names: Callable[[], RegistryView] = RegistryView) -> None:
        """From now on the pod takes orders; `names` is what it says when it is asked for its names."""
        self._pods[pod.pod_id] = pod
        self._names[pod.pod_id] = names
        self._copies[pod.pod_id] = {}

    def leave(self, pod_id: str) -> None:
        """The pod does not answer any more."""
        self._pods.pop(pod_id, None)
        self._copies.pop(pod_id, None)
        self._pending = [(pod, order) for pod, order in self._pending if pod != pod_id]

    def hold(self, pod_id: str, name: ModelName, generation: int = 1) -> None:
        """The pod serves this, as after a request of its own."""
        self._publish(pod_id, name, Copy(pod_id, generation, 0, self._size_bytes, 0.0))

    def let_go(self, pod_id: str, name: ModelName) -> None:
        """The pod evicts this."""
        self._publish(pod_id, name, None)

    def mend(self, name: ModelName) -> None:
        """The model loads from now on, and no pod says otherwise any more."""
        self.failing.pop(name, None)
        for pod in self._pods.values():
            pod.set_failure(name, None)

    def forget_pending(self) -> None:
        """What was ordered and is not done is never done."""
        self._pending.clear()

    def loads(self) -> list[tuple[str, ModelName]]:
        """Pods and models of all orders to load."""
        return [(pod, order.name) for pod, order in self.orders if isinstance(order, LoadOrder)]

    def unloads(self) -> list[tuple[str, ModelName]]:
        """Pods and models of all orders to unload."""
        return [(pod, order.name) for pod, order in self.orders if not isinstance(order, LoadOrder)]

    async def order(self, pod: str, orders: Sequence[Order]) -> None:
        """See Peers."""
        if pod in self.unreachable or pod not in self._pods:
            raise PeerError(pod, "it does not answer")
        self.orders += [(pod, order) for order in orders]
        if pod not in self.deaf:
            self._pending += [(pod, order) for order in orders]
        while self._at_once and self._pending:
            await self.carry_out()

    async def export_names(self, pod: str) -> tuple[list[ModelRecord], list[AliasRecord]]:
        """See Peers."""
        if pod in self.unreachable or pod not in self._pods:
            raise PeerError(pod, "it does not answer")
        tenants = self._names[pod]().tenants.values()
        models = [record for tenant in tenants for record in tenant.models.values()]
        return models, [record for tenant in tenants for record in tenant.aliases.values()]

    async def carry_out(self) -> None:
        """One step of all pods: orders are begun or done, and what was loading serves. Published when this returns."""
        pending, self._pending = self._pending, []
        for pod_id, order in pending:
            known = self._copies[pod_id].get(order.name)
            if not isinstance(order, LoadOrder):
                if known is not None and known.servable == order.generation:
                    self._publish(pod_id, order.name, None)
            elif known is not None and max(known.servable, known.loading) > order.generation:
                continue  # a newer one is there
            elif order.name in self.failing:
                message = self.failing[order.name]
                failure = LoadFailure(pod_id, order.generation, True, message, 0.0, 0.0)
                self._pods[pod_id].set_failure(order.name, failure)
                self._publish(pod_id, order.name, None)
            elif known is None or order.generation not in (known.servable, known.loading):
                begun = known or Copy(pod_id, 0, 0, self._size_bytes, 0.0)
                self._publish(pod_id, order.name, replace(begun, loading=order.generation))
                self._pending.append((pod_id, order))
            elif known.loading == order.generation:
                self._publish(pod_id, order.name, replace(known, servable=order.generation, loading=0))
        for pod in {pod_id: self._pods[pod_id] for pod_id, _ in pending}.values():
            await pod.flush()

    def _publish(self, pod_id: str, name: ModelName, copy: Copy | None) -> None:
        if copy is None:
            self._copies[pod_id].pop(name, None)
        else:
            self._copies[pod_id][name] = copy
        self._pods[pod_id].set_copy(name, copy)
