"""V2 tensors: between protobuf messages and NumPy arrays, both ways, for server and client.

Copies are what this costs, so there are as few as the format allows. Raw contents are not handed to protobuf, which
would copy them twice: `mesh.wire.peek` finds where they lie, the parser gets the rest of the message, and the arrays
are read-only views of the received bytes (a copy only where the bytes lie unaligned for their datatype, which native
frameworks may not read). Outgoing tensors are appended to the serialised rest in one join.

What a request says about a tensor is believed nowhere: element counts are computed in Python's integers, which do not
overflow, and compared with the bytes that came before anything is allocated from them.

All datatypes of `runtime_adapters.datatypes`. Typed `contents` are accepted on input, as the protocol has it; FP16
and BF16 have no typed form. Everything sent is raw, because that is what clients read.

Unknown `parameters`, of a request or of a tensor (`binary_data`, `priority`, ...), are ignored, as other V2 servers
do. Two are refused, because ignoring them would change what the answer means: `shared_memory_region`, where the
tensor is not in the message at all, and `classification`.

Deliberately absent: anything about a particular model's inputs (`runtime_adapters.validation`), and big-endian hosts.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from mesh.wire.errors import InvalidMessage, UnsendableOutput
from mesh.wire.generated.inference_pb2 import InferTensorContents, ModelInferRequest, ModelInferResponse
from mesh.wire.peek import RAW_INPUTS, RAW_OUTPUTS, Envelope, peek
from mesh.wire.request_options import NO_OPTIONS, RequestOptions, options_of
from runtime_adapters.base import Array
from runtime_adapters.datatypes import DTYPE_OF, datatype_of

Buffer = bytes | memoryview
M = TypeVar("M", ModelInferRequest, ModelInferResponse)

_REFUSED_PARAMETERS = {
    "shared_memory_region": "no shared memory region is registered with the pod that was called; register it there",
    "classification": "the classification extension is not supported here; ask for the plain output",
}

_TYPED_FIELD_OF = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""Where each datatype's typed elements stand. FP16 and BF16 are missing: they travel raw."""

_NARROW = frozenset({"INT8", "INT16", "UINT8", "UINT16"})
"""Datatypes smaller than the field that carries them: their values are checked, not wrapped."""

_LENGTH = struct.Struct("<I")
COPIED_BYTES_MAX = 4096
"""Contents up to this size are copied once more on their way out: a seventh of the time of making a view."""
RANK_MAX = 64
"""Dimensions of a tensor: NumPy's limit. Checked before they are multiplied, since the product of a million
dimensions is a number that takes minutes to compute."""


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A ModelInferRequest, decoded. `outputs` are the names asked for, in order; empty: the model's default ones."""

    model_name: str
    model_version: str
    request_id: str
    tensors: dict[str, Array]
    datatypes: dict[str, str]
    outputs: tuple[str, ...]
    options: RequestOptions = NO_OPTIONS


@dataclass(frozen=True, slots=True)
class InferResult:
    """A ModelInferResponse, decoded."""

    model_name: str
    model_version: str
    request_id: str
    outputs: dict[str, Array]


def decode_request(body: Buffer, envelope: Envelope | None = None, *, aligned: bool = True) -> InferRequest:
    """Read a ModelInferRequest. `envelope` is `peek(body)`, when the caller has it already; not `aligned`: tensors may
    be views of bytes that lie unaligned. Raises InvalidMessage."""
    if envelope is None:
        envelope = peek(body, RAW_INPUTS)
    request = parsed_beside_raw(ModelInferRequest, body, envelope)
    if request.parameters:
        _refuse_parameters("request", request.id, request.parameters)
    tensors, datatypes = _decode_tensors("input", request.inputs, _views(body, envelope), aligned)
    outputs: dict[str, None] = {}
    for output in request.outputs:
        if output.parameters:
            _refuse_parameters("output", output.name, output.parameters)
        if output.name in outputs:
            raise InvalidMessage(f"output {output.name!r} is asked for twice; ask for it once")
        outputs[output.name] = None
    return InferRequest(
        envelope.model_name,
        envelope.model_version,
        envelope.request_id,
        tensors,
        datatypes,
        tuple(outputs),
        options_of(request.parameters),
    )


