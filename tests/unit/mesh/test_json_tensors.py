"""Tensors in JSON: what is taken, what is refused and how that is said, and that both forms carry every value."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from mesh.wire.errors import InvalidMessage
from mesh.wire.json_tensors import (
    WantedForms,
    array_from_json,
    infer_request_from_json,
    infer_response_to_json,
    json_from_array,
)
from mesh.wire.peek import peek
from mesh.wire.tensors import decode_request, encode_response
from runtime_adapters.datatypes import DTYPE_OF, datatype_of

JSON = WantedForms({}, others=False)
BINARY = WantedForms({}, others=True)

VALUES: dict[str, list[Any]] = {
    "BOOL": [True, False],
    "BYTES": ["", "zwölf\n\x00"],
    "FP16": [0.5, -65504.0],
    "BF16": [2**100, 3.0e38],
    "FP32": [1, -0.1],
    "FP64": [1e300, 0.1],
} | {
    name: [int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)] for name, dtype in DTYPE_OF.items() if dtype.kind in "iu"
}


def request(**tensor: Any) -> bytes:
    return json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [2], **tensor}]}).encode()


@pytest.mark.parametrize("datatype", list(DTYPE_OF))
def test_every_datatype_goes_to_and_fro(datatype: str) -> None:
    array = array_from_json("x", datatype, (1, 2), [VALUES[datatype]])
    assert (array.shape, datatype_of(array.dtype)) == ((1, 2), datatype)
    again = array_from_json("x", datatype, (1, 2), json_from_array("x", array))
    np.testing.assert_array_equal(again, array)


def test_elements_come_flat_or_nested_in_row_major_order() -> None:
    flat = array_from_json("x", "INT32", (2, 3), [1, 2, 3, 4, 5, 6])
    nested = array_from_json("x", "INT32", (2, 3), [[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(flat, nested)
    assert array_from_json("x", "INT32", (0, 3), []).shape == (0, 3)
    assert array_from_json("x", "INT32", (), [7]) == 7


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        ({"data": [1]}, r"shape \[2\] takes 2 elements, 1 were sent"),
        ({"data": [1, "2"]}, "text .'2'. is no element of FP32"),
        ({"data": [1, None]}, "missing or null .* is no element of FP32"),
        ({"data": [1, [2]]}, "mixes arrays and elements"),
        ({"data": "1 2"}, "data is text; it must be an array"),
        ({}, "data is missing"),
        ({"data": [10**400, 1]}, "a number that FP32 cannot hold"),
        ({"datatype": "INT8", "data": [1, 300]}, r"300 is outside INT8 \(-128 to 127\)"),
        ({"datatype": "UINT64", "data": [1, -1]}, "-1 is outside UINT64"),
        ({"datatype": "INT32", "data": [1, 1.5]}, "a number .'1.5'. is no element of INT32"),
        ({"datatype": "INT32", "data": [1, True]}, "a boolean .'True'. is no element of INT32"),
        ({"datatype": "BOOL", "data": [1, 0]}, "a whole number .'1'. is no element of BOOL"),
        ({"datatype": "BYTES", "data": ["a", "\ud800"]}, "surrogate"),
        ({"datatype": "FLOAT", "data": [1, 2]}, "unknown datatype 'FLOAT'; allowed: BOOL"),
        ({"shape": [-1], "data": []}, "shape must be an array of whole numbers from 0"),
        ({"shape": [1] * 65, "data": [1]}, "65 dimensions; at most 64"),
        ({"shape": [0, 2**63], "data": []}, "shape must be an array of whole numbers from 0, of 64 bits"),
        ({"shape": [10**4000] * 64, "data": []}, "shape must be an array of whole numbers from 0, of 64 bits"),
        ({"shape": [0, 2**62, 2**62], "data": []}, "is beyond what can be held"),
        ({"datatype": "BF16", "data": [10**400, 1]}, "a number that BF16 cannot hold"),
        ({"name": "", "data": [1, 2]}, "name of a tensor"),
        ({"data": [1, 2], "parameters": 3}, "parameters is a whole number"),
        ({"parameters": {"binary_data_size": 8}}, "binary_data_size is 8, and 0 bytes are left"),
    ],
)
def test_a_tensor_that_is_not_what_it_says_is_refused_with_its_name_and_what_was_found(
    tensor: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidMessage, match=message):
        infer_request_from_json(request(**tensor), None, "m", "")


@pytest.mark.parametrize(
    ("body", "length", "message"),
    [
        (b"", None, "is not JSON"),
        (b"\xff", None, "is not JSON"),
        (b"[" * 100_000, None, "is not JSON"),
        (b"[]", None, "not an object"),
        (b"{}", None, "inputs is missing"),
        (b'{"inputs": [1]}', None, "inputs is an array; it must be an array of objects"),
        (b'{"inputs": []}', 99, "the header says 99 bytes of JSON, and the body has 14"),
        (b'{"inputs": []}rest', 14, "4 bytes of binary data are left over"),
        (b'{"inputs": [], "id": 7}', None, "id is a whole number"),
        (b'{"inputs": [], "parameters": {"classification": 2}}', None, "classification"),
        (b'{"inputs": [], "outputs": [{"name": "y"}, {"name": "y"}]}', None, "'y' is asked for twice"),
        (b'{"inputs": [], "id": "\\ud800"}', None, "surrogate"),
    ],
)
def test_a_body_that_is_no_request_is_refused(body: bytes, length: int | None, message: str) -> None:
    with pytest.raises(InvalidMessage, match=message):
        infer_request_from_json(body, length, "m", "")


def test_a_request_in_json_becomes_the_one_that_a_grpc_client_would_send() -> None:
    asked = {
        "id": "7",
        "inputs": [
            {"name": "a", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}},
            {"name": "b", "datatype": "BYTES", "shape": [1], "data": ["x"]},
            {"name": "c", "datatype": "INT16", "shape": [1], "parameters": {"binary_data_size": 2}},
        ],
        "outputs": [{"name": "y", "parameters": {"binary_data": True}}, {"name": "z"}],
        "parameters": {"binary_data_output": True, "priority": 3},
    }
    text = json.dumps(asked).encode()
    binary = np.array([1.5, 2.5], np.float32).tobytes() + np.array([9], np.int16).tobytes()
    message, forms, request_id = infer_request_from_json(text + binary, len(text), "m", "3")
    request = decode_request(message, peek(message))
    assert (request.model_name, request.model_version, request.request_id, request_id) == ("m", "3", "7", "7")
    assert request.outputs == ("y", "z")
    assert {name: array.tolist() for name, array in request.tensors.items()} == {
        "a": [[1.5, 2.5]],
        "b": [b"x"],
        "c": [9],
    }
    assert [forms.is_binary(name) for name in ("y", "z", "other")] == [True, False, True]


def test_an_answer_is_written_in_the_form_that_was_asked_for_of_each_output() -> None:
    outputs = {"y": np.array([[1.0, np.nan], [np.inf, -1.0]], np.float32), "z": np.array([b"\xff"], np.object_)}
    reply = encode_response("m", "1", "7", outputs)
    body, length = infer_response_to_json(reply, WantedForms({"y": False}, others=True))
    assert length is not None
    answer = json.loads(body[:length])
    assert {name: answer[name] for name in ("model_name", "model_version", "id")} == {
        "model_name": "m",
        "model_version": "1",
        "id": "7",
    }
    plain, binary = answer["outputs"]
    assert plain == {"name": "y", "datatype": "FP32", "shape": [2, 2], "data": [1.0, None, None, -1.0]}
    assert binary == {"name": "z", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 5}}
    assert body[length:] == b"\x01\x00\x00\x00\xff"
    with pytest.raises(InvalidMessage, match=r"no UTF-8 text.*binary_data"):
        infer_response_to_json(reply, JSON)
    assert infer_response_to_json(encode_response("m", "1", "", {}), BINARY)[1] is None
