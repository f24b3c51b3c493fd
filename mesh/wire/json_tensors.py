"""V2 tensors in JSON: between the REST protocol's requests and answers and the same messages in protobuf.

A REST request is turned into the ModelInferRequest that a gRPC client would have sent, and the answer back, so that one
core serves both and a request may be forwarded to another pod as it is. Two forms of a tensor:

* `data`: a JSON array of its elements, flat or nested, in row-major order. Numbers must be numbers of the datatype:
  text is not parsed, fractions are not cut, and whole numbers that do not fit are refused. Fractions are rounded, as
  everywhere: 1e300 is infinity in FP32.
* the binary tensor extension: `parameters.binary_data_size` bytes behind the JSON, whose own length stands in a header.
  They are taken as they are.

JSON has no NaN and no infinity; in an answer they become null. Who needs them asks for binary data. FP16 and BF16 are
written as numbers, which loses nothing.

Deliberately absent: HTTP, and anything about a particular model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mesh.wire.errors import InvalidMessage
from mesh.wire.generated.inference_pb2 import ModelInferRequest, ModelInferResponse
from mesh.wire.messages import FAILED_STEP
from mesh.wire.peek import RAW_INPUTS, RAW_OUTPUTS, peek
from mesh.wire.tensors import (
    RANK_MAX,
    Buffer,
    decode_raw,
    decode_response,
    encode_tensor,
    parsed_beside_raw,
    with_raw,
)
from runtime_adapters.base import Array
from runtime_adapters.datatypes import DTYPE_OF, datatype_of

BINARY_SIZE = "binary_data_size"
REGION = "shared_memory_region"
REFUSED_PARAMETERS = {
    "classification": "the classification extension is not supported here; ask for the plain output",
}
"""Ignoring it would change what the answer means; others are ignored, as over gRPC."""
_SIZE_MAX = 2**63 - 1
"""Of a dimension: the message has no larger ones."""


@dataclass(frozen=True, slots=True)
class WantedForms:
    """Which outputs the client wants in binary: those named, and the others as `others` says."""

    by_output: Mapping[str, bool]
    others: bool

    def is_binary(self, output: str) -> bool:
        """The form of one output."""
        return self.by_output.get(output, self.others)


def parse_object(text: Buffer, what: str = "the body") -> dict[str, Any]:
    """A JSON object. Raises InvalidMessage."""
    try:
        parsed = json.loads(bytes(text))
    except (ValueError, RecursionError) as error:
        raise InvalidMessage(f"{what} is not JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise InvalidMessage(f"{what} is JSON, but not an object")
    return parsed


def infer_request_from_json(
    body: bytes, json_length: int | None, model: str, version: str
) -> tuple[bytes, WantedForms, str]:
    """The ModelInferRequest, the forms of its outputs, and its id. `json_length`: bytes of JSON before the binary data.

    Raises InvalidMessage.
    """
    if json_length is not None and not 0 <= json_length <= len(body):
        raise InvalidMessage(f"the header says {json_length} bytes of JSON, and the body has {len(body)}")
    view = memoryview(body)
    request = parse_object(view if json_length is None else view[:json_length])
    binary = view[len(view) if json_length is None else json_length :]
    refuse_parameters("request", _mapping(request, "parameters"))
    message = ModelInferRequest()
    raw: list[Buffer] = []
    set_parameters("the request", message.parameters, _mapping(request, "parameters"))
    for tensor in _objects(request, "inputs"):
        name, datatype, shape = _text(tensor, "name"), _text(tensor, "datatype"), _shape(tensor)
        parameters = _mapping(tensor, "parameters")
        refuse_parameters(f"input {name!r}", parameters)
        if any(name == each.name for each in message.inputs):
            raise InvalidMessage(f"input {name!r} is sent twice; every input has its own name")
        described = message.inputs.add(name=encodable(name), datatype=datatype, shape=shape)
        if parameters.get(REGION):
            if datatype not in DTYPE_OF:
                raise InvalidMessage(f"tensor {name!r}: unknown datatype {datatype!r}")
            set_parameters(f"input {name!r}", described.parameters, parameters)
            continue
        size = parameters.get(BINARY_SIZE)
        if size is None:
            raw.append(encode_tensor(name, array_from_json(name, datatype, shape, tensor.get("data")))[1])
            continue
        if type(size) is not int or not 0 <= size <= len(binary):
            raise InvalidMessage(f"input {name!r}: {BINARY_SIZE} is {size!r}, and {len(binary)} bytes are left for it")
        decode_raw(name, datatype, shape, binary[:size])  # refuses what does not fit, in the words of this form
        raw.append(binary[:size])
        binary = binary[size:]
    if len(binary):
        raise InvalidMessage(f"{len(binary)} bytes of binary data are left over; no input claims them")
    forms: dict[str, bool] = {}
    for output in _objects(request, "outputs", required=False):
        name, parameters = _text(output, "name"), _mapping(output, "parameters")
        refuse_parameters(f"output {name!r}", parameters)
        if name in forms:
            raise InvalidMessage(f"output {name!r} is asked for twice; ask for it once")
        forms[name] = parameters.get("binary_data") is True
        wanted = message.outputs.add(name=encodable(name))
        if parameters.get(REGION):
            set_parameters(f"output {name!r}", wanted.parameters, parameters)
    others = _mapping(request, "parameters").get("binary_data_output") is True
    request_id = request.get("id", "")
    if not isinstance(request_id, str):
        raise InvalidMessage(f"id is {_kind(request_id)}; it must be text")
    message.model_name, message.model_version = encodable(model), encodable(version)
    message.id = encodable(request_id)
    return with_raw(message.SerializeToString(), RAW_INPUTS, raw), WantedForms(forms, others), request_id


def infer_response_to_json(reply: bytes, forms: WantedForms) -> tuple[bytes, int | None]:
    """The body of the answer; and the length of its JSON, where binary data follows. Raises InvalidMessage."""
    outputs: list[dict[str, Any]] = []
    if REGION.encode() in reply:
        reply, outputs = _beside_references(reply)
    result = decode_response(reply)
    binary: list[Buffer] = []
    for name, array in result.outputs.items():
        described: dict[str, Any] = {"name": name, "datatype": datatype_of(array.dtype), "shape": list(array.shape)}
        if forms.is_binary(name):
            _, data = encode_tensor(name, array)
            described["parameters"] = {BINARY_SIZE: len(data)}
            binary.append(data)
        else:
            described["data"] = json_from_array(name, array)
        outputs.append(described)
    answer = {"model_name": result.model_name, "model_version": result.model_version}
    if result.request_id:
        answer["id"] = result.request_id
    told = _parameters(reply) if FAILED_STEP.encode() in reply else {}
    text = to_json({**answer, **({"parameters": told} if told else {}), "outputs": outputs})
    return (b"".join([text, *binary]), len(text)) if binary else (text, None)


def _parameters(reply: bytes) -> dict[str, Any]:
    """Those of an answer as a whole."""
    parameters = parsed_beside_raw(ModelInferResponse, reply, peek(reply, RAW_OUTPUTS)).parameters
    return {key: getattr(each, each.WhichOneof("parameter_choice")) for key, each in parameters.items()}


def _beside_references(reply: bytes) -> tuple[bytes, list[dict[str, Any]]]:
    """The answer without the outputs that lie in shared memory, and those as JSON."""
    envelope = peek(reply, RAW_OUTPUTS)
    response = parsed_beside_raw(ModelInferResponse, reply, envelope)
    raw: list[Buffer] = [reply[begin:end] for begin, end in envelope.raw]
    outputs: list[dict[str, Any]] = []
    for position in reversed(range(len(response.outputs))):
        output = response.outputs[position]
        if REGION not in output.parameters:
            continue
        described = {"name": output.name, "datatype": output.datatype, "shape": list(output.shape)}
        values = {key: getattr(each, each.WhichOneof("parameter_choice")) for key, each in output.parameters.items()}
        outputs.insert(0, {**described, "parameters": values})
        del response.outputs[position], raw[position]
    return with_raw(response.SerializeToString(), RAW_OUTPUTS, raw), outputs


def set_parameters(what: str, into: Any, parameters: Mapping[str, Any]) -> None:
    """Write the scalars among the parameters; the others mean nothing to anybody. Raises InvalidMessage."""
    for key, value in parameters.items():
        if isinstance(value, bool):
            into[encodable(key)].bool_param = value
        elif isinstance(value, int):
            if not -(2**63) <= value < 2**64:
                raise InvalidMessage(f"{what}, parameter {key!r}: {str(value)[:40]} has more than 64 bits")
            if value < 2**63:
                into[encodable(key)].int64_param = value
            else:
                into[encodable(key)].uint64_param = value
        elif isinstance(value, float):
            into[encodable(key)].double_param = value
        elif isinstance(value, str):
            into[encodable(key)].string_param = encodable(value)


def encodable(text: str) -> str:
    """Raises InvalidMessage for text that cannot be written."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidMessage("the request holds half of a surrogate pair, which is no character") from error
    return text


