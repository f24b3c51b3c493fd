"""The V2 clients that people already have: `tritonclient.grpc`, unmodified, beside ours and in a process of its own.

Both read metadata and infer, on one model of each kind of framework: ONNX, XGBoost, and PyTorch from a trusted prefix.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import np_to_triton_dtype

from mesh.client import Client

if TYPE_CHECKING:
    from tests.e2e.conftest import Example, ModelFiles, Pod, StartPod

FORMATS = ("onnx", "xgboost", "torch")
PLATFORMS = {"onnx": "onnx", "xgboost": "xgboost", "torch": "torch"}


@pytest.fixture(scope="module")
def examples(files: ModelFiles) -> Mapping[str, Example]:
    return {"onnx": files.scale(), "xgboost": files.xgboost(), "torch": files.torch_program()}


@pytest.fixture(scope="module")
def pod(start_module_pod: StartPod, files: ModelFiles, examples: Mapping[str, Example]) -> Pod:
    pod = start_module_pod(trusted_prefixes=f"{files.directory.as_uri()}/", capacity="1GiB")
    with pod.client() as client:
        for name, example in examples.items():
            client.register(name, uri=example.uri)
        client.register("words", uri=files.words().uri)
    return pod


@pytest.fixture(scope="module")
def user(pod: Pod) -> Any:
    with triton.InferenceServerClient(pod.target) as client:
        yield client


def triton_inputs(inputs: Mapping[str, Any]) -> list[Any]:
    made = []
    for name, array in inputs.items():
        tensor = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        made.append(tensor)
    return made


@pytest.mark.parametrize("name", FORMATS)
def test_tritonclient_in_our_process_reads_metadata_and_infers(
    user: Any, pod: Pod, examples: Mapping[str, Example], name: str
) -> None:
    example = examples[name]
    metadata = user.get_model_metadata(name)
    assert (metadata.name, list(metadata.versions)) == (name, ["1"])
    assert PLATFORMS[name] in metadata.platform
    described = {tensor.name: (tensor.datatype, list(tensor.shape)) for tensor in metadata.inputs}
    for tensor_name, array in example.inputs.items():
        datatype, shape = described[tensor_name]
        assert datatype == np_to_triton_dtype(array.dtype)
        assert shape == [-1, *array.shape[1:]]

    outputs = [triton.InferRequestedOutput(output) for output in example.expected]
    answer = user.infer(name, triton_inputs(example.inputs), outputs=outputs, request_id="r1")
    response = answer.get_response()
    assert (response.model_name, response.model_version, response.id) == (name, "1", "r1")
    assert [output.name for output in response.outputs] == list(example.expected)
    for output, expected in example.expected.items():
        np.testing.assert_allclose(answer.as_numpy(output), expected, rtol=1e-6)

    with Client(pod.target) as ours:  # the same answer through our client, in the same process
        result = ours.infer(name, example.inputs, list(example.expected))
    for output in example.expected:
        np.testing.assert_array_equal(result.outputs[output], answer.as_numpy(output))


def test_tritonclient_sees_a_live_ready_server_that_names_itself(user: Any) -> None:
    assert user.is_server_live()
    assert user.is_server_ready()
    assert user.get_server_metadata().name == "hexcomb"
    assert user.is_model_ready("onnx")
    assert user.is_model_ready("onnx", "1")
    assert not user.is_model_ready("onnx", "9")
    assert not user.is_model_ready("nobody")


def test_tritonclient_lists_loads_and_unloads(user: Any) -> None:
    index = {model.name: (model.version, model.state) for model in user.get_model_repository_index().models}
    assert index == dict.fromkeys(("onnx", "torch", "words", "xgboost"), ("1", "READY"))
    user.load_model("words")
    user.unload_model("words")
    assert user.is_model_ready("words")
    with pytest.raises(triton.InferenceServerException, match="register it first"):
        user.load_model("nobody")


def test_tritonclient_gets_text_back_as_it_was_sent(user: Any, files: ModelFiles) -> None:
    text = np.array([b"eins", b"", "zw\N{LATIN SMALL LETTER O WITH DIAERESIS}lf".encode()], np.object_)
    answer = user.infer("words", triton_inputs({"text": text}))
    assert answer.as_numpy("same").tolist() == text.tolist()


def test_tritonclient_gets_an_error_that_says_what_is_wrong(user: Any, examples: Mapping[str, Example]) -> None:
    with pytest.raises(triton.InferenceServerException, match=r"unknown model: 'nobody'.*register") as unknown:
        user.infer("nobody", triton_inputs(examples["onnx"].inputs))
    assert unknown.value.status() == "StatusCode.NOT_FOUND"
    with pytest.raises(triton.InferenceServerException, match=r"\[2, 3\].*\[-1, 4\]") as wrong:
        user.infer("onnx", triton_inputs({"x": np.zeros((2, 3), np.float32)}))
    assert wrong.value.status() == "StatusCode.INVALID_ARGUMENT"


_SCRIPT = """
import json, sys
import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import np_to_triton_dtype

target, wanted = sys.argv[1], json.loads(sys.argv[2])
answers = {}
with triton.InferenceServerClient(target) as client:
    for name, (file, outputs) in wanted.items():
        inputs = []
        for tensor_name, array in np.load(file).items():
            tensor = triton.InferInput(tensor_name, list(array.shape), np_to_triton_dtype(array.dtype))
            tensor.set_data_from_numpy(array)
            inputs.append(tensor)
        metadata = client.get_model_metadata(name)
        result = client.infer(name, inputs, outputs=[triton.InferRequestedOutput(output) for output in outputs])
        answers[name] = {
            "platform": metadata.platform,
            "outputs": {output: result.as_numpy(output).tolist() for output in outputs},
        }
ours = [name for name in sys.modules if name.split(".")[0] in ("mesh", "placement", "cache", "runtime_adapters")]
print(json.dumps({"answers": answers, "ours": ours}))
"""


def test_tritonclient_in_another_process_knows_nothing_of_us_and_infers(
    pod: Pod, examples: Mapping[str, Example], tmp_path: Path
) -> None:
    wanted = {}
    for name, example in examples.items():
        np.savez(tmp_path / f"{name}.npz", **example.inputs)
        wanted[name] = (str(tmp_path / f"{name}.npz"), list(example.expected))
    done = subprocess.run(
        [sys.executable, "-P", "-c", _SCRIPT, pod.target, json.dumps(wanted)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["ours"] == []
    for name, example in examples.items():
        assert PLATFORMS[name] in found["answers"][name]["platform"]
        for output, expected in example.expected.items():
            np.testing.assert_allclose(found["answers"][name]["outputs"][output], expected, rtol=1e-6)
