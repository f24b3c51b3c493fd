"""Which handler answers which method of a pod's port: every endpoint, created and put behind its wrappers, in order.

From outside in, an inference's wrappers: errors become codes (`guarded_unary`), writes that the caller has seen are
waited for (`catching_up`), payload processors see it (`watched`), a call for several models becomes several
(`fanning_out`), traces are written (`traced`), and references to shared memory become bytes (`by_reference`). This file
decides nothing; each wrapper is explained where it is defined.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cache.machine import CacheMachine
from mesh.asking import Asking
from mesh.endpoint import model_config, repository, statistics
from mesh.endpoint.access import Access
from mesh.endpoint.aliases import AliasesEndpoint, AliasSetting
from mesh.endpoint.descriptions import Describer
from mesh.endpoint.explain import ExplainEndpoint
from mesh.endpoint.fan_out import fanning_out
from mesh.endpoint.health import HealthEndpoint
from mesh.endpoint.management import ManagementEndpoint
from mesh.endpoint.model_config import ModelConfigEndpoint
from mesh.endpoint.modelmesh import ModelMeshEndpoint
from mesh.endpoint.payloads import PayloadProcessors
from mesh.endpoint.pipelines import PipelinesEndpoint
from mesh.endpoint.pods import PodsEndpoint
from mesh.endpoint.pool import PoolEndpoint
from mesh.endpoint.quick import QuickInference
from mesh.endpoint.relay import RelayEndpoint
from mesh.endpoint.repository import RepositoryEndpoint
from mesh.endpoint.rest.calls import AnswersTo
from mesh.endpoint.revisions import catching_up
from mesh.endpoint.server_settings import LOGGING_EXTENSION, TRACE_EXTENSION, ServerSettingsEndpoint
from mesh.endpoint.shared_memory import SYSTEM_EXTENSION, SharedMemoryEndpoint
from mesh.endpoint.statistics import StatisticsEndpoint
from mesh.endpoint.status import code_name, guarded_stream, guarded_unary
from mesh.endpoint.stream import StreamEndpoint
from mesh.endpoint.v2 import V2Endpoint
from mesh.explaining import Explaining
from mesh.loading.loading import Loading
from mesh.log_levels import LogSwitch
from mesh.models import Models
from mesh.node_settings import payload_watchers, read_data_plane
from mesh.overview import Overview
from mesh.pipelines.model_calls import ModelCalls
from mesh.pipelines.registered import Pipelines
from mesh.pipelines.requests import Limits, PipelineRequests
from mesh.pod import PodReport
from mesh.routing.pool_side import PoolSide
from mesh.runtimes.connecting import Beside
from mesh.serving import Serving
from mesh.settings import Settings
from mesh.shared_memory import Regions
from mesh.status import StatusView
from mesh.telemetry import Telemetry
from mesh.tracing import Tracing
from mesh.transport.base import Routes
from mesh.uploads import Uploads
from mesh.wire import messages
from mesh.world import World
from placement.registry import Registry

EXTENSIONS = (
    repository.EXTENSION,
    model_config.EXTENSION,
    statistics.EXTENSION,
    "schedule_policy",
    SYSTEM_EXTENSION,
    TRACE_EXTENSION,
    LOGGING_EXTENSION,
)
"""Of Triton's, that a gRPC client finds here. `schedule_policy`: a request's priority and timeout."""


@dataclass(frozen=True, slots=True)
class Served:
    """What the handlers are made of: a pod's parts, and what they may ask of it."""

    name: str
    settings: Settings
    world: World
    access: Access
    registry: Registry
    cache: CacheMachine
    loading: Loading
    serving: Serving
    models: Models
    status: StatusView
    overview: Overview
    pipelines: Pipelines
    telemetry: Telemetry
    tracing: Tracing
    health: HealthEndpoint
    pool: PoolSide | None
    uploads: Uploads | None
    """Where files are kept that come with a load; None: they are refused."""
    beside: Sequence[Beside]
    unready_reason: Callable[[], str]
    """Why the pod takes no requests; empty when it does."""
    is_draining: Callable[[], bool]
    request_drain: Callable[[], None]
    report: Callable[[], PodReport]


