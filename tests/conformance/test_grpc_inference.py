"""gRPC: inference that must work."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from tests.conformance.asking import GrpcServer, Refusal, check_outputs, infer_request, outputs_of
from tests.conformance.cases import EXTENSION, MUST, SHOULD, case, not_applicable
from tests.conformance.conftest import of_datatypes
from tests.conformance.subjects import Subject
from tests.conformance.tensors import TYPED_FIELDS, sample

INFERENCE, RAW = "inference_grpc.md, Inference", "inference_grpc.md, Tensor Data"
AT_ONCE = 64


@case("grpc.infer.raw", MUST, RAW)
@of_datatypes()
def test_raw(grpc_server: GrpcServer, identity: Subject) -> None:
    """Raw contents of every datatype go in, and come back as they were, limits and all."""
    _check(grpc_server, identity)


@case("grpc.infer.raw.bf16", EXTENSION, "Triton: datatypes")
@of_datatypes("BF16")
def test_raw_bf16(grpc_server: GrpcServer, identity: Subject) -> None:
    """So do those of BF16, where there is a model of it."""
    _check(grpc_server, identity)


@case("grpc.infer.typed", MUST, RAW)
@of_datatypes(*TYPED_FIELDS)
def test_typed(grpc_server: GrpcServer, identity: Subject) -> None:
    """So do typed contents, for the datatypes that have a typed form."""
    _check(grpc_server, identity, typed=True)


@case("grpc.infer.special-floats", MUST, RAW)
@of_datatypes("FP16", "FP32", "FP64")
def test_special_floats(grpc_server: GrpcServer, identity: Subject) -> None:
    """NaN, the infinities and -0 are values as all others."""
    array = sample(identity.inputs[0].datatype, identity.inputs[0].shape_with(1))
    array.reshape(-1)[:4] = [np.nan, np.inf, -np.inf, -0.0][: array.size]
    inputs = {identity.inputs[0].name: array}
    check_outputs(identity, inputs, outputs_of(grpc_server.infer(infer_request(identity, inputs))))


@case("grpc.infer.bytes-of-any-kind", MUST, RAW)
def test_bytes(grpc_server: GrpcServer, text: Subject) -> None:
    """An element of BYTES is any bytes, not only text: not UTF-8, zeros, long."""
    array = sample("BYTES", text.inputs[0].shape_with(1))
    array.reshape(-1)[:4] = [b"\xff\xfe\x00", b"\0", b"\x80" * 100_000, b""][: array.size]
    inputs = {text.inputs[0].name: array}
    check_outputs(text, inputs, outputs_of(grpc_server.infer(infer_request(text, inputs))))


@case("grpc.infer.rows", MUST, INFERENCE)
@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_rows(grpc_server: GrpcServer, subject: Subject, rows: int) -> None:
    """A dimension of -1 takes any size."""
    if not subject.has_rows:
        not_applicable("the model has a fixed size")
    inputs = subject.request(rows)
    check_outputs(subject, inputs, outputs_of(grpc_server.infer(infer_request(subject, inputs))))


@case("grpc.infer.no-rows", SHOULD, INFERENCE)
def test_no_rows(grpc_server: GrpcServer, subject: Subject) -> None:
    """Even none: an answer without rows, or a clear refusal, but no failure of the server."""
    if not subject.has_rows:
        not_applicable("the model has a fixed size")
    inputs = subject.request(0)
    answer = grpc_server.try_call("ModelInfer", infer_request(subject, inputs))
    if isinstance(answer, Refusal):
        assert answer.code is grpc.StatusCode.INVALID_ARGUMENT, f"refused with {answer}"
    else:
        check_outputs(subject, inputs, outputs_of(answer))


@case("grpc.infer.one-form", MUST, INFERENCE)
@of_datatypes()
def test_answers_are_raw_or_typed(grpc_server: GrpcServer, identity: Subject) -> None:
    """An answer's outputs are all raw or all typed, with as many elements as datatype and shape take."""
    outputs_of(grpc_server.infer(infer_request(identity)))


@case("grpc.infer.answers-raw", SHOULD, RAW)
def test_answers_to_raw_requests_are_raw(grpc_server: GrpcServer, subject: Subject) -> None:
    """An answer to a raw request is raw: the clients of Triton read no other form of numbers."""
    assert grpc_server.infer(infer_request(subject)).raw_output_contents, "the answer has typed contents"


@case("grpc.infer.model-name", MUST, INFERENCE)
def test_model_name(grpc_server: GrpcServer, subject: Subject) -> None:
    """The answer says which model ran."""
    name = grpc_server.infer(infer_request(subject)).model_name
    assert name == subject.name, f"model_name is {name!r}"


@case("grpc.infer.id", MUST, INFERENCE)
def test_id(grpc_server: GrpcServer, subject: Subject) -> None:
    """The id of the request comes back."""
    found = grpc_server.infer(infer_request(subject, id="request 42")).id
    assert found == "request 42", f"id is {found!r}"


