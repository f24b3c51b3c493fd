"""REST on a real pod: V2 with JSON and binary tensors, V1, errors as KServe has them, and the document of it all."""

from __future__ import annotations

import gzip
import json
import socket
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import numpy as np
import pytest
from openapi_spec_validator import validate

from mesh.client import Client, HexcombError
from tests.e2e.pools import ONE_TRY

if TYPE_CHECKING:
    from tests.e2e.conftest import Example, ModelFiles, Pod, StartPod

SCALE = {"name": "x", "datatype": "FP32", "shape": [1, 4]}
ROW = [1.0, 2.0, 3.0, 4.0]
DOUBLED = [2.0, 4.0, 6.0, 8.0]
LENGTH = "Inference-Header-Content-Length"
MESSAGE_BYTES_MAX = 1 << 20


@dataclass(frozen=True)
class Heard:
    """An HTTP answer."""

    code: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@pytest.fixture(scope="module")
def pod(start_module_pod: StartPod, files: ModelFiles, tmp_path_factory: pytest.TempPathFactory) -> Pod:
    pod = start_module_pod(message_size_max=MESSAGE_BYTES_MAX)
    absent = tmp_path_factory.mktemp("none") / "absent.onnx"
    with pod.client() as client:
        client.register("scale", uri=files.scale().uri)
        client.register("a/b c:d", uri=files.scale(5).uri)
        client.register("words", uri=files.words().uri)
        client.register("bad", uri=absent.as_uri(), format="onnx")
    with Client(pod.target, tenant="blue") as blue:
        blue.register("scale", uri=files.scale(7).uri)
    with pod.client(retry=ONE_TRY) as client, pytest.raises(HexcombError):
        client.infer("bad", files.scale().inputs)
    return pod


def ask(
    pod: Pod, path: str, body: bytes | dict[str, Any] | None = None, headers: Mapping[str, str] | None = None
) -> Heard:
    """GET, or POST where there is a body."""
    data = json.dumps(body).encode() if isinstance(body, dict) else body
    request = urllib.request.Request(f"{pod.http}{path}", data, dict(headers or {}))
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
            return Heard(answer.status, answer.headers, answer.read())
    except urllib.error.HTTPError as error:
        return Heard(error.code, error.headers, error.read())


def infer(pod: Pod, model: str = "scale", headers: Mapping[str, str] | None = None, **request: Any) -> Heard:
    asked = {"inputs": [{**SCALE, "data": ROW}], **request}
    return ask(pod, f"/v2/models/{urllib.parse.quote(model, safe='')}/infer", asked, headers)


def test_the_server_and_its_health(pod: Pod) -> None:
    server = ask(pod, "/v2").json
    assert server["name"] == "hexcomb"
    assert "binary_tensor_data" in server["extensions"]
    assert ask(pod, "/v2/health/live").json == {"live": True}
    assert ask(pod, "/v2/health/ready").json == {"ready": True}
    assert ask(pod, "/v2/models").json == {"models": ["a/b c:d", "bad", "scale", "words"]}


def test_a_models_inputs_outputs_and_version(pod: Pod) -> None:
    found = ask(pod, "/v2/models/scale").json
    assert found["versions"] == ["1"]
    assert found["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert [output["name"] for output in found["outputs"]] == ["y"]
    assert ask(pod, "/v2/models/scale/versions/1").json == found


def test_json_in_and_json_out(pod: Pod) -> None:
    answer = infer(pod, id="r-1")
    assert answer.code == 200, answer.body
    assert answer.headers["content-type"] == "application/json"
    assert answer.json == {
        "model_name": "scale",
        "model_version": "1",
        "id": "r-1",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 4], "data": DOUBLED}],
    }
    nested = ask(pod, "/v2/models/scale/versions/1/infer", {"inputs": [{**SCALE, "data": [ROW]}]})
    assert nested.json["outputs"] == answer.json["outputs"]


