"""REST: inference in JSON that must work."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from tests.conformance.asking import HttpServer, check_outputs, infer_path
from tests.conformance.cases import MUST, SHOULD, case, not_applicable
from tests.conformance.conftest import of_datatypes
from tests.conformance.json_bodies import document, outputs_of
from tests.conformance.subjects import Subject
from tests.conformance.tensors import OF_THE_TABLE

REQUEST, RESPONSE = (
    "inference_rest.md, Inference Request JSON Object",
    "inference_rest.md, Inference Response JSON Object",
)
DATA = "inference_rest.md, Tensor Data"


@case("rest.infer.json", MUST, DATA)
@of_datatypes(*(datatype for datatype in OF_THE_TABLE if datatype != "FP16"))
def test_json(http_server: HttpServer, identity: Subject) -> None:
    """Data of every datatype go in flat, and come back as they were. (The text calls FP16 in JSON problematic.)"""
    inputs = identity.request()
    check_outputs(
        identity, inputs, outputs_of(http_server.ask("POST", infer_path(identity), document(identity, inputs)).answer)
    )


@case("rest.infer.nested", MUST, DATA)
@of_datatypes("FP32", "INT64", "BOOL", "BYTES")
def test_nested(http_server: HttpServer, identity: Subject) -> None:
    """Data may be nested as the shape is."""
    inputs = identity.request()
    asked = document(identity, inputs)
    for tensor in asked["inputs"]:
        width = tensor["shape"][-1]
        tensor["data"] = [tensor["data"][at : at + width] for at in range(0, len(tensor["data"]), width)]
    check_outputs(identity, inputs, outputs_of(http_server.ask("POST", infer_path(identity), asked).answer))


@case("rest.infer.whole-numbers-as-floats", SHOULD, DATA)
@of_datatypes("FP32", "FP64")
def test_whole_numbers(http_server: HttpServer, identity: Subject) -> None:
    """A whole number is an element of a floating-point datatype: JSON's writers drop the fraction."""
    inputs = {identity.inputs[0].name: identity.request(1)[identity.inputs[0].name] * 0 + 7}
    asked = document(identity, inputs)
    asked["inputs"][0]["data"] = [7] * len(asked["inputs"][0]["data"])
    check_outputs(identity, inputs, outputs_of(http_server.ask("POST", infer_path(identity), asked).answer))


@case("rest.infer.rows", MUST, REQUEST)
@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_rows(http_server: HttpServer, subject: Subject, rows: int) -> None:
    """A dimension of -1 takes any size."""
    if not subject.has_rows:
        not_applicable("the model has a fixed size")
    inputs = subject.request(rows)
    check_outputs(
        subject, inputs, outputs_of(http_server.ask("POST", infer_path(subject), document(subject, inputs)).answer)
    )


@case("rest.infer.answer", MUST, RESPONSE)
def test_answer(http_server: HttpServer, subject: Subject) -> None:
    """An answer has the model's name, and outputs with name, shape, datatype and data."""
    answer = http_server.ask("POST", infer_path(subject), document(subject)).answer
    assert answer.get("model_name") == subject.name, f"model_name is {answer.get('model_name')!r}"
    for output in answer["outputs"]:
        missing = [field for field in ("name", "shape", "datatype", "data") if field not in output]
        assert not missing, f"output {output.get('name')!r} lacks {missing}"


@case("rest.infer.content-type", SHOULD, RESPONSE)
def test_content_type(http_server: HttpServer, subject: Subject) -> None:
    """It is sent as application/json."""
    heard = http_server.ask("POST", infer_path(subject), document(subject))
    kind = heard.headers.get("content-type", "")
    assert kind.split(";")[0] == "application/json", f"content-type is {kind!r}"


@case("rest.infer.id", MUST, RESPONSE)
def test_id(http_server: HttpServer, subject: Subject) -> None:
    """The id of the request comes back."""
    answer = http_server.ask("POST", infer_path(subject), document(subject, id="request 42")).answer
    assert answer.get("id") == "request 42", f"id is {answer.get('id')!r}"


@case("rest.infer.id.any-text", SHOULD, RESPONSE)
def test_id_of_any_text(http_server: HttpServer, subject: Subject) -> None:
    """An id is a text, of any characters."""
    answer = http_server.ask("POST", infer_path(subject), document(subject, id="zwölf ⬡")).answer
    assert answer.get("id") == "zwölf ⬡", f"id is {answer.get('id')!r}"


