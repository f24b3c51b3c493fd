"""V2 tensors to NumPy and back: every datatype, both forms, and every way in which a request can contradict itself."""

from __future__ import annotations

import struct
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from mesh.wire.errors import InvalidMessage, UnsendableOutput
from mesh.wire.generated.inference_pb2 import ModelInferRequest, ModelInferResponse
from mesh.wire.tensors import decode_raw, decode_request, decode_response, encode_request, encode_response
from runtime_adapters.datatypes import DTYPE_OF

SAMPLES = {
    "BOOL": np.array([[True, False, True]]),
    "UINT8": np.array([[0, 7, 255]], np.uint8),
    "UINT16": np.array([[0, 7, 65535]], np.uint16),
    "UINT32": np.array([[0, 7, 2**32 - 1]], np.uint32),
    "UINT64": np.array([[0, 7, 2**64 - 1]], np.uint64),
    "INT8": np.array([[-128, 0, 127]], np.int8),
    "INT16": np.array([[-(2**15), 0, 2**15 - 1]], np.int16),
    "INT32": np.array([[-(2**31), 0, 2**31 - 1]], np.int32),
    "INT64": np.array([[-(2**63), 0, 2**63 - 1]], np.int64),
    "FP16": np.array([[1.5, -0.0, 65504]], np.float16),
    "BF16": np.array([[1.5, -2.0, 1e30]], ml_dtypes.bfloat16),
    "FP32": np.array([[1.5, -0.0, 3e38]], np.float32),
    "FP64": np.array([[1.5, -0.0, 1e308]], np.float64),
    "BYTES": np.array([[b"", b"\x00\xff", "é".encode()]], np.object_),
}
TYPED_FIELDS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def request_of(*tensors: dict, raw: list[bytes] | None = None, outputs: tuple[str, ...] = ()) -> ModelInferRequest:
    request = ModelInferRequest(model_name="m", id="r", raw_input_contents=raw or [])
    for number, tensor in enumerate(tensors):
        typed = tensor.pop("typed", {})
        added = request.inputs.add(**({"name": f"x{number}", "datatype": "FP32", "shape": [2]} | tensor))
        for field, values in typed.items():
            getattr(added.contents, field).extend(values)
    for name in outputs:
        request.outputs.add(name=name)
    return request


def decoded(request: ModelInferRequest):
    return decode_request(request.SerializeToString())


def test_the_table_of_samples_covers_every_datatype():
    assert SAMPLES.keys() == DTYPE_OF.keys()


@pytest.mark.parametrize("datatype", sorted(SAMPLES))
def test_every_datatype_travels_raw_both_ways(datatype):
    array = SAMPLES[datatype]
    request = decode_request(encode_request("m", {"x": array}, ["y"], model_version="2", request_id="r"))
    assert (request.model_name, request.model_version, request.request_id) == ("m", "2", "r")
    assert request.datatypes == {"x": datatype}
    assert request.outputs == ("y",)
    result = decode_response(encode_response("m", "2", "r", {"y": request.tensors["x"]}))
    assert (result.model_name, result.model_version, result.request_id) == ("m", "2", "r")
    for copy in (request.tensors["x"], result.outputs["y"]):
        assert copy.dtype == array.dtype
        assert copy.shape == array.shape
        assert copy.tolist() == array.tolist()


@pytest.mark.parametrize("datatype", sorted(TYPED_FIELDS))
def test_typed_contents_mean_the_same_as_raw_ones(datatype):
    array = SAMPLES[datatype]
    typed = {TYPED_FIELDS[datatype]: array.reshape(-1).tolist()}
    tensor = decoded(request_of({"datatype": datatype, "shape": [1, 3], "typed": typed})).tensors["x0"]
    assert tensor.dtype == array.dtype
    assert tensor.tolist() == array.tolist()


def test_the_parsers_own_message_is_read_the_same_way():
    request = request_of({"shape": [2]}, {"shape": [1], "datatype": "INT64"}, raw=[b"\0\0\x80?" * 2, bytes(8)])
    tensors = decoded(request).tensors
    assert tensors["x0"].tolist() == [1.0, 1.0]
    assert tensors["x1"].tolist() == [0]


