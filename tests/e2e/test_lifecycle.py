"""A pod from its start to its end: what it refuses to start as, how it replaces a model, how it stops, what stays.

What a model does is told by gates (files that a custom model waits for), so that no test depends on how fast it is.
"""

from __future__ import annotations

import asyncio
import http.server
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import psutil
import pytest

from mesh.client import AsyncClient, Client, HexcombError, NotFound, Refused, RetryPolicy, ServerFailed
from mesh.wire import messages
from mesh.wire.generated import health_pb2, hexcomb_pb2, inference_pb2
from mesh.wire.tensors import encode_request

if TYPE_CHECKING:
    from tests.e2e.conftest import ModelFiles, Pod, StartPod

REPOSITORY = Path(__file__).parents[2]
HANG, CRASH, WAIT = 1.0, 3.0, 5.0
ONE_TRY = RetryPolicy(attempts_max=1)
START_TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def pod(start_module_pod: StartPod, files: ModelFiles) -> Pod:
    return start_module_pod(capacity="1GiB", trusted_prefixes=f"{files.directory.as_uri()}/")


@pytest.fixture
def client(pod: Pod) -> Iterator[Client]:
    with pod.client(retry=ONE_TRY, timeout_s=30.0) as client:
        yield client
        client.unregister_many([model.id for model in client.list_models()])
    pod.wait_settled()


def numbers(first: float) -> dict[str, Any]:
    return {"x": np.array([[first, 1.0]], np.float32)}


# Loading and replacing ------------------------------------------------------------------------------------------


async def test_500_requests_at_once_for_a_cold_model_cause_one_load_and_no_error(
    client: Client, pod: Pod, files: ModelFiles
) -> None:
    example = files.scale(7, 4 << 20)
    client.register("cold", uri=example.uri)
    before = pod.status()
    async with AsyncClient(pod.target, timeout_s=60.0, retry=ONE_TRY) as many:
        answers = await asyncio.gather(
            *(many.infer("cold", example.inputs) for _ in range(500)), return_exceptions=True
        )
    assert [answer for answer in answers if isinstance(answer, BaseException)] == []
    for answer in answers:
        np.testing.assert_array_equal(answer.outputs["y"], example.expected["y"])  # type: ignore[union-attr]
    after = pod.wait_settled()
    assert after.loads - before.loads == 1
    assert after.hits + after.misses - before.hits - before.misses == 500
    assert after.load_failures == before.load_failures


def test_a_cold_answer_says_so_and_a_warm_one_does_not(client: Client, pod: Pod, files: ModelFiles) -> None:
    example = files.scale()
    client.register("m", uri=example.uri)
    body = encode_request("m", example.inputs)
    with grpc.insecure_channel(pod.target) as channel:
        infer = channel.unary_unary(messages.MODEL_INFER.path)
        trailers = [dict(infer.with_call(body)[1].trailing_metadata() or ()) for _ in range(2)]
    assert [trailer.get("hexcomb-cold") for trailer in trailers] == ["1", None]


def test_a_version_is_the_generation_and_another_one_is_not_found(client: Client, pod: Pod, files: ModelFiles) -> None:
    first, second = files.scale(2), files.scale(3)
    generation = client.register("versioned", uri=first.uri).generation
    assert client.infer("versioned", first.inputs).model_version == str(generation)
    assert client.infer("versioned", first.inputs, version=str(generation)).model_version == str(generation)
    with pytest.raises(NotFound, match=rf"version '{generation + 1}'.*{generation}"):
        client.infer("versioned", first.inputs, version=str(generation + 1))
    client.register("versioned", uri=second.uri, if_generation=generation)
    pod.wait_until(
        lambda: client.infer("versioned", first.inputs).model_version == str(generation + 1), "the new one serves"
    )
    with pytest.raises(NotFound):
        client.infer("versioned", first.inputs, version=str(generation))
    assert client.model_metadata("versioned").versions == [str(generation + 1)]


