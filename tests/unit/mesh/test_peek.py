"""The envelope read from bytes agrees with a full parse, and bad bytes are an error, never a crash."""

from __future__ import annotations

import time

import pytest

from mesh.wire.errors import InvalidMessage
from mesh.wire.generated.inference_pb2 import ModelInferRequest, ModelMetadataRequest
from mesh.wire.peek import FIELDS_MAX, RAW_OUTPUTS, peek


def test_name_version_and_id_are_read_from_a_request():
    body = ModelInferRequest(model_name="a/b é", model_version="3", id="r-1").SerializeToString()
    envelope = peek(body)
    assert (envelope.model_name, envelope.model_version, envelope.request_id) == ("a/b é", "3", "r-1")
    assert envelope.raw == ()
    assert envelope.rest == ((0, len(body)),)


def test_metadata_and_ready_requests_have_the_same_envelope():
    envelope = peek(ModelMetadataRequest(name="a", version="2").SerializeToString())
    assert (envelope.model_name, envelope.model_version) == ("a", "2")


def test_an_empty_message_has_an_empty_name():
    envelope = peek(b"")
    assert (envelope.model_name, envelope.raw, envelope.rest) == ("", (), ())


def test_the_last_name_wins_as_it_does_for_a_parser_even_after_the_tensors():
    first = ModelInferRequest(model_name="blue", raw_input_contents=[b"x" * 1000]).SerializeToString()
    body = first + ModelInferRequest(model_name="green").SerializeToString()
    assert ModelInferRequest.FromString(body).model_name == "green"
    assert peek(body).model_name == "green"


def test_raw_tensors_are_found_and_the_rest_is_what_the_parser_needs():
    request = ModelInferRequest(model_name="m", id="7", raw_input_contents=[b"one", b"", b"three"])
    request.inputs.add(name="x", datatype="FP32", shape=[1])
    body = request.SerializeToString()
    for view in (body, memoryview(body)):
        envelope = peek(view)
        assert [bytes(view[begin:end]) for begin, end in envelope.raw] == [b"one", b"", b"three"]
        rest = ModelInferRequest.FromString(b"".join(view[begin:end] for begin, end in envelope.rest))
        request.ClearField("raw_input_contents")
        assert rest == request
        request.raw_input_contents.extend([b"one", b"", b"three"])


def test_raw_tensors_in_front_of_and_between_other_fields_are_found_too():
    raw = ModelInferRequest(raw_input_contents=[b"12"]).SerializeToString()
    name = ModelInferRequest(model_name="m").SerializeToString()
    identity = ModelInferRequest(id="i").SerializeToString()
    body = raw + name + raw + identity + raw
    envelope = peek(body)
    assert len(envelope.raw) == 3
    assert b"".join(body[begin:end] for begin, end in envelope.rest) == name + identity


def test_a_response_keeps_its_raw_tensors_in_another_field():
    assert peek(b"\x32\x01x", RAW_OUTPUTS).raw == ((2, 3),)
    assert peek(b"\x32\x01x").raw == ()


def test_unknown_fields_of_every_kind_are_skipped():
    unknown = (
        b"\xa0\x06\x96\x01"  # field 100, a varint
        b"\xa1\x06" + bytes(8) + b"\xa2\x06\x02hi"  # ... 8 bytes, length-delimited
        b"\xa5\x06"
        + bytes(4)  # ... 4 bytes
        + b"\xa3\x06\x08\x01\xa3\x06\xa4\x06\xa4\x06"  # ... a group in a group
        + b"\x08\x05"  # field 1 as a number, which is not the name
    )
    body = unknown + ModelInferRequest(model_name="m").SerializeToString() + unknown
    assert ModelInferRequest.FromString(body).model_name == "m"
    assert peek(body).model_name == "m"


@pytest.mark.parametrize(
    ("body", "story"),
    [
        (b"\x0a", "cut off"),
        (b"\x0a\x05abc", "cut off"),
        (b"\x0a\x80", "cut off"),
        (b"\x3a\xff\xff\xff\xff\x07", "cut off"),
        (b"\x21\x00\x00", "cut off"),
        (b"\x25\x00", "cut off"),
        (b"\x23\x08\x01", "cut off"),
        (b"\x00\x01", "impossible field number"),
        (b"\x0c", "wire type 4"),
        (b"\x0e\x00", "wire type 6"),
        (b"\x23\x2c", "wire type 4"),
        (b"\x08" + b"\xff" * 11, "more than 10 bytes"),
        (b"\xff" * 9 + b"\x01", "impossible field number"),
        (b"\x0a\x02\xff\xfe", "not valid UTF-8"),
        (b"\x1a\x01\xff\x1a\x01a", "not valid UTF-8"),
        (b"\x23" * 200, "wire type 3"),
    ],
)
def test_bytes_that_are_no_message_are_an_error_that_says_why(body, story):
    with pytest.raises(InvalidMessage, match=story):
        peek(body)


def test_millions_of_empty_fields_are_refused_soon():
    before_s = time.perf_counter()
    with pytest.raises(InvalidMessage, match=f"more than {FIELDS_MAX} top-level fields"):
        peek(b"\x3a\x00" * 4_000_000)
    assert time.perf_counter() - before_s < 1.0


def test_the_cost_does_not_grow_with_the_size_of_the_tensors():
    small = ModelInferRequest(model_name="m", raw_input_contents=[bytes(10)]).SerializeToString()
    large = ModelInferRequest(model_name="m", raw_input_contents=[bytes(10_000_000)]).SerializeToString()

    def best_of(body: bytes) -> float:
        times = []
        for _ in range(50):
            before_s = time.perf_counter()
            peek(body)
            times.append(time.perf_counter() - before_s)
        return min(times)

    assert best_of(large) < best_of(small) * 10


def test_fields_in_unknown_groups_count_as_fields_so_that_groups_cannot_hold_up_the_loop():
    group = b"\xa3\x01" + b"\x08\x00" * 10_000 + b"\xa4\x01"  # unknown field 20, a group of 10,000 numbers
    assert peek(group + b"\x0a\x01m").model_name == "m"
    with pytest.raises(InvalidMessage, match="bad group"):
        peek(group + group)