def test_what_is_encoded_is_what_protobuf_reads():
    request = ModelInferRequest.FromString(encode_request("m", {"x": SAMPLES["FP32"]}, ["y", "z"]))
    assert request.raw_input_contents[0] == SAMPLES["FP32"].tobytes()
    assert [output.name for output in request.outputs] == ["y", "z"]
    response = ModelInferResponse.FromString(encode_response("m", "1", "r", SAMPLES, ["FP16", "BYTES"]))
    assert [output.name for output in response.outputs] == ["FP16", "BYTES"]
    assert response.raw_output_contents[0] == SAMPLES["FP16"].tobytes()
    assert response.id == "r"


def test_aligned_raw_contents_are_viewed_not_copied_and_cannot_be_written():
    body = bytearray(encode_request("m", {"x": np.arange(1000, dtype=np.uint8)}))
    tensor = decode_request(memoryview(body)).tensors["x"]
    body[-1] = 77
    assert tensor[-1] == 77
    assert not tensor.flags.writeable


@pytest.mark.parametrize("offset", range(8))
def test_tensors_are_aligned_wherever_their_bytes_lie(offset):
    body = encode_request("m" * (1 + offset), {"x": np.arange(5, dtype=np.float64)})
    tensor = decode_request(body).tensors["x"]
    assert tensor.flags.aligned
    assert tensor.tolist() == [0, 1, 2, 3, 4]


def test_any_byte_but_zero_is_true():
    assert decode_raw("x", "BOOL", (3,), b"\x00\x01\xff").tolist() == [False, True, True]


@pytest.mark.parametrize("shape", [[0], [0, 5], [3, 0]])
def test_tensors_without_elements_are_tensors(shape):
    for datatype in ("FP32", "BYTES", "FP16"):
        raw = decoded(request_of({"datatype": datatype, "shape": shape}, raw=[b""])).tensors["x0"]
        typed = decoded(request_of({"datatype": datatype, "shape": shape})).tensors["x0"]
        assert raw.shape == typed.shape == tuple(shape)


def test_a_scalar_has_one_element():
    assert decoded(request_of({"shape": []}, raw=[bytes(4)])).tensors["x0"].shape == ()


def test_non_contiguous_and_big_endian_arrays_are_sent_right():
    array = np.arange(12, dtype=np.int32).reshape(3, 4)
    for odd in (array.T, array[:, ::2], array.astype(">i4")):
        assert decode_request(encode_request("m", {"x": odd})).tensors["x"].tolist() == odd.tolist()


def test_text_is_sent_as_bytes():
    for array in (np.array(["a", "é"]), np.array([b"a", "é".encode()]), np.array(["a", "é"], np.object_)):
        assert decode_request(encode_request("m", {"x": array})).tensors["x"].tolist() == [b"a", "é".encode()]


def test_empty_contents_beside_raw_ones_are_no_mixture():
    request = request_of({}, raw=[bytes(8)])
    request.inputs[0].contents.SetInParent()
    assert decoded(request).tensors["x0"].tolist() == [0, 0]


def test_unknown_parameters_are_ignored():
    request = request_of({}, raw=[bytes(8)], outputs=("y",))
    request.parameters["priority"].uint64_param = 3
    request.inputs[0].parameters["binary_data_size"].int64_param = 8
    request.outputs[0].parameters["binary_data"].bool_param = True
    assert decoded(request).outputs == ("y",)


