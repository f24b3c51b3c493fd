"""Triton's generate extension over HTTP: one answer as JSON, many as events; on one pod, and through another."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from mesh.client import Client
from tests.e2e.streaming_models import ADDER, REPEATER, TALKER

if TYPE_CHECKING:
    from tests.e2e.conftest import ModelFiles, Pod, StartPod, StartPool

MANY = 1_000_000


@pytest.fixture(scope="module")
def pod(start_module_pod: StartPod, files: ModelFiles) -> Pod:
    pod = start_module_pod()
    with pod.client() as client:
        client.register("scale", uri=files.scale().uri)
        client.register("words", uri=files.words().uri)
        for name, source in (("talker", TALKER), ("repeater", REPEATER), ("adder", ADDER)):
            client.register(name, uri=files.python(source, name).as_uri(), format="python", copies_max=1)
    return pod


def ask(pod: Pod, path: str, body: Any) -> tuple[int, str, bytes]:
    """Code, content type, body."""
    return ask_at(pod.http, path, body)


def ask_at(http_url: str, path: str, body: Any) -> tuple[int, str, bytes]:
    request = urllib.request.Request(f"{http_url}/v2/models/{path}", json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.headers["content-type"], answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["content-type"], error.read()


def events(body: bytes) -> list[Any]:
    assert body == b"" or body.endswith(b"\n\n")
    return [json.loads(event.removeprefix(b"data: ")) for event in body.split(b"\n\n")[:-1]]


def test_a_model_that_streams_is_heard_word_by_word(pod: Pod) -> None:
    code, kind, body = ask(pod, "talker/generate_stream", {"text_input": "one by zwölf", "id": "r"})
    assert (code, kind.partition(";")[0]) == (200, "text/event-stream")
    assert [event["text_output"] for event in events(body)] == ["one", "by", "zwölf"]
    assert events(body)[0] == {"model_name": "talker", "model_version": "1", "id": "r", "text_output": "one"}


def test_inputs_may_lie_among_the_parameters_and_parameters_beside_the_inputs(pod: Pod) -> None:
    asked = {"text_input": "a b", "parameters": {"loud": True, "temperature": 0.5}, "max_tokens": 20}
    assert [event["text_output"] for event in events(ask(pod, "talker/generate_stream", asked)[2])] == ["A", "B"]
    first = ask(pod, "adder/generate", {"number": 3, "sequence_id": 5, "sequence_start": True})
    assert json.loads(first[2])["sum"] == 3
    asked = {"number": 4, "parameters": {"sequence_id": 5, "sequence_end": True}}
    assert json.loads(ask(pod, "adder/generate", asked)[2])["sum"] == 7


def test_any_model_gives_its_one_answer(pod: Pod) -> None:
    code, kind, body = ask(pod, "scale/versions/1/generate", {"x": [1, 2, 3, 4]})
    assert (code, kind) == (200, "application/json")
    assert json.loads(body) == {"model_name": "scale", "model_version": "1", "y": [2.0, 4.0, 6.0, 8.0]}
    assert json.loads(ask(pod, "scale/generate", {"x": [[1, 2, 3, 4]] * 2})[2])["y"][4:] == [2.0, 4.0, 6.0, 8.0]
    assert json.loads(ask(pod, "talker/generate", {"text_input": {"b64": "/w=="}})[2])["text_output"] == {"b64": "/w=="}
    assert events(ask(pod, "scale/generate_stream", {"x": [1, 2, 3, 4]})[2])[0]["y"] == [2.0, 4.0, 6.0, 8.0]
    assert json.loads(ask(pod, "talker/generate", {"text_input": "alone"})[2])["text_output"] == "alone"
    assert ask(pod, "talker/generate_stream", {"text_input": ""})[2] == b""


@pytest.mark.parametrize(
    ("path", "body", "code", "told"),
    [
        ("nobody/generate", {}, 404, "unknown model"),
        ("nobody/generate_stream", {}, 404, "unknown model"),
        ("scale/versions/7/generate_stream", {"x": [1, 2, 3, 4]}, 404, "version"),
        ("scale/generate", {}, 400, "x"),
        ("scale/generate", {"x": [1, 2, 3]}, 400, "x"),
        ("scale/generate", {"x": ["a"] * 4}, 400, "no element of FP32"),
        ("scale/generate", {"x": [1, 2, 3, 4], "parameters": {"x": [1, 2, 3, 4]}}, 400, "sent twice"),
        ("scale/generate", {"x": [1, 2, 3, 4], "y": None}, 400, "no input of the model, whose inputs are x"),
        ("scale/generate", {"x": [1, 2, 3, 4], "parameters": 5}, 400, "parameters is '5'"),
        ("scale/generate", {"x": [1, 2, 3, 4], "id": 5}, 400, "id is '5'"),
        ("scale/generate", [], 400, "not an object"),
        ("talker/generate", {"text_input": "one by one"}, 400, "several; ask by generate_stream"),
        ("talker/generate", {"text_input": ""}, 400, "gave none; ask by generate_stream"),
        ("repeater/generate_stream", {"number": 13, "times": 1}, 500, "no luck"),
    ],
)
def test_what_is_wrong_is_told_before_the_stream_begins(pod: Pod, path: str, body: Any, code: int, told: str) -> None:
    found, kind, answer = ask(pod, path, body)
    assert (found, kind) == (code, "application/json")
    assert told in json.loads(answer)["error"]


def test_a_client_that_hangs_up_gives_the_copy_back(pod: Pod) -> None:
    host = pod.http.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=60)
    connection.request("POST", "/v2/models/repeater/generate_stream", json.dumps({"number": 7, "times": MANY}))
    answer = connection.getresponse()
    assert answer.readline().startswith(b"data: ")
    answer.close()
    connection.close()
    pod.wait_settled()
    assert json.loads(ask(pod, "repeater/generate", {"number": 7, "times": 1})[2])["nth"] == 0


def test_the_pod_that_is_asked_need_not_have_the_model(start_pool: StartPool, files: ModelFiles) -> None:
    pool = start_pool(2)
    with Client(pool.pods[0].grpc_endpoint) as client:
        client.register("repeater", uri=files.python(REPEATER, "repeater").as_uri(), format="python", copies_max=1)
    for pod in pool.pods:
        url = f"http://{pod.http_endpoint}"
        found = events(ask_at(url, "repeater/generate_stream", {"number": 7, "times": 20})[2])
        assert [event["nth"] for event in found] == list(range(20))
        assert ask_at(url, "repeater/generate_stream", {"number": 13, "times": 1})[0] == 500