def test_a_new_generation_takes_over_under_load_without_one_error(client: Client, pod: Pod, files: ModelFiles) -> None:
    kinds = [files.scale(factor, 2 << 20) for factor in (2.0, 3.0, 4.0, 5.0)]
    rows = kinds[0].inputs
    generation = client.register("swapped", uri=kinds[0].uri).generation
    client.infer("swapped", rows)
    errors: list[Exception] = []
    seen: list[list[float]] = [[], []]
    stop = threading.Event()

    def hammer(mine: list[float]) -> None:
        with pod.client(retry=ONE_TRY) as user:
            while not stop.is_set():
                try:
                    answer = user.infer("swapped", rows)
                except HexcombError as error:
                    errors.append(error)
                    return
                factor = answer.outputs["y"][0, 1]
                mine.append(float(factor))
                assert int(answer.model_version) == generation + int(factor) - 2

    threads = [threading.Thread(target=hammer, args=(mine,)) for mine in seen]
    for thread in threads:
        thread.start()
    try:
        for step, kind in enumerate(kinds[1:]):
            client.register("swapped", uri=kind.uri, if_generation=generation + step)
            pod.wait_until(lambda step=step: seen[0] and seen[0][-1] == step + 3, "the new one serves")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert errors == []
    for mine in seen:
        assert mine == sorted(mine), "an old generation answered after a new one"
    pod.wait_until(lambda: len(client.describe("swapped").copies) == 1, "the old copies left")
    assert pod.wait_settled().models_resident == 1


def test_the_old_generation_serves_until_the_new_one_has_loaded(
    client: Client, pod: Pod, files: ModelFiles, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    uri = files.obedient().as_uri()
    client.register("gated", uri=uri, format="python")
    assert client.infer("gated", numbers(7)).model_version == "1"
    client.register("gated", uri=uri, format="python", parameters={"load": "wait", "gate": str(gate)}, if_generation=1)
    pod.wait_until(Path(f"{gate}.reached").exists, "the new one began to load")
    assert client.infer("gated", numbers(7)).model_version == "1"
    assert client.describe("gated").generation == 2
    gate.touch()
    pod.wait_until(lambda: client.infer("gated", numbers(7)).model_version == "2", "the new one serves")
    pod.wait_until(lambda: len(client.describe("gated").copies) == 1, "the old copy left")


def test_a_new_generation_that_does_not_load_leaves_the_old_one_serving(
    client: Client, pod: Pod, files: ModelFiles, tmp_path: Path
) -> None:
    good = files.scale()
    client.register("kept", uri=good.uri)
    client.infer("kept", good.inputs)
    client.register("kept", uri=(tmp_path / "absent.onnx").as_uri(), if_generation=1)
    failure = pod.wait_until(lambda: client.describe("kept").failure.message, "the failure is reported")
    assert "absent.onnx" in failure
    for _ in range(3):
        assert client.infer("kept", good.inputs).model_version == "1"
    better = files.scale(3)
    client.register("kept", uri=better.uri, if_generation=2)
    pod.wait_until(lambda: client.infer("kept", good.inputs).model_version == "3", "the corrected one serves")
    assert client.describe("kept").failure.message == ""


class Depot:
    """An HTTP server with one artifact, which fails until it is told to work."""

    def __init__(self, content: bytes) -> None:
        depot = self
        self.works = False
        self.refused = 0

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if not depot.works:
                    depot.refused += 1
                    self.send_error(503)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content)

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self.uri = f"http://127.0.0.1:{self._server.server_port}/model.onnx"

    def __enter__(self) -> Depot:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def test_what_no_request_asks_for_is_tried_again_once_its_storage_is_back(
    client: Client, pod: Pod, files: ModelFiles
) -> None:
    two, three = files.scale(2), files.scale(3)
    with Depot(three.path.read_bytes()) as depot:
        for name in ("replaced", "active"):
            client.register(name, uri=two.uri)
            client.infer(name, two.inputs)
        client.set_alias("alias", "active")
        client.register("target", uri=depot.uri, format="onnx")
        client.register("replaced", uri=depot.uri, if_generation=1)
        client.register("pinned", uri=depot.uri, format="onnx", pinned=True)
        client.set_alias("alias", "target")
        for name in ("replaced", "pinned", "target"):
            pod.wait_until(lambda name=name: client.describe(name).failure.message, f"{name} has failed")
            assert not client.describe(name).failure.permanent
        pod.wait_until(lambda: client.alias_status("alias").targetModelStatus.errors, "the alias says why")
        for name in ("replaced", "alias"):  # what served goes on serving
            np.testing.assert_array_equal(client.infer(name, two.inputs).outputs["y"], two.expected["y"])
        depot.works = True
        pod.wait_until(lambda: client.describe("pinned").state == hexcomb_pb2.LOADED, "the pinned model is loaded")
        for name in ("replaced", "alias"):
            pod.wait_until(
                lambda name=name: client.infer(name, two.inputs).outputs["y"][0, 1] == 3.0, f"{name} has moved on"
            )
        assert client.alias_status("alias").activeModelId == "target"
        client.delete_alias("alias")