@pytest.mark.parametrize(
    ("request_", "story"),
    [
        (request_of({"typed": {"fp32_contents": [1, 2]}}, {}, raw=[bytes(8)]), "send all tensors one way"),
        (request_of({}, {}, raw=[bytes(8)]), "2 inputs and holds raw contents for 1"),
        (request_of(raw=[b""]), "0 inputs and holds raw contents for 1"),
        (request_of({"name": "a"}, {"name": "a"}, raw=[bytes(8), bytes(8)]), "'a' is sent twice"),
        (request_of({}, raw=[bytes(7)]), r"shape \[2\] takes 8 bytes of raw contents, 7 were sent"),
        (request_of({"shape": [-1, 2]}, raw=[bytes(8)]), "negative dimension"),
        (request_of({"shape": [2**40, 2**40]}, raw=[bytes(8)]), "takes 4835703278458516698824704 bytes"),
        (request_of({"shape": [2**40, 2**40], "datatype": "BYTES"}, raw=[bytes(8)]), "1208925819614629174706176 BYTES"),
        (request_of({"shape": [2**62, 4]}, raw=[b""]), "takes"),
        (request_of({"shape": [2**40, 2**40]}), "fp32_contents holds 0"),
        (request_of({"shape": [0, 2**62, 2**62]}, raw=[b""]), "beyond what can be held"),
        (request_of({"shape": [1] * 100}, raw=[bytes(4)]), "beyond what can be held"),
        (request_of({"datatype": "FLOAT"}, raw=[bytes(8)]), "unknown datatype 'FLOAT'; allowed: BOOL, UINT8"),
        (request_of({"datatype": ""}), "unknown datatype ''"),
        (request_of({"typed": {"fp32_contents": [1.0]}}), "takes 2 elements, fp32_contents holds 1"),
        (request_of({"typed": {"fp64_contents": [1.0, 2.0]}}), "FP32 belongs in fp32_contents, fp64_contents was"),
        (request_of({"datatype": "FP16", "typed": {"fp32_contents": [1, 2]}}), "FP16 has no typed form"),
        (request_of({"datatype": "BF16"}), "BF16 has no typed form"),
        (request_of({"datatype": "INT8", "typed": {"int_contents": [1, 128]}}), r"outside INT8 \(-128 to 127\)"),
        (request_of({"datatype": "UINT16", "typed": {"uint_contents": [1, 65536]}}), "outside UINT16"),
        (request_of({"datatype": "BYTES"}, raw=[bytes(4)]), "2 BYTES elements of 4 bytes or more, 4 bytes"),
        (request_of({"datatype": "BYTES"}, raw=[struct.pack("<I", 3) + b"abcd"]), "cut off|end before element 1"),
        (request_of({"datatype": "BYTES"}, raw=[bytes(4) + b"\xff\xff\xff\xff"]), "element 1 claims 4294967295 bytes"),
        (request_of({"datatype": "BYTES"}, raw=[bytes(9)]), "1 bytes are left after the 2 elements"),
        (request_of(outputs=("y", "y")), "output 'y' is asked for twice"),
    ],
)
def test_a_request_that_contradicts_itself_is_refused_in_one_sentence(request_, story):
    with pytest.raises(InvalidMessage, match=story) as failure:
        decoded(request_)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("where", ["request", "input", "output"])
@pytest.mark.parametrize("key", ["shared_memory_region", "classification"])
def test_parameters_that_change_the_meaning_of_the_answer_are_refused(where, key):
    request = request_of({}, raw=[bytes(8)], outputs=("y",))
    holder = {"request": request, "input": request.inputs[0], "output": request.outputs[0]}[where]
    holder.parameters[key].string_param = "1"
    with pytest.raises(InvalidMessage, match=r"not supported here|register it there"):
        decoded(request)


def test_random_bytes_are_refused():
    with pytest.raises(InvalidMessage):
        decode_request(b"\x2a\x03\x0a\x05x")


@pytest.mark.parametrize(
    ("output", "story"),
    [
        (np.array([1j]), "complex128"),
        (np.array(["2020-01-01"], "M8[D]"), "datetime64"),
        (np.array([{}], np.object_), "holds dict"),
        (np.array([None], np.object_), "holds NoneType"),
    ],
)
def test_outputs_that_the_protocol_has_no_form_for_are_the_models_fault(output, story):
    with pytest.raises(UnsendableOutput, match=story):
        encode_response("m", "", "", {"y": output})


def test_an_output_that_the_model_did_not_give_is_named():
    with pytest.raises(UnsendableOutput, match="no output 'z'; it gave: y"):
        encode_response("m", "", "", {"y": np.zeros(1)}, ["z"])


@pytest.mark.parametrize("order", [("ours", "theirs"), ("theirs", "ours")])
def test_our_messages_and_tritonclients_live_in_one_process(order):
    imports = {
        "ours": "from mesh.wire.generated import health_pb2, hexcomb_pb2, inference_pb2, mmesh_pb2",
        "theirs": "import tritonclient.grpc; from tritonclient.grpc import service_pb2",
    }
    program = "\n".join(imports[name] for name in order) + (
        "\nbody = inference_pb2.ModelInferRequest(model_name='m', id='r').SerializeToString()"
        "\nparsed = service_pb2.ModelInferRequest.FromString(body)"
        "\nassert (parsed.model_name, parsed.id) == ('m', 'r')"
        "\nassert type(parsed) is not inference_pb2.ModelInferRequest"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_shape_of_too_many_dimensions_is_refused_before_they_are_multiplied():
    request = ModelInferRequest(model_name="m", raw_input_contents=[b"1234"])
    request.inputs.add(name="x", datatype="FP32", shape=[2**62] * 1_000_000)
    with pytest.raises(InvalidMessage, match="1000000 dimensions"):
        decode_request(request.SerializeToString())
