"""This pod's part in the pool: everything that a pod alone does without, put together.

It publishes what is here (`publishing`, `measuring`), follows what is elsewhere (`placement.membership`), keeps lines
to the others (`links`, `probes`), routes what cannot be answered here (`router`), takes orders, and runs the placement
service, which acts when this pod leads.

A turn twice a second measures, publishes and looks at what time alone changes. All else happens when something does.

Deliberately absent: how a model is loaded or run. This module is told of it (`mesh.loading.pool_hooks.PoolHooks`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cache.events import EvictRequest
from cache.machine import CacheMachine
from cache.types import ModelKey, Refusal, RefusalKind
from mesh.flight_recorder import FlightRecorder, LastFlight
from mesh.generations import wanted
from mesh.loading.loading import Loading, Refused
from mesh.loading.pool_hooks import PoolHooks
from mesh.parking import Parking
from mesh.resident import Resident
from mesh.routing.draining import Draining, DrainLimits
from mesh.routing.figures import pool_samples
from mesh.routing.fitness import Fitness
from mesh.routing.links import Links
from mesh.routing.losses import Losses
from mesh.routing.measuring import Measuring
from mesh.routing.names import Names
from mesh.routing.outlying import Outlying
from mesh.routing.peers import MeshPeers
from mesh.routing.probes import Probes
from mesh.routing.publishing import Publisher
from mesh.routing.reachability import Answer, Reachability
from mesh.routing.router import Router
from mesh.settings import Settings
from mesh.telemetry import Sample
from mesh.transport.base import PeerWays
from mesh.world import World
from placement.constraints import Constraints
from placement.membership import Membership
from placement.model_facts import FactsGatherer
from placement.peers import LoadOrder, Order, PeerError, UnloadOrder
from placement.policy.load_choice import choose_load_pod
from placement.policy.no_pod import Cause, NoPod
from placement.policy.snapshot import Copy, ModelFacts, ModelName, Pod, Verdict
from placement.pool_view import PoolChanges
from placement.records import ModelRecord
from placement.registry import Registry
from placement.service import PlacementService
from placement.store.base import KeyValueStore
from placement.store.embedded import EmbeddedStore

log = logging.getLogger("hexcomb.pool")

TURN_S = 0.5
"""Twice a second: what is measured on requests must put a slow pod out within two."""


@dataclass(frozen=True, slots=True)
class Condition:
    """What the pod says of its own state."""

    ready: bool
    draining: bool
    why_unready: str


class PoolSide:
    """Belongs to the event loop. Built with the node, started once its endpoint listens."""

    def __init__(
        self,
        settings: Settings,
        world: World,
        name: str,
        store: KeyValueStore,
        registry: Registry,
        cache: CacheMachine,
        constraints: Constraints,
        parking: Parking,
        *,
        condition: Callable[[], Condition],
        calls_in_flight: Callable[[], int],
        recorder: FlightRecorder | None,
    ) -> None:
        self.name = name
        self._settings = settings
        self._world = world
        self._registry = registry
        self._cache = cache
        self._constraints = constraints
        self._condition = condition
        self._calls_in_flight = calls_in_flight
        self._recorder = recorder
        self._turning: asyncio.Task[None] | None = None
        self._fitness: Fitness | None = None
        self._pod = Pod(name, world.incarnation, "")
        self._loading: Loading
        self._measuring: Measuring
        self._beside: dict[asyncio.Task[None], None] = {}
        """Ordered loads, and reports."""
        self.membership = Membership(
            store,
            name,
            lease_ttl_s=settings.lease_ttl_s,
            claim_timeout_s=settings.claim_timeout_s,
            clock=world.clock,
            wall_clock=world.wall_clock,
            shared_name=registry.shared_name,
            sole_process=isinstance(store, EmbeddedStore),
        )
        self.publisher = Publisher(
            name, cache, self.membership, parking, clock=world.clock, wall_clock=world.wall_clock
        )
        self.links = Links(world.dial, name, settings.forwards_per_pod_max)
        self.probes = Probes(
            self.links,
            name,
            interval_s=settings.probe_interval_s,
            timeout_s=settings.probe_timeout_s,
            clock=world.clock,
            on_change=self._reachability_changed,
        )
        self.losses = Losses(self.membership, self.probes, world.clock, world.wall_clock)
        self.outlying = Outlying(world.clock)
        self.peers = MeshPeers(name, self.links, self.take_orders, lambda: registry.view, world.clock)
        self.service = PlacementService(
            self.membership,
            registry,
            self.peers,
            clock=world.clock,
            wall_clock=world.wall_clock,
            constraints=constraints,
            healthy=lambda: self.router.healthy(),
        )
        self.router = Router(
            name,
            registry,
            Names(registry, store, world.clock),
            self.membership,
            self.links,
            self.probes,
            self.losses,
            self,
            self.facts_of,
            slow_pods=lambda: self.outlying.slow,
            observe=self.outlying.observe,
            is_draining=lambda: condition().draining,
            attempts_max=settings.route_attempts_max,
            tells_owner=settings.tell_owner,
            clock=world.clock,
        )
        self.hooks = PoolHooks(
            self.publisher.changed, self._before_load, self._resident_changed, self._is_elsewhere, self._crashed
        )

    def attach(self, loading: Loading) -> None:
        """The loading that the hooks are for."""
        self._loading = loading
        self._measuring = Measuring(
            self._cache,
            loading,
            threads=self._settings.infer_threads,
            calls_in_flight=self._calls_in_flight,
            clock=self._world.clock,
        )

    # Life -----------------------------------------------------------------------------------------------------

    async def start(self, ways: PeerWays, version: str, formats: frozenset[str], last: LastFlight | None) -> None:
        """Join the pool: be seen by all, take no requests yet. Raises PlacementError."""
        pod = Pod(
            self.name,
            self._world.incarnation,
            ways.address,
            version,
            self._settings.zone,
            frozenset(self._settings.labels),
            formats,
            started_at_s=self._world.wall_clock(),
            peer_key=self._world.peer_key,
            peer_address=ways.line,
            peer_socket=ways.socket,
        )
        self._pod = self._measured(pod)
        self.membership.on_change(self._pool_changed)
        await self.membership.start(self._pod)
        self._follow_pods()
        if last is not None and last.in_use:
            await self.losses.report(last)
        await self.service.start()
        self._turning = asyncio.get_running_loop().create_task(self._turn_for_ever())

    async def close(self) -> None:
        """Leave: this pod's keys vanish at once."""
        if self._turning is not None:
            self._turning.cancel()
            await asyncio.gather(self._turning, return_exceptions=True)
        for task in list(self._beside):
            task.cancel()
        await asyncio.gather(*self._beside, return_exceptions=True)
        await self.service.close()
        await self.membership.leave()
        await self.probes.close()
        await self.links.close()

    async def _turn_for_ever(self) -> None:
        while True:
            await asyncio.sleep(TURN_S)
            try:
                self.turn()
            except Exception:
                log.exception("a turn of the pool's bookkeeping failed")

    def turn(self) -> None:
        """Measure, publish, and look at what time alone changes."""
        self.say_condition()
        self.publisher.review_failures()
        self.publisher.review_parked()
        self.outlying.turn(self.membership.view)

    def say_condition(self, *, urgent: bool = False) -> None:
        """Publish this pod's own record. `urgent`: before the store's usual pace."""
        self._pod = self._measured(self._pod)
        self.membership.set_pod(self._pod, urgent=urgent)

    def samples(self) -> Iterator[Sample]:
        """For a scrape."""
        return pool_samples(self.router, self.probes, self.outlying, self.membership, self._world.clock)

    @property
    def own_record(self) -> Pod:
        """What this pod last said of itself."""
        return self._pod

    def _measured(self, pod: Pod) -> Pod:
        condition = self._condition()
        return self._measuring.measured(
            pod, ready=condition.ready, draining=condition.draining, why_unready=condition.why_unready
        )

    async def why_unfit(self) -> str:
        """What keeps this pod from becoming ready; empty: nothing."""
        if self._fitness is None:
            self._fitness = Fitness(
                self.name,
                self.membership,
                self._registry,
                self.links,
                self._loading,
                self.facts_of,
                trials=self._settings.bootstrap_trials,
                timeout_s=self._settings.bootstrap_timeout_s,
                clock=self._world.clock,
            )
        return await self._fitness.why_unfit()

    async def drain(self, calls: Callable[[], int]) -> None:
        """Have others load what matters here, and wait for clients to leave; bounded by `drain_grace_s`."""
        limits = DrainLimits(self._settings.drain_grace_s, self._settings.drain_quiet_s, self._settings.drain_recent_s)
        await Draining(
            self.name,
            self.membership,
            self._registry,
            self._loading,
            self._cache,
            self.peers,
            self.facts_of,
            self.router.healthy,
            limits,
            self._world.clock,
        ).run(calls)

    # What happens in the pool -----------------------------------------------------------------------------------

    def _pool_changed(self, changes: PoolChanges) -> None:
        if changes.pods:
            self._follow_pods()
        for name in changes.suspicions:
            self._suspicion_changed(name)

        for pod in changes.began_fading:
            if pod in self.probes.down:
                self.membership.forget(pod)

    def _follow_pods(self) -> None:
        pods = self.membership.view.pods
        self.links.follow(pods.values())
        self.probes.follow(pods.values())

    def _suspicion_changed(self, name: ModelName) -> None:
        """A model that may only run apart leaves this process; one that is quarantined leaves altogether."""
        suspicion = self.membership.view.suspicions.get(name)
        if suspicion is None:
            return
        key = ModelKey(name.tenant, name.id, suspicion.generation)
        copy = self._cache.servable(key)
        resident = None if copy is None else self._loading.resident(copy.copy_id)
        if resident is None:
            return
        if suspicion.verdict is Verdict.QUARANTINED:
            log.warning("model %s is quarantined and leaves", name)
            self._loading.send(EvictRequest(key))
        elif not resident.isolated and suspicion.isolate:
            log.warning("model %s is loaded again in a process of its own: pods died while they ran it", name)
            self._loading.send(EvictRequest(key))

    def _reachability_changed(self, pod: str, peer: Reachability) -> None:
        if peer.up:
            return
        known = self.membership.view.pods.get(pod)
        if peer.why == Answer.REFUSED.value and known is not None and not known.draining:
            self.losses.lost(pod, known.incarnation)
        self.membership.forget(pod)

    # What the router and the loader ask -------------------------------------------------------------------------

    def facts_of(self, record: ModelRecord) -> ModelFacts:
        """What the policies must know of a model."""
        return FactsGatherer(self.membership.view, self.membership.known_size, self._constraints).facts(record)

    def servable_generation(self, name: ModelName) -> int:
        """The generation that answers here; 0: none."""
        return self.publisher.servable_generation(name)

    def is_loading(self, name: ModelName, generation: int) -> bool:
        """Whether this generation is on its way in."""
        return self.publisher.is_loading(name, generation)

    def in_flight(self, name: ModelName) -> int:
        """Requests that hold the copy here."""
        resident = self._resident(name)
        return 0 if resident is None else resident.copy.pins

    def limit(self, name: ModelName) -> int:
        """Runs that the copy here takes at a time; 0: as many as come."""
        resident = self._resident(name)
        if resident is None:
            return 0
        return 1 if resident.isolated else self._settings.infer_threads

    def publish(self, name: ModelName) -> None:
        """Tell the pool what is here of this model now."""
        self.publisher.publish(name)

    def _resident(self, name: ModelName) -> Resident | None:
        generation = self.publisher.servable_generation(name)
        copy = self._cache.servable(ModelKey(*name, generation)) if generation else None
        return None if copy is None else self._loading.resident(copy.copy_id)

    def must_isolate(self, key: ModelKey) -> bool:
        """Whether a model may only run in a process of its own, whatever its spec says."""
        suspicion = self.membership.view.suspicions.get(ModelName(key.tenant, key.model_id))
        return suspicion is not None and suspicion.generation == key.generation and suspicion.isolate

    async def _before_load(self, key: ModelKey) -> None:
        name = ModelName(key.tenant, key.model_id)
        if self.membership.store_away_since_s is None:
            await self.membership.record_intent(name, key.generation, "loading")
        else:
            self.membership.set_intent(name, key.generation, "loading")

    def _is_elsewhere(self, key: ModelKey) -> bool:
        copies = self.membership.view.copies.get(ModelName(key.tenant, key.model_id), ())
        return any(copy.pod != self.name for copy in copies)

    def _crashed(self, key: ModelKey) -> None:
        """A model that runs apart for having killed pods ended its process, too. Other crashes are their owners'."""
        if not self.must_isolate(key):
            return
        name = ModelName(key.tenant, key.model_id)
        self._spawn(self.losses.crashed(name, key.generation, self.name, self._world.incarnation))

    def _resident_changed(self, resident: Resident, here: bool) -> None:
        if self._recorder is None or resident.isolated:
            return  # in a process of its own: its death is not this pod's
        if here:
            resident.recorder = self._recorder.bytes
            resident.recorder_slot = self._recorder.take(resident.copy.key)
        else:
            slot, resident.recorder, resident.recorder_slot = resident.recorder_slot, bytearray(1), 0
            self._recorder.give_back(slot)

    async def load_somewhere(self, record: ModelRecord, deadline_s: float | None, *, wait: bool) -> None:
        """Have the model loaded by the pod that placement chooses, unless one serves or loads it already.

        `wait`: until it is servable. Raises Refused.
        """
        name = ModelName(record.tenant, record.id)
        tried: set[str] = set()
        last = Refusal(RefusalKind.FULL, f"no pod could load model {record.id!r}", 1.0)
        for _ in range(self._settings.route_attempts_max):
            healthy = self.router.healthy()
            copies = [copy for copy in self.membership.view.copies.get(name, ()) if copy.pod in healthy]
            if any(copy.servable == record.generation for copy in copies):
                return
            pod = next((c.pod for c in copies if c.loading == record.generation and c.pod not in tried), None)
            if pod is None:
                choice = choose_load_pod(
                    self.membership.view, self.facts_of(record), healthy=healthy, excluded=frozenset(tried)
                )
                if isinstance(choice, NoPod):
                    permanent = choice.cause is not Cause.FOR_NOW
                    kind = RefusalKind.LOAD_FAILED_PERMANENT if permanent else last.kind
                    message = choice.message if not tried or permanent else last.message
                    raise Refused(Refusal(kind, message, None if permanent else last.retry_after_s))
                pod = choice.pod
            elif not wait:
                return
            order = LoadOrder(name, record.generation, "asked for by management", wait)
            try:
                async with asyncio.timeout(None if deadline_s is None else max(0.0, deadline_s - self._world.clock())):
                    await self.peers.order(pod, [order])
                return
            except TimeoutError:
                message = f"model {record.id!r} is being loaded on pod {pod!r}, which takes longer than the deadline"
                raise Refused(Refusal(RefusalKind.DEADLINE, message, 1.0)) from None
            except PeerError as error:
                tried.add(pod)
                last = Refusal(RefusalKind.LOAD_FAILED_TRANSIENT, error.message, 1.0)
        raise Refused(last)

    async def unload_everywhere(self, record: ModelRecord) -> list[str]:
        """Have every pod let go of its copy of the model; what stood against it."""
        name = ModelName(record.tenant, record.id)

        async def order(copy: Copy) -> str:
            try:
                await self.peers.order(
                    copy.pod, [UnloadOrder(name, copy.servable, "asked for by management", even_last=True)]
                )
            except PeerError as error:
                return str(error)
            return ""

        copies = self.membership.view.copies.get(name, ())
        answers = await asyncio.gather(*(order(copy) for copy in copies if copy.servable))
        return [complaint for complaint in answers if complaint]

    # Orders -----------------------------------------------------------------------------------------------------

    async def take_orders(self, orders: Sequence[Order]) -> None:
        """Orders of the leader, or of a pod that drains. Raises PeerError when one cannot be taken."""
        waits: list[asyncio.Task[None]] = []
        for order in orders:
            match order:
                case LoadOrder():
                    task = self._take_load(order)
                    if order.wait:
                        waits.append(task)
                case UnloadOrder():
                    self._take_unload(order)
        for task in waits:
            await asyncio.shield(task)

    def _take_load(self, order: LoadOrder) -> asyncio.Task[None]:
        record = self._registry.model(*order.name)
        if record is None or record.generation != order.generation:
            known = "unknown" if record is None else f"at generation {record.generation}"
            raise PeerError(self.name, f"model {order.name} is {known} here, generation {order.generation} was ordered")
        if self._condition().draining:
            raise PeerError(self.name, "it is draining")
        log.info("ordered to load %s: %s", order.name, order.reason)
        return self._spawn(self._load(record))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._beside[task] = None
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._beside.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, PeerError):
            log.error("work beside the requests failed", exc_info=error)

    async def _load(self, record: ModelRecord) -> None:
        try:
            resident = await self._loading.wait_servable(wanted(record), None)
        except Refused as refused:
            log.info("model %s/%s, which was ordered, is not loaded: %s", record.tenant, record.id, refused)
            raise PeerError(self.name, str(refused)) from refused
        resident.let_go()

    def _take_unload(self, order: UnloadOrder) -> None:
        key = ModelKey(*order.name, order.generation)
        if not order.even_last and not self._answers_elsewhere(order.name, order.generation):
            raise PeerError(self.name, f"its copy of {order.name} is the last one that answers and stays")
        log.info("ordered to let go of %s: %s", order.name, order.reason)
        self._loading.send(EvictRequest(key))

    def _answers_elsewhere(self, name: ModelName, generation: int) -> bool:
        view, healthy = self.membership.view, self.router.healthy()
        others = (view.pods.get(copy.pod) for copy in view.holders(name, generation))
        return any(p is not None and p.id != self.name and p.id in healthy and not p.draining for p in others)


def ways_to_advertise(
    settings: Settings, bound: str, bound_besides: PeerWays | None, own_host: Callable[[], str]
) -> PeerWays:
    """Where other pods reach this one: as told, else as bound, else this host's own address.

    Who is told where calls in batches are taken is told of no socket: the way may lead through something.
    """
    host, _, port = bound.rpartition(":")
    if host.strip("[]") in ("0.0.0.0", "::"):
        host = own_host()
    address = settings.advertise_address or f"{host}:{port}"
    if bound_besides is None or settings.advertise_peer_address:
        return PeerWays(address, settings.advertise_peer_address)
    line_port = bound_besides.line.rpartition(":")[2]
    return PeerWays(address, f"{address.rpartition(':')[0]}:{line_port}", bound_besides.socket)
