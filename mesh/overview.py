"""What a pod can tell of its pool: who is in it and answers, who leads, what was decided, whom to ask for more.

A pod without a pool is a pool of one. Both sides of the seam are here, so that status, `explain` and management are
written once, and a pod alone shows the same things in the same words.

Deliberately absent: what is resident here (`mesh.status`), and any decision.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from typing import Protocol

from cache.machine import CacheMachine
from cache.types import ModelKey
from mesh.loading.loading import Loading
from mesh.parking import Parking
from mesh.routing.measuring import Measuring
from mesh.routing.pool_side import Condition, PoolSide
from mesh.settings import Settings
from mesh.transport.base import LineBroken, Metadata, Reply
from placement.constraints import Constraints
from placement.decisions import Decision
from placement.model_facts import FactsGatherer
from placement.policy.snapshot import ModelFacts, ModelName, Pod, PoolView
from placement.records import ModelRecord
from placement.registry import Registry

MEASURED_AGAIN_AFTER_S = 0.5
"""Figures per second of a pod alone are means since it was last asked, over at least so long."""
RELEASES_TRIED_MAX = 3
"""Against others who change the same suspicion."""
UNREADABLE_SHOWN_MAX = 3


class Overview(Protocol):
    """A pod's knowledge of its pool."""

    @property
    def own_pod(self) -> str: ...

    @property
    def view(self) -> PoolView:
        """All pods and copies. That of a pod alone is empty."""

    def own_record(self) -> Pod:
        """This pod, as measured a moment ago."""

    def healthy(self) -> Container[str]:
        """Pods that requests are sent to, this one included."""

    def why_unreachable(self, pod: str) -> str:
        """Why another pod cannot be asked; empty when it can."""

    def why_avoided(self, pod: str) -> str:
        """Why requests are kept from a pod that can be asked; empty when they are not."""

    @property
    def in_flight(self) -> Mapping[str, int]:
        """Calls from here, by pod."""

    def run_limit(self, name: ModelName) -> int:
        """Runs that the copy here takes at a time; 0: as many as come."""

    def facts(self, record: ModelRecord) -> ModelFacts:
        """What placement knows of a model."""

    @property
    def leader(self) -> str:
        """The pod that runs the placement service; empty: none does."""

    @property
    def store_away_for_s(self) -> float | None:
        """How long the store has not answered; None while it does."""

    def notices(self) -> tuple[str, ...]:
        """Loud news."""

    def decisions(self, name: ModelName) -> tuple[Decision, ...]:
        """What this pod decided lately about a model or an alias while it led, oldest first."""

    async def call(self, pod: str, path: str, body: bytes, metadata: Metadata, deadline_s: float) -> Reply:
        """Ask another pod. Raises LineBroken, TransportError."""

    async def release(self, name: ModelName) -> None:
        """Take away what is held against a model. Raises StoreError."""


class InPool:
    """The overview of a pod in a pool."""

    def __init__(self, pool: PoolSide, registry: Registry, clock: Callable[[], float]) -> None:
        self._pool = pool
        self._registry = registry
        self._clock = clock

    @property
    def own_pod(self) -> str:
        return self._pool.name

    @property
    def view(self) -> PoolView:
        return self._pool.membership.view

    def own_record(self) -> Pod:
        return self._pool.own_record

    def healthy(self) -> Container[str]:
        return self._pool.router.healthy()

    def why_unreachable(self, pod: str) -> str:
        if pod not in self.view.pods:
            return "it has left the pool"
        if pod not in self._pool.probes.down:
            return ""
        peer = self._pool.probes.peers.get(pod)
        why = "" if peer is None else f" ({peer.why})"
        lease = "; its lease has run out" if pod in self.view.fading else ""
        return f"it does not answer pod {self.own_pod}{why}{lease}"

    def why_avoided(self, pod: str) -> str:
        return "it answers far more slowly than usual" if pod in self._pool.outlying.slow else ""

    @property
    def in_flight(self) -> Mapping[str, int]:
        return self._pool.links.in_flight

    def run_limit(self, name: ModelName) -> int:
        return self._pool.limit(name)

    def facts(self, record: ModelRecord) -> ModelFacts:
        return self._pool.facts_of(record)

    @property
    def leader(self) -> str:
        leader = self._pool.membership.leader
        return "" if leader is None else leader.pod

    @property
    def store_away_for_s(self) -> float | None:
        since_s = self._pool.membership.store_away_since_s
        return None if since_s is None else max(0.0, self._clock() - since_s)

    def notices(self) -> tuple[str, ...]:
        found = [self._pool.service.status().notice]
        other = self._pool.membership.displaced_by
        if other is not None:
            found.append(
                f"another process, at {other.address}, has this pod's name {self.own_pod!r}; this one publishes "
                "nothing until it is gone: give each pod a --pod-name of its own"
            )
        if self._registry.detached:
            found.append("the store has lost its content; models are kept as they were last seen until it is restored")
        return (*filter(None, found), *_unreadable(self._registry))

    def decisions(self, name: ModelName) -> tuple[Decision, ...]:
        return self._pool.service.recent_decisions(name)

    async def call(self, pod: str, path: str, body: bytes, metadata: Metadata, deadline_s: float) -> Reply:
        return await self._pool.links.call(pod, path, body, metadata, deadline_s)

    async def release(self, name: ModelName) -> None:
        for _ in range(RELEASES_TRIED_MAX):
            if name not in self.view.suspicions or await self._pool.membership.write_suspicion(name, None):
                return


