"""The contestants: how each is installed, started and asked.

One interface for all: requirements of its environment, a way to speak (gRPC V2 with raw tensors where it can, else
HTTP with raw FP32), and a function that says with which command it serves a fleet. Each is set up as its
documentation says is fastest for small models on one core: one worker, no access log, batching only where it adds no
wait. A contestant says itself which cells it cannot do, and why; what it merely does badly is measured.
"""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mesh.client.client import Client
from mesh.client.errors import HexcombError
from tests.bench.peers import triton
from tests.bench.peers.artifacts import ZIPF_SHARE, Fleet
from tests.bench.peers.scenarios import Cell
from tests.bench.peers.triton import packages_of, triton_server

SERVERS = Path(__file__).parent / "servers"


@dataclass(frozen=True, slots=True)
class Site:
    """Where and with what a server is to be started. `ports`: as many free ones as any server needs."""

    fleet_name: str
    fleet: Fleet
    home: Path
    """An empty directory of its own."""
    python: Path
    ports: tuple[int, int, int]
    capacity_bytes: int
    """For those that evict by bytes."""
    models_max: int
    """For those that evict by count."""


@dataclass(frozen=True, slots=True)
class Launch:
    """A command; `environment` is added to this process's own."""

    command: Sequence[str | Path]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Contestant:
    """One server of the comparison."""

    name: str
    what: str
    """One line for the table."""
    launch: Callable[[Site], Launch]
    requirements: tuple[str, ...] = ()
    """Empty: it runs in this checkout's environment."""
    speaks_grpc: bool = True
    evicts: bool = False
    is_echo: bool = False
    header_of_model: str = ""
    """HTTP only: where the model is named besides the body."""
    path: str = "/predict"
    cannot: Mapping[str, str] = field(default_factory=dict)
    """Fleet to reason."""
    settle: Callable[[Site], None] | None = None
    """After it answers; for those that are told of their models then."""

    def why_not(self, cell: Cell) -> str:
        """Why this cell cannot be measured here; empty: it can."""
        if self.is_echo and cell.fleet != "single":
            return "an echo has no models"
        if cell.zipf and not self.evicts:
            return f"does not evict: it would need {ZIPF_SHARE} × the memory"
        return self.cannot.get(cell.fleet, "")


def _hexcomb(transport: str) -> Callable[[Site], Launch]:
    def launch(site: Site) -> Launch:
        return Launch([
            site.python, "-m", "mesh.cli.main", "serve", "--transport", transport,
            "--grpc-port", str(site.ports[0]), "--http-port", str(site.ports[1]), "--data-dir", site.home / "data",
            "--capacity", str(site.capacity_bytes), "--device", "cpu", "--log-level", "error",
        ])  # fmt: skip

    return launch


def _register(site: Site) -> None:
    with Client(f"127.0.0.1:{site.ports[0]}", timeout_s=120.0) as client:
        for artifact in site.fleet.values():
            try:
                client.register(artifact.name, uri=artifact.path.as_uri(), format=artifact.format)
            except HexcombError as error:
                raise RuntimeError(f"hexcomb does not register {artifact.name}: {error}") from error


def _script(name: str, *ports: int) -> Callable[[Site], Launch]:
    def launch(site: Site) -> Launch:
        return Launch([site.python, SERVERS / name, *(str(site.ports[port]) for port in ports)])

    return launch


def _grpc_aio(site: Site) -> Launch:
    return Launch([site.python, "-m", "tests.bench.peers.servers.grpc_aio_server", str(site.ports[0])])


def _mlserver(site: Site) -> Launch:
    settings = {
        "debug": False,
        "parallel_workers": 0,
        "host": "127.0.0.1",
        "grpc_port": site.ports[0],
        "http_port": site.ports[1],
        "metrics_port": site.ports[2],
        "metrics_dir": str(site.home),
        "grpc_max_message_length": 2**30,
    }
    (site.home / "settings.json").write_text(json.dumps(settings))
    for name in site.fleet:
        (site.home / name).mkdir()
        described = {"name": name, "implementation": "mlserver_runtime.BenchModel"}
        (site.home / name / "model-settings.json").write_text(json.dumps(described))
    return Launch([site.python.parent / "mlserver", "start", site.home], {"PYTHONPATH": str(SERVERS)})


