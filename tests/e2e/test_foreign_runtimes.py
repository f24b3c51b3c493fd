"""MLServer and Triton beside a pod, for real: each loads what the pod tells it to, and no more than it may hold."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest

from mesh.client import Client, HexcombError, RetryPolicy
from mesh.wire import messages
from mesh.wire.generated import inference_pb2
from tests.bench.peers.environments import python_of
from tests.bench.peers.triton import REQUIREMENT, packages_of, triton_server

if TYPE_CHECKING:
    from tests.e2e.conftest import Pod, StartPod

pytestmark = [pytest.mark.clients, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ROOT / ".cache" / "clients"
HERE = Path(__file__).parent / "runtimes"
CAPACITY_BYTES = 25_000
MODEL_BYTES = 10_000
"""Two fit, three do not."""
X = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)


@dataclass
class Beside:
    """A pod, the server beside it, and how artifacts for it are written."""

    kind: str
    pod: Pod
    address: str
    process: subprocess.Popen[bytes]

    def artifact(self, directory: Path, factor: float) -> Path:
        path = directory / f"scale-{factor:g}"
        path.mkdir(parents=True)
        (path / "ballast").write_bytes(b"." * MODEL_BYTES)
        if self.kind == "mlserver":
            (path / "factor.json").write_text(json.dumps({"factor": factor}))
            settings = {"name": "x", "implementation": "scaler.Scaler", "parameters": {"uri": "./factor.json"}}
            (path / "model-settings.json").write_text(json.dumps(settings))
            return path
        (path / "1").mkdir()
        shutil.copy(HERE / "triton_scaler.py", path / "1" / "model.py")
        (path / "1" / "factor").write_text(str(factor))
        tensor = '{{ name: "{}", data_type: TYPE_FP32, dims: [-1, 2] }}'
        (path / "config.pbtxt").write_text(
            f'name: "{path.name}"\nbackend: "python"\ninput [{tensor.format("x")}]\noutput [{tensor.format("y")}]\n'
            "instance_group [{ kind: KIND_CPU, count: 1 }]\n"
        )
        return path

    def loaded(self) -> list[str]:
        """What the server itself says that it has."""
        with grpc.insecure_channel(self.address) as channel:
            ask = channel.unary_unary(messages.REPOSITORY_INDEX.path)
            answer = inference_pb2.RepositoryIndexResponse.FromString(
                ask(inference_pb2.RepositoryIndexRequest().SerializeToString(), timeout=30)
            )
        return sorted(model.name for model in answer.models if model.state == "READY")


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


def mlserver(home: Path, ports: list[int]) -> tuple[list[str | Path], dict[str, str]]:
    python = python_of(ENVIRONMENTS, "mlserver", ("mlserver==1.7.1",))
    settings = {
        "parallel_workers": 0,
        "load_models_at_startup": False,
        "host": "127.0.0.1",
        "grpc_port": ports[0],
        "http_port": ports[1],
        "metrics_port": ports[2],
        "metrics_dir": str(home),
    }
    (home / "models").mkdir()
    (home / "models" / "settings.json").write_text(json.dumps(settings))
    return [python.parent / "mlserver", "start", home / "models"], {"PYTHONPATH": str(HERE)}


def triton(home: Path, ports: list[int]) -> tuple[list[str | Path], dict[str, str]]:
    python = python_of(ENVIRONMENTS, "triton", (REQUIREMENT,))
    (home / "models").mkdir()
    command, environment = triton_server(python, home, ports[0], ports[1])
    packages = {"TEST_PACKAGES": str(packages_of(python))}
    return [*command, "--model-control-mode", "explicit"], {**environment, **packages}


@pytest.fixture(scope="module", params=["mlserver", "triton"])
def beside(
    request: pytest.FixtureRequest, start_module_pod: StartPod, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Beside]:
    home = tmp_path_factory.mktemp(request.param)
    ports = free_ports(3)
    command, environment = (mlserver if request.param == "mlserver" else triton)(home, ports)
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=log, stderr=log, cwd=home)
    address = f"127.0.0.1:{ports[0]}"
    described = {"kind": request.param, "address": address, "models": str(home / "models"), "size_factor": 1.0}
    described |= {"capacity": CAPACITY_BYTES, "confined": True}
    if request.param == "mlserver":
        described |= {"formats": ["factor"], "implementations": {"factor": "scaler.Scaler"}}
    (home / "runtimes.json").write_text(json.dumps({"server": described}))
    try:
        pod = start_module_pod(
            data_dir=home / "data", runtimes=home / "runtimes.json", residency_min_s=0, failure_backoff_base_s=0.2
        )
        yield Beside(request.param, pod, address, process)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{(home / 'log').read_text()[-4000:]}") from error
    finally:
        process.kill()
        process.wait()


def expect(client: Client, name: str, factor: float) -> None:
    (y,) = client.infer(name, {"x": X}).outputs.values()
    np.testing.assert_allclose(y, X * np.float32(factor))


def test_models_are_loaded_asked_and_unloaded_within_the_capacity(beside: Beside, tmp_path: Path) -> None:
    factors = {"a": 2.0, "b": -3.0, "c": 0.5}
    with beside.pod.client(timeout_s=120.0) as client:
        for name, factor in factors.items():
            client.register(name, uri=beside.artifact(tmp_path, factor).as_uri(), format="server")
        for _ in range(2):
            for name, factor in factors.items():
                expect(client, name, factor)
                assert len(beside.loaded()) <= 2
        assert beside.pod.status().evictions >= 2
        client.unregister_many(list(factors))
        beside.pod.wait_until(lambda: not beside.loaded(), "the server has let go of all")


def test_what_the_server_cannot_load_is_told_in_its_words(beside: Beside, tmp_path: Path) -> None:
    path = beside.artifact(tmp_path, 1.0)
    for broken in (path / "factor.json", path / "1" / "model.py"):
        if broken.exists():
            broken.write_text("this is neither JSON nor Python")
    with beside.pod.client(timeout_s=120.0, retry=RetryPolicy(attempts_max=1)) as client:
        client.register("broken", uri=path.as_uri(), format="server")
        with pytest.raises(HexcombError, match="'server'"):
            client.infer("broken", {"x": X})
        client.unregister("broken")
    assert not beside.loaded()


# Triton works its configuration out from a model's file, and its wheel has no backend that can.
@pytest.mark.parametrize("beside", ["mlserver"], indirect=True)
def test_an_artifact_without_settings_is_run_by_the_configured_class(beside: Beside, tmp_path: Path) -> None:
    path = tmp_path / "factor.json"
    path.write_text(json.dumps({"factor": 4.0}))
    with beside.pod.client(timeout_s=120.0) as client:
        client.register("bare", uri=path.as_uri(), format="factor")
        expect(client, "bare", 4.0)
        client.unregister("bare")
