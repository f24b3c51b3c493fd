"""What an error looks like on the wire: the same whichever transport sends it.

A status, a message that fits a header, and trailing metadata: the mark that one of our servers gave this answer, the
retry hint in both spellings, and what the handler added.
"""

from __future__ import annotations

import logging
import secrets

from mesh.transport.base import ANSWERED_METADATA, RETRY_AFTER_METADATA, StatusCode, TransportError

_log = logging.getLogger(__name__)

_MESSAGE_BYTES_MAX = 2048
"""Of an error's text: at most three times as many once encoded, and gRPC clients take 8 KiB of headers by default."""
_PUSHBACK_METADATA = "grpc-retry-pushback-ms"
"""gRPC's own spelling of a retry hint, for clients with a retry policy."""


def as_transport_error(path: str, failure: Exception) -> TransportError:
    """What a handler raised, as an answer; the story of an unexpected one goes to the log."""
    if isinstance(failure, TransportError):
        return failure
    incident = secrets.token_hex(4)
    _log.error("incident %s: %s failed", incident, path, exc_info=failure)
    return TransportError(
        StatusCode.INTERNAL, f"the server failed on this call; its log tells why under incident {incident}"
    )


def gave_up(path: str) -> TransportError:
    """The answer of a handler that was cancelled by something else than its client or `stop`: without one, the client
    would wait for its deadline."""
    return as_transport_error(path, RuntimeError("the handler was cancelled, not by its client"))


def response_too_large(size_bytes: int, limit_bytes: int) -> TransportError:
    """The answer in place of one above `TransportLimits.response_bytes_max`."""
    return TransportError(
        StatusCode.RESOURCE_EXHAUSTED,
        f"the response has {size_bytes} bytes, above the limit of {limit_bytes}; ask for less",
    )


def trailers_of(error: TransportError) -> tuple[tuple[str, str], ...]:
    """The trailing metadata of an error."""
    trailers = ((ANSWERED_METADATA, "1"), *error.trailers)
    if error.retry_after_s is None:
        return trailers
    retry_after_ms = str(max(0, round(error.retry_after_s * 1000)))
    return (*trailers, (RETRY_AFTER_METADATA, retry_after_ms), (_PUSHBACK_METADATA, retry_after_ms))


def sendable(message: str) -> str:
    """A message travels in a header, percent-encoded; of one that is too long for it, the client gets nothing."""
    encoded = message.encode(errors="replace")
    if len(encoded) <= _MESSAGE_BYTES_MAX:
        return encoded.decode()
    return encoded[:_MESSAGE_BYTES_MAX].decode(errors="ignore") + " ..."
