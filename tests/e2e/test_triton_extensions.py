"""Triton's extensions, as `tritonclient` unmodified uses them, on a pod alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.http as triton_http

if TYPE_CHECKING:
    from tests.e2e.conftest import ModelFiles, Pod, StartPod

X = np.array([[1, 2, 3, 4]], np.float32)


@pytest.fixture(scope="module")
def pod(start_module_pod: StartPod, files: ModelFiles) -> Pod:
    pod = start_module_pod()
    with pod.client() as client:
        client.register("scale", uri=files.scale().uri)
        client.register("words", uri=files.words().uri)
        client.register("idle", uri=files.scale(3.0).uri)
    return pod


@pytest.fixture(scope="module")
def user(pod: Pod) -> Any:
    with triton.InferenceServerClient(pod.target) as client:
        yield client


@pytest.fixture(scope="module")
def web(pod: Pod) -> Any:
    with triton_http.InferenceServerClient(pod.http.removeprefix("http://")) as client:
        yield client


def tensor(name: str, array: Any, datatype: str) -> Any:
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def infer(user: Any, times: int = 1, **options: Any) -> None:
    for _ in range(times):
        answer = user.infer("scale", [tensor("x", X, "FP32")], **options)
        np.testing.assert_array_equal(answer.as_numpy("y"), 2 * X)


def test_a_model_s_configuration_is_as_triton_would_write_it(user: Any, web: Any) -> None:
    config = user.get_model_config("scale").config
    assert (config.name, config.backend, config.max_batch_size) == ("scale", "onnx", 64)
    assert [(each.name, each.data_type, list(each.dims)) for each in config.input] == [("x", 11, [4])]
    assert [(each.name, list(each.dims)) for each in config.output] == [("y", [4])]
    assert config.HasField("dynamic_batching")
    over_http = web.get_model_config("scale", "1")
    assert over_http["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [4], "optional": False}]
    assert over_http["max_batch_size"] == 64
    with pytest.raises(triton.InferenceServerException, match="unknown model"):
        user.get_model_config("nobody")


def test_statistics_count_requests_runs_and_failures(user: Any, web: Any) -> None:
    before = user.get_inference_statistics("scale").model_stats[0]
    infer(user, 5)
    with pytest.raises(triton.InferenceServerException):
        user.infer("scale", [tensor("x", X[:, :3], "FP32")])
    after = user.get_inference_statistics("scale", "1").model_stats[0]
    assert (after.name, after.version) == ("scale", "1")
    for name, more in (("success", 5), ("fail", 1), ("queue", 5), ("compute_infer", 5)):
        was, now = getattr(before.inference_stats, name), getattr(after.inference_stats, name)
        assert now.count - was.count == more, name
        assert now.ns > was.ns or name == "queue"
    assert after.inference_count - before.inference_count == 5
    assert after.execution_count - before.execution_count == 5
    assert after.last_inference >= before.last_inference > 0 or not before.last_inference
    assert {each.batch_size: each.compute_infer.count for each in after.batch_stats}[1] >= 5
    assert after.memory_usage[0].byte_size > 0

    over_http = web.get_inference_statistics("scale")["model_stats"][0]
    assert over_http["inference_stats"]["success"]["count"] == after.inference_stats.success.count


def test_statistics_of_all_models_name_those_that_were_asked_for(user: Any, web: Any) -> None:
    infer(user)
    names = [each.name for each in user.get_inference_statistics().model_stats]
    assert "scale" in names
    assert "idle" not in names
    assert [each["name"] for each in web.get_inference_statistics()["model_stats"]] == names
    idle = user.get_inference_statistics("idle").model_stats
    assert [(each.name, each.inference_stats.success.count) for each in idle] == [("idle", 0)]


def test_what_a_server_says_of_its_extensions_is_there(user: Any, web: Any) -> None:
    over_grpc = list(user.get_server_metadata().extensions)
    assert {"model_repository", "model_configuration", "statistics"} <= set(over_grpc)
    assert web.get_server_metadata()["extensions"] == [*over_grpc, "binary_tensor_data"]
