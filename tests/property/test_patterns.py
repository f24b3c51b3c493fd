"""Requests read by a pattern are read as they would be in full, or not at all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as np_st

from mesh.wire.errors import InvalidMessage
from mesh.wire.patterns import envelope_pattern, request_pattern, response_pattern
from mesh.wire.peek import peek
from mesh.wire.tensors import decode_request, encode_request, encode_response
from runtime_adapters.datatypes import DTYPE_OF

TEXT = st.text("am/%é\x1a\x00", max_size=8)
NUMERIC = st.sampled_from([dtype for name, dtype in sorted(DTYPE_OF.items()) if name not in ("BYTES", "BOOL", "BF16")])
TENSORS = NUMERIC.flatmap(lambda dtype: np_st.arrays(dtype, np_st.array_shapes(min_dims=0, max_dims=3, max_side=4)))
REQUESTS = st.builds(
    encode_request,
    TEXT,
    st.dictionaries(TEXT, TENSORS, min_size=1, max_size=3),
    st.lists(TEXT, max_size=2, unique=True),
    TEXT,
    TEXT,
)
FIELDS = st.sampled_from(
    [b"", b"\x0a\x01b", b"\x12\x011", b"\x1a\x03abc", b"\x1a\x03xyz", b"\x3a\x04abcd", b"\xa0\x06\x01"]
)


def pattern_of(body: bytes):
    envelope = peek(body)
    return request_pattern(body, envelope, decode_request(body, envelope))


@st.composite
def kin(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A request that can be read, and another that is nearly the same: a few bytes differ, anywhere."""
    body = draw(FIELDS) + draw(REQUESTS) + draw(FIELDS)
    other = bytearray(body)
    for _ in range(draw(st.integers(0, 4))):
        other[draw(st.integers(0, len(other) - 1))] = draw(st.integers(0, 255))
    return body, bytes(other)


@given(kin())
def test_what_matches_the_pattern_of_an_envelope_has_the_same_envelope(bodies: tuple[bytes, bytes]):
    body, other = bodies
    try:
        envelope = peek(body)
    except InvalidMessage:
        return
    pattern = envelope_pattern(body, envelope)
    if pattern is None or not pattern.matches(other):
        return
    try:
        request_id = pattern.request_id(other)
    except UnicodeDecodeError:
        return
    assert peek(other) == replace(envelope, request_id=request_id)


@given(kin())
def test_what_a_pattern_matches_it_reads_as_a_whole_reading_does(bodies: tuple[bytes, bytes]):
    body, other = bodies
    try:
        pattern = pattern_of(body)
    except InvalidMessage:
        return
    if pattern is None or not pattern.matches(other):
        return
    try:
        request_id = pattern.request_id(other)
    except UnicodeDecodeError:
        return  # whoever follows a pattern leaves it then
    whole = decode_request(other)
    original = decode_request(body)
    assert (whole.model_name, whole.model_version) == (original.model_name, original.model_version)
    assert whole.request_id == request_id
    assert whole.outputs == pattern.outputs
    assert list(whole.tensors) == [hole.name for hole in pattern.tensors]
    for hole in pattern.tensors:
        read = pattern.read(hole, other)
        assert read.dtype == whole.tensors[hole.name].dtype
        assert read.flags.aligned
        np.testing.assert_array_equal(read, whole.tensors[hole.name])


@given(st.dictionaries(TEXT, TENSORS, min_size=1, max_size=3), st.text(max_size=20), st.text("ab1", max_size=20), TEXT)
def test_a_request_has_a_pattern_that_matches_others_of_its_kind_whatever_their_numbers_and_ids(
    tensors: dict[str, np.ndarray], name: str, request_id: str, version: str
):
    tensors = {key: array for key, array in tensors.items() if array.size}
    pattern = pattern_of(encode_request(name, tensors, (), version, request_id)) if tensors else None
    if pattern is None:
        return
    ones = {key: np.ones_like(array) for key, array in tensors.items()}
    another_id = request_id[::-1]
    other = encode_request(name, ones, (), version, another_id)
    assert pattern.matches(other)
    assert pattern.request_id(other) == another_id
    for hole in pattern.tensors:
        np.testing.assert_array_equal(pattern.read(hole, other), ones[hole.name])


@given(st.dictionaries(TEXT, TENSORS, min_size=1, max_size=3), TEXT, TEXT, TEXT, st.randoms(use_true_random=False))
def test_an_answer_by_its_pattern_is_the_answer_to_the_byte(
    outputs: dict[str, np.ndarray], name: str, version: str, request_id: str, random
):
    order = list(outputs)
    random.shuffle(order)
    pattern = response_pattern(name, version, outputs, order)
    assert pattern is not None
    again = {key: np.flip(array) for key, array in outputs.items()}
    assert pattern.encode(again, request_id) == encode_response(name, version, request_id, again, order)
    reshaped = {key: array.reshape((1, *array.shape)) for key, array in outputs.items()}
    assert pattern.encode(reshaped, request_id) is None