def test_the_least_recently_used_model_makes_room_and_comes_back_right(start_pod: StartPod, files: ModelFiles) -> None:
    pod = start_pod(capacity="20MiB", residency_min_s=0)
    models = {f"m{index}": files.scale(index + 2.0, 6 << 20) for index in range(5)}
    with pod.client() as client:
        for name, example in models.items():
            client.register(name, uri=example.uri)
        for _ in range(3):
            for name, example in models.items():
                np.testing.assert_array_equal(client.infer(name, example.inputs).outputs["y"], example.expected["y"])
        status = pod.wait_settled()
        resident = {model.id for model in client.list_models() if model.state == hexcomb_pb2.LOADED}
    (device,) = (tier for tier in status.tiers if tier.tier == "device")
    assert device.resident_bytes <= device.capacity_bytes
    assert status.evictions > 0
    assert "m4" in resident
    assert status.models_resident == len(resident)


def test_a_pinned_model_is_loaded_at_once_and_never_evicted(start_pod: StartPod, files: ModelFiles) -> None:
    pod = start_pod(capacity="20MiB", residency_min_s=0)
    with pod.client() as client:
        client.register("pinned", uri=files.scale(9, 6 << 20).uri, pinned=True)
        pod.wait_until(lambda: client.describe("pinned").state == hexcomb_pb2.LOADED, "the pinned model is loaded")
        for index in range(5):
            example = files.scale(index + 2.0, 6 << 20)
            client.register(f"m{index}", uri=example.uri)
            client.infer(f"m{index}", example.inputs)
        assert client.describe("pinned").state == hexcomb_pb2.LOADED
        assert pod.status().evictions > 0
        client.set_pinned("pinned", False)
        for index in range(5):
            client.infer(f"m{index}", files.scale(2.0).inputs)
        assert client.describe("pinned").state == hexcomb_pb2.NOT_LOADED
    pod.wait_settled()


def test_a_model_that_crashes_in_predict_is_tried_twice_and_others_do_not_notice(
    client: Client, pod: Pod, files: ModelFiles
) -> None:
    good = files.scale()
    client.register("steady", uri=good.uri)
    client.register("fragile", uri=files.obedient().as_uri(), format="python")
    client.infer("steady", good.inputs)
    client.infer("fragile", numbers(7))
    errors: list[Exception] = []
    stop = threading.Event()

    def others() -> None:
        with pod.client(retry=ONE_TRY) as user:
            while not stop.is_set():
                try:
                    user.infer("steady", good.inputs)
                except HexcombError as error:
                    errors.append(error)

    before = pod.status().loads
    thread = threading.Thread(target=others)
    thread.start()
    try:
        with pytest.raises(ServerFailed, match="SIGABRT"):
            client.infer("fragile", numbers(CRASH))
        assert pod.status().loads - before == 1  # for the second try
        assert client.infer("fragile", numbers(7)).outputs["y"].tolist() == [[14.0, 2.0]]
    finally:
        stop.set()
        thread.join()
    assert errors == []
    assert pod.status().loads - before == 2
    with pytest.raises(ServerFailed, match="SIGABRT"):
        client.infer("fragile", numbers(CRASH))
    pod.wait_settled()


