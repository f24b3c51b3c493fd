"""Models in a server beside the pod, behind ModelMesh's runtime interface: loaded, evicted and asked by this pod."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest

from mesh.client import Client, HexcombError, InvalidRequest, Refused, RetryPolicy
from mesh.wire.field_paths import with_text_at
from tests.e2e.runtimes.spi_server import DOUBLE, SIZE_FACTOR

if TYPE_CHECKING:
    from tests.e2e.conftest import Pod, StartPod

NO_RETRIES = RetryPolicy(attempts_max=1)
ROWS = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)


class Server:
    """The runtime, which a test may kill and start again."""

    def __init__(self, socket: Path, *options: str) -> None:
        self.address = f"unix:{socket}"
        self._command = [sys.executable, "-m", "tests.e2e.runtimes.spi_server", self.address, "100000", *options]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, cwd=Path(__file__).parents[2])

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def linear(path: Path, slope: float, ballast_bytes: int = 0) -> Path:
    """y = slope * (a + b), as scikit-learn sees it."""
    rows, ballast = ROWS.tolist(), "." * ballast_bytes
    path.write_text(json.dumps({"x": rows, "y": (slope * ROWS.sum(axis=1)).tolist(), "ballast": ballast}))
    return path


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runtimes")


@pytest.fixture(scope="module")
def server(directory: Path) -> Iterator[Server]:
    server = Server(directory / "runtime.sock")
    yield server
    server.kill()


@pytest.fixture(scope="module")
def pod(server: Server, directory: Path, start_module_pod: StartPod) -> Iterator[Pod]:
    """Beside two servers, of which one tells no sizes; the other is there a second time, as one that is not trusted."""
    plain = Server(directory / "plain.sock", "--no-sizes")
    runtimes = directory / "runtimes.json"
    common = {"kind": "modelmesh", "address": server.address}
    described = {
        "beside": {**common, "formats": ["sk"], "confined": True},
        "strict": common,
        "plain": {"kind": "modelmesh", "address": plain.address, "confined": True, "size_factor": 1.5},
    }
    runtimes.write_text(json.dumps(described))
    data_plane = directory / "data-plane.json"
    data_plane.write_text(json.dumps({"rpcConfigs": {DOUBLE[1:]: {"idExtractionPath": [2, 1], "vModelId": True}}}))
    yield start_module_pod(
        payload_processors="logger://",
        data_plane=data_plane,
        runtimes=runtimes,
        failure_backoff_base_s=0.2,
        residency_min_s=0,
    )
    plain.kill()


@pytest.fixture
def client(pod: Pod) -> Iterator[Client]:
    with pod.client(timeout_s=60.0, retry=NO_RETRIES) as client:
        yield client
        client.delete_alias("alias")
        client.unregister_many([model.id for model in client.list_models()])
    pod.wait_until(lambda: held(pod)[0] == held(pod, "plain")[0] == 0, "nothing is held")


def held(pod: Pod, runtime: str = "beside") -> tuple[int, int]:
    """What the ledger counts for a runtime: resident, and capacity."""
    (tier,) = [tier for tier in pod.wait_settled().tiers if tier.device == f"{runtime}:0"]
    return tier.resident_bytes, tier.capacity_bytes


def expect(client: Client, name: str, slope: float) -> None:
    np.testing.assert_allclose(client.infer(name, {"x": ROWS}).outputs["y"], slope * ROWS.sum(axis=1), rtol=1e-5)


def test_a_runtimes_models_are_loaded_counted_and_evicted_like_the_pods_own(
    pod: Pod, client: Client, tmp_path: Path
) -> None:
    paths = {name: linear(tmp_path / name, slope, 15_000) for name, slope in (("a", 2.0), ("b", -3.0), ("c", 0.5))}
    for name, path in paths.items():
        client.register(name, uri=path.as_uri(), format="sk")
    expect(client, "a", 2.0)
    assert held(pod) == (SIZE_FACTOR * paths["a"].stat().st_size, 100_000)
    expect(client, "b", -3.0)
    expect(client, "c", 0.5)  # three do not fit
    assert 90_000 < held(pod)[0] <= 100_000
    expect(client, "a", 2.0)
    expect(client, "b", -3.0)
    assert pod.status().evictions >= 2
    assert runtime_of(pod).available
    assert "test-1" in runtime_of(pod).version


def test_a_runtime_that_implements_no_sizes_is_counted_by_its_artifacts(
    pod: Pod, client: Client, tmp_path: Path
) -> None:
    path = linear(tmp_path / "m", 2.0, 5_000)
    client.register("m", uri=path.as_uri(), format="plain")
    expect(client, "m", 2.0)
    assert held(pod, "plain")[0] == int(1.5 * path.stat().st_size)


def runtime_of(pod: Pod) -> Any:
    return next(each for each in pod.status().runtimes if each.format == "sk")


def test_what_a_runtime_refuses_is_told_as_it_said_it(client: Client, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.write_text(json.dumps({"fails": "INVALID_ARGUMENT"}))
    passing = tmp_path / "passing"
    passing.write_text(json.dumps({"fails": "INTERNAL"}))
    client.register("bad", uri=bad.as_uri(), format="sk")
    with pytest.raises(Refused, match="it was told to fail"):
        client.infer("bad", {"x": ROWS})
    client.register("passing", uri=passing.as_uri(), format="sk")
    with pytest.raises(HexcombError, match="it was told to fail"):
        client.infer("passing", {"x": ROWS})
    client.register("m", uri=linear(tmp_path / "m", 2.0).as_uri(), format="sk")
    with pytest.raises(InvalidRequest, match="NaN"):
        client.infer("m", {"x": np.full((1, 2), np.nan, np.float32)})
    with pytest.raises(InvalidRequest, match="datatype"):
        client.infer("m", {"x": ROWS.astype(np.int64)})
    expect(client, "m", 2.0)


def test_a_runtime_that_may_run_code_loads_from_trusted_prefixes_only(client: Client, tmp_path: Path) -> None:
    with pytest.raises(HexcombError, match="confined"):
        client.register("m", uri=linear(tmp_path / "m", 2.0).as_uri(), format="strict")


def test_a_method_of_the_runtimes_own_reaches_its_model_by_a_field_or_a_header(
    pod: Pod, client: Client, tmp_path: Path
) -> None:
    for name in ("m", "n"):
        client.register(name, uri=linear(tmp_path / name, 2.0).as_uri(), format="sk")
    client.set_alias("alias", "m")

    def double(message: bytes, *metadata: tuple[str, str]) -> str:
        with grpc.insecure_channel(pod.target) as channel:
            answer: bytes = channel.unary_unary(DOUBLE)(message, metadata=metadata, timeout=30)
        return answer.decode()

    message = with_text_at(with_text_at(b"", (2, 1), "m"), (3,), "ab")
    there, header, text = double(message).split("|")
    assert (there, text) == (header, "abab")
    assert there.startswith("m-")
    assert double(with_text_at(message, (2, 1), "alias")).split("|")[0] == there
    unnamed = with_text_at(b"", (3,), "x")
    assert double(unnamed, ("mm-model-id", "n")).startswith("n-")
    both = double(unnamed, ("mm-model-id", "n"), ("mm-model-id", "m"), ("mm-required", "all"))
    assert both.startswith("n-")
    assert f"xx{there}" in both
    pod.wait_until(lambda: " of n: test.Doubler/Double OK" in pod.log_text(), "the payload processor has told the log")
    with pytest.raises(grpc.RpcError) as refused:
        double(with_text_at(message, (2, 1), "nobody"))
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_runtime_that_dies_costs_its_copies_and_no_pod(
    pod: Pod, server: Server, client: Client, tmp_path: Path
) -> None:
    client.register("m", uri=linear(tmp_path / "m", 2.0).as_uri(), format="sk")
    expect(client, "m", 2.0)
    server.kill()
    with pytest.raises(HexcombError):
        client.infer("m", {"x": ROWS})
    pod.wait_until(lambda: held(pod)[0] == 0, "the copies that were lost are not counted any more")
    pod.wait_until(lambda: not runtime_of(pod).available, "the pod says that its runtime is away")
    server.start()
    pod.wait_until(lambda: runtime_of(pod).available, "the pod sees its runtime again")
    expect(client, "m", 2.0)


def test_a_pod_that_finds_no_runtime_says_so(tmp_path: Path, serve: Callable[..., list[str]]) -> None:
    runtimes = tmp_path / "runtimes.json"
    described = {"kind": "modelmesh", "address": f"unix:{tmp_path}/none.sock", "start_timeout_s": 0.1}
    runtimes.write_text(json.dumps({"beside": described}))
    done = subprocess.run(
        serve({"grpc_port": 0, "http_port": 0, "data_dir": tmp_path / "data", "runtimes": runtimes}),
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert "beside" in done.stderr
    assert "start_timeout_s" in done.stderr
