"""V1 requests, which name neither inputs nor datatypes, and answers by row."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from mesh.endpoint.rest.calls import tenant_of_host
from mesh.wire.errors import InvalidMessage
from mesh.wire.v1_bodies import answer_of, arrays_of

ONE = {"x": "FP32"}
TWO = {"age": "INT64", "name": "BYTES"}


@pytest.mark.parametrize(
    ("body", "inputs", "expected"),
    [
        ({"instances": [[1, 2], [3, 4.5]]}, ONE, {"x": [[1, 2], [3, 4.5]]}),
        ({"instances": [1, 2]}, ONE, {"x": [1, 2]}),
        ({"instances": [1, 2]}, TWO, {"age": [1, 2]}),
        ({"instances": [{"x": [1]}, {"x": [2]}]}, ONE, {"x": [[1], [2]]}),
        (
            {"instances": [{"age": 1, "name": "a"}, {"age": 2, "name": "b"}]},
            TWO,
            {"age": [1, 2], "name": [b"a", b"b"]},
        ),
        ({"instances": [{"b64": "/w=="}]}, {"x": "BYTES"}, {"x": [b"\xff"]}),
        ({"instances": ["a", {"b64": "/w=="}]}, {"x": "BYTES"}, {"x": [b"a", b"\xff"]}),
        ({"inputs": {"age": [[1]], "name": [["a"]]}}, TWO, {"age": [[1]], "name": [[b"a"]]}),
        ({"inputs": [[1, 2]], "signature_name": "ignored"}, ONE, {"x": [[1, 2]]}),
        ({"inputs": 3}, ONE, {"x": 3}),
    ],
)
def test_rows_and_whole_tensors_become_the_models_inputs(
    body: dict[str, Any], inputs: dict[str, str], expected: dict[str, Any]
) -> None:
    arrays, by_row = arrays_of(body, inputs)
    assert {name: array.tolist() for name, array in arrays.items()} == expected
    assert by_row == ("instances" in body)


@pytest.mark.parametrize(
    ("body", "inputs", "message"),
    [
        ({}, ONE, "found no field"),
        ({"predictions": [1]}, ONE, 'either "instances".*found "predictions"'),
        ({"instances": [1], "inputs": [1]}, ONE, 'either "instances"'),
        ({"instances": []}, ONE, "at least one row"),
        ({"instances": "1"}, ONE, "at least one row"),
        ({"instances": [1]}, {}, "the model tells of no input"),
        ({"instances": [{"y": 1}]}, ONE, "no input 'y'; it has: x"),
        ({"instances": [{"age": 1, "name": "a"}, {"age": 2}]}, TWO, "the same inputs in each row"),
        ({"instances": [[1], [1, 2]]}, ONE, "rows are of different lengths"),
        ({"instances": [[1], 2]}, ONE, "beside a plain element"),
        ({"inputs": json.loads("[" * 65 + "]" * 65)}, ONE, "more than 64 arrays in one another"),
        ({"instances": ["a"]}, ONE, "text .'a'. is no element of FP32"),
        ({"instances": [{"b64": "***"}]}, {"x": "BYTES"}, "neither text nor"),
        ({"instances": [{"b64": 1}, "a"]}, {"x": "BYTES"}, "neither text nor"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(body: dict[str, Any], inputs: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidMessage, match=message):
        arrays_of(body, inputs)


def reply(**outputs: Any) -> dict[str, Any]:
    return {name: np.array(value) for name, value in outputs.items()}


def test_predictions_are_rows_plain_for_one_output_and_named_for_several() -> None:
    assert answer_of(reply(y=[[1, 2], [3, 4]]), by_row=True) == {"predictions": [[1, 2], [3, 4]]}
    assert answer_of(reply(y=[1, 2], z=[[3], [4]]), by_row=True) == {
        "predictions": [{"y": 1, "z": [3]}, {"y": 2, "z": [4]}]
    }
    with pytest.raises(InvalidMessage, match="have not a row each"):
        answer_of(reply(y=[1, 2], z=[3]), by_row=True)
    with pytest.raises(InvalidMessage, match="have not a row each"):
        answer_of(reply(y=[1, 2], z=3), by_row=True)


def test_bytes_that_are_no_text_are_answered_in_base64() -> None:
    answer = reply(y=np.array([b"text", b"\xff"], np.object_))
    assert answer_of(answer, by_row=True) == {"predictions": ["text", {"b64": "/w=="}]}


def test_whole_tensors_are_answered_with_whole_tensors() -> None:
    assert answer_of(reply(y=[[[1], [2]]]), by_row=False) == {"outputs": [[[1], [2]]]}
    assert answer_of(reply(y=5), by_row=False) == {"outputs": 5}
    assert answer_of(reply(y=[1], z=[2]), by_row=False) == {"outputs": {"y": [1], "z": [2]}}
    assert answer_of(reply(y=np.zeros((2, 0), np.float32)), by_row=False) == {"outputs": [[], []]}


@pytest.mark.parametrize(
    ("host", "tenant"),
    [
        ("models.team-a.svc.cluster.local:8008", "team-a"),
        ("models.team-a.svc", "team-a"),
        ("models.team-a", None),
        ("127.0.0.1:8008", None),
        ("models..svc", None),
        ("", None),
    ],
)
def test_the_namespace_of_a_services_name_is_the_tenant(host: str, tenant: str | None) -> None:
    assert tenant_of_host(host) == tenant