def test_a_model_that_hangs_in_predict_is_ended_and_others_are_served_meanwhile(
    start_pod: StartPod, files: ModelFiles
) -> None:
    pod = start_pod(trusted_prefixes=f"{files.directory.as_uri()}/", run_timeout_s=1, infer_threads=1)
    good = files.scale()
    with pod.client(retry=ONE_TRY) as client:
        client.register("good", uri=good.uri)
        client.register("stuck", uri=files.obedient().as_uri(), format="python")
        client.infer("good", good.inputs)
        client.infer("stuck", numbers(7))
        with grpc.insecure_channel(pod.target) as channel:
            infer = channel.unary_unary(messages.MODEL_INFER.path)
            hanging = [infer.future(encode_request("stuck", numbers(HANG)), timeout=20) for _ in range(2)]
            served = 0
            while not all(each.done() for each in hanging):
                client.infer("good", good.inputs)
                served += 1
            assert served > 10
            assert {each.code() for each in hanging} == {grpc.StatusCode.INTERNAL}
        assert client.infer("stuck", numbers(7)).outputs["y"].tolist() == [[14.0, 2.0]]
    pod.wait_settled()


_NOSY = """
from pathlib import Path
import socket

import numpy as np

from runtime_adapters.custom import Model, TensorSpec


class Nosy(Model):
    inputs = (TensorSpec("path", "BYTES", (1,)),)
    outputs = (TensorSpec("found", "BYTES", (1,)),)

    def load(self):
        self.beside_it = (self.artifact / "weights.txt").read_text()

    def predict(self, inputs):
        path = inputs["path"][0].decode()
        if path.startswith("tcp:"):
            with socket.create_connection(("127.0.0.1", int(path[4:])), timeout=5):
                return {"found": np.array([b"connected"], dtype=object)}
        if path:
            return {"found": np.array([Path(path).read_bytes()], dtype=object)}
        return {"found": np.array([self.beside_it.encode()], dtype=object)}
"""


def test_an_untrusted_python_model_works_and_reaches_nothing_but_its_own_files(
    client: Client, pod: Pod, tmp_path: Path
) -> None:
    directory = tmp_path / "nosy"
    directory.mkdir()
    (directory / "model.py").write_text(_NOSY)
    (directory / "weights.txt").write_text("its own")
    secret = tmp_path / "secret.txt"
    secret.write_text("the operator's")

    def ask(path: str) -> bytes:
        found: bytes = client.infer("nosy", {"path": np.array([path.encode()], np.object_)}).outputs["found"][0]
        return found

    client.register("nosy", uri=directory.as_uri(), format="python")
    try:
        assert ask("") == b"its own"
    except Refused as refused:
        if "jail" in refused.message:
            pytest.skip(f"this kernel grants no jail: {refused.message}")
        raise
    for path in (str(secret), "/proc/1/environ", str(pod.log), f"tcp:{pod.grpc_port}"):
        with pytest.raises(ServerFailed):
            ask(path)
    assert ask("") == b"its own"


def test_any_format_can_run_in_a_process_of_its_own(client: Client, pod: Pod, files: ModelFiles) -> None:
    example = files.scale(7)
    client.register("apart", uri=example.uri, isolation="process")
    np.testing.assert_array_equal(client.infer("apart", example.inputs).outputs["y"], example.expected["y"])
    children = psutil.Process(pod.process.pid).children(recursive=True)
    assert children
    for child in children:
        child.kill()
    # The next request finds its process gone, and is answered by a new one.
    np.testing.assert_array_equal(client.infer("apart", example.inputs).outputs["y"], example.expected["y"])


# Staying --------------------------------------------------------------------------------------------------------


