"""REST: the binary tensor data extension, for servers that advertise it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.conformance.asking import (
    JSON_LENGTH,
    HttpServer,
    check_outputs,
    infer_path,
    json_and_rest,
    with_binary,
)
from tests.conformance.cases import EXTENSION, case, not_applicable
from tests.conformance.conftest import of_datatypes
from tests.conformance.json_bodies import check_error, document
from tests.conformance.json_bodies import outputs_of as json_outputs_of
from tests.conformance.subjects import Subject
from tests.conformance.tensors import DTYPES, Array, from_raw, to_raw

SECTION = "Triton: extension_binary_data.md"


@pytest.fixture(autouse=True)
def advertised(extensions: frozenset[str]) -> None:
    """Only of servers that say so."""
    if not extensions & {"binary_tensor_data", "binary_data"}:
        not_applicable("binary_tensor_data is not advertised")


@case("binary.in-and-out", EXTENSION, SECTION)
@of_datatypes(*DTYPES)
def test_both_ways(http_server: HttpServer, identity: Subject) -> None:
    """Every datatype goes in raw behind the JSON, and comes back so when it is asked for so."""
    _check(http_server, identity, identity.request())


@case("binary.special-floats", EXTENSION, SECTION)
@of_datatypes("FP16", "FP32", "FP64")
def test_special_floats(http_server: HttpServer, identity: Subject) -> None:
    """NaN and the infinities, which JSON has not, are values as all others."""
    (name, array), *_ = identity.request(1).items()
    array.reshape(-1)[:3] = [np.nan, np.inf, -np.inf]
    _check(http_server, identity, {name: array})


@case("binary.out-of-json", EXTENSION, SECTION)
def test_binary_out_of_json_in(http_server: HttpServer, subject: Subject) -> None:
    """The form of the outputs is that which is asked for, whatever the form of the inputs."""
    inputs = subject.request()
    asked = document(subject, inputs, outputs=_wanted(subject))
    answer, rest = json_and_rest(http_server.ask("POST", infer_path(subject), asked))
    check_outputs(subject, inputs, _outputs(answer, rest))


@case("binary.in-json-out", EXTENSION, SECTION)
def test_json_out_of_binary_in(http_server: HttpServer, subject: Subject) -> None:
    """Outputs are JSON when binary is not asked for."""
    inputs = subject.request()
    body, headers = _binary(subject, inputs)
    answer, rest = json_and_rest(http_server.ask("POST", infer_path(subject), body, headers))
    assert not rest, f"{len(rest)} bytes of binary data that nobody asked for"
    check_outputs(subject, inputs, json_outputs_of(answer))


@case("binary.all-outputs", EXTENSION, SECTION)
def test_binary_data_output(http_server: HttpServer, pair: Subject) -> None:
    """`binary_data_output` asks for all outputs in binary."""
    inputs = pair.request()
    asked = document(pair, inputs, parameters={"binary_data_output": True})
    answer, rest = json_and_rest(http_server.ask("POST", infer_path(pair), asked))
    check_outputs(pair, inputs, _outputs(answer, rest))


@case("binary.mixed", EXTENSION, SECTION)
def test_one_of_each(http_server: HttpServer, pair: Subject) -> None:
    """One input and one output may be binary, the others JSON."""
    inputs = pair.request()
    asked = document(pair, inputs)
    second = asked["inputs"][1]
    raw = to_raw("FP32", inputs[second["name"]])
    del second["data"]
    second["parameters"] = {"binary_data_size": len(raw)}
    asked["outputs"] = [
        {"name": pair.outputs[0].name, "parameters": {"binary_data": True}},
        {"name": pair.outputs[1].name, "parameters": {"binary_data": False}},
    ]
    body, headers = with_binary(asked, [raw])
    answer, rest = json_and_rest(http_server.ask("POST", infer_path(pair), body, headers))
    assert {"data" in output for output in answer["outputs"]} == {True, False}, "the outputs have one form"
    check_outputs(pair, inputs, _outputs(answer, rest))


@case("binary.content-type", EXTENSION, SECTION)
def test_content_type(http_server: HttpServer, subject: Subject) -> None:
    """An answer with binary data is sent as application/octet-stream."""
    body, headers = _binary(subject, subject.request(), outputs=_wanted(subject))
    kind = http_server.ask("POST", infer_path(subject), body, headers).headers.get("content-type", "")
    assert kind.split(";")[0] == "application/octet-stream", f"content-type is {kind!r}"


WRONG = {
    "size-too-small": (-4, 0, b""),
    "size-too-large": (4, 0, b""),
    "header-too-small": (0, -2, b""),
    "header-too-large": (0, 10**6, b""),
    "bytes-left-over": (0, 0, b"left"),
}


@case("binary.refuse", EXTENSION, SECTION)
@pytest.mark.parametrize(("size", "length", "more"), WRONG.values(), ids=WRONG)
def test_refused(http_server: HttpServer, subject: Subject, size: int, length: int, more: bytes) -> None:
    """Sizes that do not add up are refused with {"error": text}, and the server serves on."""
    inputs = subject.request()
    asked, binary = _document(subject, inputs)
    asked["inputs"][0]["parameters"]["binary_data_size"] += size
    body, headers = with_binary(asked, [*binary, more])
    headers[JSON_LENGTH] = str(int(headers[JSON_LENGTH]) + length)
    check_error(http_server.ask("POST", infer_path(subject), body, headers))
    _check(http_server, subject, inputs)


def _check(server: HttpServer, subject: Subject, inputs: dict[str, Array]) -> None:
    body, headers = _binary(subject, inputs, outputs=_wanted(subject))
    answer, rest = json_and_rest(server.ask("POST", infer_path(subject), body, headers))
    check_outputs(subject, inputs, _outputs(answer, rest))


def _document(subject: Subject, inputs: dict[str, Array], **fields: Any) -> tuple[dict[str, Any], list[bytes]]:
    described, binary = [], []
    for tensor in subject.inputs:
        array = inputs[tensor.name]
        binary.append(to_raw(tensor.datatype, array))
        described.append(
            {
                "name": tensor.name,
                "datatype": tensor.datatype,
                "shape": list(array.shape),
                "parameters": {"binary_data_size": len(binary[-1])},
            }
        )
    return {"inputs": described, **fields}, binary


def _binary(subject: Subject, inputs: dict[str, Array], **fields: Any) -> tuple[bytes, dict[str, str]]:
    asked, binary = _document(subject, inputs, **fields)
    return with_binary(asked, binary)


def _wanted(subject: Subject) -> list[dict[str, Any]]:
    return [{"name": tensor.name, "parameters": {"binary_data": True}} for tensor in subject.outputs]


def _outputs(answer: Any, rest: bytes) -> dict[str, tuple[str, Array]]:
    found: dict[str, tuple[str, Array]] = {}
    for output in answer["outputs"]:
        size = (output.get("parameters") or {}).get("binary_data_size")
        if size is None:
            found |= json_outputs_of({"outputs": [output]})
            continue
        assert "data" not in output, f"output {output['name']!r} has data beside its binary data"
        assert size <= len(rest), f"output {output['name']!r} claims {size} bytes, {len(rest)} are left"
        datatype, shape = output["datatype"], tuple(output["shape"])
        found[output["name"]] = (datatype, from_raw(datatype, shape, rest[:size]))
        rest = rest[size:]
    assert not rest, f"{len(rest)} bytes are left over"
    return found