@case("rest.infer.outputs.all", MUST, REQUEST)
def test_all_outputs(http_server: HttpServer, pair: Subject) -> None:
    """All outputs come when none is asked for."""
    inputs = pair.request()
    found = outputs_of(http_server.ask("POST", infer_path(pair), document(pair, inputs)).answer)
    assert set(found) == {tensor.name for tensor in pair.outputs}, f"the outputs are {list(found)}"
    check_outputs(pair, inputs, found)


@case("rest.infer.outputs.some", MUST, REQUEST)
@pytest.mark.parametrize("which", [0, 1], ids=["first", "second"])
def test_some_outputs(http_server: HttpServer, pair: Subject, which: int) -> None:
    """Only those come that are asked for."""
    inputs, wanted = pair.request(), pair.outputs[which].name
    asked = document(pair, inputs, outputs=[{"name": wanted}])
    found = outputs_of(http_server.ask("POST", infer_path(pair), asked).answer)
    assert list(found) == [wanted], f"asked for {wanted!r}, the outputs are {list(found)}"
    check_outputs(pair, inputs, found)


@case("rest.infer.inputs-by-name", MUST, REQUEST)
def test_inputs_go_by_name(http_server: HttpServer, pair: Subject) -> None:
    """Inputs are told by their names, in whatever order they come."""
    inputs = dict(reversed(pair.request().items()))
    check_outputs(pair, inputs, outputs_of(http_server.ask("POST", infer_path(pair), document(pair, inputs)).answer))


@case("rest.infer.version", MUST, "inference_rest.md, HTTP/REST: Inference")
def test_version(http_server: HttpServer, subject: Subject) -> None:
    """A version that the metadata name can be asked for in the path."""
    versions = http_server.ask("GET", f"/v2/models/{subject.name}").answer.get("versions")
    if not versions:
        not_applicable("the metadata name no versions")
    answer = http_server.ask("POST", infer_path(subject, versions[-1]), document(subject)).answer
    assert answer.get("model_version") == versions[-1], (
        f"asked for {versions[-1]!r}, got {answer.get('model_version')!r}"
    )


@case("rest.infer.parameters", SHOULD, "inference_rest.md, Parameters")
@pytest.mark.parametrize("value", ["seven", 7, 0.7, True], ids=["string", "integer", "number", "boolean"])
def test_parameters(http_server: HttpServer, subject: Subject, value: Any) -> None:
    """Parameters that a server does not know, of a request, an input or an output, do not stop it."""
    unknown = {"x-unknown-to-you": value}
    inputs = subject.request()
    outputs = [{"name": tensor.name, "parameters": unknown} for tensor in subject.outputs]
    asked = document(subject, inputs, parameters=unknown, outputs=outputs)
    asked["inputs"][0]["parameters"] = unknown
    check_outputs(subject, inputs, outputs_of(http_server.ask("POST", infer_path(subject), asked).answer))


@case("rest.infer.compressed", SHOULD, "Triton: HTTP compression")
@pytest.mark.parametrize(
    ("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)], ids=["gzip", "deflate"]
)
def test_compressed(http_server: HttpServer, subject: Subject, encoding: str, pack: Callable[[bytes], bytes]) -> None:
    """A compressed body is read, as the header says; or refused with 415."""
    inputs = subject.request()
    body = pack(json.dumps(document(subject, inputs)).encode())
    heard = http_server.ask("POST", infer_path(subject), body, {"Content-Encoding": encoding})
    if heard.code != 415:
        check_outputs(subject, inputs, outputs_of(heard.answer))


@case("rest.infer.chunked", SHOULD, "HTTP/1.1, chunked transfer coding")
def test_chunked(http_server: HttpServer, subject: Subject) -> None:
    """A body may come in chunks."""
    inputs = subject.request()
    text = json.dumps(document(subject, inputs)).encode()
    chunked = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (text[:10], text[10:])) + b"0\r\n\r\n"
    heard = http_server.ask("POST", infer_path(subject), chunked, {"Transfer-Encoding": "chunked"})
    check_outputs(subject, inputs, outputs_of(heard.answer))