def test_binary_tensors_in_and_out(pod: Pod) -> None:
    values = np.array(ROW, np.float32)
    asked = {
        "inputs": [{**SCALE, "parameters": {"binary_data_size": 16}}],
        "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
    }
    text = json.dumps(asked).encode()
    answer = ask(pod, "/v2/models/scale/infer", text + values.tobytes(), {LENGTH: str(len(text))})
    assert answer.code == 200, answer.body
    length = int(answer.headers[LENGTH])
    (output,) = json.loads(answer.body[:length])["outputs"]
    assert output["parameters"] == {"binary_data_size": 16}
    np.testing.assert_array_equal(np.frombuffer(answer.body[length:], np.float32), DOUBLED)


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_a_compressed_request_is_unpacked_within_the_limit(pod: Pod, encoding: str, pack: Any) -> None:
    asked = json.dumps({"inputs": [{**SCALE, "data": ROW}]}).encode()
    headers = {"Content-Encoding": encoding}
    assert ask(pod, "/v2/models/scale/infer", pack(asked), headers).json["outputs"][0]["data"] == DOUBLED
    assert ask(pod, "/v2/models/scale/infer", pack(b" " * 50_000_000), headers).code == 413
    assert ask(pod, "/v2/models/scale/infer", pack(asked)[:-5], headers).code == 400
    assert ask(pod, "/v2/models/scale/infer", b"neither", headers).code == 400


def test_text_and_names_that_need_quoting(pod: Pod) -> None:
    text = {"name": "text", "datatype": "BYTES", "shape": [2], "data": ["zwölf", ""]}
    answer = ask(pod, "/v2/models/words/infer", {"inputs": [text]})
    assert answer.json["outputs"][0]["data"] == ["zwölf", ""]
    assert infer(pod, "a/b c:d").json["outputs"][0]["data"] == [5.0, 10.0, 15.0, 20.0]
    assert ask(pod, "/v2/models/a/b%20c%3Ad/versions/1/ready").json == {"name": "a/b c:d", "ready": True}
    assert ask(pod, "/v1/models/a/b%20c%3Ad:predict", {"instances": [ROW]}).json["predictions"][0][0] == 5.0


def test_v1_predicts_and_lists(pod: Pod) -> None:
    assert ask(pod, "/v1/models").json == {"models": ["a/b c:d", "bad", "scale", "words"]}
    assert ask(pod, "/v1/models/scale").json == {"name": "scale", "ready": True}
    assert ask(pod, "/v1/models/scale:predict", {"instances": [ROW, ROW]}).json == {"predictions": [DOUBLED, DOUBLED]}
    assert ask(pod, "/v1/models/scale:predict", {"inputs": {"x": [ROW]}}).json == {"outputs": [DOUBLED]}


def test_the_repository_lists_loads_and_unloads_what_is_registered(pod: Pod) -> None:
    index = {model["name"]: model for model in ask(pod, "/v2/repository/index", b"").json}
    assert (index["scale"]["version"], index["scale"]["state"]) == ("1", "READY")
    assert index["bad"]["state"] == "UNAVAILABLE"
    assert "absent.onnx" in index["bad"]["reason"]
    ready = ask(pod, "/v2/repository/index", {"ready": True}).json
    assert sorted(model["name"] for model in ready) == ["a/b c:d", "scale", "words"]

    assert ask(pod, "/v2/repository/models/words/load", b"{}").json == {"name": "words", "load": True}
    resident = pod.status().models_resident
    assert ask(pod, "/v2/repository/models/words/unload", b"").json == {"name": "words", "unload": True}
    pod.wait_until(lambda: pod.status().models_resident == resident - 1, "it has left")
    assert ask(pod, "/v2/models/words/ready").code == 200, "a request brings it back"
    for parameters, why in (({"config": '{"x": 1}'}, "cannot be set"), ({"file:a": "?"}, "not base64"), ([], "words")):
        override = ask(pod, "/v2/repository/models/words/load", {"parameters": parameters})
        assert (override.code, why in str(override.json)) == (400 if parameters else 200, True)
    assert ask(pod, "/v2/repository/models/nobody/load", b"").code == 404
    assert ask(pod, "/v2/repository/models/bad/load", b"").code == 503


