"""What an answer of etcd that is no success means for the call: may it be tried again, elsewhere, or not at all?

The question that matters is whether a write may have happened. Only three kinds of failure prove that it has not: the
connection never came about; etcd said so before doing anything (no leader, too many requests, a token it does not
know); or the request itself was refused. All else, above all a connection that broke or a time limit that passed, is
LOST: a read is tried again, a write is reported as one that may have taken effect.

etcd tells many things apart by text only, and so must this table; the texts are those of its `rpctypes`, the same
from 3.4 to 3.6. gRPC's texts for connections are matched by words that have been stable for years; a text that is not
known falls to the careful side.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from placement.errors import LimitExceeded, StoreRefused, StoreUnavailable
from placement.store.etcd_options import EtcdOptions


class Verdict(Enum):
    """What a failed try means."""

    NOT_REACHED = "no connection: nothing was done; another member may answer"
    NOT_TRUSTED = "no connection, because of a certificate: nothing was done; in vain unless another member differs"
    NOT_DONE = "etcd did nothing, for now: try again"
    TOKEN = "etcd does not know our token (any more): nothing was done; authenticate and try again"
    LOST = "the answer was lost: it may have been done"
    REFUSED = "in vain, whoever is asked; nothing was done"
    ANSWER = "etcd's answer to this very request: the caller's to understand"


class CallFailure(Exception):
    """One try of a call failed. Never leaves the store."""

    def __init__(self, endpoint: str, code: str, details: str) -> None:
        super().__init__(f"{endpoint}: {details or code}")
        self.endpoint = endpoint
        self.code = code
        """Name of the gRPC status, as in UNAVAILABLE."""
        self.details = details
        self.verdict = judge(code, details)


_NO_CONNECTION = ("failed to connect to all addresses", "errors resolving", "dns resolution failed")
_CERTIFICATES = (
    "certificate_verify_failed",
    "hostname verification check failed",
    "tls handshake failed",
    "ssl handshake failed",
    "failed to create security handshaker",
    "tsi_data_corrupted",  # how a server's "bad certificate" arrives
)
_DID_NOTHING = ("no leader", "too many requests", "not supported for learner", "not leader")
_VERDICT_OF_CODE = {
    "UNAUTHENTICATED": Verdict.TOKEN,
    "PERMISSION_DENIED": Verdict.REFUSED,
    "UNIMPLEMENTED": Verdict.NOT_TRUSTED,
    "INVALID_ARGUMENT": Verdict.ANSWER,
    "FAILED_PRECONDITION": Verdict.ANSWER,
    "NOT_FOUND": Verdict.ANSWER,
    "OUT_OF_RANGE": Verdict.ANSWER,
}
_AUTH_FAILED = "authentication failed"
_AUTH_OFF = "authentication is not enabled"
_USER_MISSING = "user name is empty"
_AUTH_MOVED = "revision of auth store is old"
_FULL = "database space exceeded"


def judge(code: str, details: str) -> Verdict:
    """The table."""
    text = details.lower()
    if code == "UNAVAILABLE" and text.startswith(_NO_CONNECTION):
        return Verdict.NOT_TRUSTED if any(words in text for words in _CERTIFICATES) else Verdict.NOT_REACHED
    if any(words in text for words in _DID_NOTHING):
        return Verdict.NOT_DONE
    if _AUTH_MOVED in text:
        return Verdict.TOKEN
    if any(words in text for words in (_AUTH_FAILED, _AUTH_OFF, _USER_MISSING, _FULL)):
        return Verdict.REFUSED
    return _VERDICT_OF_CODE.get(code, Verdict.LOST)


def refusal(failure: CallFailure, options: EtcdOptions) -> StoreRefused | StoreUnavailable:
    """The error for a call that was refused whoever is asked."""
    where = f"etcd at {failure.endpoint}"
    text = failure.details.lower()
    if _AUTH_FAILED in text:
        return StoreRefused(f"{where} does not accept the password of user {options.user!r}: check both")
    if _AUTH_OFF in text:
        return StoreRefused(
            f"{where} has no authentication enabled, but a user ({options.user!r}) was given: enable it with "
            "`etcdctl auth enable`, or leave the user out of the address"
        )
    if _USER_MISSING in text:
        return StoreRefused(f"{where} asks for a user, and none was given: write etcd://USER:PASSWORD@HOST:PORT/PREFIX")
    if _FULL in text:
        return StoreUnavailable(
            f"{where} has used up its space and takes no writes: compact it, defragment it, then run "
            "`etcdctl alarm disarm`; nothing was written"
        )
    return StoreRefused(
        f"{where} does not allow this to user {options.user!r}: give it a role with "
        f"`etcdctl role grant-permission ROLE readwrite --prefix=true {options.prefix}/` ({failure.details})"
    )


def unreachable(failures: Mapping[str, CallFailure], tried_s: float, options: EtcdOptions) -> Exception:
    """The error for a call that found no member to do it; `failures` has the last one of each."""
    tried = "; ".join(f"{endpoint} - {_why(failure, options)}" for endpoint, failure in failures.items())
    if all(failure.verdict is Verdict.NOT_TRUSTED for failure in failures.values()):
        return StoreRefused(f"etcd ({options.shown}) cannot be used: {tried}")
    return StoreUnavailable(
        f"etcd ({options.shown}) cannot be reached: {tried}; tried for {tried_s:.1f} s, nothing was written"
    )


def lost(failure: CallFailure) -> StoreUnavailable:
    """The error for a write whose answer was lost."""
    return StoreUnavailable(f"etcd at {failure.endpoint} did not answer ({failure.details}); it may have written")


def unexpected(failure: CallFailure) -> StoreRefused:
    """The error for an answer that no call of ours should get."""
    return StoreRefused(f"etcd at {failure.endpoint} refuses the request ({failure.code}): {failure.details}")


def too_large(failure: CallFailure) -> LimitExceeded:
    """The error for a request that etcd finds too large, though our own limits let it pass."""
    return LimitExceeded(f"etcd at {failure.endpoint} refuses the request: {failure.details}; see its --max-* options")


def _why(failure: CallFailure, options: EtcdOptions) -> str:
    details = failure.details.removeprefix("failed to connect to all addresses; last error: ") or failure.code
    text = details.lower()
    ca = options.ca.where if options.ca is not None else "gRPC's own list of authorities"
    if failure.code == "UNIMPLEMENTED":
        return f"what answers there is not etcd ({details})"
    if "expired" in text or "not yet valid" in text:
        return f"the server's certificate is not valid now, says {ca}: renew it ({details})"
    if "certificate_verify_failed" in text:
        return f"the server's certificate is not signed by {ca}: give the right ca ({details})"
    if "hostname verification" in text:
        return f"the server's certificate is for another name: use that one, or set server_name ({details})"
    if "tsi_data_corrupted" in text:
        own = options.certificate.where if options.certificate is not None else "none (give cert and key)"
        return f"the server refuses the pod's certificate, {own}: is it signed by etcd's CA and valid now? ({details})"
    if "security handshaker" in text:
        files = ", ".join(f"{name} {pem.where}" for name, pem in options.pems if pem is not None)
        return f"the certificates cannot be used: not PEM, or the key is not the certificate's? ({files}; {details})"
    if "socket closed" in text or "handshake read failed" in text:
        hint = (
            "does it speak TLS at all? then etcds://, else etcd://" if options.tls else "does it want TLS (etcds://)?"
        )
        return f"the connection was closed at once; {hint} ({details})"
    return details
