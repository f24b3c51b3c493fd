"""Our own management interface at the size it is made for, and what it never says: a secret."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest

from mesh.client import Client, HexcombError, InvalidRequest, NotFound, RetryPolicy, registration
from mesh.wire import messages
from mesh.wire.generated import hexcomb_pb2

if TYPE_CHECKING:
    from tests.e2e.conftest import ModelFiles, Pod, StartPod

RESULT = hexcomb_pb2.RegistrationResult
MODELS = 5000
ONE_TRY = RetryPolicy(attempts_max=1)


@pytest.fixture(scope="module")
def pod(start_module_pod: StartPod) -> Pod:
    return start_module_pod()


@pytest.fixture
def client(pod: Pod) -> Iterator[Client]:
    with pod.client(timeout_s=60.0) as client:
        yield client
        client.unregister_many([model.id for model in client.list_models(page_size=5000)])
    assert pod.wait_settled().models_registered == 0


def test_5000_registrations_with_bad_ones_among_them_have_one_result_each(
    client: Client, pod: Pod, files: ModelFiles
) -> None:
    kinds = [files.scale(factor) for factor in (2.0, 3.0)]
    good = kinds[0].uri
    bad = {
        "": {"uri": good},
        "no-uri": {"uri": ""},
        "no-such-format": {"uri": good, "format": "coreml"},
        "bad\nname": {"uri": good},
        "code": {"uri": good, "format": "pickle"},
        "bad-scheme": {"uri": "gopher://old/model"},
        "bad-checksum": {"uri": good, "checksum": "crc:1"},
    }
    entries, expected = [], []
    for index in range(MODELS):
        entries.append(registration(f"m-{index:05}", uri=kinds[index % 2].uri, labels={"half": str(index % 2)}))
        expected.append(RESULT.CREATED)
        if index % 500 == 250:
            name, fields = list(bad.items())[index // 500 % len(bad)]
            entries.append(registration(name, **fields))  # type: ignore[arg-type]
            expected.append(RESULT.REFUSED)
    progress: list[int] = []
    results = client.register_many(entries, progress.append)
    assert sum(progress) == len(entries) == len(results)
    assert [result.outcome for result in results] == expected
    assert [result.id for result in results] == [entry.id for entry in entries]
    for result in results:
        if result.outcome == RESULT.REFUSED:
            assert result.status_code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
            assert len(result.message) > 20, result
    again = client.register_many(entries[:100])
    assert {result.outcome for result in again} == {RESULT.UNCHANGED}

    assert pod.status().models_registered == MODELS
    listed = [model.id for model in client.list_models()]
    assert listed == [f"m-{index:05}" for index in range(MODELS)], "not all of them, or not in order"
    for index in (0, 1, 4998, 4999):
        kind = kinds[index % 2]
        np.testing.assert_array_equal(client.infer(f"m-{index:05}", kind.inputs).outputs["y"], kind.expected["y"])
    assert len(list(client.list_models(labels={"half": "1"}))) == MODELS // 2
    assert [model.id for model in client.list_models(id_prefix="m-0499", page_size=3)] == [
        f"m-{index:05}" for index in range(4990, 5000)
    ]
    gone = client.unregister_many([entry.id for entry in entries if entry.id] + ["nobody"])
    assert sum(result.existed for result in gone) == MODELS


def test_a_stream_of_registrations_is_answered_message_by_message(client: Client, pod: Pod, files: ModelFiles) -> None:
    def request(part: int) -> bytes:
        entries = [registration(f"s-{part}-{index}", uri=files.scale().uri) for index in range(50)]
        return hexcomb_pb2.RegisterModelsRequest(entries=entries).SerializeToString()

    with grpc.insecure_channel(pod.target) as channel:
        stream = channel.stream_stream(messages.REGISTER_MODELS_STREAM.path)
        answers = [hexcomb_pb2.RegisterModelsResponse.FromString(body) for body in stream(map(request, range(20)))]
    assert [len(answer.results) for answer in answers] == [50] * 20
    assert {result.outcome for answer in answers for result in answer.results} == {RESULT.CREATED}
    assert len(list(client.list_models(id_prefix="s-"))) == 1000


def test_the_same_id_twice_in_one_call_is_decided_in_order(client: Client, files: ModelFiles) -> None:
    first, second = files.scale(2).uri, files.scale(3).uri
    results = client.register_many(
        [
            registration("twin", uri=first),
            registration("twin", uri=first),
            registration("twin", uri=second),
            registration("twin", uri=second, if_generation=1),
        ]
    )
    assert [result.outcome for result in results] == [RESULT.CREATED, RESULT.UNCHANGED, RESULT.REFUSED, RESULT.UPDATED]
    assert client.describe("twin").generation == 2


def test_load_now_loads_without_being_called(client: Client, pod: Pod, files: ModelFiles) -> None:
    client.register("eager", uri=files.scale().uri, load_now=True)
    described = pod.wait_until(
        lambda: (model := client.describe("eager")).state == hexcomb_pb2.LOADED and model, "it is loaded"
    )
    (copy,) = described.copies
    assert copy.measured
    assert copy.load_s > 0
    assert copy.host_bytes + copy.mapped_bytes > 0
    assert described.format == "onnx"


def test_a_whole_spec_comes_back_as_it_was_sent(client: Client, files: ModelFiles) -> None:
    spec: dict[str, Any] = {
        "uri": files.scale().uri,
        "format": "onnx",
        "storage_key": "key",
        "capacity_hint_bytes": 123_456,
        "labels": {"team": "x", "größe": "ü"},
        "priority": -3,
        "copies_min": 1,
        "copies_max": 4,
        "ttl_s": 0.5,
        "checksum": "sha256:" + "ab" * 32,
        "isolation": "process",
        "load_timeout_s": 7.5,
    }
    client.register("whole", **spec)
    assert client.describe("whole").spec == hexcomb_pb2.ModelSpec(**spec)


def test_a_copy_that_nobody_uses_for_its_ttl_is_unloaded(client: Client, pod: Pod, files: ModelFiles) -> None:
    client.register("brief", uri=files.scale().uri, ttl_s=0.2)
    client.infer("brief", files.scale().inputs)
    pod.wait_until(lambda: client.describe("brief").state == hexcomb_pb2.NOT_LOADED, "its copy left")
    client.infer("brief", files.scale().inputs)


def test_questions_about_what_is_not_there_are_answered_clearly(client: Client) -> None:
    with pytest.raises(NotFound, match="'nobody'"):
        client.describe("nobody")
    with pytest.raises(NotFound, match="'elsewhere'"):
        client.pod_status("elsewhere")
    with pytest.raises(NotFound, match="'nobody'"):
        client.set_pinned("nobody", True)
    assert client.unregister("nobody") is False
    with pytest.raises(InvalidRequest):
        client.register("x" * 5000, uri="file:///m.onnx")


# Secrets --------------------------------------------------------------------------------------------------------

SECRETS = ("s3cr3t-access", "s3cr3t-secret", "s3cr3t-header", "s3cr3t-query", "s3cr3t-password")


class _Refusing(http.server.BaseHTTPRequestHandler):
    """Answers every request with an error that repeats what was sent, as a proxy's page may."""

    def do_GET(self) -> None:
        body = f"denied: {self.path} {dict(self.headers)}".encode()
        self.send_response(403 if "denied" in self.path else 500)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def refusing_server() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Refusing)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_no_secret_is_in_an_error_a_status_a_log_or_a_metric(
    start_pod: StartPod, files: ModelFiles, tmp_path: Path, refusing_server: str
) -> None:
    config = tmp_path / "storage.json"
    config.write_text(
        json.dumps(
            {
                "s3": {
                    "type": "s3",
                    "access_key_id": SECRETS[0],
                    "secret_access_key": SECRETS[1],
                    "endpoint_url": refusing_server,
                },
                "web": {"type": "http", "url": refusing_server, "headers": {"Authorization": SECRETS[2]}},
            }
        )
    )
    pod = start_pod(storage_config=config, log_level="debug", fetch_timeout_s=5, metrics_per_model=True)
    said: list[str] = []
    address = refusing_server.removeprefix("http://")
    with pod.client(retry=ONE_TRY, timeout_s=20) as client:
        for name, uri, key in (
            ("s3-denied", "s3://bucket/denied/model.onnx", "s3"),
            ("s3-broken", "s3://bucket/broken/model.onnx", "s3"),
            ("web-denied", f"{refusing_server}/denied/model.onnx?token={SECRETS[3]}", "web"),
            ("web-broken", f"{refusing_server}/broken/model.onnx?token={SECRETS[3]}", "web"),
            ("no-such-key", "s3://bucket/model.onnx", "nobody"),
        ):
            client.register(name, uri=uri, storage_key=key)
            with pytest.raises(HexcombError) as failed:
                client.infer(name, files.scale().inputs)
            said.append(failed.value.message)
            described = client.describe(name)
            assert described.failure.message
            described.spec.ClearField("uri")  # who may read a spec wrote it
            said.append(str(described))
            said.append(str(client.model_status(name)))
        with pytest.raises(InvalidRequest) as refused:
            client.register("user", uri=f"http://someone:{SECRETS[4]}@{address}/m.onnx")
        said.append(refused.value.message)
        said.append(str(client.pod_status()))
    import urllib.request

    with urllib.request.urlopen(f"{pod.http}/metrics", timeout=5) as answer:
        said.append(answer.read().decode())
    pod.wait_settled()
    assert pod.stop() == 0
    said.append(pod.log_text())
    for secret in SECRETS:
        for text in said:
            assert secret not in text