def test_what_is_to_stay_in_memory_is_not_unloaded(pod: Pod) -> None:
    with pod.client() as client:
        client.set_pinned("scale", True)
        try:
            refused = ask(pod, "/v2/repository/models/scale/unload", b"")
        finally:
            client.set_pinned("scale", False)
    assert (refused.code, "unpin it" in refused.json["error"]) == (400, True)


def test_tenants_are_told_by_a_header_or_by_the_host(pod: Pod) -> None:
    assert infer(pod, headers={"hexcomb-tenant": "blue"}).json["outputs"][0]["data"][0] == 7.0
    assert infer(pod, headers={"Host": "models.blue.svc.cluster.local"}).json["outputs"][0]["data"][0] == 7.0
    assert infer(pod, headers={"hexcomb-tenant": "nobody"}).code == 404
    assert infer(pod, headers={"hexcomb-tenant": "x" * 500}).code == 400
    assert infer(pod, headers={"hexcomb-forward": "1;p;words;1;1;1;0;"}).code == 200


ERRORS: list[tuple[str, Any, int, str]] = [
    ("/v2/models/nobody/infer", {"inputs": []}, 404, "unknown model: 'nobody'"),
    ("/v2/models/nobody", None, 404, "unknown model: 'nobody'"),
    ("/v2/models/nobody/ready", None, 404, "nobody"),
    ("/v2/models/scale/versions/9/infer", {"inputs": [{**SCALE, "data": ROW}]}, 404, "version"),
    ("/v2/models/scale/versions/9/ready", None, 404, "version"),
    ("/v2/models/bad/ready", None, 503, "absent.onnx"),
    ("/v2/models/bad/infer", {"inputs": [{**SCALE, "data": ROW}]}, 503, "absent.onnx"),
    ("/v2/models/scale/infer", b"{", 400, "not JSON"),
    ("/v2/models/scale/infer", {"inputs": [{**SCALE, "data": [1]}]}, 400, "takes 4 elements"),
    ("/v2/models/scale/infer", {"inputs": [{**SCALE, "shape": [2, 2], "data": ROW}]}, 400, "x"),
    ("/v2/models/scale/infer", b" " * (MESSAGE_BYTES_MAX + 1), 413, "larger than"),
    ("/v2/models/scale/infer", None, 404, "unknown model: 'scale/infer'"),
    ("/v2", {}, 405, "Method Not Allowed: '/v2' takes GET"),
    ("/v1/models/scale:predct", {"instances": [ROW]}, 405, "'/v1/models/scale:predct' takes GET, HEAD, found POST"),
    ("/v1/models/nobody", None, 404, "nobody"),
    ("/v1/models/nobody:predict", {"instances": [1]}, 404, "nobody"),
    ("/v1/models/scale:predict", {"instances": []}, 400, "at least one row"),
    ("/v1/models/scale:explain", {"instances": [ROW]}, 501, "does not explain itself"),
    ("/v2/models/scale/explain", {"inputs": [{**SCALE, "data": ROW}]}, 501, "does not explain itself"),
    ("/v3/models", None, 404, "Not Found: '/v3/models' is no path of this server"),
]


@pytest.mark.parametrize(("path", "body", "code", "message"), ERRORS)
def test_errors_have_kserves_codes_and_body(pod: Pod, path: str, body: Any, code: int, message: str) -> None:
    answer = ask(pod, path, body)
    assert (answer.code, list(answer.json)) == (code, ["error"]), answer.body
    assert message in answer.json["error"]


def test_trees_explain_their_predictions_exactly_in_v1_and_v2(pod: Pod, files: ModelFiles) -> None:
    import xgboost

    example = files.xgboost()
    rows = example.inputs["input"]
    with pod.client() as client:
        client.register("trees", uri=example.uri)
        explained = client.infer("trees", {"input": rows}, outputs=["explanation"]).outputs["explanation"]
    expected = xgboost.Booster(model_file=example.path).predict(xgboost.DMatrix(rows), pred_contribs=True)
    np.testing.assert_array_equal(explained, expected)
    v1 = ask(pod, "/v1/models/trees:explain", {"instances": rows.tolist()})
    np.testing.assert_array_equal(np.array(v1.json["explanations"], np.float32), expected)
    asked = {"name": "input", "datatype": "FP32", "shape": list(rows.shape), "data": rows.tolist()}
    (output,) = ask(pod, "/v2/models/trees/explain", {"inputs": [asked]}).json["outputs"]
    assert output["name"] == "explanation"
    np.testing.assert_array_equal(np.array(output["data"], np.float32).reshape(output["shape"]), expected)


