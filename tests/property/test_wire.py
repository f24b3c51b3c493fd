"""Properties of the wire: reading from bytes agrees with protobuf, and no bytes break it."""

from __future__ import annotations

import contextlib

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as np_st

from mesh.wire.errors import InvalidMessage
from mesh.wire.generated.inference_pb2 import ModelInferRequest
from mesh.wire.peek import peek
from mesh.wire.tensors import decode_request, decode_response, encode_request, encode_response
from runtime_adapters.datatypes import DTYPE_OF

TEXT = st.text("am/%é漢\U0001f41d\x00", max_size=8)


@st.composite
def fields(draw: st.DrawFn) -> bytes:
    """One top-level field of a request, known or not, well formed or nearly."""
    part = draw(
        st.one_of(
            st.builds(ModelInferRequest, model_name=TEXT),
            st.builds(ModelInferRequest, model_version=TEXT, id=TEXT),
            st.builds(ModelInferRequest, raw_input_contents=st.lists(st.binary(max_size=200), max_size=3)),
            st.builds(lambda name: ModelInferRequest(inputs=[ModelInferRequest.InferInputTensor(name=name)]), TEXT),
        )
    )
    body = part.SerializeToString()
    unknown = [b"", b"\xa0\x06\x96\x01", b"\xa1\x0612345678", b"\xa5\x061234", b"\xa3\x06\x08\x01\xa4\x06", b"\x08\x01"]
    return body + draw(st.sampled_from(unknown))


MESSAGES = st.lists(fields(), max_size=6).map(b"".join)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    body = bytearray(draw(MESSAGES))
    for _ in range(draw(st.integers(0, 3))):
        if body:
            body[draw(st.integers(0, len(body) - 1))] = draw(st.integers(0, 255))
    return bytes(body[: draw(st.integers(0, len(body)))])


@given(st.one_of(MESSAGES, mutated(), st.binary(max_size=100)))
@example(b"\x8a\x80\x80\x80\x00\x01a")
@example(b"\x0a\x81\x80\x80\x80\x80\x80\x80\x80\x80\x00a")
def test_whatever_protobuf_accepts_is_read_the_same_and_nothing_else_raises(body: bytes):
    try:
        envelope = peek(body)
    except InvalidMessage:
        envelope = None
    try:
        parsed = ModelInferRequest.FromString(body)
    except Exception:
        return
    assert envelope is not None
    assert envelope.model_name == parsed.model_name
    assert envelope.model_version == parsed.model_version
    assert envelope.request_id == parsed.id
    assert [body[begin:end] for begin, end in envelope.raw] == list(parsed.raw_input_contents)


@given(st.one_of(mutated(), st.binary(max_size=100)))
def test_no_bytes_break_the_decoders(body: bytes):
    for decode in (decode_request, decode_response):
        with contextlib.suppress(InvalidMessage):
            decode(body)


FIXED_SIZE = [dtype for name, dtype in sorted(DTYPE_OF.items()) if name not in ("BYTES", "BF16")]
NUMERIC = st.sampled_from(FIXED_SIZE).flatmap(lambda dtype: np_st.arrays(dtype, np_st.array_shapes(min_dims=0)))
BYTES = np_st.arrays(np.object_, np_st.array_shapes(max_dims=2), elements=st.binary(max_size=20))


@given(st.dictionaries(TEXT, st.one_of(NUMERIC, BYTES), max_size=4), TEXT, TEXT)
def test_every_array_comes_back_as_it_was_sent(arrays: dict, name: str, request_id: str):
    request = decode_request(encode_request(name, arrays, request_id=request_id))
    assert (request.model_name, request.request_id) == (name, request_id)
    result = decode_response(encode_response(name, "1", request_id, request.tensors))
    assert list(result.outputs) == list(arrays)
    for key, array in arrays.items():
        returned = result.outputs[key]
        assert returned.dtype == array.dtype
        assert returned.shape == array.shape
        assert returned.tobytes() == array.tobytes() if array.dtype != object else (returned == array).all()


@given(st.sampled_from(sorted(DTYPE_OF)), st.lists(st.integers(-2, 2**62), max_size=4), st.binary(max_size=64))
def test_no_shape_is_believed_against_the_bytes(datatype: str, shape: list[int], raw: bytes):
    request = ModelInferRequest(model_name="m", raw_input_contents=[raw])
    request.inputs.add(name="x", datatype=datatype, shape=shape)
    try:
        tensor = decode_request(request.SerializeToString()).tensors["x"]
    except InvalidMessage:
        return
    assert tensor.shape == tuple(shape)
    assert tensor.size <= len(raw)
