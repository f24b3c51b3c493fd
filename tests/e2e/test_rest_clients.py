"""`tritonclient.http`, unmodified, against a pod's REST endpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mesh.client import Client

if TYPE_CHECKING:
    from tests.e2e.conftest import ModelFiles, Pod, StartPod

pytest.importorskip("geventhttpclient", reason="tritonclient.http is not installed: pip install 'tritonclient[http]'")

import tritonclient.http as triton

X = np.array([[1, 2, 3, 4]], np.float32)


@pytest.fixture(scope="module")
def pod(start_module_pod: StartPod, files: ModelFiles) -> Pod:
    pod = start_module_pod()
    with Client(pod.target) as client:
        client.register("scale", uri=files.scale().uri)
        client.register("words", uri=files.words().uri)
    return pod


@pytest.fixture(scope="module")
def user(pod: Pod) -> Any:
    with triton.InferenceServerClient(pod.http.removeprefix("http://")) as client:
        yield client


def tensor(name: str, array: Any, datatype: str, *, binary: bool) -> Any:
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def test_it_sees_a_live_ready_server_that_names_itself(user: Any) -> None:
    assert user.is_server_live()
    assert user.is_server_ready()
    assert user.get_server_metadata()["name"] == "hexcomb"
    assert user.is_model_ready("scale")
    assert user.is_model_ready("scale", "1")
    assert not user.is_model_ready("scale", "9")
    assert not user.is_model_ready("nobody")
    assert user.get_model_metadata("scale")["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]


@pytest.mark.parametrize("sends_binary", [True, False])
@pytest.mark.parametrize("wants_binary", [True, False, None])
def test_it_infers_with_binary_tensors_and_with_json(user: Any, sends_binary: bool, wants_binary: bool | None) -> None:
    outputs = None if wants_binary is None else [triton.InferRequestedOutput("y", binary_data=wants_binary)]
    answer = user.infer(
        "scale", [tensor("x", X, "FP32", binary=sends_binary)], outputs=outputs, request_id="r", model_version="1"
    )
    np.testing.assert_array_equal(answer.as_numpy("y"), 2 * X)
    assert answer.get_response()["id"] == "r"


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
def test_it_infers_with_compressed_requests_and_asks_for_compressed_answers(user: Any, compression: str) -> None:
    answer = user.infer(
        "scale",
        [tensor("x", X, "FP32", binary=True)],
        request_compression_algorithm=compression,
        response_compression_algorithm=compression,
    )
    np.testing.assert_array_equal(answer.as_numpy("y"), 2 * X)


@pytest.mark.parametrize("binary", [True, False])
def test_it_gets_text_back_as_it_was_sent(user: Any, binary: bool) -> None:
    text = np.array([b"eins", b"", "zwölf".encode()], np.object_)
    outputs = [triton.InferRequestedOutput("same", binary_data=binary)]
    answer = user.infer("words", [tensor("text", text, "BYTES", binary=binary)], outputs=outputs)
    assert [each if isinstance(each, bytes) else each.encode() for each in answer.as_numpy("same")] == text.tolist()


def test_it_infers_asynchronously(user: Any) -> None:
    asked = [user.async_infer("scale", [tensor("x", number * X, "FP32", binary=True)]) for number in range(4)]
    for number, each in enumerate(asked):
        np.testing.assert_array_equal(each.get_result().as_numpy("y"), 2 * number * X)


def test_it_lists_loads_and_unloads(user: Any) -> None:
    assert [model["name"] for model in user.get_model_repository_index()] == ["scale", "words"]
    user.load_model("words")
    user.unload_model("words")
    assert user.is_model_ready("words")
    with pytest.raises(triton.InferenceServerException, match="'ensemble_scheduling', which cannot be set"):
        user.load_model("words", config='{"ensemble_scheduling": {}}')


def test_it_gets_an_error_that_says_what_is_wrong(user: Any) -> None:
    with pytest.raises(triton.InferenceServerException, match=r"unknown model: 'nobody'") as unknown:
        user.infer("nobody", [tensor("x", X, "FP32", binary=True)])
    assert unknown.value.status() == "404"
    with pytest.raises(triton.InferenceServerException, match=r"\[1, 3\].*\[-1, 4\]") as wrong:
        user.infer("scale", [tensor("x", X[:, :3], "FP32", binary=True)])
    assert wrong.value.status() == "400"