def routes_of(pod: Served) -> tuple[Routes, AnswersTo]:
    """Every method of the pod's port, and how a request's answers in parts are had over HTTP.

    Raises CannotStart for a data-plane configuration that cannot be read.
    """
    router = None if pod.pool is None else pod.pool.router
    pipelines = PipelineRequests(
        pod.pipelines,
        ModelCalls(pod.serving, router),
        pod.telemetry,
        code_name,
        pod.world.draw,
        Limits(pod.settings.pipeline_steps_max, int(pod.settings.pipeline_bytes_max)),
    )
    v2 = V2Endpoint(pod.serving, pod.access, pod.unready_reason, router, EXTENSIONS, pipelines)
    shared_memory = SharedMemoryEndpoint(Regions(), pod.access, int(pod.settings.bytes_in_flight_max))
    quick = QuickInference(
        pod.serving,
        pod.access,
        pod.registry,
        pod.unready_reason,
        guarded_unary(v2.model_infer),
        router,
        v2.go_on,
        shared_memory.names_regions,
    )
    streams = StreamEndpoint(v2, pod.serving, shared_memory, pod.overview, pod.access, pod.world.clock)
    describer = Describer(pod.registry, pod.status, pod.overview)
    aliases = AliasSetting(pod.models, pod.registry, describer, pod.pipelines)
    mmesh = ModelMeshEndpoint(pod.models, pod.registry, pod.status, aliases, pod.access)
    management = ManagementEndpoint(pod.models, pod.registry, describer, pod.access)
    asking = Asking(pod.overview, pod.world.clock)
    server_settings = ServerSettingsEndpoint(
        pod.tracing,
        LogSwitch(),
        pod.overview,
        asking,
        pod.access,
        knows=pod.serving.knows,
        remote=pod.settings.remote_server_settings,
    )
    pods = PodsEndpoint(
        pod.overview,
        asking,
        pod.access,
        pod.report,
        is_draining=pod.is_draining,
        request_drain=pod.request_drain,
    )
    explaining = Explaining(pod.overview, pod.status, pod.cache, pod.registry, pod.world.clock, pod.world.wall_clock)
    explain = ExplainEndpoint(pod.overview, explaining, asking, pod.registry, pod.loading, describer, pod.access)
    unary = {
        **v2.routes(),
        **shared_memory.routes(),
        **server_settings.routes(),
        **ModelConfigEndpoint(
            v2, pod.serving, pod.loading, pod.overview, pod.settings.batch_settings, pod.access
        ).routes(),
        **StatisticsEndpoint(
            v2,
            pod.telemetry.tallies,
            pod.loading.residents,
            pod.overview,
            asking,
            pod.access,
            pod.world.wall_clock,
        ).routes(),
        **RepositoryEndpoint(pod.models, pod.registry, pod.status, pod.access, pod.uploads).routes(),
        **mmesh.routes(),
        **management.routes(),
        **pods.routes(),
        **explain.routes(),
        **PipelinesEndpoint(v2, pipelines, pod.access, pod.unready_reason).routes(),
        **AliasesEndpoint(aliases, pod.registry, describer, pod.access).routes(),
    }
    unary[messages.MODEL_INFER.path] = server_settings.traced(shared_memory.by_reference(v2.model_infer))
    of_runtimes = {method for server in pod.beside for method in server.link.methods}
    methods = read_data_plane(pod.settings).methods(of_runtimes)
    processors = PayloadProcessors(payload_watchers(pod.settings), pod.access)
    relay = RelayEndpoint(v2, pod.serving, pod.access, methods)
    unary = {**relay.routes(), **unary}
    for path in (messages.MODEL_INFER.path, *(path for path in methods if unary[path] == relay.relay)):
        unary[path] = processors.watched(fanning_out(unary[path]))
    unary = {path: catching_up(handler, pod.registry) for path, handler in unary.items()}
    unary[messages.HEALTH_CHECK.path] = pod.health.check
    if pod.pool is not None:
        unary |= streams.peer_routes()
        unary |= PoolEndpoint(
            pod.access,
            pod.name,
            pod.world.incarnation,
            is_draining=pod.is_draining,
            take_orders=pod.pool.take_orders,
            names=lambda: pod.registry.view,
            dial=pod.world.dial,
            clock=pod.world.clock,
        ).routes()
    streaming = {**management.streams(), **streams.streams(), messages.HEALTH_WATCH.path: pod.health.watch}
    routes = Routes(
        {path: guarded_unary(handler) for path, handler in unary.items()},
        {path: guarded_stream(handler) for path, handler in streaming.items()},
        {} if processors.any else {messages.MODEL_INFER.path: server_settings.unless_traced(quick.answer)},
    )
    return routes, streams.answers_to
