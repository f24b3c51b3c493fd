"""Triton's generate extension: plain JSON in, plain JSON out, for models that speak text.

    POST /v2/models/M[/versions/V]/generate            one answer
    POST /v2/models/M[/versions/V]/generate_stream     any number of answers, as server-sent events

A key of the body is an input of the model, and its value the elements: one, or an array of them. `id` is the request's.
Any other key with a plain value is a parameter of the request (`sequence_id`, `priority`, ...), and `parameters` may
hold both kinds as well. An answer has `model_name`, `model_version`, the `id`, and each output under its name: one
element plainly, more as a flat array; bytes that are no text as `{"b64": "..."}`, as in V1.

The shape of an input is the model's: of dimensions of any size the last one takes the elements, and those before it are
1. Nested arrays have the shape that they show.

`generate` of a model that gives none or several answers is an error; `generate_stream` is for any model.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mesh.endpoint.rest.calls import HttpCalls
from mesh.endpoint.rest.events import Events, next_answer
from mesh.endpoint.rest.v2 import model_of, model_paths, off_the_loop
from mesh.transport.base import ReplyWithTrailers, StatusCode, TransportError
from mesh.wire import messages
from mesh.wire.errors import InvalidMessage
from mesh.wire.generated import inference_pb2
from mesh.wire.json_tensors import encodable, json_from_array, parse_object, refuse_parameters, set_parameters, to_json
from mesh.wire.tensors import decode_response, encode_request
from mesh.wire.v1_bodies import nested_array, text_or_base64
from runtime_adapters.base import DYNAMIC, Array

ID, PARAMETERS = "id", "parameters"
_PLAIN = (bool, int, float, str)


class GenerateRest:
    """Handlers."""

    def __init__(self, calls: HttpCalls) -> None:
        self._calls = calls

    def routes(self) -> list[Route]:
        """To stand before the routes of V2: a model's name may hold slashes."""
        return [
            Route(f"{model}/{verb}", self._calls.answering(handler), methods=["POST"])
            for model in model_paths()
            for verb, handler in (("generate", self.generate), ("generate_stream", self.generate_stream))
        ]

    async def generate(self, request: Request) -> Response:
        """Run a model that gives one answer."""
        async with self._calls.body(request) as body:
            message = await self._message(request, body)
            try:
                reply = await self._calls.ask(request, messages.MODEL_INFER, message)
            except TransportError as error:
                if error.status is not StatusCode.UNIMPLEMENTED:
                    raise
                reply = ReplyWithTrailers(await self._only_answer(request, message), ())  # it only streams
        text = await off_the_loop(len(reply.body), lambda: answer_as_json(reply.body))
        return Response(text, headers=dict(reply.trailers), media_type="application/json")

    async def _only_answer(self, request: Request, message: bytes) -> bytes:
        async with contextlib.aclosing(self._calls.answers(request, message)) as answers:
            only = await next_answer(request, answers)
            if only is not None and await next_answer(request, answers) is None:
                return only
        found = "none" if only is None else "several"
        raise TransportError(
            StatusCode.INVALID_ARGUMENT,
            f"generate is for models with one answer, and this one gave {found}; ask by generate_stream",
        )

    async def generate_stream(self, request: Request) -> Response:
        """Run a model, and send each answer when it is there."""
        async with contextlib.AsyncExitStack() as held:
            body = await held.enter_async_context(self._calls.body(request))
            message = await self._message(request, body)
            answers = await held.enter_async_context(contextlib.aclosing(self._calls.answers(request, message)))
            first = await next_answer(request, answers)
            return Events(self._calls, request, first, answers, held.pop_all(), answer_as_json)

    async def _message(self, request: Request, body: bytes) -> bytes:
        model, version = model_of(request)
        asked = inference_pb2.ModelMetadataRequest(name=model, version=version)
        metadata = await self._calls.ask_for(request, messages.MODEL_METADATA, asked)
        return await off_the_loop(len(body), lambda: request_of(parse_object(body), metadata, model, version))


def request_of(
    body: Mapping[str, Any], metadata: inference_pb2.ModelMetadataResponse, model: str, version: str
) -> bytes:
    """The ModelInferRequest that a body stands for. Raises InvalidMessage."""
    request_id = body.get(ID, "")
    if not isinstance(request_id, str):
        raise InvalidMessage(f"id is {str(request_id)[:40]!r}; it must be text")
    inputs = {tensor.name: tensor for tensor in metadata.inputs}
    arrays: dict[str, Array] = {}
    parameters: dict[str, Any] = {}
    for key, value in _pairs(body):
        tensor = inputs.get(key)
        if tensor is not None:
            if key in arrays:
                raise InvalidMessage(f"input {key!r} is sent twice; send it once")
            arrays[key] = _fitted(nested_array(key, tensor.datatype, _elements(value)), tensor.shape)
        elif isinstance(value, _PLAIN):
            parameters[key] = value
        else:
            raise InvalidMessage(
                f"{key[:80]!r} is no input of the model, whose inputs are {', '.join(inputs) or 'not known'}, and no "
                "parameter, which is a number, text, true or false"
            )
    refuse_parameters("the request", parameters)
    more = inference_pb2.ModelInferRequest()
    set_parameters("the request", more.parameters, parameters)
    # Protobuf joins messages that follow one another.
    return encode_request(model, arrays, (), version, encodable(request_id)) + more.SerializeToString()


def answer_as_json(reply: bytes) -> bytes:
    """The body, or the event, of one answer. Raises InvalidMessage."""
    result = decode_response(reply)
    answer: dict[str, Any] = {"model_name": result.model_name, "model_version": result.model_version}
    if result.request_id:
        answer[ID] = result.request_id
    return to_json({**answer, **{name: _plainly(name, array) for name, array in result.outputs.items()}})


def _pairs(body: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Keys and values, those in `parameters` too."""
    for key, value in body.items():
        if key == PARAMETERS and isinstance(value, dict):
            yield from value.items()
        elif key not in (ID, PARAMETERS):
            yield key, value
        elif key == PARAMETERS:
            raise InvalidMessage(f"parameters is {str(value)[:40]!r}; it must be an object")


def _elements(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _fitted(array: Array, shape: Any) -> Array:
    """Elements without a shape of their own, in the model's; where that does not fit, as they are, for the model's own
    error."""
    if array.ndim != 1:
        return array
    known = math.prod(size for size in shape if size != DYNAMIC)
    if DYNAMIC not in shape:
        return array.reshape(tuple(shape)) if known == array.size else array
    if not known or array.size % known:
        return array
    sizes = [1 if size == DYNAMIC else size for size in shape]
    sizes[len(shape) - 1 - list(reversed(shape)).index(DYNAMIC)] = array.size // known
    return array.reshape(sizes)


def _plainly(name: str, array: Array) -> Any:
    if array.dtype == object:
        elements: list[Any] = [text_or_base64(each) for each in array.flat]
    else:
        elements = json_from_array(name, array)
    return elements[0] if len(elements) == 1 else elements
