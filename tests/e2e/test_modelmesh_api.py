"""ModelMesh's management interface and headers, as its own clients use them: bytes made from its messages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest

from mesh.client import AlreadyExists, Client, NotFound, Refused
from mesh.wire import messages
from mesh.wire.generated import inference_pb2, mmesh_pb2
from mesh.wire.tensors import decode_response, encode_request

if TYPE_CHECKING:
    from tests.e2e.conftest import Example, ModelFiles, Pod, StartPod

STATUS, ALIAS = mmesh_pb2.ModelStatusInfo, mmesh_pb2.VModelStatusInfo


@pytest.fixture(scope="module")
def pod(start_module_pod: StartPod, files: ModelFiles) -> Pod:
    return start_module_pod(trusted_prefixes=f"{files.directory.as_uri()}/", failure_backoff_base_s=0.2)


@pytest.fixture
def client(pod: Pod) -> Iterator[Client]:
    with pod.client(timeout_s=30.0) as client:
        yield client
        for name in ("v", "w"):
            client.delete_alias(name)
        client.unregister_many([model.id for model in client.list_models()])
    pod.wait_settled()


Call = Callable[..., Any]


@pytest.fixture
def call(pod: Pod, raw_call: Callable[..., Any]) -> Call:
    """`call(method, **fields)`: the answer as a message, or how it was refused."""

    def call(method: messages.Method[Any, Any], **fields: Any) -> Any:
        answer = raw_call(pod.target, method.path, method.request(**fields).SerializeToString())
        return method.response.FromString(answer) if isinstance(answer, bytes) else answer

    return call


def info(example: Example, type_name: str = "onnx", key: str = "") -> mmesh_pb2.ModelInfo:
    return mmesh_pb2.ModelInfo(type=type_name, path=example.uri, key=key)


def absent(tmp_path: Path) -> mmesh_pb2.ModelInfo:
    return mmesh_pb2.ModelInfo(type="onnx", path=(tmp_path / "absent.onnx").as_uri())


def test_a_model_goes_from_not_found_to_loaded_and_back(client: Client, call: Call, files: ModelFiles) -> None:
    example = files.scale()
    assert call(messages.GET_MODEL_STATUS, modelId="m").status == STATUS.NOT_FOUND
    assert call(messages.REGISTER_MODEL, modelId="m", modelInfo=info(example)).status == STATUS.NOT_LOADED
    assert call(messages.GET_MODEL_STATUS, modelId="m").status == STATUS.NOT_LOADED
    loaded = call(messages.ENSURE_LOADED, modelId="m", sync=True)
    assert loaded.status == STATUS.LOADED
    (copy,) = loaded.modelCopyInfos
    assert copy.copyStatus == STATUS.LOADED
    assert copy.location
    assert copy.time > 1_600_000_000_000
    np.testing.assert_array_equal(client.infer("m", example.inputs).outputs["y"], example.expected["y"])
    call(messages.UNREGISTER_MODEL, modelId="m")
    assert call(messages.GET_MODEL_STATUS, modelId="m").status == STATUS.NOT_FOUND
    call(messages.UNREGISTER_MODEL, modelId="m")  # again: no error
    assert call(messages.ENSURE_LOADED, modelId="m", sync=True).code is grpc.StatusCode.NOT_FOUND


def test_registration_can_load_and_wait(
    call: Call, pod: Pod, client: Client, files: ModelFiles, tmp_path: Path
) -> None:
    example = files.scale()
    now = call(messages.REGISTER_MODEL, modelId="now", modelInfo=info(example), loadNow=True, sync=True)
    assert now.status == STATUS.LOADED
    call(messages.REGISTER_MODEL, modelId="soon", modelInfo=info(example), loadNow=True)
    pod.wait_until(lambda: client.model_status("soon").status == STATUS.LOADED, "it is loaded without being called")
    bad = call(messages.REGISTER_MODEL, modelId="bad", modelInfo=absent(tmp_path), loadNow=True, sync=True)
    assert bad.status == STATUS.LOADING_FAILED
    assert "absent.onnx" in bad.errors[0]
    assert call(messages.GET_MODEL_STATUS, modelId="bad").status == STATUS.LOADING_FAILED


@pytest.mark.parametrize("type_name", ["onnx", "mt:onnx", "mt:onnx:1.14", "mt:onnx:1|pv:v2"])
def test_modelmeshs_ways_to_name_a_format_are_understood(
    call: Call, client: Client, files: ModelFiles, type_name: str
) -> None:
    call(messages.REGISTER_MODEL, modelId="m", modelInfo=info(files.scale(), type_name))
    assert client.describe("m").spec.format == "onnx"


@pytest.mark.parametrize(
    ("type_name", "key", "words"),
    [
        ("", "", ("modelInfo.type",)),
        ("rt:triton", "", ("rt:triton", "onnx")),
        ("mt:caffe", "", ("'caffe'", "onnx")),
        ("onnx", "{not json", ("modelInfo.key", "JSON")),
        ("onnx", '{"storage_params": {"bucket": "b"}}', ("storage_params", "modelInfo.path")),
        ("onnx", '{"storage_key": 7}', ("storage_key", "text")),
    ],
)
def test_a_model_info_that_cannot_be_understood_is_an_invalid_argument(
    call: Call, client: Client, files: ModelFiles, type_name: str, key: str, words: tuple[str, ...]
) -> None:
    refused = call(messages.REGISTER_MODEL, modelId="m", modelInfo=info(files.scale(), type_name, key))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    for word in words:
        assert word in refused.message
    with pytest.raises(NotFound):
        client.describe("m")


@pytest.mark.parametrize("key", ["mine", '{"storage_key": "mine"}'])
def test_both_forms_of_a_storage_key_are_the_name_of_stored_credentials(
    call: Call, client: Client, files: ModelFiles, key: str
) -> None:
    call(messages.REGISTER_MODEL, modelId="m", modelInfo=info(files.scale(), key=key))
    assert client.describe("m").spec.storage_key == "mine"


def test_headers_name_the_model_before_the_message_and_the_answer_names_the_concrete_one(
    client: Client, pod: Pod, raw_call: Callable[..., Any], files: ModelFiles
) -> None:
    two, three = files.scale(2), files.scale(3)
    client.register("two", uri=two.uri)
    client.register("three", uri=three.uri)
    client.set_alias("v", "three")

    def infer(name: str, *metadata: tuple[str, str]) -> Any:
        answer = raw_call(pod.target, messages.MODEL_INFER.path, encode_request(name, two.inputs), metadata)
        return decode_response(answer) if isinstance(answer, bytes) else answer

    for headers, model, shown, expected in (
        ((), "two", "two", two),
        ((), "v", "v", three),
        ((("mm-model-id", "three"),), "two", "three", three),
        ((("mm-vmodel-id", "v"),), "two", "three", three),
        ((("mm-vmodel-id", "v"),), "", "three", three),
        ((("mm-model-id", "two"), ("mm-vmodel-id", "v")), "", "two", two),
    ):
        answer = infer(model, *headers)
        assert answer.model_name == shown
        np.testing.assert_array_equal(answer.outputs["y"], expected.expected["y"])
    assert infer("two", ("mm-model-id", "nobody")).code is grpc.StatusCode.NOT_FOUND


# Aliases --------------------------------------------------------------------------------------------------------


def test_a_new_alias_points_at_its_target_at_once(client: Client, call: Call, files: ModelFiles) -> None:
    two = files.scale(2)
    assert call(messages.GET_VMODEL_STATUS, vModelId="v").status == ALIAS.NOT_FOUND
    made = call(messages.SET_VMODEL, vModelId="v", targetModelId="two", modelInfo=info(two), owner="me")
    assert (made.status, made.activeModelId, made.targetModelId, made.owner) == (ALIAS.DEFINED, "two", "two", "me")
    assert not made.HasField("targetModelStatus")
    answer = client.infer("v", two.inputs)
    assert answer.model_name == "v"
    np.testing.assert_array_equal(answer.outputs["y"], two.expected["y"])
    assert call(messages.GET_VMODEL_STATUS, vModelId="v").activeModelStatus.status == STATUS.LOADED
    assert call(messages.GET_VMODEL_STATUS, vModelId="v", owner="other").status == ALIAS.NOT_FOUND
    call(messages.DELETE_VMODEL, vModelId="v")
    call(messages.DELETE_VMODEL, vModelId="v")  # again: no error
    with pytest.raises(NotFound):
        client.infer("v", two.inputs)
    assert client.infer("two", two.inputs).model_name == "two"


def test_an_alias_serves_the_old_model_until_the_new_one_is_loaded(
    client: Client, call: Call, pod: Pod, files: ModelFiles, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    uri = files.obedient().as_uri()
    x = {"x": np.array([[7.0, 1.0]], np.float32)}
    client.register("old", uri=uri, format="python")
    client.register("new", uri=uri, format="python", parameters={"load": "wait", "gate": str(gate)})
    client.set_alias("v", "old")
    client.infer("v", x)
    moving = client.set_alias("v", "new")
    assert (moving.status, moving.activeModelId, moving.targetModelId) == (ALIAS.TRANSITIONING, "old", "new")
    pod.wait_until(Path(f"{gate}.reached").exists, "the target began to load")
    assert client.alias_status("v").targetModelStatus.status == STATUS.LOADING
    assert client.infer("v", x).outputs["y"].tolist() == [[14.0, 2.0]]
    assert client.alias_status("v").activeModelId == "old"
    gate.touch()
    done = pod.wait_until(
        lambda: (status := client.alias_status("v")).status == ALIAS.DEFINED and status, "the alias has moved"
    )
    assert (done.activeModelId, done.targetModelId) == ("new", "new")
    assert client.infer("v", x).outputs["y"].tolist() == [[14.0, 2.0]]


def test_a_target_that_does_not_load_keeps_the_active_model_serving_and_says_why(
    client: Client, pod: Pod, files: ModelFiles, tmp_path: Path
) -> None:
    two, three = files.scale(2), files.scale(3)
    client.register("two", uri=two.uri)
    client.register("three", uri=three.uri)
    client.register("bad", uri=(tmp_path / "absent.onnx").as_uri(), format="onnx")
    client.set_alias("v", "two", load_now=True, wait=True)
    failed = client.set_alias("v", "bad", wait=True)
    assert (failed.status, failed.activeModelId, failed.targetModelId) == (ALIAS.TRANSITION_FAILED, "two", "bad")
    assert any("absent.onnx" in error for error in failed.targetModelStatus.errors)
    np.testing.assert_array_equal(client.infer("v", two.inputs).outputs["y"], two.expected["y"])
    moved = client.set_alias("v", "three", wait=True)
    assert (moved.status, moved.activeModelId) == (ALIAS.DEFINED, "three")
    np.testing.assert_array_equal(client.infer("v", two.inputs).outputs["y"], three.expected["y"])


def test_force_moves_at_once_whatever_the_target_is(client: Client, files: ModelFiles, tmp_path: Path) -> None:
    two = files.scale(2)
    client.register("two", uri=two.uri)
    client.register("bad", uri=(tmp_path / "absent.onnx").as_uri(), format="onnx")
    client.set_alias("v", "two", load_now=True, wait=True)
    forced = client.set_alias("v", "bad", force=True)
    assert (forced.status, forced.activeModelId) == (ALIAS.DEFINED, "bad")
    with pytest.raises(Refused, match=r"absent\.onnx"):
        client.infer("v", two.inputs)
    client.set_alias("v", "two", force=True)
    client.infer("v", two.inputs)


def test_the_conditions_of_an_alias_change_are_kept(client: Client, files: ModelFiles) -> None:
    for name in ("a", "b", "c"):
        client.register(name, uri=files.scale().uri)
    with pytest.raises(NotFound, match="update_only"):
        client.set_alias("v", "a", update_only=True)
    with pytest.raises(NotFound, match="'nobody'"):
        client.set_alias("v", "nobody")
    client.set_alias("v", "a", owner="me")
    with pytest.raises(AlreadyExists, match="'me'"):
        client.set_alias("v", "b", owner="you")
    with pytest.raises(Refused, match="'c' was expected"):
        client.set_alias("v", "b", expected_target="c")
    assert client.set_alias("v", "b", expected_target="a").targetModelId == "b"
    with pytest.raises(Refused, match=r"'b'.*'v'|'v'.*'b'"):
        client.unregister("b")
    client.delete_alias("v", owner="you")  # ModelMesh's way: no error, and no effect
    assert client.alias_status("v").owner == "me"
    client.delete_alias("v", owner="me")
    assert client.unregister("b")


def test_a_target_that_was_made_for_its_alias_goes_with_it(client: Client, call: Call, files: ModelFiles) -> None:
    for target, factor in (("own-1", 2.0), ("own-2", 3.0)):
        status = call(
            messages.SET_VMODEL,
            vModelId="v",
            targetModelId=target,
            modelInfo=info(files.scale(factor)),
            autoDeleteTargetModel=True,
            loadNow=True,
            sync=True,
        )
        assert (status.status, status.activeModelId) == (ALIAS.DEFINED, target)
    assert [model.id for model in client.list_models()] == ["own-2"]
    call(messages.DELETE_VMODEL, vModelId="v")
    assert list(client.list_models()) == []


def test_all_required_models_answer_one_call(
    client: Client, pod: Pod, raw_call: Callable[..., Any], files: ModelFiles
) -> None:
    twice, thrice = files.scale(2.0), files.scale(3.0)
    client.register("twice", uri=twice.uri)
    client.register("thrice", uri=thrice.uri)
    message = encode_request("", twice.inputs)
    named = [("mm-model-id", "thrice"), ("mm-model-id", "twice")]
    answer = raw_call(pod.target, messages.MODEL_INFER.path, message, [*named, ("mm-required", "all")])
    joined = inference_pb2.ModelInferResponse.FromString(answer)
    assert [output.name for output in joined.outputs] == ["y", "y"]
    found = [np.frombuffer(raw, np.float32).reshape(2, 4) for raw in joined.raw_output_contents]
    np.testing.assert_array_equal(found[0], thrice.expected["y"])
    np.testing.assert_array_equal(found[1], twice.expected["y"])
    last = raw_call(pod.target, messages.MODEL_INFER.path, message, named)
    np.testing.assert_array_equal(decode_response(last).outputs["y"], twice.expected["y"])
    unknown = raw_call(
        pod.target, messages.MODEL_INFER.path, message, [*named, ("mm-model-id", "no"), ("mm-required", "all")]
    )
    assert unknown.code is grpc.StatusCode.NOT_FOUND
