"""Asking the server: gRPC with messages of the public protocol, HTTP with the standard library's client.

No client library stands in between that could refuse, repair or retry what a case sends. The messages are those that
tritonclient ships, compiled from the public proto with Triton's extensions in it.
"""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb

from tests.conformance.subjects import Subject, Tensor
from tests.conformance.tensors import TYPED_FIELDS, Array, from_elements, from_raw, same, to_elements, to_raw

SERVICE = "/inference.GRPCInferenceService/"
TIMEOUT_S = 30.0
JSON_LENGTH = "Inference-Header-Content-Length"


@dataclass(frozen=True, slots=True)
class Refusal:
    """How a call over gRPC failed."""

    code: grpc.StatusCode
    details: str

    def __str__(self) -> str:
        return f"{self.code.name}: {self.details[:200]}"


class GrpcServer:
    """The gRPC side."""

    def __init__(self, target: str) -> None:
        self.target = target
        unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self.channel = grpc.insecure_channel(target, unlimited)

    def try_bytes(self, method: str, body: bytes, compression: grpc.Compression | None = None) -> bytes | Refusal:
        """What the server answers to these bytes."""
        try:
            call = self.channel.unary_unary(SERVICE + method)
            answer: bytes = call(body, timeout=TIMEOUT_S, compression=compression)
            return answer
        except grpc.RpcError as error:
            return Refusal(error.code(), error.details() or "")

    def try_call(self, method: str, request: Any) -> Any:
        """What the server answers: a message, or a Refusal."""
        answer = self.try_bytes(method, request.SerializeToString())
        return answer if isinstance(answer, Refusal) else getattr(pb, f"{method}Response").FromString(answer)

    def call(self, method: str, request: Any) -> Any:
        """The answer. Raises AssertionError where the server refuses."""
        answer = self.try_call(method, request)
        assert not isinstance(answer, Refusal), f"{method} was refused: {answer}"
        return answer

    def stream(self, requests: Iterable[Any]) -> list[Any] | Refusal:
        """Answers of ModelStreamInfer."""
        try:
            call = self.channel.stream_stream(SERVICE + "ModelStreamInfer")
            sent = (request.SerializeToString() for request in requests)
            return [pb.ModelStreamInferResponse.FromString(each) for each in call(sent, timeout=TIMEOUT_S)]
        except grpc.RpcError as error:
            return Refusal(error.code(), error.details() or "")

    def infer(self, request: Any) -> Any:
        """An inference's answer."""
        return self.call("ModelInfer", request)


