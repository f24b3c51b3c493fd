"""A real pod in a process of its own, on free ports, in a directory of its own, and small models for it to serve.

`start_pod` starts a pod for one test; `start_module_pod` one that the tests of a file share. Whatever a test does to a
pod, `Pod.wait_settled` says that nothing was left behind: no reserved byte, no waiter, no pin.

Nothing here sleeps in place of a condition: `Pod.wait_until` asks until the condition holds, and fails with the pod's
log when it never does.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from mesh.client import Client
from mesh.demo.etcd_server import EtcdMissing
from mesh.demo.local_pool import LocalPool
from mesh.wire.generated import hexcomb_pb2
from runtime_adapters.base import Tensors

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 40.0
WAIT_TIMEOUT_S = 30.0
POLL_S = 0.02


@dataclass
class Pod:
    """A running `hexcomb serve`."""

    process: subprocess.Popen[bytes]
    grpc_port: int
    http_port: int
    log: Path

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    def client(self, **options: object) -> Client:
        return Client(self.target, **options)  # type: ignore[arg-type]

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(STOP_TIMEOUT_S)

    def log_text(self) -> str:
        return self.log.read_text(errors="replace")

    def status(self) -> hexcomb_pb2.PodDescription:
        with self.client() as client:
            return client.pod_status()[0]

    def wait_until(self, condition: Callable[[], Any], what: str, timeout_s: float = WAIT_TIMEOUT_S) -> Any:
        """What `condition` returns, once that is true."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            found = condition()
            if found:
                return found
            if time.monotonic() > deadline_s:
                raise AssertionError(
                    f"within {timeout_s:g} s it did not happen that {what}:\n{self.log_text()[-6000:]}"
                )
            time.sleep(POLL_S)

    def wait_settled(self) -> hexcomb_pb2.PodDescription:
        """The pod's status once nothing is on its way: nothing reserved, unloading, loading, waiting or running."""

        def settled() -> hexcomb_pb2.PodDescription | None:
            status = self.status()
            idle = (
                status.models_loading == status.loads_queued == status.requests_waiting == 0
                and status.requests_in_flight <= 1  # the question itself
                and all(tier.reserved_bytes == tier.unloading_bytes == 0 for tier in status.tiers)
            )
            return status if idle else None

        status = self.wait_until(settled, "the pod came to rest")
        # A change of form holds its copy for a moment, too.
        self.wait_until(lambda: not self.held(), f"nobody holds a copy any more; at first {self.held()} did")
        return status

    def held(self) -> dict[str, int]:
        """The pins on copies, by model."""
        with self.client() as client:
            return {
                model.id: copy.requests_in_flight
                for model in client.list_models()
                for copy in model.copies
                if copy.requests_in_flight
            }


@dataclass(frozen=True)
class Example:
    """A model's artifact, a request for it, and the answer that its own framework gives."""

    path: Path
    inputs: Tensors
    expected: Tensors

    @property
    def uri(self) -> str:
        return self.path.as_uri()


