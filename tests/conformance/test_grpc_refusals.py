"""gRPC: requests that are wrong. Each must fail, as the client's error, and leave the server as it was.

Two cases each: that it is refused at all (`grpc.refuse`), which is what the text says or what keeps a client from a
wrong answer; and that the status says whose fault it is (`grpc.refuse.code`), on which retries depend.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb

from tests.conformance.asking import GrpcServer, Refusal, check_outputs, infer_request, outputs_of
from tests.conformance.cases import MUST, SHOULD, case, not_applicable
from tests.conformance.subjects import Subject
from tests.conformance.tensors import TYPED_FIELDS

SECTION = "inference_grpc.md, Inference"
INVALID, MISSING = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND

Wrong = Callable[[Any, Subject], "bytes | None"]
"""Makes a good request wrong; or gives bytes to send in its place."""


def _typed(request: Any, subject: Subject) -> Any:
    """The same request with typed contents; its first tensor's."""
    request.CopyFrom(infer_request(subject, typed=True))
    return getattr(request.inputs[0].contents, TYPED_FIELDS[subject.inputs[0].datatype])


def unknown_model(request: Any, subject: Subject) -> None:
    request.model_name = "no-such-model-anywhere"


def empty_model_name(request: Any, subject: Subject) -> None:
    request.model_name = ""


def unknown_version(request: Any, subject: Subject) -> None:
    request.model_version = "77777"


def no_inputs(request: Any, subject: Subject) -> None:
    del request.inputs[:], request.raw_input_contents[:]


def unknown_input(request: Any, subject: Subject) -> None:
    request.inputs[0].name = "no-such-input"


def input_twice(request: Any, subject: Subject) -> None:
    request.inputs.append(request.inputs[0])
    request.raw_input_contents.append(request.raw_input_contents[0])


def unknown_output(request: Any, subject: Subject) -> None:
    request.outputs.add(name="no-such-output")


def unknown_datatype(request: Any, subject: Subject) -> None:
    request.inputs[0].datatype = "FP31"


def other_datatype(request: Any, subject: Subject) -> None:
    request.inputs[0].datatype = "INT32" if subject.inputs[0].datatype != "INT32" else "FP32"


def negative_dimension(request: Any, subject: Subject) -> None:
    request.inputs[0].shape[0] = -request.inputs[0].shape[0]


def shape_of_more_elements(request: Any, subject: Subject) -> None:
    request.inputs[0].shape[0] += 1


def shape_beyond_64_bits(request: Any, subject: Subject) -> None:
    request.inputs[0].shape[:] = [2**62] * len(subject.inputs[0].shape)


def other_rank(request: Any, subject: Subject) -> None:
    request.inputs[0].shape.append(1)


def raw_too_short(request: Any, subject: Subject) -> None:
    request.raw_input_contents[0] = request.raw_input_contents[0][:-1]


def raw_too_long(request: Any, subject: Subject) -> None:
    request.raw_input_contents[0] += b"\0"


def raw_missing(request: Any, subject: Subject) -> None:
    del request.raw_input_contents[:]


def raw_of_more_tensors(request: Any, subject: Subject) -> None:
    request.raw_input_contents.append(request.raw_input_contents[0])


def raw_beside_typed(request: Any, subject: Subject) -> None:
    raw = list(request.raw_input_contents)
    _typed(request, subject)
    request.raw_input_contents.extend(raw)


def typed_too_few(request: Any, subject: Subject) -> None:
    _typed(request, subject).pop()


def typed_too_many(request: Any, subject: Subject) -> None:
    contents = _typed(request, subject)
    contents.append(contents[0])


def typed_in_another_field(request: Any, subject: Subject) -> None:
    contents = _typed(request, subject)
    count = len(contents)
    del contents[:]
    is_int64 = subject.inputs[0].datatype == "INT64"
    (request.inputs[0].contents.uint_contents if is_int64 else request.inputs[0].contents.int64_contents).extend(
        [1] * count
    )


def not_a_message(request: Any, subject: Subject) -> bytes:
    return request.SerializeToString() + b"\xff\xff\xff"