_TRITON_CONFIG = """
name: "{name}"
backend: "python"
max_batch_size: 64
dynamic_batching {{}}
input [{{ name: "x", data_type: TYPE_FP32, dims: [{dims}] }}]
output [{{ name: "y", data_type: TYPE_FP32, dims: [-1] }}]
instance_group [{{ kind: KIND_CPU, count: 1 }}]
"""


def _triton(site: Site) -> Launch:
    models = site.home / "models"
    for artifact in site.fleet.values():
        (models / artifact.name / "1").mkdir(parents=True)
        shutil.copy(SERVERS / "triton_model.py", models / artifact.name / "1" / "model.py")
        dims = ", ".join(str(size) for size in artifact.shape)
        config = textwrap.dedent(_TRITON_CONFIG).format(name=artifact.name, dims=dims)
        (models / artifact.name / "config.pbtxt").write_text(config)
    command, environment = triton_server(site.python, site.home, site.ports[0], site.ports[1])
    return Launch(command, {**environment, "BENCH_PACKAGES": f"{packages_of(site.python)}:{SERVERS}"})


def _bento(site: Site) -> Launch:
    command = [site.python, "-m", "bentoml", "serve", "bento_service:Bench"]
    return Launch(
        [*command, "--working-dir", SERVERS, "--host", "127.0.0.1", "--port", str(site.ports[0])],
        {"BENTOML_HOME": str(site.home), "BENTOML_DO_NOT_TRACK": "true"},
    )


def _ray(site: Site) -> Launch:
    launch = _script("ray_server.py", 0)(site)
    return Launch(
        launch.command,
        {
            "BENCH_MODELS_MAX": str(site.models_max),
            "PYTHONPATH": str(SERVERS),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        },
    )


def _echo(transport: str) -> Callable[[Site], Launch]:
    def launch(site: Site) -> Launch:
        return Launch([site.python, "-m", "tests.bench.echo_server", transport, str(site.ports[0])])

    return launch


CONTESTANTS = (
    Contestant(
        "hexcomb", "Hexcomb, this checkout: a pod with everything on", _hexcomb("native"), evicts=True, settle=_register
    ),
    Contestant(
        "hexcomb-grpcio", "the same on its other transport", _hexcomb("grpcio"), evicts=True, settle=_register
    ),
    Contestant("mlserver", "MLServer, in-process", _mlserver, ("mlserver==1.7.1",)),
    Contestant("kserve", "KServe SDK, gRPC", _script("kserve_server.py", 0, 1), ("kserve==0.21.0",)),
    Contestant("triton", "Triton, Python backend, dynamic batching", _triton, (triton.REQUIREMENT,)),
    Contestant(
        "bentoml", "BentoML, HTTP, mounted ASGI application", _bento, ("bentoml==1.4.39",), speaks_grpc=False,
        path="/bench/predict",
    ),
    Contestant(
        "ray", "Ray Serve, HTTP, multiplexed", _ray, ("ray[serve]==2.60.0",), speaks_grpc=False, evicts=True,
        header_of_model="serve_multiplexed_model_id",
    ),
    Contestant(
        "litserve", "LitServe, HTTP", _script("litserve_server.py", 0), ("litserve==0.2.19",), speaks_grpc=False
    ),
    Contestant("grpc-aio", "floor: grpc.aio and the framework, no mesh", _grpc_aio),
    Contestant("echo", "ceiling: Hexcomb's transport, echoing", _echo("native"), is_echo=True),
    Contestant("echo-grpcio", "ceiling of the other transport", _echo("grpcio"), is_echo=True),
)  # fmt: skip