class ModelFiles:
    """Writes artifacts into one directory, each once."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def scale(
        self, factor: float = 2.0, weight_bytes: int = 0, name: str = "", *, same_ballast: bool = False
    ) -> Example:
        """ONNX: y = factor * x for x of FP32 [-1, 4]; with ballast of `weight_bytes`, its own or that of others."""
        from onnx import TensorProto, helper, numpy_helper, save

        path = self.directory / (name or f"scale-{factor:g}-{weight_bytes}{'-same' if same_ballast else ''}.onnx")
        x = np.arange(8, dtype=np.float32).reshape(2, 4)
        if not path.exists():
            weights = [numpy_helper.from_array(np.array([factor], np.float32), "factor")]
            nodes = [helper.make_node("Mul", ["x", "factor"], ["y"])]
            if weight_bytes:
                # A row is picked by the number of rows in x, which no optimiser knows beforehand.
                ballast_seed = 1 if same_ballast else round(1000 * abs(factor))
                ballast = np.random.default_rng(ballast_seed).random((weight_bytes // 16, 4)).astype(np.float32)
                weights += [
                    numpy_helper.from_array(ballast, "ballast"),
                    numpy_helper.from_array(np.zeros(1, np.int64), "first"),
                    numpy_helper.from_array(np.zeros(1, np.float32), "nothing"),
                ]
                nodes = [
                    helper.make_node("Shape", ["x"], ["dimensions"]),
                    helper.make_node("Gather", ["dimensions", "first"], ["rows"], axis=0),
                    helper.make_node("Gather", ["ballast", "rows"], ["picked"], axis=0),
                    helper.make_node("Mul", ["picked", "nothing"], ["zero"]),
                    helper.make_node("Mul", ["x", "factor"], ["scaled"]),
                    helper.make_node("Add", ["scaled", "zero"], ["y"]),
                ]
            graph = helper.make_graph(
                nodes,
                "scale",
                [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
                [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
                weights,
            )
            save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
        return Example(path, {"x": x}, {"y": x * np.float32(factor)})

    def words(self) -> Example:
        """ONNX: BYTES in, BYTES out."""
        from onnx import TensorProto, helper, numpy_helper, save

        path = self.directory / "words.onnx"
        graph = helper.make_graph(
            [helper.make_node("Identity", ["text"], ["same"])],
            "words",
            [helper.make_tensor_value_info("text", TensorProto.STRING, ["N"])],
            [helper.make_tensor_value_info("same", TensorProto.STRING, ["N"])],
            [numpy_helper.from_array(np.zeros(1, np.float32), "unused")],
        )
        save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
        text = np.array([b"one", b"", b"drei"], np.object_)
        return Example(path, {"text": text}, {"same": text})

    def xgboost(self) -> Example:
        """An XGBoost classifier over six features."""
        import xgboost

        path = self.directory / "classifier.json"
        random = np.random.default_rng(3)
        features = random.normal(size=(200, 6)).astype(np.float32)
        labels = (features[:, 0] + features[:, 1] > 0).astype(int)
        model = xgboost.XGBClassifier(n_estimators=5, max_depth=3, n_jobs=1)
        model.fit(features, labels)
        model.save_model(path)
        rows = features[:7]
        return Example(
            path, {"input": rows}, {"predict": model.predict(rows), "predict_proba": model.predict_proba(rows)}
        )

    def iris(self) -> Example:
        """scikit-learn: the README's flowers."""
        import skops.io
        from sklearn.datasets import load_iris
        from sklearn.linear_model import LogisticRegression

        path = self.directory / "iris.skops"
        model = LogisticRegression(max_iter=500).fit(*load_iris(return_X_y=True))
        skops.io.dump(model, path)
        rows = np.array([[5.1, 3.5, 1.4, 0.2]])
        return Example(path, {"input": rows}, {"predict": model.predict(rows)})

    def torch_program(self) -> Example:
        """An exported PyTorch program, x -> logits. Its loading runs code: serve it from a trusted prefix."""
        import torch

        class Net(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = torch.nn.Linear(4, 3)

            def forward(self, x: Any) -> Any:
                return {"logits": self.layer(x).relu()}

        path = self.directory / "net.pt2"
        torch.manual_seed(0)
        model = Net().eval()
        shapes = ({0: torch.export.Dim("batch", max=64)},)
        torch.export.save(torch.export.export(model, (torch.zeros(2, 4),), dynamic_shapes=shapes), path)
        x = np.random.default_rng(5).normal(size=(3, 4)).astype(np.float32)
        with torch.inference_mode():
            logits = model(torch.from_numpy(x))["logits"].numpy()
        return Example(path, {"x": x}, {"logits": logits})

    def python(self, source: str, name: str) -> Path:
        """A directory with a custom Python model."""
        path = self.directory / name
        path.mkdir(exist_ok=True)
        (path / "model.py").write_text(source)
        return path

    def obedient(self) -> Path:
        """A Python model that does at load what its parameter `load` says, and at predict what its input says."""
        return self.python(_OBEDIENT, "obedient")


HANG, RAISE, CRASH, WRONG_SHAPE, WAIT = 1.0, 2.0, 3.0, 4.0, 5.0
"""What the first element of the obedient model's input makes it do; any other is answered with twice the input."""

_OBEDIENT = '''
"""Does what it is told, for better or worse."""

import os
import time
from pathlib import Path

from runtime_adapters.custom import Model, TensorSpec


def wait_for(gate):
    Path(gate + ".reached").touch()
    while not Path(gate).exists():
        time.sleep(0.005)


class Obedient(Model):
    inputs = (TensorSpec("x", "FP32", (-1, 2)),)
    outputs = (TensorSpec("y", "FP32", (-1, 2)),)
    batch_dimension = True
    parameters = {"load": "", "gate": ""}

    def load(self):
        todo = self.parameters["load"]
        if todo == "hang":
            time.sleep(3600)
        if todo == "crash":
            os.abort()
        if todo == "raise":
            raise ValueError("no weights for you")
        if todo == "wait":
            wait_for(self.parameters["gate"])

    def predict(self, inputs):
        x = inputs["x"]
        todo = float(x[0, 0]) if len(x) else 0.0
        if todo == 1.0:
            time.sleep(3600)
        if todo == 2.0:
            raise ValueError("no answer for you")
        if todo == 3.0:
            os.abort()
        if todo == 4.0:
            return {"y": x[:, :1]}
        if todo == 5.0:
            wait_for(self.parameters["gate"])
        return {"y": x * 2}
'''


@dataclass(frozen=True)
class Refusal:
    """How a raw call ended when it did not end well."""

    code: grpc.StatusCode
    message: str
    trailers: Mapping[str, str]


def call_raw(
    target: str,
    method: str,
    body: bytes,
    metadata: Sequence[tuple[str, str]] = (),
    timeout_s: float = 30.0,
    options: Sequence[tuple[str, int]] = (),
) -> bytes | Refusal:
    """Send bytes as they are to a method, with no client of ours in between."""
    with grpc.insecure_channel(target, options=[("grpc.max_send_message_length", -1), *options]) as channel:
        try:
            answer: bytes = channel.unary_unary(method)(body, metadata=metadata, timeout=timeout_s)
            return answer
        except grpc.RpcError as error:
            trailers = {pair.key: pair.value for pair in error.trailing_metadata() or ()}
            return Refusal(error.code(), error.details() or "", trailers)


class PodStarter:
    """Starts pods in one directory. A second call reuses the data directory, as a restart does."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._pods: list[Pod] = []

    def __call__(
        self,
        data_dir: Path | None = None,
        env: dict[str, str] | None = None,
        under: Sequence[str] = (),
        **settings: object,
    ) -> Pod:
        """`start(capacity="64MiB", trusted_prefixes=...)`. `under`: a command that starts the pod as its last words."""
        number = len(self._pods)
        ready = self._directory / f"ready-{number}.json"
        log = self._directory / f"pod-{number}.log"
        given = {
            "grpc_port": 0,
            "http_port": 0,
            "data_dir": data_dir or self._directory / "data",
            "ready_file": ready,
            "stop_grace_s": 5,
            **settings,
        }
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*under, *serve_command(given)],
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self._directory,
                env={**os.environ, **(env or {})},
            )
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > deadline_s:
                process.kill()
                process.wait()
                raise AssertionError(f"the pod did not start:\n{log.read_text()[-4000:]}")
            time.sleep(POLL_S)
        addresses = json.loads(ready.read_text())
        pod = Pod(process, addresses["grpc_port"], addresses["http_port"], log)
        self._pods.append(pod)
        return pod

    def close(self) -> None:
        for pod in self._pods:
            if pod.process.poll() is None:
                pod.process.terminate()
        for pod in self._pods:
            with suppress(subprocess.TimeoutExpired):
                pod.process.wait(STOP_TIMEOUT_S)
            if pod.process.poll() is None:
                pod.process.kill()
                pod.process.wait()


StartPod = Callable[..., Pod]
StartPool = Callable[..., LocalPool]


def serve_command(settings: Mapping[str, object]) -> list[str]:
    """`hexcomb serve` with these settings, as a command that takes nothing from the working directory."""
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items() if value is not True]
    arguments += [f"--{name.replace('_', '-')}" for name, value in settings.items() if value is True]
    return [sys.executable, "-P", "-m", "mesh.cli.main", "serve", *arguments]


@pytest.fixture
def start_pod(tmp_path: Path) -> Iterator[StartPod]:
    """Start pods for one test."""
    starter = PodStarter(tmp_path)
    yield starter
    starter.close()


@pytest.fixture(scope="module")
def start_module_pod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartPod]:
    """Start a pod that the tests of a module share."""
    starter = PodStarter(tmp_path_factory.mktemp("pods"))
    yield starter
    starter.close()


@pytest.fixture(scope="module")
def start_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartPool]:
    """Start pools of several pods on an etcd of their own; what a test does not stop is stopped at the module's end."""
    from tests.e2e import pools

    started: list[LocalPool] = []

    def start(pods: int = 3, **options: Any) -> LocalPool:
        try:
            pool = pools.start_pool(tmp_path_factory.mktemp("pool"), pods, **options)
        except EtcdMissing as error:
            pytest.skip(str(error))
        started.append(pool)
        return pool

    yield start
    for pool in started:
        pool.stop()


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    """Artifacts that all tests share; the pods that serve Python models and .pt2 trust this directory."""
    return ModelFiles(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def raw_call() -> Callable[..., bytes | Refusal]:
    return call_raw


@pytest.fixture(scope="session")
def serve() -> Callable[[Mapping[str, object]], list[str]]:
    return serve_command