def to_json(value: Any) -> bytes:
    """As it goes over the line."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def array_from_json(name: str, datatype: str, shape: tuple[int, ...], data: Any) -> Array:
    """A tensor of this shape. Raises InvalidMessage when the elements are others, or not so many."""
    dtype = DTYPE_OF.get(datatype)
    if dtype is None:
        raise InvalidMessage(f"tensor {name!r}: unknown datatype {datatype!r}; allowed: {', '.join(DTYPE_OF)}")
    if not isinstance(data, list):
        raise InvalidMessage(f"tensor {name!r}: data is {_kind(data)}; it must be an array of its elements")
    elements = _flat(data)
    if len(elements) != math.prod(shape):
        raise InvalidMessage(
            f"tensor {name!r}: shape {list(shape)} takes {math.prod(shape)} elements, {len(elements)} were sent"
        )
    array = elements_as_array(name, datatype, elements)
    try:
        return array.reshape(shape)
    except ValueError as error:
        raise InvalidMessage(f"tensor {name!r}: shape {list(shape)[:8]}... is beyond what can be held") from error


def elements_as_array(name: str, datatype: str, elements: list[Any]) -> Array:
    """Parsed JSON values as a flat array. Raises InvalidMessage for what is not of the datatype."""
    dtype = DTYPE_OF[datatype]
    allowed: set[type] = {str} if datatype == "BYTES" else {bool} if datatype == "BOOL" else {int}
    if dtype.kind not in "iubO":  # bfloat16 is of NumPy's kind V
        allowed = {int, float}
    if wrong := set(map(type, elements)) - allowed:
        example = next(each for each in elements if type(each) in wrong)
        raise InvalidMessage(f"tensor {name!r}: {_kind(example)} ({str(example)[:40]!r}) is no element of {datatype}")
    if datatype == "BYTES":
        array = np.empty(len(elements), np.object_)
        try:
            array[:] = [each.encode() for each in elements]
        except UnicodeEncodeError as error:
            raise InvalidMessage(f"tensor {name!r} holds half of a surrogate pair, which is no character") from error
        return array
    if dtype.kind in "iu" and elements:
        limits = np.iinfo(dtype)
        low, high = min(elements), max(elements)
        if low < limits.min or high > limits.max:
            raise InvalidMessage(
                f"tensor {name!r}: {str(low if low < limits.min else high)[:40]} is outside {datatype} "
                f"({limits.min} to {limits.max})"
            )
    try:
        with np.errstate(over="ignore"):
            return np.array(elements if dtype.kind != "V" else [float(each) for each in elements], dtype)
    except OverflowError as error:
        raise InvalidMessage(f"tensor {name!r} holds a number that {datatype} cannot hold") from error


def json_from_array(name: str, array: Array) -> list[Any]:
    """The elements, flat. Raises InvalidMessage for bytes that are no text."""
    flat = array.reshape(-1)
    if array.dtype == np.object_:
        try:
            return [each if isinstance(each, str) else each.decode() for each in flat.tolist()]
        except UnicodeDecodeError as error:
            raise InvalidMessage(
                f"output {name!r} holds bytes that are no UTF-8 text, which JSON cannot carry; ask for it with "
                '"parameters": {"binary_data": true}'
            ) from error
    if array.dtype.kind in "iub":
        elements: list[Any] = flat.tolist()
        return elements
    if flat.dtype.itemsize < 4:
        flat = flat.astype(np.float32)
    elements = flat.tolist()
    return elements if np.isfinite(flat).all() else [each if math.isfinite(each) else None for each in elements]


def refuse_parameters(what: str, parameters: Mapping[str, Any]) -> None:
    """Raises InvalidMessage for a parameter that must not be ignored."""
    for key, reason in REFUSED_PARAMETERS.items():
        if parameters.get(key):
            raise InvalidMessage(f"{what}, parameter {key!r}: {reason}")


def _flat(data: list[Any]) -> list[Any]:
    level = data
    while any(type(each) is list for each in level):
        if not all(type(each) is list for each in level):
            raise InvalidMessage("a nested array mixes arrays and elements on one level")
        level = [element for each in level for element in each]
    return level


def _objects(message: Mapping[str, Any], field: str, *, required: bool = True) -> list[dict[str, Any]]:
    found = message.get(field)
    if found is None and not required:
        return []
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise InvalidMessage(f"{field} is {_kind(found)}; it must be an array of objects")
    return found


def _mapping(message: Mapping[str, Any], field: str) -> Mapping[str, Any]:
    found = message.get(field)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise InvalidMessage(f"{field} is {_kind(found)}; it must be an object")
    return found


def _text(message: Mapping[str, Any], field: str) -> str:
    found = message.get(field)
    if not isinstance(found, str) or not found:
        raise InvalidMessage(f"{field} of a tensor is {_kind(found)}; it must be text")
    return found


def _shape(tensor: Mapping[str, Any]) -> tuple[int, ...]:
    shape = tensor.get("shape")
    if not isinstance(shape, list) or not all(type(size) is int and 0 <= size <= _SIZE_MAX for size in shape):
        raise InvalidMessage(
            f"input {tensor.get('name')!r}: shape must be an array of whole numbers from 0, of 64 bits"
        )
    if len(shape) > RANK_MAX:
        raise InvalidMessage(f"input {tensor.get('name')!r}: {len(shape)} dimensions; at most {RANK_MAX} are")
    return tuple(shape)


def _kind(value: Any) -> str:
    kinds = {type(None): "missing or null", bool: "a boolean", int: "a whole number", float: "a number", str: "text"}
    return kinds.get(type(value), "an array" if isinstance(value, list) else "an object")
