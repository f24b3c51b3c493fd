"""Whether a failed call may be tried again: the texts are those that etcd 3.4 to 3.6 and gRPC 1.85 send."""

from __future__ import annotations

import pytest

from placement.errors import StoreRefused, StoreUnavailable
from placement.store.etcd_errors import CallFailure, Verdict, judge, refusal, unreachable
from placement.store.etcd_options import EtcdOptions

CONNECT = "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: "


@pytest.mark.parametrize(
    ("code", "details", "verdict"),
    [
        ("UNAVAILABLE", CONNECT + "Failed to connect to remote host: Connection refused", Verdict.NOT_REACHED),
        ("UNAVAILABLE", "errors resolving a:1: [field:hostname lookup error: ...]", Verdict.NOT_REACHED),
        ("UNAVAILABLE", CONNECT + "Tls handshake failed (...): CERTIFICATE_VERIFY_FAILED: x", Verdict.NOT_TRUSTED),
        ("UNAVAILABLE", CONNECT + "Hostname Verification Check failed.", Verdict.NOT_TRUSTED),
        ("UNAVAILABLE", CONNECT + "Unwrap failed (TSI_DATA_CORRUPTED)", Verdict.NOT_TRUSTED),
        ("UNIMPLEMENTED", "Method not found!", Verdict.NOT_TRUSTED),
        ("UNAVAILABLE", "etcdserver: no leader", Verdict.NOT_DONE),
        ("RESOURCE_EXHAUSTED", "etcdserver: too many requests", Verdict.NOT_DONE),
        ("UNAVAILABLE", "etcdserver: rpc not supported for learner", Verdict.NOT_DONE),
        ("UNAUTHENTICATED", "etcdserver: invalid auth token", Verdict.TOKEN),
        ("INVALID_ARGUMENT", "etcdserver: revision of auth store is old", Verdict.TOKEN),
        ("UNAVAILABLE", "Socket closed", Verdict.LOST),
        ("UNAVAILABLE", "Stream removed (Socket closed)", Verdict.LOST),
        ("UNAVAILABLE", "etcdserver: leader changed", Verdict.LOST),
        ("UNAVAILABLE", "etcdserver: request timed out, possibly due to previous leader failure", Verdict.LOST),
        ("UNAVAILABLE", "a text that nobody has seen yet", Verdict.LOST),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", Verdict.LOST),
        ("CANCELLED", "", Verdict.LOST),
        ("INTERNAL", "", Verdict.LOST),
        ("DATA_LOSS", "etcdserver: corrupt cluster", Verdict.LOST),
        ("PERMISSION_DENIED", "etcdserver: permission denied", Verdict.REFUSED),
        ("INVALID_ARGUMENT", "etcdserver: authentication failed, invalid user ID or password", Verdict.REFUSED),
        ("FAILED_PRECONDITION", "etcdserver: authentication is not enabled", Verdict.REFUSED),
        ("INVALID_ARGUMENT", "etcdserver: user name is empty", Verdict.REFUSED),
        ("RESOURCE_EXHAUSTED", "etcdserver: mvcc: database space exceeded", Verdict.REFUSED),
        ("NOT_FOUND", "etcdserver: requested lease not found", Verdict.ANSWER),
        ("OUT_OF_RANGE", "etcdserver: mvcc: required revision has been compacted", Verdict.ANSWER),
        ("INVALID_ARGUMENT", "etcdserver: request is too large", Verdict.ANSWER),
    ],
)
def test_what_may_have_been_done_is_told_from_what_was_not(code: str, details: str, verdict: Verdict) -> None:
    assert judge(code, details) is verdict


def test_an_etcd_that_is_full_is_unavailable_and_says_what_the_operator_does() -> None:
    failure = CallFailure("a:1", "RESOURCE_EXHAUSTED", "etcdserver: mvcc: database space exceeded")
    error = refusal(failure, EtcdOptions(("a:1",), "p"))
    assert isinstance(error, StoreUnavailable)
    assert "etcdctl alarm disarm" in str(error)


def test_when_nobody_could_be_asked_each_member_is_named_with_its_own_reason() -> None:
    options = EtcdOptions(("a:1", "b:2"), "p", user="me", password="hush")
    refused = CallFailure("a:1", "UNAVAILABLE", CONNECT + "Connection refused")
    untrusted = CallFailure("b:2", "UNAVAILABLE", CONNECT + "CERTIFICATE_VERIFY_FAILED: unable to get local issuer")
    error = unreachable({"a:1": refused, "b:2": untrusted}, 10.0, options)
    assert isinstance(error, StoreUnavailable)
    assert "a:1 - UNKNOWN: ipv4:127.0.0.1:1: Connection refused; b:2 - " in str(error)
    assert "tried for 10.0 s, nothing was written" in str(error)
    assert "hush" not in str(error)
    assert isinstance(unreachable({"b:2": untrusted}, 0.1, options), StoreRefused)
