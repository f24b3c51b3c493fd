"""REST: requests that are wrong. Each must fail with {"error": text}, and leave the server as it was.

As over gRPC, two cases each: that it is refused with an error as the text has it, and that the code says whose fault
it is: 4xx, on which retries depend.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.conformance.asking import Heard, HttpServer, check_outputs, infer_path
from tests.conformance.cases import MUST, SHOULD, case, not_applicable
from tests.conformance.json_bodies import check_error, document, outputs_of
from tests.conformance.subjects import Subject

SECTION = "inference_rest.md, Inference Response JSON Error Object"

Wrong = Callable[[dict[str, Any]], "bytes | None"]
"""Makes a good request wrong; or gives a body to send in its place."""


def no_body(asked: dict[str, Any]) -> bytes:
    return b""


def not_json(asked: dict[str, Any]) -> bytes:
    return b'{"inputs": ['


def not_an_object(asked: dict[str, Any]) -> bytes:
    return json.dumps([asked]).encode()


def no_inputs(asked: dict[str, Any]) -> None:
    del asked["inputs"]


def empty_inputs(asked: dict[str, Any]) -> None:
    asked["inputs"] = []


def inputs_no_array(asked: dict[str, Any]) -> None:
    asked["inputs"] = "x"


def no_name(asked: dict[str, Any]) -> None:
    del asked["inputs"][0]["name"]


def no_datatype(asked: dict[str, Any]) -> None:
    del asked["inputs"][0]["datatype"]


def no_shape(asked: dict[str, Any]) -> None:
    del asked["inputs"][0]["shape"]


def no_data(asked: dict[str, Any]) -> None:
    del asked["inputs"][0]["data"]


def unknown_datatype(asked: dict[str, Any]) -> None:
    asked["inputs"][0]["datatype"] = "FP31"


def data_too_short(asked: dict[str, Any]) -> None:
    asked["inputs"][0]["data"].pop()


def data_too_long(asked: dict[str, Any]) -> None:
    asked["inputs"][0]["data"].append(0)


def data_of_text(asked: dict[str, Any]) -> None:
    asked["inputs"][0]["data"][0] = "seven" if asked["inputs"][0]["datatype"] != "BYTES" else 7


def data_of_objects(asked: dict[str, Any]) -> None:
    asked["inputs"][0]["data"][0] = {}


def shape_of_text(asked: dict[str, Any]) -> None:
    asked["inputs"][0]["shape"] = "2, 4"


def negative_dimension(asked: dict[str, Any]) -> None:
    asked["inputs"][0]["shape"][0] *= -1


def shape_beyond_64_bits(asked: dict[str, Any]) -> None:
    asked["inputs"][0]["shape"] = [2**62, 2**62]


def unknown_input(asked: dict[str, Any]) -> None:
    asked["inputs"][0]["name"] = "no-such-input"


def input_twice(asked: dict[str, Any]) -> None:
    asked["inputs"].append(asked["inputs"][0])


def unknown_output(asked: dict[str, Any]) -> None:
    asked["outputs"] = [{"name": "no-such-output"}]


def other_datatype(asked: dict[str, Any]) -> None:
    tensor, count = asked["inputs"][0], len(asked["inputs"][0]["data"])
    other, element = ("BYTES", "a") if tensor["datatype"] != "BYTES" else ("FP32", 0.5)
    tensor.update(datatype=other, data=[element] * count)


def other_rank(asked: dict[str, Any]) -> None:
    asked["inputs"][0]["shape"].append(1)


REFUSED_BY_THE_TEXT: list[Wrong] = [
    no_body, not_json, not_an_object, no_inputs, empty_inputs, inputs_no_array, no_name, no_datatype, no_shape, no_data,
    unknown_datatype, data_too_short, data_too_long, data_of_text, data_of_objects, shape_of_text,
    negative_dimension, shape_beyond_64_bits,
]  # fmt: skip
REFUSED_BY_GOOD_SENSE: list[Wrong] = [unknown_input, input_twice, unknown_output, other_datatype, other_rank]


def _wrongs(wrongs: list[Wrong]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("wrong", wrongs, ids=[wrong.__name__.replace("_", "-") for wrong in wrongs])


@case("rest.refuse", MUST, SECTION)
@_wrongs(REFUSED_BY_THE_TEXT)
def test_refused(http_server: HttpServer, subject: Subject, wrong: Wrong) -> None:
    """A request that contradicts itself, or is none, is refused with {"error": text}, and the server serves on."""
    check_error(_ask(http_server, subject, wrong))
    _check_serves(http_server, subject)


@case("rest.refuse.sense", SHOULD, SECTION)
@_wrongs(REFUSED_BY_GOOD_SENSE)
def test_refused_by_good_sense(http_server: HttpServer, subject: Subject, wrong: Wrong) -> None:
    """So is one that does not fit the model's metadata, or says a thing twice."""
    check_error(_ask(http_server, subject, wrong))
    _check_serves(http_server, subject)