def encode_response(
    model_name: str, model_version: str, request_id: str, outputs: Mapping[str, Array], order: Sequence[str] = ()
) -> bytes:
    """Write a ModelInferResponse: the outputs named in `order`, or all. Raises UnsendableOutput."""
    response = ModelInferResponse(model_name=model_name, model_version=model_version, id=request_id)
    raw: list[Buffer] = []
    for name in order or outputs:
        array = outputs.get(name)
        if array is None:
            given = ", ".join(sorted(outputs)) or "none"
            raise UnsendableOutput(f"the model gave no output {name!r}; it gave: {given}")
        datatype, data = encode_tensor(name, array)
        response.outputs.add(name=name, datatype=datatype, shape=array.shape)
        raw.append(data)
    return with_raw(response.SerializeToString(), RAW_OUTPUTS, raw)


def encode_request(
    model_name: str,
    inputs: Mapping[str, Array],
    outputs: Sequence[str] = (),
    model_version: str = "",
    request_id: str = "",
    parameters: Mapping[str, bool | int | float | str] | None = None,
) -> bytes:
    """Write a ModelInferRequest (for clients). Raises UnsendableOutput, which then speaks of an input."""
    request = ModelInferRequest(model_name=model_name, model_version=model_version, id=request_id)
    for key, value in (parameters or {}).items():
        _set_parameter(request, key, value)
    raw: list[Buffer] = []
    for name, array in inputs.items():
        datatype, data = encode_tensor(name, array)
        request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        raw.append(data)
    for name in outputs:
        request.outputs.add(name=name)
    return with_raw(request.SerializeToString(), RAW_INPUTS, raw)


def _set_parameter(request: ModelInferRequest, key: str, value: bool | int | float | str) -> None:
    parameter = request.parameters[key]
    try:
        if isinstance(value, bool):  # first, since it is an int
            parameter.bool_param = value
        elif isinstance(value, int):
            parameter.int64_param = value
        elif isinstance(value, float):
            parameter.double_param = value
        else:
            parameter.string_param = value
    except (TypeError, ValueError) as error:
        raise UnsendableOutput(
            f"parameter {key!r} is {value!r}; a parameter is true or false, a whole number of 64 bits, a number or text"
        ) from error


def decode_response(body: Buffer) -> InferResult:
    """Read a ModelInferResponse (for clients). Raises InvalidMessage."""
    envelope = peek(body, RAW_OUTPUTS)
    try:
        response = ModelInferResponse.FromString(_rest(body, envelope))
    except Exception as error:
        raise InvalidMessage("the answer is not a ModelInferResponse: protobuf cannot read it") from error
    tensors, _ = _decode_tensors("output", response.outputs, _views(body, envelope))
    return InferResult(envelope.model_name, envelope.model_version, envelope.request_id, tensors)


def encode_tensor(name: str, array: Array) -> tuple[str, Buffer]:
    """The V2 datatype of an array and its raw contents (a view where the array is contiguous)."""
    datatype = datatype_of(array.dtype)
    if datatype is None:
        raise UnsendableOutput(f"tensor {name!r} is {array.dtype}, which the V2 protocol has no datatype for")
    if datatype == "BYTES":
        return datatype, _encode_elements(name, array)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return datatype, contents_of(array)


def contents_of(array: Array) -> Buffer:
    """The raw contents of an array of numbers in this machine's order of bytes: a view where it is contiguous, but for
    a small one a copy, which takes less time to make."""
    if array.nbytes <= COPIED_BYTES_MAX:
        return array.tobytes()
    # Through bytes (uint8), because bfloat16 and float16 are no formats that a memoryview can be cast from.
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def decode_raw(name: str, datatype: str, shape: tuple[int, ...], data: Buffer, aligned: bool = True) -> Array:
    """An array of this shape over raw contents. Raises InvalidMessage when they do not fit one another."""
    count = _element_count(name, shape)
    dtype = _dtype(name, datatype)
    if datatype == "BYTES":
        return _shaped(name, _decode_elements(name, shape, count, data), shape)
    expected_bytes = count * dtype.itemsize
    if len(data) != expected_bytes:
        raise InvalidMessage(
            f"tensor {name!r}: {datatype} of shape {list(shape)} takes {expected_bytes} bytes of raw contents, "
            f"{len(data)} were sent"
        )
    if datatype == "BOOL":
        flags = np.frombuffer(data, np.uint8)
        # Any byte but 0 is true, and NumPy's own bool is undefined for bytes above 1.
        return _shaped(name, flags.view(np.bool_) if count == 0 or flags.max() <= 1 else flags != 0, shape)
    array = np.frombuffer(data, dtype)
    return _shaped(name, array if array.flags.aligned or not aligned else array.copy(), shape)