def test_models_aliases_and_pins_are_there_after_a_restart(start_pod: StartPod, files: ModelFiles) -> None:
    first, second = files.scale(2), files.scale(3)
    pod = start_pod()
    with pod.client() as client, pod.client(tenant="blue") as blue:
        client.register("a", uri=first.uri, labels={"team": "x"})
        client.register("b", uri=first.uri)
        client.register("b", uri=second.uri, if_generation=1)
        client.register("gone", uri=first.uri)
        client.register("pinned", uri=first.uri, pinned=True)
        client.set_alias("alias", "b", owner="me")
        blue.register("a", uri=second.uri)
        client.unregister("gone")
        before = [model.SerializeToString() for model in _descriptions(client)]
    assert pod.stop() == 0
    pod = start_pod()
    with pod.client() as client, pod.client(tenant="blue") as blue:
        assert [model.SerializeToString() for model in _descriptions(client)] == before
        pod.wait_until(lambda: client.describe("pinned").state == hexcomb_pb2.LOADED, "the pinned model is loaded")
        np.testing.assert_array_equal(client.infer("a", first.inputs).outputs["y"], first.expected["y"])
        assert client.infer("alias", second.inputs).model_version == "2"
        np.testing.assert_array_equal(client.infer("alias", second.inputs).outputs["y"], second.expected["y"])
        np.testing.assert_array_equal(blue.infer("a", second.inputs).outputs["y"], second.expected["y"])
        assert client.alias_status("alias").owner == "me"
        # A name that comes back does not come back as its old version.
        assert client.register("gone", uri=second.uri).generation == 2


def _descriptions(client: Client) -> list[hexcomb_pb2.ModelDescription]:
    """What is registered, without what is loaded at the moment."""
    found = []
    for model in client.list_models():
        for field in ("state", "copies", "format", "failure"):
            model.ClearField(field)
        found.append(model)
    return found


# Stopping -------------------------------------------------------------------------------------------------------


def _http_status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def test_sigterm_refuses_new_work_finishes_what_runs_and_says_so(
    start_pod: StartPod, files: ModelFiles, tmp_path: Path, raw_call: Callable[..., Any]
) -> None:
    pod = start_pod(trusted_prefixes=f"{files.directory.as_uri()}/", stop_grace_s=20)
    gate = tmp_path / "gate"
    with pod.client() as client:
        client.register("slow", uri=files.obedient().as_uri(), format="python", parameters={"gate": str(gate)})
        client.infer("slow", numbers(7))
    assert _http_status(f"{pod.http}/readyz") == 200
    service = health_pb2.HealthCheckRequest(service="inference.GRPCInferenceService").SerializeToString()
    answer = raw_call(pod.target, messages.HEALTH_CHECK.path, service)
    assert health_pb2.HealthCheckResponse.FromString(answer).status == health_pb2.HealthCheckResponse.SERVING

    with grpc.insecure_channel(pod.target) as channel:
        watched = channel.unary_stream(messages.HEALTH_WATCH.path)(service, timeout=30)
        states = [_health(next(watched))]
        running = channel.unary_unary(messages.MODEL_INFER.path).future(
            encode_request("slow", numbers(WAIT)), timeout=30
        )
        pod.wait_until(Path(f"{gate}.reached").exists, "the model runs")
        pod.process.send_signal(signal.SIGTERM)
        states.extend(_health(message) for message in watched)  # ends when the pod drains
        assert states == ["SERVING", "NOT_SERVING"]

        assert _http_status(f"{pod.http}/readyz") == 503
        assert _http_status(f"{pod.http}/healthz") == 200
        refused = raw_call(pod.target, messages.MODEL_INFER.path, encode_request("slow", numbers(7)))
        assert refused.code is grpc.StatusCode.UNAVAILABLE
        assert "stopping" in refused.message
        assert not running.done()
        gate.touch()
        outputs = inference_pb2.ModelInferResponse.FromString(running.result())
    assert np.frombuffer(outputs.raw_output_contents[0], np.float32).tolist() == [2 * WAIT, 2.0]
    assert pod.process.wait(20) == 0


def _health(message: bytes) -> str:
    status = health_pb2.HealthCheckResponse.FromString(message).status
    return health_pb2.HealthCheckResponse.ServingStatus.Name(status)


