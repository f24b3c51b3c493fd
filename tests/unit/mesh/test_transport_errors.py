"""Status codes, from a handler's refusal to the class that a caller catches, and which of them are tried again."""

from __future__ import annotations

import grpc
import pytest

from mesh.client import errors
from mesh.client.errors import error_of
from mesh.client.retries import RetryPolicy, wait_before_retry_s
from mesh.transport.base import Call, StatusCode, TransportError
from mesh.transport.grpcio_channel import channel_options, failed_call

POLICY = RetryPolicy(attempts_max=4, backoff_first_s=0.1, backoff_max_s=0.3)


def test_our_status_codes_are_grpcs():
    assert {code.name: code.value for code in StatusCode} == {code.name: code.value[0] for code in grpc.StatusCode}


def test_a_transport_error_shows_its_status_and_message():
    assert str(TransportError(StatusCode.NOT_FOUND, "no model 'a'")) == "NOT_FOUND: no model 'a'"


@pytest.mark.parametrize("status", [status for status in StatusCode if status is not StatusCode.OK])
def test_every_status_has_a_class_and_keeps_its_message_and_hint(status):
    error = error_of(status, "why", 2.0)
    assert type(error) is not errors.HexcombError
    assert (str(error), error.status, error.retry_after_s) == ("why", status, 2.0)
    assert status.name in type(error).__doc__


def test_a_status_that_grpc_does_not_have_is_the_servers_fault():
    assert isinstance(error_of(99, "?"), errors.ServerFailed)


def test_metadata_is_read_by_key_and_the_last_value_counts():
    call = Call("/a/b", b"", (("k", "1"), ("raw-bin", b"x"), ("k", "2")))
    assert (call.metadata_value("k"), call.metadata_value("raw-bin"), call.metadata_value("z")) == ("2", None, None)


class Ended(grpc.RpcError):
    """A unary call that gRPC ended so."""

    def __init__(self, code, details="", trailers=()):
        self.code, self.details, self.trailing_metadata = (lambda: code), (lambda: details), (lambda: trailers)


def test_an_error_of_our_servers_is_told_from_grpcs_own():
    trailers = (("hexcomb-answered", "1"), ("retry-after-ms", "1500"), ("grpc-retry-pushback-ms", "1500"), ("x", "y"))
    failed = failed_call(Ended(grpc.StatusCode.UNAVAILABLE, "failed to connect your flux capacitor", trailers))
    assert (failed.status, failed.answered, failed.never_left) == (StatusCode.UNAVAILABLE, True, False)
    assert (failed.retry_after_s, failed.trailers) == (1.5, (("x", "y"),))


@pytest.mark.parametrize(
    ("details", "never_left"),
    [
        ("failed to connect to all addresses; last error: ...", True),
        ("connections to all backends failing", True),
        ("Socket closed", False),
        (None, False),
    ],
)
def test_grpcs_own_words_tell_whether_a_call_left(details, never_left):
    failed = failed_call(Ended(grpc.StatusCode.UNAVAILABLE, details, None))
    assert (failed.answered, failed.never_left, failed.details) == (False, never_left, details or "")


def test_a_retry_hint_that_is_no_number_is_ignored():
    failed = failed_call(Ended(grpc.StatusCode.RESOURCE_EXHAUSTED, "", (("retry-after-ms", "soon"),)))
    assert (failed.retry_after_s, failed.trailers) == (None, (("retry-after-ms", "soon"),))


def test_a_channel_takes_a_dead_peer_for_dead_after_the_time_it_was_given():
    options = dict(channel_options(4.0, through_proxy=False))
    assert options["grpc.http2.ping_timeout_ms"] == 4000
    assert options["grpc.enable_http_proxy"] == 0


@pytest.mark.parametrize(
    ("status", "hint_s", "attempts_made", "remaining_s", "chance", "expected_s"),
    [
        # What may pass is tried again, and waits twice as long each time, up to a limit.
        (StatusCode.UNAVAILABLE, None, 1, 60, 0.0, 0.1),
        (StatusCode.UNAVAILABLE, None, 2, 60, 0.0, 0.2),
        (StatusCode.UNAVAILABLE, None, 3, 60, 0.0, 0.3),
        (StatusCode.CANCELLED, None, 1, 60, 0.0, 0.1),
        # The hint is the least; chance spreads.
        (StatusCode.UNAVAILABLE, 5.0, 1, 60, 0.0, 5.0),
        (StatusCode.UNAVAILABLE, 5.0, 1, 60, 0.5, 5.05),
        (StatusCode.UNAVAILABLE, None, 1, 60, 0.5, 0.15),
        (StatusCode.RESOURCE_EXHAUSTED, 0.1, 1, 60, 0.0, 0.1),
        # No room and no hint: a message over the limit, say.
        (StatusCode.RESOURCE_EXHAUSTED, None, 1, 60, 0.0, None),
        # Enough is enough, and a wait past the deadline helps nobody.
        (StatusCode.UNAVAILABLE, None, 4, 60, 0.0, None),
        (StatusCode.UNAVAILABLE, 5.0, 1, 5.0, 0.0, None),
        # What a repetition would repeat.
        (StatusCode.INVALID_ARGUMENT, None, 1, 60, 0.0, None),
        (StatusCode.NOT_FOUND, 1.0, 1, 60, 0.0, None),
        (StatusCode.DEADLINE_EXCEEDED, None, 1, 60, 0.0, None),
        (StatusCode.INTERNAL, None, 1, 60, 0.0, None),
    ],
)
def test_retries(status, hint_s, attempts_made, remaining_s, chance, expected_s):
    error = error_of(status, "", hint_s)
    wait_s = wait_before_retry_s(error, attempts_made, remaining_s, POLICY, chance)
    assert wait_s == (None if expected_s is None else pytest.approx(expected_s))