def _decode_tensors(
    kind: str, tensors: Iterable[Any], raw: Sequence[memoryview], aligned: bool = True
) -> tuple[dict[str, Array], dict[str, str]]:
    described = list(tensors)
    typed = [tensor.name for tensor in described if tensor.HasField("contents") and tensor.contents.ByteSize()]
    if raw and typed:
        raise InvalidMessage(
            f"{kind} {typed[0]!r} has typed contents, and the message has raw contents too; send all tensors one way"
        )
    if raw and len(raw) != len(described):
        raise InvalidMessage(
            f"the message describes {len(described)} {kind}s and holds raw contents for {len(raw)}; "
            f"send one entry for each, in order"
        )
    arrays: dict[str, Array] = {}
    datatypes: dict[str, str] = {}
    for position, tensor in enumerate(described):
        name, datatype, shape = tensor.name, tensor.datatype, tuple(tensor.shape)
        if name in arrays:
            raise InvalidMessage(f"{kind} {name!r} is sent twice; every {kind} has its own name")
        if tensor.parameters:
            _refuse_parameters(kind, name, tensor.parameters)
        if raw:
            arrays[name] = decode_raw(name, datatype, shape, raw[position], aligned)
        else:
            arrays[name] = _decode_typed(name, datatype, shape, tensor.contents)
        datatypes[name] = datatype
    return arrays, datatypes


def _decode_typed(name: str, datatype: str, shape: tuple[int, ...], contents: InferTensorContents) -> Array:
    count = _element_count(name, shape)
    dtype = _dtype(name, datatype)
    field = _TYPED_FIELD_OF.get(datatype)
    if field is None:
        if count == 0:
            return _shaped(name, np.empty(0, dtype), shape)
        raise InvalidMessage(f"tensor {name!r}: {datatype} has no typed form; send it in raw_input_contents")
    for other, _ in contents.ListFields():
        if other.name != field:
            raise InvalidMessage(f"tensor {name!r}: {datatype} belongs in {field}, {other.name} was filled")
    elements = getattr(contents, field)
    if len(elements) != count:
        raise InvalidMessage(
            f"tensor {name!r}: shape {list(shape)} takes {count} elements, {field} holds {len(elements)}"
        )
    if datatype in _NARROW:
        wide = np.array(elements, np.int64)
        limits = np.iinfo(dtype)
        if count and (wide.min() < limits.min or wide.max() > limits.max):
            raise InvalidMessage(
                f"tensor {name!r}: a value of {field} is outside {datatype} ({limits.min} to {limits.max})"
            )
        return _shaped(name, wide.astype(dtype), shape)
    if datatype == "BYTES":
        return _shaped(name, _object_array(list(elements)), shape)
    return _shaped(name, np.array(elements, dtype), shape)


def _encode_elements(name: str, array: Array) -> bytes:
    parts: list[bytes] = []
    for element in array.reshape(-1).tolist():
        if isinstance(element, str):
            element = element.encode()
        elif not isinstance(element, bytes):
            raise UnsendableOutput(
                f"tensor {name!r} holds {type(element).__name__}; an object array is sent as BYTES and may hold "
                f"bytes and str only"
            )
        parts.append(_LENGTH.pack(len(element)))
        parts.append(element)
    return b"".join(parts)