@case("grpc.infer.id.any-text", SHOULD, INFERENCE)
def test_id_of_any_text(grpc_server: GrpcServer, subject: Subject) -> None:
    """An id is a text, of any characters."""
    found = grpc_server.infer(infer_request(subject, id="zwölf ⬡")).id
    assert found == "zwölf ⬡", f"id is {found!r}"


@case("grpc.infer.outputs.all", MUST, INFERENCE)
def test_all_outputs(grpc_server: GrpcServer, pair: Subject) -> None:
    """All outputs come when none is asked for."""
    inputs = pair.request()
    found = outputs_of(grpc_server.infer(infer_request(pair, inputs)))
    assert set(found) == {tensor.name for tensor in pair.outputs}, f"the outputs are {list(found)}"
    check_outputs(pair, inputs, found)


@case("grpc.infer.outputs.some", MUST, INFERENCE)
@pytest.mark.parametrize("which", [0, 1], ids=["first", "second"])
def test_some_outputs(grpc_server: GrpcServer, pair: Subject, which: int) -> None:
    """Only those come that are asked for."""
    inputs, wanted = pair.request(), pair.outputs[which].name
    request = infer_request(pair, inputs, outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name=wanted)])
    found = outputs_of(grpc_server.infer(request))
    assert list(found) == [wanted], f"asked for {wanted!r}, the outputs are {list(found)}"
    check_outputs(pair, inputs, found)


@case("grpc.infer.inputs-by-name", MUST, INFERENCE)
@pytest.mark.parametrize("typed", [False, True], ids=["raw", "typed"])
def test_inputs_go_by_name(grpc_server: GrpcServer, pair: Subject, typed: bool) -> None:
    """Inputs are told by their names, in whatever order they come; raw contents are in the order of the inputs."""
    inputs = dict(reversed(pair.request().items()))
    check_outputs(pair, inputs, outputs_of(grpc_server.infer(infer_request(pair, inputs, typed=typed))))


@case("grpc.infer.version", MUST, INFERENCE)
def test_version(grpc_server: GrpcServer, subject: Subject) -> None:
    """A version that the metadata name can be asked for."""
    versions = grpc_server.call("ModelMetadata", pb.ModelMetadataRequest(name=subject.name)).versions
    if not versions:
        not_applicable("the metadata name no versions")
    answer = grpc_server.infer(infer_request(subject, model_version=versions[-1]))
    assert answer.model_version == versions[-1], f"asked for {versions[-1]!r}, {answer.model_version!r} answered"


_VALUES = {
    "bool": pb.InferParameter(bool_param=True),
    "int64": pb.InferParameter(int64_param=7),
    "string": pb.InferParameter(string_param="seven"),
    "double": pb.InferParameter(double_param=0.7),
    "uint64": pb.InferParameter(uint64_param=2**63),
}


@case("grpc.infer.parameters", SHOULD, "inference_grpc.md, Parameters")
@pytest.mark.parametrize("value", _VALUES.values(), ids=_VALUES)
def test_parameters(grpc_server: GrpcServer, subject: Subject, value: pb.InferParameter) -> None:
    """Parameters that a server does not know, of a request or of a tensor, do not stop it."""
    inputs = subject.request()
    request = infer_request(subject, inputs)
    for parameters in (request.parameters, request.inputs[0].parameters):
        parameters["x-unknown-to-you"].CopyFrom(value)
    check_outputs(subject, inputs, outputs_of(grpc_server.infer(request)))


@case("grpc.infer.compressed", SHOULD, "gRPC's compression")
def test_compressed_requests(grpc_server: GrpcServer, subject: Subject) -> None:
    """Compressed requests are read, as every gRPC library does."""
    inputs = subject.request()
    body = infer_request(subject, inputs).SerializeToString()
    answer = grpc_server.try_bytes("ModelInfer", body, grpc.Compression.Gzip)
    assert not isinstance(answer, Refusal), f"refused with {answer}"
    check_outputs(subject, inputs, outputs_of(pb.ModelInferResponse.FromString(answer)))


@case("grpc.infer.at-once", MUST, INFERENCE)
def test_many_at_once(grpc_server: GrpcServer, subject: Subject) -> None:
    """Each of many requests at once gets its own answer."""
    if not subject.has_rows:
        not_applicable("the model has a fixed size")

    def ask(number: int) -> None:
        inputs = {name: np.roll(array, number) for name, array in subject.request(1 + number % 5).items()}
        answer = grpc_server.infer(infer_request(subject, inputs, id=str(number)))
        assert answer.id == str(number), f"request {number} got the answer of {answer.id}"
        check_outputs(subject, inputs, outputs_of(answer))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(ask, range(4 * AT_ONCE)))


def _check(server: GrpcServer, subject: Subject, *, typed: bool = False) -> None:
    inputs = subject.request()
    check_outputs(subject, inputs, outputs_of(server.infer(infer_request(subject, inputs, typed=typed))))