EXPLAINING = """
from runtime_adapters.custom import Model, TensorSpec


class Explaining(Model):
    inputs = (TensorSpec("x", "FP32", (-1, 2)),)
    outputs = (TensorSpec("y", "FP32", (-1,)), TensorSpec("explanation", "FP32", (-1, 2), optional=True))

    def predict(self, inputs):
        return {"y": inputs["x"].sum(axis=1)}

    def explain(self, inputs):
        return inputs["x"]
"""


def test_a_custom_model_explains_itself_by_its_own_method(pod: Pod, files: ModelFiles) -> None:
    with pod.client() as client:
        client.register("explaining", uri=files.python(EXPLAINING, "explaining").as_uri(), format="python")
        assert client.infer("explaining", {"x": np.ones((1, 2), np.float32)}).outputs["y"].tolist() == [2.0]
    v1 = ask(pod, "/v1/models/explaining:explain", {"instances": [[3, 4], [5, 6]]})
    assert v1.json == {"explanations": [[3.0, 4.0], [5.0, 6.0]]}


def test_a_client_that_leaves_takes_its_call_with_it(pod: Pod, files: ModelFiles, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with socket.create_connection(("127.0.0.1", pod.http_port)) as line:
        with pod.client() as client:
            client.register("slow", uri=slow_model(tmp_path, gate).as_uri(), isolation="process")
        body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1]}]})
        line.sendall(
            f"POST /v2/models/slow/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        pod.wait_until(lambda: pod.status().requests_waiting == 1, "it waits for its model")
    pod.wait_until(lambda: pod.status().requests_waiting == 0, "nobody waits any more")
    gate.touch()
    pod.wait_settled()


def slow_model(directory: Path, gate: Path) -> Path:
    """A model that is loaded once the gate is there."""
    path = directory / "slow.py"
    path.write_text(
        "import time\n"
        "from pathlib import Path\n"
        "from runtime_adapters.custom import Model, TensorSpec\n\n\n"
        "class Slow(Model):\n"
        "    inputs = (TensorSpec('x', 'FP32', (-1, 1)),)\n"
        "    outputs = (TensorSpec('y', 'FP32', (-1, 1)),)\n\n"
        "    def load(self):\n"
        f"        while not Path({str(gate)!r}).exists():\n"
        "            time.sleep(0.01)\n\n"
        "    def predict(self, inputs):\n"
        "        return {'y': inputs['x']}\n"
    )
    return path


# The document --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def described(pod: Pod) -> dict[str, Any]:
    found: dict[str, Any] = ask(pod, "/openapi.json").json
    return found


def test_the_document_is_openapi(described: dict[str, Any]) -> None:
    validate(described)  # type: ignore[arg-type]


CALLS: list[tuple[str, str, Any]] = [
    ("/v2", "/v2", None),
    ("/v2/health/live", "/v2/health/live", None),
    ("/v2/health/ready", "/v2/health/ready", None),
    ("/v2/models", "/v2/models", None),
    ("/v2/models/{model}", "/v2/models/scale", None),
    ("/v2/models/{model}/ready", "/v2/models/scale/ready", None),
    ("/v2/models/{model}/infer", "/v2/models/scale/infer", {"inputs": [{**SCALE, "data": ROW}]}),
    ("/v2/models/{model}/versions/{version}", "/v2/models/scale/versions/1", None),
    ("/v2/models/{model}/versions/{version}/ready", "/v2/models/scale/versions/1/ready", None),
    (
        "/v2/models/{model}/versions/{version}/infer",
        "/v2/models/scale/versions/1/infer",
        {"inputs": [{**SCALE, "data": ROW}]},
    ),
    ("/v2/models/{model}/explain", "/v2/models/scale/explain", {"inputs": [{**SCALE, "data": ROW}]}),
    (
        "/v2/models/{model}/versions/{version}/explain",
        "/v2/models/scale/versions/1/explain",
        {"inputs": [{**SCALE, "data": ROW}]},
    ),
    ("/v2/models/{model}/generate", "/v2/models/scale/generate", {"x": ROW}),
    ("/v2/models/{model}/versions/{version}/generate", "/v2/models/scale/versions/1/generate", {"x": ROW, "id": "g"}),
    ("/v2/models/{model}/generate_stream", "/v2/models/scale/generate_stream", {"x": ROW}),
    (
        "/v2/models/{model}/versions/{version}/generate_stream",
        "/v2/models/scale/versions/1/generate_stream",
        {"x": ROW},
    ),
    ("/v2/models/{model}/config", "/v2/models/scale/config", None),
    ("/v2/models/{model}/versions/{version}/config", "/v2/models/scale/versions/1/config", None),
    ("/v2/models/stats", "/v2/models/stats", None),
    ("/v2/models/{model}/stats", "/v2/models/scale/stats", None),
    ("/v2/models/{model}/versions/{version}/stats", "/v2/models/scale/versions/1/stats", None),
    ("/v2/logging", "/v2/logging", {"log_verbose_level": 0}),
    ("/v2/trace/setting", "/v2/trace/setting", {"trace_level": ["OFF"]}),
    ("/v2/models/{model}/trace/setting", "/v2/models/scale/trace/setting", {"trace_rate": "10"}),
    *(
        (f"/v2/{kind}sharedmemory{path}", f"/v2/{kind}sharedmemory{path.replace('{region}', 'r')}", body)
        for kind in ("system", "cuda")
        for path, body in (
            ("/status", None),
            ("/unregister", {}),
            ("/region/{region}/status", None),
            ("/region/{region}/register", {"key": "/nothing-here", "byte_size": 8}),
            ("/region/{region}/unregister", {}),
        )
    ),
    ("/v2/repository/index", "/v2/repository/index", {}),
    ("/v2/repository/models/{model}/load", "/v2/repository/models/scale/load", {}),
    ("/v2/repository/models/{model}/unload", "/v2/repository/models/scale/unload", {}),
    ("/", "/", None),
    ("/v1/models", "/v1/models", None),
    ("/v1/models/{model}", "/v1/models/scale", None),
    ("/v1/models/{model}:predict", "/v1/models/scale:predict", {"instances": [ROW]}),
    ("/v1/models/{model}:explain", "/v1/models/scale:explain", {"instances": [ROW]}),
]


def test_the_document_has_the_paths_that_are_called_here_and_no_others(described: dict[str, Any]) -> None:
    assert set(described["paths"]) == {path for path, _, _ in CALLS}


@pytest.mark.parametrize(("path", "called", "body"), CALLS, ids=[path for path, _, _ in CALLS])
def test_answers_are_as_the_document_says(
    pod: Pod, described: dict[str, Any], path: str, called: str, body: Any
) -> None:
    operation = described["paths"][path]["get" if body is None else "post"]
    for made, sent in ((called, body), (called.replace("scale", "nobody"), body), (called, {"strange": 1})):
        if body is None and sent is not None:
            continue
        answer = ask(pod, made, sent)
        kinds = operation["responses"][str(answer.code)]["content"]
        assert answer.headers["content-type"].partition(";")[0] in kinds
        if "text/event-stream" in kinds:
            assert answer.body.startswith(b"data: {")
            continue
        content = kinds["application/json"]["schema"]
        jsonschema.validate(answer.json, {**content, "components": described["components"]})
        if sent is body and sent is not None:
            asked = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            jsonschema.validate(sent, {**asked, "components": described["components"]})


def test_the_examples_answers_are_the_frameworks_own(pod: Pod, files: ModelFiles) -> None:
    example: Example = files.scale()
    x = example.inputs["x"]
    asked = {"inputs": [{"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.tolist()}]}
    (output,) = ask(pod, "/v2/models/scale/infer", asked).json["outputs"]
    np.testing.assert_array_equal(
        np.array(output["data"], np.float32).reshape(output["shape"]), next(iter(example.expected.values()))
    )
