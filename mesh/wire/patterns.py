"""Requests that differ from one already read in nothing but their tensors' bytes, and their answers likewise.

A client that calls a model a thousand times a second sends the same message a thousand times, with other numbers in
it. Reading its fields each time is most of what such a request costs. So what was learned from a whole reading is kept
as a *pattern*: which bytes are the same in all requests of this kind, and where between them the holes are: one for
each raw tensor, and one for the request's id. A message of the same length with the same bytes between its holes has
the same fields as the one that was read, whatever stands in the holes; comparing is one `memcmp` per hole, and the
tensors are views of the bytes, at offsets that are known.

That is sound because lengths are part of what is compared: the bytes before a hole end with its length. Names,
shapes, datatypes and requested outputs stand between the holes, so they are what they were. The id's hole is the one
whose content is read (it must be UTF-8); a second id, which would win, would stand in the bytes that are compared.

The answer's pattern is the same turned round: the bytes before each raw output, for outputs of the same datatypes and
shapes.

What has no pattern is read in full each time: typed contents, strings and booleans, whose values need a look.

Deliberately absent: which patterns are worth keeping, and whether a model takes such inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mesh.wire.generated.inference_pb2 import ModelInferRequest, ModelInferResponse
from mesh.wire.peek import RAW_INPUTS, RAW_OUTPUTS, Envelope, Span, peek
from mesh.wire.tensors import Buffer, InferRequest, contents_of, length_prefix
from runtime_adapters.base import Array
from runtime_adapters.datatypes import datatype_of

PATTERN_BYTES_MAX = 32 << 20
"""Longer requests are read in full: nobody's are so long."""
REST_BYTES_MAX = 4096
"""Of a message without its raw tensors."""
ALIGNED_BYTES_MAX = 8192
"""Tensors that are copied at once where they lie unaligned, which frameworks may not read. Whoever runs a larger one
copies it then, beside the loop, or not at all, if it joins others (`mesh.batching.joining`)."""

_ID_TAG = 0x1A
"""Field 3, a string."""
_ONE_BYTE_LENGTHS = 128
"""Ids from this length on have none: nobody's are so long."""