@dataclass(frozen=True, slots=True)
class Heard:
    """An HTTP answer. Names of headers are in lower case."""

    code: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """Raises AssertionError where the body is no JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            raise AssertionError(f"HTTP {self.code} with a body that is no JSON: {self.body[:200]!r}") from None

    @property
    def answer(self) -> Any:
        """The JSON of a success. Raises AssertionError for any other code."""
        assert self.code == 200, f"HTTP {self.code}: {self.body[:200]!r}"
        return self.json


class HttpServer:
    """The HTTP side: one connection, opened anew where the server closed it."""

    def __init__(self, address: str) -> None:
        self.address = address.removeprefix("http://").rstrip("/")
        self._connection: http.client.HTTPConnection | None = None

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | dict[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Heard:
        """What the server answers."""
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        sent = {"Content-Type": "application/json", **(headers or {})} if data is not None else dict(headers or {})
        try:
            return self._ask_once(method, path, data, sent)
        except (http.client.HTTPException, OSError):
            self.close()  # a kept connection may have been closed meanwhile; a fresh one may not
        try:
            return self._ask_once(method, path, data, sent)
        except (http.client.HTTPException, OSError) as error:
            self.close()
            raise AssertionError(f"{method} {path}: no HTTP answer: {type(error).__name__}: {error}") from error

    def _ask_once(self, method: str, path: str, data: bytes | None, headers: Mapping[str, str]) -> Heard:
        if self._connection is None:
            self._connection = http.client.HTTPConnection(self.address, timeout=TIMEOUT_S)
        self._connection.request(method, path, data, dict(headers))
        answer = self._connection.getresponse()
        named = {name.lower(): value for name, value in answer.getheaders()}
        heard = Heard(answer.status, named, answer.read())
        if answer.will_close:
            self.close()
        return heard

    def close(self) -> None:
        """The connection."""
        with contextlib.suppress(OSError):
            if self._connection is not None:
                self._connection.close()
        self._connection = None


# Inference over gRPC ------------------------------------------------------------------------------------------------


def infer_request(
    subject: Subject, inputs: Mapping[str, Array] | None = None, *, typed: bool = False, **fields: Any
) -> Any:
    """A good request of gRPC, raw or typed; `fields` of the message beside it."""
    request = pb.ModelInferRequest(model_name=subject.name, **fields)
    datatypes = {tensor.name: tensor.datatype for tensor in subject.inputs}
    for name, array in (subject.request() if inputs is None else inputs).items():
        added = request.inputs.add(name=name, datatype=datatypes[name], shape=array.shape)
        if typed:
            contents = getattr(added.contents, TYPED_FIELDS[datatypes[name]])
            contents.extend(to_elements(datatypes[name], array))
        else:
            request.raw_input_contents.append(to_raw(datatypes[name], array))
    return request


def outputs_of(response: Any) -> dict[str, tuple[str, Array]]:
    """Datatype and array by name. Raises AssertionError where the message contradicts itself."""
    raw = list(response.raw_output_contents)
    assert not raw or len(raw) == len(response.outputs), f"{len(raw)} raw contents for {len(response.outputs)} outputs"
    found: dict[str, tuple[str, Array]] = {}
    for position, output in enumerate(response.outputs):
        shape = tuple(output.shape)
        assert output.name not in found, f"output {output.name!r} is there twice"
        if raw:
            assert not output.contents.ByteSize(), f"output {output.name!r} has typed contents beside raw ones"
            array = from_raw(output.datatype, shape, raw[position])
        else:
            field = TYPED_FIELDS.get(output.datatype)
            assert field, f"output {output.name!r} of {output.datatype} has no raw contents, and no typed form exists"
            array = from_elements(output.datatype, shape, list(getattr(output.contents, field)))
        found[output.name] = (output.datatype, array)
    return found


# Inference over HTTP ------------------------------------------------------------------------------------------------


def infer_path(subject: Subject, version: str = "") -> str:
    """Of inference."""
    return f"/v2/models/{subject.name}" + (f"/versions/{version}" if version else "") + "/infer"


def with_binary(document: dict[str, Any], binary: Sequence[bytes] = ()) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a request with binary tensors behind its JSON."""
    text = json.dumps(document).encode()
    return text + b"".join(binary), {JSON_LENGTH: str(len(text)), "Content-Type": "application/octet-stream"}


def json_and_rest(heard: Heard) -> tuple[Any, bytes]:
    """The JSON of an answer, and what follows it. Raises AssertionError."""
    length = heard.headers.get(JSON_LENGTH.lower())
    if length is None:
        return heard.answer, b""
    assert heard.code == 200, f"HTTP {heard.code}: {heard.body[:200]!r}"
    return json.loads(heard.body[: int(length)]), heard.body[int(length) :]


# Judging ------------------------------------------------------------------------------------------------------------


def check_outputs(subject: Subject, inputs: Mapping[str, Array], found: Mapping[str, tuple[str, Array]]) -> None:
    """All the outputs that are there are right. Raises AssertionError."""
    expected = subject.expected(inputs)
    for name, (datatype, array) in found.items():
        declared: Tensor = subject.output(name)
        assert datatype == declared.datatype, f"output {name!r} is {datatype}, declared {declared.datatype}"
        if expected is not None:
            assert array.shape == expected[name].shape, f"output {name!r}: {array.shape}, not {expected[name].shape}"
            got, wanted = (values.reshape(-1)[:4].tolist() for values in (array, expected[name]))
            assert same(datatype, array, expected[name]), f"output {name!r} is {got}..., not {wanted}..."