class Alone:
    """The overview of a pod that is its own pool."""

    def __init__(
        self,
        own_pod: str,
        settings: Settings,
        registry: Registry,
        cache: CacheMachine,
        loading: Loading,
        constraints: Constraints,
        parking: Parking,
        *,
        version: str,
        formats: frozenset[str],
        condition: Callable[[], Condition],
        calls_in_flight: Callable[[], int],
        clock: Callable[[], float],
    ) -> None:
        self._own_pod = own_pod
        self._registry = registry
        self._cache = cache
        self._constraints = constraints
        self._parking = parking
        self._condition = condition
        self._clock = clock
        self._threads = settings.infer_threads
        self._loading = loading
        self._measuring = Measuring(
            cache, loading, threads=settings.infer_threads, calls_in_flight=calls_in_flight, clock=clock
        )
        self._record = Pod(
            own_pod,
            "",
            "",
            version=version,
            zone=settings.zone,
            labels=frozenset(settings.labels),
            formats=formats,
        )
        self._measured_at_s = -MEASURED_AGAIN_AFTER_S

    @property
    def own_pod(self) -> str:
        return self._own_pod

    @property
    def view(self) -> PoolView:
        return _NOBODY_ELSE

    def own_record(self) -> Pod:
        now_s = self._clock()
        if now_s - self._measured_at_s >= MEASURED_AGAIN_AFTER_S:
            self._measured_at_s = now_s
            condition = self._condition()
            self._record = self._measuring.measured(
                self._record,
                ready=condition.ready,
                draining=condition.draining,
                why_unready=condition.why_unready,
            )
        return self._record

    def healthy(self) -> Container[str]:
        return (self._own_pod,)

    def why_unreachable(self, pod: str) -> str:
        return "this pod is alone"

    def why_avoided(self, pod: str) -> str:
        return ""

    @property
    def in_flight(self) -> Mapping[str, int]:
        return {}

    def run_limit(self, name: ModelName) -> int:
        return 0  # with nobody to turn to, it takes all

    def facts(self, record: ModelRecord) -> ModelFacts:
        def known_size(name: ModelName) -> int | None:
            size = self._cache.explain(ModelKey(name.tenant, name.id, record.generation)).known_size
            return None if size is None else size.total_bytes

        name = ModelName(record.tenant, record.id)
        parked = self._parking.parked(name)
        view = PoolView(pods={self._own_pod: self.own_record()}, parked={} if parked is None else {name: (parked,)})
        return FactsGatherer(view, known_size, self._constraints).facts(record)

    @property
    def leader(self) -> str:
        return ""  # there is nobody to lead

    @property
    def store_away_for_s(self) -> float | None:
        return None

    def notices(self) -> tuple[str, ...]:
        return _unreadable(self._registry)

    def decisions(self, name: ModelName) -> tuple[Decision, ...]:
        return ()

    async def call(self, pod: str, path: str, body: bytes, metadata: Metadata, deadline_s: float) -> Reply:
        raise LineBroken(f"pod {pod!r}: this pod is alone", sent=False)

    async def release(self, name: ModelName) -> None:
        return  # suspicions are about pods that died; here none is left to be


_NOBODY_ELSE = PoolView()


def _unreadable(registry: Registry) -> tuple[str, ...]:
    """Records that this pod cannot read, in one line."""
    found = [
        f"{tenant}/{name}: {why}"
        for tenant, names in sorted(registry.view.tenants.items())
        for name, why in sorted(names.unreadable.items())
    ]
    if not found:
        return ()
    more = f" | and {len(found) - UNREADABLE_SHOWN_MAX} more" if len(found) > UNREADABLE_SHOWN_MAX else ""
    return (f"{len(found)} records cannot be read: {' | '.join(found[:UNREADABLE_SHOWN_MAX])}{more}",)
