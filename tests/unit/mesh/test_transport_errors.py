"""Status codes, from a handler's refusal to the class that a caller catches, and which of them are tried again."""

from __future__ import annotations

import grpc
import pytest

from mesh.client import errors
from mesh.client.errors import error_of
from mesh.client.retries import RetryPolicy, wait_before_retry_s
from mesh.transport.base import Call, StatusCode, TransportError

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