def test_a_request_that_never_ends_does_not_hold_up_the_stop(
    start_pod: StartPod, files: ModelFiles, tmp_path: Path
) -> None:
    pod = start_pod(trusted_prefixes=f"{files.directory.as_uri()}/", stop_grace_s=1)
    gate = tmp_path / "never"
    with pod.client() as client:
        client.register("stuck", uri=files.obedient().as_uri(), format="python", parameters={"gate": str(gate)})
        client.infer("stuck", numbers(7))
    children = psutil.Process(pod.process.pid).children(recursive=True)
    assert children
    with grpc.insecure_channel(pod.target) as channel:
        running = channel.unary_unary(messages.MODEL_INFER.path).future(
            encode_request("stuck", numbers(WAIT)), timeout=60
        )
        pod.wait_until(Path(f"{gate}.reached").exists, "the model runs")
        began_s = time.monotonic()
        assert pod.stop() == 0
        assert time.monotonic() - began_s < 15
        assert running.code() is grpc.StatusCode.UNAVAILABLE
        assert "stopped before the call was done" in running.details()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == [], "a model's process outlived the pod"


def test_a_pod_killed_with_its_models_running_leaves_no_process_behind(start_pod: StartPod, files: ModelFiles) -> None:
    pod = start_pod(trusted_prefixes=f"{files.directory.as_uri()}/")
    with pod.client() as client:
        client.register("m", uri=files.obedient().as_uri(), format="python")
        client.infer("m", numbers(7))
    children = psutil.Process(pod.process.pid).children(recursive=True)
    assert children
    pod.stop(signal.SIGKILL)
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []


# Not starting ---------------------------------------------------------------------------------------------------


def test_a_pod_that_cannot_start_says_why_and_ends_with_an_error(
    pod: Pod, serve: Callable[..., list[str]], tmp_path: Path
) -> None:
    data_dir = pod.log.parent / "data"
    a_file = tmp_path / "file"
    a_file.write_text("")
    free = {"grpc_port": 0, "http_port": 0}
    attempts: dict[str, tuple[dict[str, object], tuple[str, ...]]] = {
        "same gRPC port": ({**free, "data_dir": tmp_path / "1", "grpc_port": pod.grpc_port}, (str(pod.grpc_port),)),
        "same HTTP port": (
            {**free, "data_dir": tmp_path / "2", "http_port": pod.http_port},
            ("http_port", str(pod.http_port), "--http-port"),
        ),
        "same data directory": ({**free, "data_dir": data_dir}, (str(data_dir), "another")),
        "open to the network": ({**free, "data_dir": tmp_path / "3", "host": "0.0.0.0"}, ("0.0.0.0", "--insecure")),
        "no such device": ({**free, "data_dir": tmp_path / "4", "device": "quantum"}, ("--device", "quantum", "cpu")),
        "no such store": ({**free, "data_dir": tmp_path / "5", "store": "etcd://x"}, ("--store", "embedded")),
        "a file for a directory": ({**free, "data_dir": a_file}, (str(a_file),)),
        "a bad size": ({**free, "data_dir": tmp_path / "6", "capacity": "much"}, ("--capacity", "much")),
    }
    started = {
        name: subprocess.Popen(
            serve(settings), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for name, (settings, _) in attempts.items()
    }
    for name, process in started.items():
        output, _ = process.communicate(timeout=START_TIMEOUT_S)
        assert process.returncode not in (0, None), f"{name}: it started"
        for word in attempts[name][1]:
            assert word in output, f"{name}: {word!r} is not in: {output}"
        assert "Traceback" not in output, f"{name}: {output}"
    with pod.client() as client:
        assert client.server_ready(), "the pod that was there first suffered"


def test_from_elsewhere_every_package_resolves_to_this_repository(tmp_path: Path) -> None:
    names = ("mesh", "placement", "cache", "runtime_adapters")
    code = f"import {', '.join(names)}; print(*(each.__file__ for each in ({', '.join(names)})))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    found = [Path(line).resolve().parent for line in done.stdout.split()]
    assert found == [REPOSITORY / name for name in names]