REFUSED_BY_THE_TEXT: list[tuple[Wrong, set[grpc.StatusCode]]] = [
    (unknown_model, {MISSING}),
    (empty_model_name, {INVALID, MISSING}),
    (unknown_version, {MISSING, INVALID, grpc.StatusCode.UNAVAILABLE}),
    (no_inputs, {INVALID}),
    (unknown_datatype, {INVALID}),
    (shape_of_more_elements, {INVALID}),
    (shape_beyond_64_bits, {INVALID}),
    (raw_too_short, {INVALID}),
    (raw_too_long, {INVALID}),
    (raw_missing, {INVALID}),
    (raw_of_more_tensors, {INVALID}),
    (raw_beside_typed, {INVALID}),
    (typed_too_few, {INVALID}),
    (typed_too_many, {INVALID}),
    (not_a_message, {INVALID, grpc.StatusCode.INTERNAL}),  # gRPC's own libraries answer INTERNAL
]
REFUSED_BY_GOOD_SENSE: list[tuple[Wrong, set[grpc.StatusCode]]] = [
    (unknown_input, {INVALID}),
    (input_twice, {INVALID}),
    (unknown_output, {INVALID, MISSING}),
    (other_datatype, {INVALID}),
    (negative_dimension, {INVALID}),
    (other_rank, {INVALID}),
    (typed_in_another_field, {INVALID}),
]


def _id(wrong: object) -> str | None:
    return wrong.__name__.replace("_", "-") if callable(wrong) else ""


def _wrongs(wrongs: list[tuple[Wrong, set[grpc.StatusCode]]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("wrong", "codes"), [pytest.param(*each, id=_id(each[0])) for each in wrongs])


@case("grpc.refuse", MUST, SECTION)
@_wrongs(REFUSED_BY_THE_TEXT)
def test_refused(grpc_server: GrpcServer, subject: Subject, wrong: Wrong, codes: set[grpc.StatusCode]) -> None:
    """A request that contradicts itself, or names what is not there, is refused, and the server serves on."""
    _check_refused(grpc_server, subject, wrong)


@case("grpc.refuse.sense", SHOULD, SECTION)
@_wrongs(REFUSED_BY_GOOD_SENSE)
def test_refused_by_good_sense(
    grpc_server: GrpcServer, subject: Subject, wrong: Wrong, codes: set[grpc.StatusCode]
) -> None:
    """So is one that does not fit the model's metadata, or says a thing twice."""
    _check_refused(grpc_server, subject, wrong)


@case("grpc.refuse.code", SHOULD, "gRPC's status codes")
@_wrongs([*REFUSED_BY_THE_TEXT, *REFUSED_BY_GOOD_SENSE])
def test_code(grpc_server: GrpcServer, subject: Subject, wrong: Wrong, codes: set[grpc.StatusCode]) -> None:
    """The status says that the request is wrong, not that the server failed: no retry, no alarm. And it says why."""
    answer = _ask(grpc_server, subject, wrong)
    if not isinstance(answer, Refusal):
        not_applicable("it was not refused: the case above")
    assert answer.code in codes, f"refused with {answer}"
    assert answer.details, f"{answer.code.name} without a word"


@case("grpc.refuse.bytes", MUST, "inference_grpc.md, Tensor Data")
@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"\x01\x00\x00\x00a\x09\x00\x00\x00b", id="length-beyond-the-end"),
        pytest.param(b"\x01\x00\x00\x00a\x01\x00", id="cut-in-a-length"),
    ],
)
def test_broken_bytes(grpc_server: GrpcServer, text: Subject, raw: bytes) -> None:
    """Raw BYTES whose lengths do not add up are refused."""
    request = infer_request(text)
    request.raw_input_contents[0] = raw
    answer = grpc_server.try_call("ModelInfer", request)
    assert isinstance(answer, Refusal), "it was answered"
    _check_serves(grpc_server, text)


def _ask(server: GrpcServer, subject: Subject, wrong: Wrong) -> bytes | Refusal:
    request = infer_request(subject)
    body = wrong(request, subject)
    return server.try_bytes("ModelInfer", request.SerializeToString() if body is None else body)


def _check_refused(server: GrpcServer, subject: Subject, wrong: Wrong) -> None:
    answer = _ask(server, subject, wrong)
    assert isinstance(answer, Refusal), f"it was answered: {_shown(answer)}"
    _check_serves(server, subject)


def _shown(answer: bytes | Refusal) -> str:
    if isinstance(answer, Refusal):
        return str(answer)
    outputs = pb.ModelInferResponse.FromString(answer).outputs
    return ", ".join(f"{output.name} {output.datatype} {list(output.shape)}" for output in outputs) or "no outputs"


def _check_serves(server: GrpcServer, subject: Subject) -> None:
    inputs = subject.request()
    check_outputs(subject, inputs, outputs_of(server.infer(infer_request(subject, inputs))))