@dataclass(frozen=True, slots=True)
class TensorHole:
    """Where one input's contents lie."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    elements: int
    offset: int


@dataclass(frozen=True, slots=True)
class RequestPattern:
    """What requests of one kind have in common."""

    size_bytes: int
    head: bytes
    """What stands before the first hole,"""
    between: tuple[tuple[int, bytes], ...]
    """and after it between the others, with its offsets."""
    id_hole: Span | None
    tensors: tuple[TensorHole, ...]
    outputs: tuple[str, ...]
    """That are asked for."""

    def matches(self, body: bytes) -> bool:
        """Whether a message is of this kind."""
        return (
            len(body) == self.size_bytes
            and body.startswith(self.head)
            and (not self.between or all(body.startswith(fixed, offset) for offset, fixed in self.between))
        )

    def request_id(self, body: bytes) -> str:
        """The id in a message that `matches`. Raises UnicodeDecodeError."""
        if self.id_hole is None:
            return ""
        begin, end = self.id_hole
        return body[begin:end].decode()

    def read(self, hole: TensorHole, body: bytes) -> Array:
        """One input of a message that `matches`: a read-only view. Where a small one lies unaligned, a copy."""
        array = np.frombuffer(body, hole.dtype, hole.elements, hole.offset)
        if array.nbytes <= ALIGNED_BYTES_MAX and not array.flags.aligned:
            array = array.copy()
        array.shape = hole.shape
        return array


def has_pattern(body: bytes, envelope: Envelope) -> bool:
    """Whether it is worth reading a message for its pattern. What takes long to read and has none is told apart without
    that: typed numbers, and strings by the name of their datatype."""
    if not envelope.raw or len(body) > PATTERN_BYTES_MAX:
        return False
    rest_bytes = sum(end - begin for begin, end in envelope.rest)
    return rest_bytes <= REST_BYTES_MAX and not any(
        body.find(b"BYTES", begin, end) >= 0 for begin, end in envelope.rest
    )


def request_pattern(body: bytes, envelope: Envelope, request: InferRequest) -> RequestPattern | None:
    """The pattern of a request that was read; None when it has none."""
    if len(envelope.raw) != len(request.tensors):
        return None
    tensors = []
    for (name, array), (begin, end) in zip(request.tensors.items(), envelope.raw, strict=True):
        if array.dtype.kind in "Ob" or begin == end:
            return None
        tensors.append(TensorHole(name, array.dtype, array.shape, array.size, begin))
    return _pattern(body, envelope, tuple(tensors), request.outputs)


def envelope_pattern(body: bytes, envelope: Envelope) -> RequestPattern | None:
    """The pattern of requests that ask alike, for whoever sends them on without reading their tensors; None when there
    is none."""
    if not envelope.raw or sum(end - begin for begin, end in envelope.rest) > REST_BYTES_MAX:
        return None
    return _pattern(body, envelope, (), ())


def _pattern(
    body: bytes, envelope: Envelope, tensors: tuple[TensorHole, ...], outputs: tuple[str, ...]
) -> RequestPattern | None:
    id_hole = _id_hole(body, envelope)
    if envelope.request_id and id_hole is None:
        return None
    holes = sorted((*envelope.raw, *([] if id_hole is None else [id_hole])))
    ends = [end for _, end in holes]
    begins = [*(begin for begin, _ in holes[1:]), len(body)]
    between = tuple((end, body[end:begin]) for end, begin in zip(ends, begins, strict=True) if end < begin)
    return RequestPattern(len(body), body[: holes[0][0]], between, id_hole, tensors, outputs)


def _id_hole(body: bytes, envelope: Envelope) -> Span | None:
    """Where the id stands, in a message that begins like everybody's: name, version, id, and no other id after it."""
    if not 0 < len(envelope.request_id.encode()) < _ONE_BYTE_LENGTHS:
        return None
    beginning = ModelInferRequest(
        model_name=envelope.model_name, model_version=envelope.model_version, id=envelope.request_id
    ).SerializeToString()
    end = len(beginning)
    if not body.startswith(beginning) or peek(body[end:], RAW_INPUTS).request_id:
        return None
    return end - len(envelope.request_id.encode()), end


@dataclass(frozen=True, slots=True)
class ResponsePattern:
    """What the answers to one kind of request have in common."""

    before_id: bytes
    outputs: tuple[tuple[str, np.dtype[Any], tuple[int, ...], bytes], ...]
    """Name, dtype and shape of each output, and the bytes before its contents."""

    def encode(self, outputs: Mapping[str, Array], request_id: str) -> bytes | None:
        """The answer; None when the outputs are not such as the pattern is of."""
        parts: list[Buffer] = [self.before_id]
        if request_id:
            text = request_id.encode()
            parts.append(bytes((_ID_TAG, len(text))))
            parts.append(text)
        for name, dtype, shape, before in self.outputs:
            array = outputs[name]
            if array.shape != shape or array.dtype != dtype:
                return None
            parts.append(before)
            parts.append(contents_of(array))
        return b"".join(parts)


def response_pattern(
    model_name: str, model_version: str, outputs: Mapping[str, Array], order: Sequence[str]
) -> ResponsePattern | None:
    """The pattern of answers with these outputs; None when they have none."""
    names = tuple(order) or tuple(outputs)
    if not names or any(outputs[name].dtype.kind in "OSU" or not outputs[name].dtype.isnative for name in names):
        return None
    described = ModelInferResponse()
    entries: list[tuple[str, np.dtype[Any], tuple[int, ...], bytes]] = []
    for name in names:
        array = outputs[name]
        datatype = datatype_of(array.dtype)
        if datatype is None:
            return None
        described.outputs.add(name=name, datatype=datatype, shape=array.shape)
        entries.append((name, array.dtype, array.shape, length_prefix(RAW_OUTPUTS, array.nbytes)))
    name, dtype, shape, before = entries[0]
    entries[0] = (name, dtype, shape, described.SerializeToString() + before)
    beginning = ModelInferResponse(model_name=model_name, model_version=model_version)
    return ResponsePattern(beginning.SerializeToString(), tuple(entries))
