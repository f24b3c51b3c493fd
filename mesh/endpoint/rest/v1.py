"""The V1 protocol, which TensorFlow Serving began and KServe goes on with: `/v1/models`.

    GET  /                          {"status": "alive"}, as KServe's servers say it
    GET  /v1/models                 names of the registered models
    GET  /v1/models/M               whether M is ready
    POST /v1/models/M:explain       the same body -> {"explanations": ...}, or {"outputs": ...}
    POST /v1/models/M:predict       {"instances": ...} -> {"predictions": ...}, or {"inputs": ...} -> {"outputs": ...}

A V1 request says neither names nor datatypes, so both come from the model's metadata:

* `instances`: one element for each row. A row is the value of the model's first input (its others are
  then those that it can do without), or an object of its inputs.
* `inputs`: whole tensors; an object of the model's inputs, or the value of its first one.
* Predictions are rows in the same manner: plain where the model has one output, else an object of its outputs.
* Bytes are text, or `{"b64": "..."}`: in an answer those that are no text.

A model with an input V1_BODY (`runtime_adapters.base`) reads the body itself, and what it answers is the answer.

`:explain` asks for the model's explanations in place of its predictions (`runtime_adapters.base.EXPLANATION`): tree
models answer with exact contributions, custom Python models with their `explain`. Others have none, which is 501.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mesh.endpoint.rest.calls import HttpCalls, json_response
from mesh.endpoint.rest.v2 import check_ready, explanations_of, model_names, off_the_loop
from mesh.transport.base import StatusCode, TransportError
from mesh.wire import messages
from mesh.wire.errors import InvalidMessage
from mesh.wire.generated import inference_pb2
from mesh.wire.json_tensors import elements_as_array, json_from_array, parse_object, to_json
from mesh.wire.tensors import RANK_MAX, decode_response, encode_request
from runtime_adapters.base import V1_BODY, Array

Inputs = Mapping[str, str]
"""Name -> datatype."""


class V1Rest:
    """Handlers of `/v1`."""

    def __init__(self, calls: HttpCalls) -> None:
        self._calls = calls

    def routes(self) -> list[Route]:
        """A model's name may hold slashes and colons."""
        answering = self._calls.answering
        return [
            Route("/", answering(self.alive), methods=["GET"]),
            Route("/v1/models", answering(self.models), methods=["GET"]),
            Route("/v1/models/{model:path}:predict", answering(self.predict), methods=["POST"]),
            Route("/v1/models/{model:path}:explain", answering(self.explain), methods=["POST"]),
            Route("/v1/models/{model:path}", answering(self.model), methods=["GET"]),
        ]

    async def alive(self, request: Request) -> Response:
        """The process answers."""
        await self._calls.ask_for(request, messages.SERVER_LIVE, inference_pb2.ServerLiveRequest())
        return json_response({"status": "alive"})

    async def models(self, request: Request) -> Response:
        """Names, in order."""
        return json_response({"models": await model_names(self._calls, request)})

    async def model(self, request: Request) -> Response:
        """Whether it is ready."""
        model = str(request.path_params["model"])
        await check_ready(self._calls, request, model)
        return json_response({"name": model, "ready": True})

    async def predict(self, request: Request) -> Response:
        """Run a model once."""
        return await self._run(request, "predictions", lambda metadata: ())

    async def explain(self, request: Request) -> Response:
        """What made a model predict what it does."""
        return await self._run(request, "explanations", explanations_of)

    async def _run(
        self,
        request: Request,
        word: str,
        outputs_of: Callable[[inference_pb2.ModelMetadataResponse], tuple[str, ...]],
    ) -> Response:
        """`word`: for what comes back by row. `outputs_of`: those asked for; none: those that nobody has to name."""
        model = str(request.path_params["model"])
        async with self._calls.body(request) as body:
            asked = inference_pb2.ModelMetadataRequest(name=model)
            metadata = await self._calls.ask_for(request, messages.MODEL_METADATA, asked)
            inputs = {tensor.name: tensor.datatype for tensor in metadata.inputs}
            outputs = outputs_of(metadata)
            if V1_BODY in inputs:
                return await self._read_by_the_model(request, model, body, outputs or (V1_BODY,))

            def translate() -> tuple[bytes, bool]:
                arrays, by_row = arrays_of(parse_object(body), inputs)
                return encode_request(model, arrays, outputs), by_row

            message, by_row = await off_the_loop(len(body), translate)
            reply = await self._calls.ask(request, messages.MODEL_INFER, message)
        answer = await off_the_loop(len(reply.body), lambda: to_json(answer_of(reply.body, by_row, word)))
        return Response(answer, headers=dict(reply.trailers), media_type="application/json")

    async def _read_by_the_model(self, request: Request, model: str, body: bytes, outputs: tuple[str, ...]) -> Response:
        await off_the_loop(len(body), lambda: parse_object(body))
        message = encode_request(model, {V1_BODY: np.array([body], np.object_)}, outputs)
        reply = await self._calls.ask(request, messages.MODEL_INFER, message)
        found = [array for array in decode_response(reply.body).outputs.values() if array.dtype == np.object_]
        if len(found) != 1 or found[0].size != 1:
            raise TransportError(StatusCode.INTERNAL, f"model {model!r} answered a V1 request, but not with one body")
        return Response(found[0].item(), headers=dict(reply.trailers), media_type="application/json")