def _decode_elements(name: str, shape: tuple[int, ...], count: int, data: Buffer) -> Array:
    size = len(data)
    if count * _LENGTH.size > size:
        raise InvalidMessage(
            f"tensor {name!r}: shape {list(shape)} takes {count} BYTES elements of 4 bytes or more, "
            f"{size} bytes were sent"
        )
    elements: list[bytes] = []
    at = 0
    for index in range(count):
        begin = at + _LENGTH.size
        if begin > size:
            raise InvalidMessage(f"tensor {name!r}: the bytes end before element {index} of {count}")
        at = begin + _LENGTH.unpack_from(data, at)[0]
        if at > size:
            raise InvalidMessage(
                f"tensor {name!r}: element {index} claims {at - begin} bytes, {size - begin} are left; each element "
                f"is a 4-byte little-endian length, then its bytes"
            )
        elements.append(bytes(data[begin:at]))
    if at != size:
        raise InvalidMessage(
            f"tensor {name!r}: {size - at} bytes are left after the {count} elements that shape {list(shape)} takes"
        )
    return _object_array(elements)


def _object_array(elements: list[bytes]) -> Array:
    array = np.empty(len(elements), np.object_)
    array[:] = elements
    return array


def _element_count(name: str, shape: tuple[int, ...]) -> int:
    if len(shape) > RANK_MAX:
        raise InvalidMessage(
            f"tensor {name!r}: its {len(shape)} dimensions are beyond what can be held; at most {RANK_MAX} are"
        )
    if shape and min(shape) < 0:
        raise InvalidMessage(f"tensor {name!r}: shape {list(shape)} has a negative dimension; send the real one")
    return math.prod(shape)


def _dtype(name: str, datatype: str) -> np.dtype[Any]:
    dtype = DTYPE_OF.get(datatype)
    if dtype is None:
        raise InvalidMessage(f"tensor {name!r}: unknown datatype {datatype!r}; allowed: {', '.join(DTYPE_OF)}")
    return dtype


def _shaped(name: str, array: Array, shape: tuple[int, ...]) -> Array:
    try:
        return array.reshape(shape)
    except ValueError as error:
        # More dimensions than NumPy has, or an empty array with impossible other dimensions.
        raise InvalidMessage(f"tensor {name!r}: shape {list(shape)[:8]}... is beyond what can be held") from error


def _refuse_parameters(kind: str, name: str, parameters: Mapping[str, Any]) -> None:
    for key, reason in _REFUSED_PARAMETERS.items():
        if key in parameters:
            raise InvalidMessage(f"{kind} {name!r}, parameter {key!r}: {reason}")


def parsed_beside_raw(kind: type[M], body: Buffer, envelope: Envelope) -> M:
    """A message but for its raw tensors. Raises InvalidMessage."""
    try:
        return kind.FromString(_rest(body, envelope))
    except Exception as error:
        # protobuf's DecodeError; named by no import, because its home differs between protobuf's implementations.
        raise InvalidMessage(f"the message is not a {kind.__name__}: protobuf cannot read it") from error


def _rest(body: Buffer, envelope: Envelope) -> bytes:
    """All of the message but its raw tensors, for the parser: fields may come in pieces, in any order."""
    if len(envelope.rest) == 1:
        begin, end = envelope.rest[0]
        return bytes(body[begin:end])
    return b"".join(body[begin:end] for begin, end in envelope.rest)


def _views(body: Buffer, envelope: Envelope) -> list[memoryview]:
    view = memoryview(body).toreadonly()
    return [view[begin:end] for begin, end in envelope.raw]


def with_raw(rest: bytes, raw_field: int, raw: Sequence[Buffer]) -> bytes:
    """A serialised message with its raw-tensor field appended: protobuf fields may stand in any order."""
    parts: list[Buffer] = [rest]
    for data in raw:
        parts.append(length_prefix(raw_field, len(data)))
        parts.append(data)
    return b"".join(parts)


def length_prefix(field: int, length: int) -> bytes:
    """What stands before the bytes of a field: its tag and their number."""
    prefix = bytearray((field << 3 | 2,))
    while length >= 0x80:
        prefix.append(length & 0x7F | 0x80)
        length >>= 7
    prefix.append(length)
    return bytes(prefix)
