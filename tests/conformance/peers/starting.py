"""How each server is started with the suite's models, in an environment of its own."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from mesh.client import Client
from mesh.demo.ports import free_ports
from tests.bench.peers.contestants import CONTESTANTS, Launch
from tests.bench.peers.environments import python_of
from tests.bench.peers.process_tree import MARK, kill_marked
from tests.bench.peers.triton import packages_of, triton_server
from tests.conformance.peers.ours import write_models
from tests.conformance.tensors import OF_THE_TABLE

ROOT = Path(__file__).parents[3]
SERVERS = Path(__file__).parent / "servers"
ENVIRONMENTS = ROOT / ".cache" / "bench" / "peers" / "environments"
START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 15.0
LAST_MODEL = "pair"
_TRITON_TYPES = {"BYTES": "STRING"}

Ports = tuple[int, int, int]


def _hexcomb(python: Path, home: Path, ports: Ports) -> Launch:
    return Launch([
        python, "-m", "mesh.cli.main", "serve", "--grpc-port", str(ports[0]), "--http-port", str(ports[1]),
        "--data-dir", home / "data", "--trusted-prefixes", f"{home.as_uri()}/",
    ])  # fmt: skip


def _register(home: Path, ports: Ports) -> None:
    with Client(f"127.0.0.1:{ports[0]}") as client:
        for name, uri in write_models(home).items():
            client.register(name, uri=uri)


def _mlserver(python: Path, home: Path, ports: Ports) -> Launch:
    settings = {
        "debug": False, "parallel_workers": 0, "host": "127.0.0.1", "grpc_port": ports[0], "http_port": ports[1],
        "metrics_port": ports[2], "metrics_dir": str(home),
    }  # fmt: skip
    (home / "settings.json").write_text(json.dumps(settings))

    def write(name: str, kind: str, datatype: str, inputs: list[str], outputs: list[str]) -> None:
        (home / name).mkdir()
        described = {"name": name, "implementation": f"mlserver_runtime.{kind}", "parameters": {"version": "v1"}}
        for which, names in (("inputs", inputs), ("outputs", outputs)):
            described[which] = [{"name": each, "datatype": datatype, "shape": [-1, 4]} for each in names]
        (home / name / "model-settings.json").write_text(json.dumps(described))

    for datatype in OF_THE_TABLE:
        write(f"identity_{datatype.lower()}", "Identity", datatype, ["x"], ["y"])
    write("pair", "Pair", "FP32", ["a", "b"], ["sum", "difference"])
    return Launch([python.parent / "mlserver", "start", home], {"PYTHONPATH": str(SERVERS)})


def _kserve(python: Path, home: Path, ports: Ports) -> Launch:
    return Launch([python, SERVERS / "kserve_server.py", str(ports[0]), str(ports[1]), ",".join(OF_THE_TABLE)])


def _triton(python: Path, home: Path, ports: Ports) -> Launch:
    models = home / "models"

    def write(name: str, source: str, datatype: str, inputs: list[str], outputs: list[str]) -> None:
        (models / name / "1").mkdir(parents=True)
        shutil.copy(SERVERS / source, models / name / "1" / "model.py")
        kind = f"TYPE_{_TRITON_TYPES.get(datatype, datatype)}"
        tensors = {
            which: ", ".join(f'{{ name: "{each}", data_type: {kind}, dims: [-1, 4] }}' for each in names)
            for which, names in (("input", inputs), ("output", outputs))
        }
        lines = [f'name: "{name}"', 'backend: "python"', "max_batch_size: 0"]
        lines += [f"{which} [{described}]" for which, described in tensors.items()]
        lines.append("instance_group [{ kind: KIND_CPU, count: 1 }]")
        (models / name / "config.pbtxt").write_text("\n".join(lines))

    for datatype in OF_THE_TABLE:
        write(f"identity_{datatype.lower()}", "triton_identity.py", datatype, ["x"], ["y"])
    write("pair", "triton_pair.py", "FP32", ["a", "b"], ["sum", "difference"])
    command, environment = triton_server(python, home, ports[0], ports[1])
    explicit = ["--model-control-mode=explicit", "--load-model=*"]
    return Launch([*command, *explicit], {**environment, "BENCH_PACKAGES": str(packages_of(python))})


LAUNCHES: Mapping[str, Callable[[Path, Path, Ports], Launch]] = {
    "hexcomb": _hexcomb,
    "mlserver": _mlserver,
    "kserve": _kserve,
    "triton": _triton,
}


def requirements_of(name: str) -> tuple[str, ...]:
    """As the benches pin them."""
    return next(contestant.requirements for contestant in CONTESTANTS if contestant.name == name)


@contextlib.contextmanager
def running(name: str, own_python: Path, home: Path) -> Iterator[tuple[str, str]]:
    """Its gRPC and HTTP addresses. Raises TimeoutError with the end of its log where it does not come up."""
    is_ours = name == "hexcomb"
    python = own_python if is_ours else python_of(ENVIRONMENTS, name, requirements_of(name))
    ports: Ports = tuple(free_ports(3))  # type: ignore[assignment]
    launch = LAUNCHES[name](python, home, ports)
    mark = uuid.uuid4().hex
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("HEXCOMB_", "PYTHON"))}
    own_path = {"PYTHONPATH": str(ROOT)} if is_ours else {}
    log = home / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(word) for word in launch.command],
            cwd=home,
            env={**clean, **own_path, MARK: mark, **launch.environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _wait(process, ports[1], "/v2/health/live", log)
            if is_ours:
                _register(home, ports)
            _wait(process, ports[1], f"/v2/models/{LAST_MODEL}/ready", log)
            yield f"127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}"
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_TIMEOUT_S)
            kill_marked(mark)
            process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, path: str, log: Path) -> None:
    until_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < until_s and process.poll() is None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2.0)
            connection.request("GET", path)
            if connection.getresponse().status == 200:
                return
        time.sleep(0.1)
    raise TimeoutError(f"{path} was never 200: {log.read_text(errors='replace')[-2000:]}")