def arrays_of(body: Mapping[str, Any], inputs: Inputs) -> tuple[dict[str, Array], bool]:
    """The model's inputs, and whether they came by row. Raises InvalidMessage."""
    by_row = "instances" in body
    if by_row == ("inputs" in body):
        raise InvalidMessage('the body must have either "instances" (rows) or "inputs" (whole tensors)')
    if by_row:
        rows = body["instances"]
        if not isinstance(rows, list) or not rows:
            raise InvalidMessage('"instances" must be an array of at least one row')
        if all(_is_named(row) for row in rows):
            if any(row.keys() != rows[0].keys() for row in rows):
                raise InvalidMessage('"instances" must name the same inputs in each row')
            return _named({name: [row[name] for row in rows] for name in rows[0]}, inputs), True
        return {(first := _first(inputs)): nested_array(first, inputs[first], rows)}, True
    whole = body["inputs"]
    if _is_named(whole):
        return _named(whole, inputs), False
    return {(first := _first(inputs)): nested_array(first, inputs[first], whole)}, False


def answer_of(reply: bytes, by_row: bool, word: str = "predictions") -> dict[str, Any]:
    """The answer's body; `word`: for its rows. Raises InvalidMessage."""
    outputs = {name: _nested(name, array) for name, array in decode_response(reply).outputs.items()}
    if not by_row:
        return {"outputs": outputs if len(outputs) > 1 else next(iter(outputs.values()), [])}
    if len(outputs) == 1:
        return {word: next(iter(outputs.values()))}
    if len({len(value) if isinstance(value, list) else -1 for value in outputs.values()}) != 1:
        raise InvalidMessage('the model\'s outputs have not a row each; ask with "inputs" in place of "instances"')
    return {word: [dict(zip(outputs, row, strict=True)) for row in zip(*outputs.values(), strict=True)]}


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() != {"b64"}


def _first(inputs: Inputs) -> str:
    if not inputs:
        raise InvalidMessage("the model tells of no input; say which one is meant: an object by name")
    return next(iter(inputs))


def _named(values: Mapping[str, Any], inputs: Inputs) -> dict[str, Array]:
    if unknown := [name for name in values if name not in inputs]:
        raise InvalidMessage(f"the model has no input {unknown[0]!r}; it has: {', '.join(inputs)}")
    return {name: nested_array(name, inputs[name], value) for name, value in values.items()}


def nested_array(name: str, datatype: str, value: Any) -> Array:
    """Of any shape: V1 says none, so the nesting does. Raises InvalidMessage."""
    shape: list[int] = []
    level = [value]
    while level and all(type(each) is list for each in level):
        sizes = {len(each) for each in level}
        if len(shape) == RANK_MAX:
            raise InvalidMessage(f"tensor {name!r}: more than {RANK_MAX} arrays in one another")
        if len(sizes) > 1:
            raise InvalidMessage(f"tensor {name!r}: its rows are of different lengths")
        shape.append(sizes.pop())
        level = [element for each in level for element in each]
    if any(type(each) is list for each in level):
        raise InvalidMessage(f"tensor {name!r}: an array beside a plain element on one level")
    if datatype == "BYTES" and any(type(each) is dict for each in level):
        array = np.empty(len(level), np.object_)
        array[:] = [_bytes_of(name, each) for each in level]
        return array.reshape(shape)
    return elements_as_array(name, datatype, level).reshape(shape)


def _bytes_of(name: str, element: Any) -> bytes:
    try:
        return element.encode() if isinstance(element, str) else base64.b64decode(element["b64"], validate=True)
    except (TypeError, KeyError, ValueError) as error:
        raise InvalidMessage(f'tensor {name!r}: an element is neither text nor {{"b64": "..."}}') from error


def _nested(name: str, array: Array) -> Any:
    elements = np.empty(array.size, np.object_)
    is_bytes = array.dtype == np.object_
    elements[:] = [text_or_base64(each) for each in array.flat] if is_bytes else json_from_array(name, array)
    return elements.reshape(array.shape).tolist()


def text_or_base64(element: bytes) -> str | dict[str, str]:
    try:
        return element.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(element).decode()}
