"""One pod, put together: this file creates every part, hands it what it needs, starts it and stops it, in order.

Read it from top to bottom to see what a pod is made of. It decides nothing and computes nothing.

Start: allocator settings before any framework is imported; the store; the registry's view; the artifacts on disk; the
cache and its loader; the endpoint; then the ports, last, so that whoever connects finds a pod that can answer.
Stop (SIGTERM, SIGINT): unready first, then no new work, then what runs is finished, bounded by `stop_grace_s`; then the
copies, so that no model's process outlives the pod; the store last.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from prometheus_client import CollectorRegistry

from cache.events import Drain, Retire
from cache.machine import CacheMachine
from cache.policies import policy_named
from cache.types import ModelKey, Place
from mesh.access_log import AccessLog
from mesh.endpoint.access import Access
from mesh.endpoint.health import HealthEndpoint
from mesh.endpoint.http import HttpFront, build_app
from mesh.endpoint.rest.calls import HttpCalls
from mesh.endpoint.status import code_name
from mesh.flight_recorder import FlightRecorder, read_last_flight
from mesh.generations import Generations
from mesh.known_sizes import Known, KnownSizes
from mesh.large_requests import LargeRequests
from mesh.loading.loading import Loading
from mesh.loading.places import HOST_MEMORY, RAM
from mesh.memory_watch import MemoryWatch
from mesh.modelmesh_metrics import WithModelMeshNames
from mesh.models import Models
from mesh.node_routes import Served, routes_of
from mesh.node_settings import (
    CannotStart,
    cache_limits,
    check_box,
    chosen_devices,
    chosen_transport,
    file_prefixes,
    installed_formats,
    listen_addresses,
    own_host,
    peer_address,
    read_constraints,
)
from mesh.overview import Alone, InPool, Overview
from mesh.parking import Parking
from mesh.pipelines.registered import Pipelines
from mesh.pod import PodView, RuntimeReport, default_pod_name
from mesh.promoting import Promotions
from mesh.promotion import PromotionLimits
from mesh.registrations import Registrations
from mesh.renewing import Renewals
from mesh.routing.pool_side import Condition, PoolSide, ways_to_advertise
from mesh.running import Runner, Runs
from mesh.runtimes.connecting import Beside, adapters_of
from mesh.runtimes.watch import RuntimeWatch
from mesh.serving import Serving
from mesh.settings import Settings, box_limits
from mesh.size_watch import SizeWatch
from mesh.staging import Stages, Staging, never
from mesh.status import StatusView
from mesh.telemetry import Telemetry
from mesh.tracing import Tracing
from mesh.transport.base import PeerDoor, TransportLimits
from mesh.uploads import Uploads
from mesh.world import World
from placement.profiles import ProfileStore
from placement.records import ModelRecord
from placement.registry import Registry
from placement.store.base import KeyValueStore
from runtime_adapters.artifacts.credentials import StorageKeys
from runtime_adapters.artifacts.fetch import ArtifactStore
from runtime_adapters.artifacts.fetching import FetchLimits
from runtime_adapters.artifacts.source_policy import SourcePolicy
from runtime_adapters.base import Device, RuntimeAdapter
from runtime_adapters.registry import adapter_for

log = logging.getLogger("hexcomb.node")


class Node:
    """One pod. Built and used on one event loop."""

    def __init__(
        self,
        settings: Settings,
        store: KeyValueStore,
        world: World | None = None,
        beside: Sequence[Beside] = (),
    ) -> None:
        """`beside`: servers that run models for this pod; they are ready."""
        self._settings = settings
        self._store = store
        self._world = world = world or World()
        self._draining = False
        self._started = False
        self._unfit = ""
        self.stop_wanted = asyncio.Event()
        """Somebody asked for this pod to be drained and stopped."""
        name = settings.pod_name or default_pod_name()
        devices = chosen_devices(settings)
        self._beside = beside
        external = adapters_of(beside)
        self._formats = installed_formats(external)
        room_beside = {Device(server.link.name): server.link.capacity_bytes for server in beside}

        def adapter_of(format_name: str) -> RuntimeAdapter:
            return external[format_name] if format_name in external else adapter_for(format_name)

        policy = SourcePolicy(
            file_prefixes=file_prefixes(settings),
            trusted_prefixes=settings.trusted_prefixes,
            http_hosts=settings.http_hosts or None,
            pvc_root=settings.pvc_root,
        )

        self.telemetry = Telemetry(CollectorRegistry(), per_model=settings.metrics_per_model)
        self.registry = Registry(store, clock=world.wall_clock)
        self.cache = CacheMachine(cache_limits(settings, devices, room_beside), policy_named(settings.eviction_policy))
        self.profiles = ProfileStore(store, clock=world.wall_clock)
        self.known_sizes = KnownSizes(self.profiles)
        self.parking = Parking(
            name,
            self.registry,
            lambda record: self.staging.content_on_disk(record),
            load_time_of=self.known_sizes.load_time_s,
        )
        self.artifacts = ArtifactStore(
            settings.data_dir / "artifacts",
            capacity_bytes=int(settings.disk_capacity),
            limits=FetchLimits(
                bytes_max=int(settings.fetch_size_max),
                timeout_s=settings.fetch_timeout_s,
                concurrent_max=settings.fetches_concurrent_max,
            ),
            storage=StorageKeys.from_path(settings.storage_config),
            policy=policy,
            keep_originals=settings.keep_originals,
            content_gone=self.parking.gone,
        )
        self.generations = Generations(
            is_servable=lambda key: self.cache.servable(key) is not None,
            retire=lambda key: self.loading.send(Retire(key)),
        )
        self._last_flight = read_last_flight(settings.data_dir) if settings.is_pooled else None
        self.recorder = FlightRecorder(settings.data_dir, name, world.incarnation) if settings.is_pooled else None
        self.pool = self._pool_side(name) if settings.is_pooled else None
        self.uploads = (
            None
            if settings.is_pooled
            else Uploads(settings.data_dir / "uploads", int(settings.uploads_max), world.in_thread)
        )
        must_isolate = never if self.pool is None else self.pool.must_isolate
        read_memory = world.read_memory if settings.memory_watch_s else None
        staging = Staging(
            self.artifacts,
            settings,
            self.telemetry,
            devices[0],
            world.clock,
            must_isolate,
            self.parking,
            self.known_sizes,
            read_memory=read_memory,
            make_room=lambda missing_bytes, why, counted: self._ran_out(
                HOST_MEMORY, missing_bytes, why, counted=counted
            ),
            free_bytes=lambda: self.cache.free[HOST_MEMORY],
            adapter_of=adapter_of,
        )
        self.staging: Stages = staging if world.staging is None else world.staging(must_isolate, self.parking)
        self.loading = Loading(
            cache=self.cache,
            staging=self.staging,
            settings=settings,
            telemetry=self.telemetry,
            devices=devices,
            record_of=self._record_of,
            on_loaded=self.generations.loaded,
            hooks=None if self.pool is None else self.pool.hooks,
            loaded_as_fetched=lambda resident, staged: self.renewals.begin(resident, staged),
            read_memory=read_memory,
            ran_out=self._ran_out,
            clock=world.clock,
            in_thread=world.in_thread,
        )
        self.renewals = Renewals(
            self.cache,
            self.loading,
            staging,
            read_memory=read_memory,
            under_pressure=lambda: bool(self.memory_watch.pressure),
            in_thread=world.in_thread,
        )
        self.size_watch = SizeWatch(
            self.loading,
            int(settings.capacity),
            measured=lambda resident: self.known_sizes.measured_again(
                resident.loadable, Known(resident.size, resident.workspace_bytes, resident.request_bytes_measured)
            ),
            clock=world.clock,
            in_thread=world.in_thread,
        )
        self.memory_watch = MemoryWatch(
            self.cache.usage().capacity,
            RAM,
            read=world.read_memory,
            used=lambda: self.cache.usage().used,
            change_capacity=self.loading.send,
            every_s=settings.memory_watch_s,
            clock=world.clock,
            in_thread=world.in_thread,
        )
        self.promotions = Promotions(
            self.cache,
            self.loading,
            PromotionLimits(horizon_s=settings.promotion_horizon_s),
            under_pressure=lambda: bool(self.memory_watch.pressure),
            clock=world.clock,
            in_thread=world.in_thread,
        )
        observe = self.telemetry.run_queue_seconds.observe
        self.runner: Runs = (
            Runner(
                settings.infer_threads,
                settings.isolated_threads,
                observe,
                runs_per_model_max=settings.runs_per_model_max,
            )
            if world.runner is None
            else world.runner(settings, observe)
        )
        self.access_log = (
            None
            if settings.access_log is None
            else _access_log(settings.access_log, int(settings.access_log_max), world)
        )
        self.large_requests = LargeRequests(in_thread=world.in_thread)
        self.serving = Serving(
            self.registry,
            self.generations,
            self.loading,
            self.runner,
            self.telemetry,
            code_name,
            has_chance=lambda record: self.status.has_chance(record),
            draw=world.draw,
            access_log=self.access_log,
            large_came=self.large_requests.came,
        )
        self.pipelines = Pipelines(self.registry, settings.pipeline_depth_max)
        self.models = Models(
            self.registry,
            policy,
            self.loading,
            self.serving,
            self.pool,
            adapter_of,
            self._is_loaded_elsewhere,
            self.pipelines,
        )
        self._registrations = Registrations(
            self.registry, self.models, self.generations, self.loading, self.parking, self.telemetry
        )
        self.tracing = Tracing(settings.data_dir, world.in_thread)
        self.runtime_watch = RuntimeWatch(beside, self.loading, self._registrations.runtime_back)
        self.overview = self._overview(name)
        self.status = StatusView(
            name,
            self.cache,
            self.loading,
            self.generations,
            lambda: self.overview.view,
            self.runner,
            world.clock,
            world.wall_clock,
            self.pipelines.parts,
        )
        if self.pool is not None:
            self.pool.attach(self.loading)

        access = Access("" if self.pool is None else world.peer_key)
        self.health = HealthEndpoint(access)
        self.transport_choice = chosen_transport(settings)
        routes, answers_to = routes_of(
            Served(
                name,
                settings,
                world,
                access,
                self.registry,
                self.cache,
                self.loading,
                self.serving,
                self.models,
                self.status,
                self.overview,
                self.pipelines,
                self.telemetry,
                self.tracing,
                self.health,
                self.pool,
                self.uploads,
                beside,
                unready_reason=self.unready_reason,
                is_draining=lambda: self._draining,
                request_drain=self.stop_wanted.set,
                report=lambda: self.pod.report(),
            )
        )
        limits = TransportLimits(
            message_bytes_max=int(settings.message_size_max),
            calls_max=settings.calls_concurrent_max,
            bytes_in_flight_max=int(settings.bytes_in_flight_max),
        )
        door = None
        if self.pool is not None:
            door = PeerDoor(peer_address(settings), access.check_peer)
        self.transport = world.listen(self.transport_choice, routes, listen_addresses(settings), limits, door)
        self.http_calls = HttpCalls(routes.unary, limits, answers_to)
        self.pod = PodView(
            self.overview,
            self.registry,
            self.cache,
            self.artifacts,
            self.loading,
            self.serving,
            unready_reason=self.unready_reason,
            draining=lambda: self._draining,
            calls_in_flight=self._calls_in_flight,
            memory_pressure=lambda: self.memory_watch.pressure,
            box_limits=box_limits(settings),
            transport=str(self.transport_choice),
            beside=self._reports_of_beside,
            clock=world.clock,
            wall_clock=world.wall_clock,
        )
        self.telemetry.add_samples(self.pod.samples)
        self.telemetry.add_samples(self.promotions.samples)
        self.telemetry.add_samples(self.memory_watch.samples)
        if self.pool is not None:
            self.telemetry.add_samples(self.pool.samples)
        self.http = None
        if world.serves_http:
            self.http = HttpFront(
                build_app(
                    WithModelMeshNames(self.telemetry.registry, self._world.wall_clock),
                    self.unready_reason,
                    self.http_calls,
                    version("hexcomb"),
                ),
                settings.host,
                settings.http_port,
                limits,
                settings.stop_grace_s,
            )

    def _pool_side(self, name: str) -> PoolSide:
        return PoolSide(
            self._settings,
            self._world,
            name,
            self._store,
            self.registry,
            self.cache,
            read_constraints(self._settings),
            self.parking,
            condition=self._condition,
            calls_in_flight=self._calls_in_flight,
            recorder=self.recorder,
        )

    def _overview(self, name: str) -> Overview:
        if self.pool is not None:
            return InPool(self.pool, self.registry, self._world.clock)
        return Alone(
            name,
            self._settings,
            self.registry,
            self.cache,
            self.loading,
            read_constraints(self._settings),
            self.parking,
            version=version("hexcomb"),
            formats=self._formats,
            condition=self._condition,
            calls_in_flight=self._calls_in_flight,
            clock=self._world.clock,
        )

    def _calls_in_flight(self) -> int:
        return self.transport.calls_in_flight + self.http_calls.in_flight

    def _condition(self) -> Condition:
        return Condition(not self.unready_reason(), self._draining, self.unready_reason())

    def unready_reason(self) -> str:
        """Why the pod takes no requests; empty when it does."""
        if self._draining:
            return "draining"
        return "" if self._started else self._unfit or "starting"

    def _record_of(self, key: ModelKey) -> ModelRecord | None:
        return self.generations.record_of(key, self.registry.model(key.tenant, key.model_id))

    def _is_loaded_elsewhere(self, format_name: str) -> bool:
        """Whether another pod says that it loads this format: by a server beside it that this pod has none of."""
        return any(format_name in pod.formats for pod in self.overview.view.pods.values())

    def _reports_of_beside(self) -> list[RuntimeReport]:
        reports = []
        for server in self._beside:
            away = self.runtime_watch.is_away(server.link.name)
            message = f"runtime {server.link.name!r} does not answer" if away else ""
            version = f"{server.link.name} {server.link.version}"
            reports += [RuntimeReport(each.format, version, not away, message) for each in server.adapters]
        return reports

    def _ran_out(self, place: Place, missing_bytes: int, message: str, *, counted: bool) -> None:
        self.memory_watch.ran_out(place, missing_bytes, message, counted=counted)

    async def start(self) -> None:
        """Everything up to the open ports, in a pool also up to being fit for it.

        Raises CannotStart, CannotListen, PlacementError.
        """
        if self._world.read_memory is not None:
            check_box(self._settings, self.artifacts.use().used_bytes)
        await self.registry.start()
        self.pipelines.begin()
        self.registry.on_change(self.pipelines.heed)
        self.registry.on_change(self._registrations.heed)
        self.registry.on_change(self.tracing.follow)
        if self.uploads is not None:
            await self.uploads.start(self.registry.view.every_model())
            self.registry.on_change(self.uploads.follow)
        self.parking.start()
        self.memory_watch.start()
        self.runtime_watch.start()
        if self._world.staging is None:  # simulated models take what they say
            self.size_watch.start()
        await self.transport.start()
        grpc = [address.address for address in self.transport.addresses]
        log.info("gRPC on %s: %s", ", ".join(grpc), self.transport_choice)
        self.pod.addresses = tuple(f"grpc://{address}" for address in grpc)
        http_port = 0
        if self.http is not None:
            http_port = await self.http.start()
            self.pod.addresses = (*self.pod.addresses, f"http://{self._settings.host}:{http_port}")
        if self.pool is not None:
            ways = ways_to_advertise(self._settings, grpc[0], self.transport.peer_ways, own_host)
            await self.pool.start(ways, version("hexcomb"), self._formats, self._last_flight)
            assert self.recorder is not None
            self.recorder.forget_last()
            await self._wait_fit()
        self._started = True
        if self.pool is not None:
            self.pool.say_condition(urgent=True)
        self.health.set_serving(True)
        if self._settings.promotion:
            self.promotions.start()
        self.models.load_pinned()
        self.models.resume_transitions()
        if self._settings.ready_file is not None:
            _write_ready_file(self._settings.ready_file, grpc[0], http_port)
        log.info("ready: %s; %d models registered", ", ".join(self.pod.addresses), self.registry.view.model_count())

    async def _wait_fit(self) -> None:
        """A new pod of a running pool proves itself before it is ready: others reach it, and it can load."""
        assert self.pool is not None
        while unfit := await self.pool.why_unfit():
            if unfit != self._unfit:
                log.error("this pod does not become ready: %s", unfit)
            self._unfit = unfit
            self.pool.say_condition()
            await asyncio.sleep(_FIT_AGAIN_S)
        self._unfit = ""

    async def drain(self) -> None:
        """Hand over: unready at once, still serving; ends when others have what matters and clients have left, or
        when `drain_grace_s` has passed."""
        self._draining = True
        self.health.set_serving(False)
        if self.pool is not None and self._started:
            self.pool.say_condition(urgent=True)
            router = self.pool.router
            await self.pool.drain(lambda: self.serving.hits + self.serving.misses + router.forwarded)

    async def stop(self) -> None:
        """Refuse new work, finish what runs, free everything. Bounded by `stop_grace_s` and a little."""
        self._draining = True
        self.health.close()
        log.info("stopping: finishing %d calls within %g s", self._calls_in_flight(), self._settings.stop_grace_s)
        await self.memory_watch.close()
        await self.size_watch.close()
        await self.runtime_watch.close()
        await self.parking.close()
        await self.models.close()
        await asyncio.gather(
            self.transport.stop(self._settings.stop_grace_s), *([] if self.http is None else [self.http.stop()])
        )
        await self.promotions.close()
        await self.renewals.close()
        self.loading.send(Drain())
        await self.loading.close(_LAST_UNLOADS_S)
        self.runner.close()
        self.large_requests.close()
        for server in self._beside:
            server.link.close()
        try:
            async with asyncio.timeout(_LAST_FILES_S):
                await self.artifacts.close()
        except TimeoutError:
            log.warning("a thread that fetches or prepares did not end within %g s and is left", _LAST_FILES_S)
        if self.pool is not None:
            await self.pool.close()
        if self.uploads is not None:
            await self.uploads.close()
        await self.profiles.close()
        await self.registry.close()
        await self._store.close()
        if self.recorder is not None:
            self.recorder.close()
        if self.access_log is not None:
            await self.access_log.close()
        log.info("stopped")


_FIT_AGAIN_S = 5.0
"""Between tries of a pod that is not fit to become ready."""
_LAST_UNLOADS_S = 5.0
"""At the end: how long copies in subprocesses may take to leave before they are killed."""
_LAST_FILES_S = 15.0
"""At the end: how long fetches may take to stop; a server that says nothing is given up after ten seconds."""


def _write_ready_file(path: Path, grpc_address: str, http_port: int) -> None:
    ready = {"grpc_port": int(grpc_address.rpartition(":")[2]), "http_port": http_port, "pid": os.getpid()}
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(ready))
    temporary.replace(path)  # whoever waits for the file never reads half of it


def _access_log(path: Path, bytes_max: int, world: World) -> AccessLog:
    try:
        return AccessLog(path, bytes_max=bytes_max, wall_clock=world.wall_clock, in_thread=world.in_thread)
    except OSError as error:
        raise CannotStart(f"access_log: {path} cannot be written: {error}") from error
