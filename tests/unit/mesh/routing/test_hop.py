"""What travels beside a forwarded request, there and back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mesh.routing.hop import (
    FORWARD_METADATA,
    Hop,
    encode_hop,
    forwarded_metadata,
    hop_of,
    not_here,
    previous_attempts,
    why_not_here,
)
from mesh.transport.base import Call, Metadata, StatusCode, TransportError
from mesh.wire.messages import MODEL_INFER, PEER_KEY_METADATA, PREVIOUS_ATTEMPTS_METADATA, TENANT_METADATA

HOP = Hop("p;1", "a b/ü;", 3, 1234, load=True)


def call(*metadata: tuple[str, str | bytes]) -> Call:
    return Call(MODEL_INFER.path, b"", metadata)


def test_a_hop_comes_back_as_it_was_whatever_the_names_hold() -> None:
    assert encode_hop(HOP).isascii()
    for hop in (HOP, replace(HOP, insists=True), replace(HOP, space_wait_s=1.5)):
        assert hop_of(call((FORWARD_METADATA, encode_hop(hop)))) == hop


def test_a_clients_call_has_no_hop() -> None:
    assert hop_of(call()) is None
    assert hop_of(call(("user-agent", "curl"))) is None


@pytest.mark.parametrize("value", ["", "1", "2;p;m;1;1;0", "1;p;m;x;1;0", "1;p;m;1;1", "1;p;m;1;1;0;0;x"])
def test_a_hop_that_cannot_be_read_is_the_callers_fault(value: str) -> None:
    with pytest.raises(TransportError) as refused:
        hop_of(call((FORWARD_METADATA, value)))
    assert refused.value.status is StatusCode.INVALID_ARGUMENT
    assert FORWARD_METADATA in refused.value.message


def test_an_earlier_version_does_not_say_how_long_a_load_may_wait_for_room() -> None:
    before, _, _ = encode_hop(HOP).rpartition(";")
    assert hop_of(call((FORWARD_METADATA, before))) == HOP


def test_a_later_version_may_add_fields() -> None:
    assert hop_of(call((FORWARD_METADATA, encode_hop(HOP) + ";more"))) == HOP


def test_the_callers_metadata_travels_but_for_what_a_pod_says_itself() -> None:
    given: Metadata = (
        ("mm-model-id", "m"),
        ("traceparent", "00-4bf92f35-00f067aa-01"),
        ("grpc-trace-bin", b"\x00\x01"),
        ("user-agent", "tritonclient"),
        ("grpc-previous-rpc-attempts", "1"),
        (TENANT_METADATA, "asked-for"),
        (FORWARD_METADATA, "forged"),
        (PEER_KEY_METADATA, "this pod's own"),
    )
    sent = forwarded_metadata(call(*given), "verified", HOP)
    assert sent == (
        ("mm-model-id", "m"),
        ("traceparent", "00-4bf92f35-00f067aa-01"),
        ("grpc-trace-bin", b"\x00\x01"),
        (TENANT_METADATA, "verified"),
        (FORWARD_METADATA, encode_hop(HOP)),
    )


@pytest.mark.parametrize(
    ("metadata", "count"),
    [
        ((), 0),
        ((("grpc-previous-rpc-attempts", "2"),), 2),
        (((PREVIOUS_ATTEMPTS_METADATA, "3"), ("grpc-previous-rpc-attempts", "1")), 3),
        (((PREVIOUS_ATTEMPTS_METADATA, "many"),), 0),
        (((PREVIOUS_ATTEMPTS_METADATA, "9" * 5000),), 999_999_999),
    ],
)
def test_a_clients_retries_are_counted_by_grpc_or_by_our_client(metadata: Metadata, count: int) -> None:
    assert previous_attempts(call(*metadata)) == count


def test_not_here_is_told_from_a_models_own_error_and_names_the_holder() -> None:
    assert why_not_here(not_here("absent", "gone", "pod ü;2")) == ("absent", "pod ü;2")
    assert why_not_here(not_here("draining", "stops")) == ("draining", "")
    assert why_not_here(TransportError(StatusCode.UNAVAILABLE, "the model says so")) is None
