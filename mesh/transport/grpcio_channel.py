"""What pods and clients alike tell a gRPC channel, and how they read what it says of a call that failed.

A channel heals itself, quickly; it never repeats a call, since whoever made the call knows better where to go next.
Connections are not shared with others in the process: each has its own idea of when the other end is gone.

Of a failure three things matter to the next step: did the other end say this, or only the network; can the call have
left this machine; and what else was said. gRPC itself reports a refusal and a broken line alike as UNAVAILABLE, so
our servers mark their errors (`ANSWERED_METADATA`); that a call never left shows in gRPC's words alone.

Deliberately absent: gRPC. Importing this costs nothing, so the client can.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mesh.transport.base import ANSWERED_METADATA, RETRY_AFTER_METADATA

KEEPALIVE_AFTER_S = 12.0
"""Of a call without an answer: then the pod is asked whether it is there at all. Pods hang up on who pings more often
than every 10 s (`TransportLimits.client_ping_interval_min_s`)."""

_UNSENT = ("failed to connect", "Failed to connect", "connections to all backends failing", "DNS resolution failed")
"""How gRPC's word on a call that never left begins."""


def channel_options(ping_timeout_s: float, *, through_proxy: bool) -> list[tuple[str, int]]:
    """Arguments of a channel. A peer that leaves a ping, or a new connection, unanswered for `ping_timeout_s` is gone;
    `through_proxy`: gRPC may ask the proxy in `http_proxy` for the way, which it would do even for this very machine.
    """
    return [
        # Message limits are the server's to keep.
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        ("grpc.enable_retries", 0),
        # A server that comes back is found within a second, not after gRPC's two minutes.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
        # Despite its name how long one connection may take, TLS and the peer's first word included. A peer on a busy
        # machine, or far away, needs longer than the pause before the first new try.
        ("grpc.min_reconnect_backoff_ms", int(ping_timeout_s * 1000)),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", int(through_proxy)),
        ("grpc.keepalive_time_ms", int(KEEPALIVE_AFTER_S * 1000)),
        # The name that gRPC documents, `keepalive_timeout_ms`, does nothing (1.85: 60 s whatever it says).
        ("grpc.http2.ping_timeout_ms", int(ping_timeout_s * 1000)),
        ("grpc.http2.max_pings_without_data", 0),
    ]


@dataclass(frozen=True, slots=True)
class FailedCall:
    """How a call ended that had no answer, or an error for one."""

    status: int
    details: str
    """Empty: nothing was said but the status."""
    answered: bool
    """One of our servers gave this error."""
    retry_after_s: float | None
    trailers: tuple[tuple[str, str], ...]
    """What else came with it: text, without gRPC's own."""

    @property
    def never_left(self) -> bool:
        """No connection was there to send it on."""
        return not self.answered and self.details.startswith(_UNSENT)


def failed_call(failure: Any) -> FailedCall:
    """Read a `grpc.RpcError` of a unary call."""
    answered, retry_after_s = False, None
    rest: list[tuple[str, str]] = []
    for key, value in failure.trailing_metadata() or ():
        if key == ANSWERED_METADATA:
            answered = True
        elif key == RETRY_AFTER_METADATA and str(value).isdecimal():
            retry_after_s = int(value) / 1000
        elif isinstance(value, str) and not key.startswith("grpc-"):
            rest.append((key, value))
    return FailedCall(failure.code().value[0], failure.details() or "", answered, retry_after_s, tuple(rest))