@case("rest.refuse.code", SHOULD, "HTTP's status codes")
@_wrongs([*REFUSED_BY_THE_TEXT, *REFUSED_BY_GOOD_SENSE])
def test_code(http_server: HttpServer, subject: Subject, wrong: Wrong) -> None:
    """The code says that the request is wrong, not that the server failed."""
    heard = _ask(http_server, subject, wrong)
    if heard.code == 200:
        not_applicable("it was not refused: the case above")
    assert 400 <= heard.code < 500, f"HTTP {heard.code}: {heard.body[:160]!r}"


@case("rest.refuse.unknown", MUST, SECTION)
@pytest.mark.parametrize(
    "path", ["/v2/models/no-such-model/infer", "{}/versions/77777/infer"], ids=["model", "version"]
)
def test_unknown(http_server: HttpServer, subject: Subject, path: str) -> None:
    """A model or version that is not there is an HTTP error, with {"error": text}."""
    check_error(http_server.ask("POST", path.format(f"/v2/models/{subject.name}"), document(subject)))


@case("rest.refuse.unknown.code", SHOULD, "HTTP's status codes")
@pytest.mark.parametrize(
    "path", ["/v2/models/no-such-model/infer", "{}/versions/77777/infer"], ids=["model", "version"]
)
def test_unknown_code(http_server: HttpServer, subject: Subject, path: str) -> None:
    """The code is 404, or 400, which is what the text calls typical."""
    code = http_server.ask("POST", path.format(f"/v2/models/{subject.name}"), document(subject)).code
    if code == 200:
        not_applicable("it was not refused: the case above")
    assert code in (400, 404), f"HTTP {code}"


@case("rest.refuse.overflow", SHOULD, "inference_rest.md, Tensor Data")
@pytest.mark.parametrize(
    ("datatype", "element"), [("INT8", 300), ("UINT8", -1), ("INT32", 0.5)], ids=["INT8", "UINT8", "INT32"]
)
def test_elements_that_do_not_fit(http_server: HttpServer, subjects: Any, datatype: str, element: float) -> None:
    """A number that the datatype cannot hold is refused, not wrapped or cut."""
    if datatype not in subjects.identity:
        not_applicable(f"there is no model of {datatype}")
    subject = subjects.identity[datatype]
    asked = document(subject)
    asked["inputs"][0]["data"][0] = element
    heard = http_server.ask("POST", infer_path(subject), asked)
    assert 400 <= heard.code < 500, f"{element} as {datatype}: HTTP {heard.code}: {heard.body[:160]!r}"


def _ask(server: HttpServer, subject: Subject, wrong: Wrong) -> Heard:
    asked = document(subject)
    body = wrong(asked)
    return server.ask("POST", infer_path(subject), asked if body is None else body)


def _check_serves(server: HttpServer, subject: Subject) -> None:
    inputs = subject.request()
    check_outputs(
        subject, inputs, outputs_of(server.ask("POST", infer_path(subject), document(subject, inputs)).answer)
    )
