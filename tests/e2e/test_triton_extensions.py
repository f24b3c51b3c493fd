"""Triton's extensions, as `tritonclient` unmodified uses them, on a pod alone."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.http as triton_http
from tritonclient.utils import shared_memory as shm

from tests.e2e.conftest import WAIT

if TYPE_CHECKING:
    from tests.e2e.conftest import ModelFiles, Pod, StartPod

X = np.array([[1, 2, 3, 4]], np.float32)


@pytest.fixture(scope="module")
def pod(start_module_pod: StartPod, files: ModelFiles) -> Pod:
    pod = start_module_pod(trusted_prefixes=f"{files.directory.as_uri()}/")
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


@pytest.fixture
def regions(user: Any) -> Any:
    """Two regions of shared memory, for an input and an output, registered with the pod."""
    made = {name: shm.create_shared_memory_region(name, f"/hexcomb-test-{name}", 64) for name in ("in", "out")}
    yield made
    user.unregister_system_shared_memory()
    for region in made.values():
        shm.destroy_shared_memory_region(region)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_tensors_lie_in_shared_memory(user: Any, web: Any, regions: Any, protocol: str) -> None:
    client, library = (user, triton) if protocol == "grpc" else (web, triton_http)
    for name in regions:
        client.register_system_shared_memory(name, f"/hexcomb-test-{name}", 64)
    shm.set_shared_memory_region(regions["in"], [X])
    asked = library.InferInput("x", [1, 4], "FP32")
    asked.set_shared_memory("in", 16)
    wanted = library.InferRequestedOutput("y")
    wanted.set_shared_memory("out", 32, 16)
    for _ in range(2):
        answer = client.infer("scale", [asked], outputs=[wanted])
        np.testing.assert_array_equal(shm.get_contents_as_numpy(regions["out"], np.float32, [1, 4], 16), 2 * X)
        assert answer.get_output("y") is not None
        shm.set_shared_memory_region(regions["out"], [np.zeros(16, np.float32)])
    plain = client.infer("scale", [asked])
    np.testing.assert_array_equal(plain.as_numpy("y"), 2 * X)

    wanted.set_shared_memory("out", 8)
    with pytest.raises(triton.InferenceServerException, match="takes 16 bytes, and 8 were given"):
        client.infer("scale", [asked], outputs=[wanted])
    asked.set_shared_memory("in", 16, 60)
    with pytest.raises(triton.InferenceServerException, match="not within it"):
        client.infer("scale", [asked])
    client.unregister_system_shared_memory("in")
    with pytest.raises(triton.InferenceServerException, match="not registered"):
        client.infer("scale", [asked])


def test_regions_are_told_and_refused(user: Any, web: Any, regions: Any) -> None:
    user.register_system_shared_memory("in", "/hexcomb-test-in", 32, offset=8)
    region = user.get_system_shared_memory_status("in").regions["in"]
    assert (region.name, region.key, region.offset, region.byte_size) == ("in", "/hexcomb-test-in", 8, 32)
    described = {"name": "in", "key": "/hexcomb-test-in", "offset": 8, "byte_size": 32}
    assert web.get_system_shared_memory_status() == [described]
    for key, size, why in (
        ("/hexcomb-test-in", 32, "registered already"),
        ("/../etc/passwd", 8, "no name"),
        ("/nothing-of-this-name", 8, "No such file"),
    ):
        with pytest.raises(triton.InferenceServerException, match=why):
            user.register_system_shared_memory("in" if "already" in why else "other", key, size)
    with pytest.raises(triton.InferenceServerException, match="not within"):
        user.register_system_shared_memory("other", "/hexcomb-test-out", 1 << 30)
    with pytest.raises(triton.InferenceServerException, match="not registered"):
        user.get_system_shared_memory_status("nobody")


def test_memory_of_gpus_is_refused_in_words(user: Any, web: Any) -> None:
    assert not user.get_cuda_shared_memory_status().regions
    assert web.get_cuda_shared_memory_status() == []
    for client in (user, web):
        with pytest.raises(triton.InferenceServerException, match="use system shared memory"):
            client.register_cuda_shared_memory("r", b"aGFuZGxl", 0, 64)
        client.unregister_cuda_shared_memory()


def test_requests_are_traced_while_somebody_asks_for_it(user: Any, web: Any, pod: Pod) -> None:
    assert web.get_trace_settings()["trace_level"] == ["OFF"]
    settings = {"trace_level": ["TIMESTAMPS"], "trace_rate": "2", "trace_count": "2"}
    told = user.update_trace_settings("scale", settings).settings
    assert list(told["trace_level"].value) == ["TIMESTAMPS"]
    traces = Path(web.get_trace_settings("scale")["trace_file"])
    for number in range(8):
        infer(user, request_id=str(number))
        user.infer("idle", [tensor("x", X, "FP32")], request_id="another model's")
    pod.wait_until(lambda: traces.exists() and traces.read_text().count("\n") == 2, "both traces are written")
    written = [json.loads(line) for line in traces.read_text().splitlines()]
    assert [(each["model_name"], each["request_id"]) for each in written] == [("scale", "1"), ("scale", "3")]
    assert [stamp["name"] for stamp in written[0]["timestamps"]] == ["REQUEST_START", "REQUEST_END"]
    assert web.update_trace_settings("scale", {"trace_level": None})["trace_level"] == ["OFF"]
    for changed, why in (
        ({"trace_level": ["TENSORS"]}, "not written"),
        ({"trace_file": "/tmp/x"}, "cannot be changed"),
    ):
        with pytest.raises(triton.InferenceServerException, match=why):
            web.update_trace_settings(settings=changed)


def test_log_lines_for_debugging_come_when_asked_for(user: Any, web: Any, pod: Pod) -> None:
    assert user.get_log_settings().settings["log_verbose_level"].uint32_param == 0
    told = web.update_log_settings({"log_verbose_level": 1, "log_info": False})
    assert (told["log_verbose_level"], told["log_info"], told["log_error"]) == (1, False, True)
    assert not user.get_log_settings().settings["log_info"].bool_param
    user.update_log_settings({"log_verbose_level": 0, "log_info": True})
    assert web.get_log_settings()["log_info"] is True
    with pytest.raises(triton.InferenceServerException, match="cannot be set"):
        user.update_log_settings({"log_file": "/tmp/elsewhere"})


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_load_may_bring_the_model_s_files_and_configuration(
    user: Any, web: Any, pod: Pod, files: ModelFiles, protocol: str
) -> None:
    client, library, name = (user, triton, "brought") if protocol == "grpc" else (web, triton_http, "sent")
    content = {"file:1/model.onnx": files.scale(5.0).path.read_bytes()}
    client.load_model(name, config='{"backend": "onnxruntime", "max_batch_size": 8}', files=content)
    asked = library.InferInput("x", [1, 4], "FP32")
    asked.set_data_from_numpy(X)
    np.testing.assert_array_equal(client.infer(name, [asked]).as_numpy("y"), 5 * X)
    assert user.get_model_config(name).config.max_batch_size == 8
    client.load_model(name, config='{"max_batch_size": 4}')
    assert user.get_model_config(name).config.max_batch_size == 4
    assert client.infer(name, [asked]).get_response() is not None
    for config, content, why in (
        (None, {"file:model.onnx": b"x"}, "needs a config"),
        ("{}", {"file:../x": b"x"}, "no path within"),
        ("[]", None, "not an object"),
        ('{"parameters": {"weights": "x"}}', None, "string_value"),
    ):
        with pytest.raises(triton.InferenceServerException, match=why):
            client.load_model(name, config=config, files=content)
    with pytest.raises(triton.InferenceServerException, match="not registered"):
        client.load_model("nobody", config="{}")
    uploads = pod.log.with_name("data") / "uploads"
    assert len(list(uploads.iterdir())) == 1
    with pod.client() as management:
        management.unregister(name)
    pod.wait_until(lambda: not list(uploads.iterdir()), "the files have left with the model")


def test_a_request_s_own_timeout_ends_its_wait(user: Any, pod: Pod, files: ModelFiles, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with pod.client() as client:
        uri = files.obedient().as_uri()
        client.register("slow", uri=uri, format="python", isolation="process", parameters={"gate": str(gate)})
    asked = [tensor("x", np.full((1, 2), 7, np.float32), "FP32")]
    user.infer("slow", asked)
    with ThreadPoolExecutor() as others:
        first = others.submit(user.infer, "slow", [tensor("x", np.full((1, 2), WAIT, np.float32), "FP32")])
        pod.wait_until(gate.with_name("gate.reached").exists, "the first request runs")
        with pytest.raises(triton.InferenceServerException, match=r"own timeout of 0\.1 s") as late:
            user.infer("slow", asked, timeout=100_000)
        assert late.value.status() == "StatusCode.DEADLINE_EXCEEDED"
        gate.touch()
        assert first.result() is not None
    user.infer("slow", asked, timeout=20_000_000)


def test_what_a_server_says_of_its_extensions_is_there(user: Any, web: Any) -> None:
    over_grpc = list(user.get_server_metadata().extensions)
    assert {"model_repository", "model_configuration", "statistics"} <= set(over_grpc)
    assert web.get_server_metadata()["extensions"] == [*over_grpc, "binary_tensor_data", "generate"]
