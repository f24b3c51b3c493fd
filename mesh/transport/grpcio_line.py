"""The calling side on grpc.aio: one channel to one peer.

An answer of the peer is told from a failure of the network by a trailer that our servers put on every error
(`ANSWERED_METADATA`): gRPC itself reports both as UNAVAILABLE. What comes without it is a broken line, except a
deadline that passed, which is nobody's failure.

A channel reconnects by itself; calls do not wait for that (the router has other pods to try), so a peer that is down
costs one refused connection.

Deliberately absent: retries (the router's), health (`mesh.routing.probes`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from mesh.transport.base import (
    ANSWERED_METADATA,
    RETRY_AFTER_METADATA,
    LineBroken,
    Metadata,
    Reply,
    ReplyWithTrailers,
    ServerTls,
    StatusCode,
    TransportError,
)

LEAST_TIMEOUT_S = 0.001
KEEPALIVE_AFTER_S = 12.0
"""Pods hang up on who pings more often than every 10 s (`TransportLimits.client_ping_interval_min_s`)."""
KEEPALIVE_TIMEOUT_S = 5.0
"""Second to the probes, which are quicker; for a peer that is called without being probed."""

_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.keepalive_time_ms", int(KEEPALIVE_AFTER_S * 1000)),
    # The name that gRPC documents, `keepalive_timeout_ms`, does nothing (1.85: 60 s whatever it says).
    ("grpc.http2.ping_timeout_ms", int(KEEPALIVE_TIMEOUT_S * 1000)),
    ("grpc.http2.max_pings_without_data", 0),
]
_UNSENT = ("failed to connect", "Failed to connect", "connections to all backends failing", "DNS resolution failed")


class GrpcioLine:
    """`mesh.transport.base.Line` on grpc.aio. Belongs to the loop that it is first used on."""

    def __init__(self, address: str, tls: ServerTls | None = None) -> None:
        import grpc
        import grpc.aio

        self._address = address
        self._rpc_error = grpc.RpcError
        if tls is None:
            self._channel = grpc.aio.insecure_channel(address, _OPTIONS)
        else:
            credentials = grpc.ssl_channel_credentials(
                tls.client_ca_pem, tls.private_key_pem, tls.certificate_chain_pem
            )
            self._channel = grpc.aio.secure_channel(address, credentials, _OPTIONS)
        self._methods: dict[str, Callable[..., Any]] = {}

    async def call(self, path: str, body: bytes | memoryview, metadata: Metadata, deadline_s: float | None) -> Reply:
        method = self._methods.get(path)
        if method is None:
            method = self._methods.setdefault(path, self._channel.unary_unary(path))
        timeout_s = None if deadline_s is None else max(LEAST_TIMEOUT_S, deadline_s - time.monotonic())
        call = method(bytes(body), timeout=timeout_s, metadata=metadata)
        try:
            reply: bytes = await call
            trailers = await call.trailing_metadata()
        except self._rpc_error as failure:
            raise _as_ours(failure, self._address) from failure
        except asyncio.CancelledError:
            call.cancel()
            raise
        if trailers:
            return ReplyWithTrailers(reply, tuple((key, value) for key, value in trailers))
        return reply

    async def close(self) -> None:
        await self._channel.close()


def _as_ours(failure: Any, address: str) -> TransportError | LineBroken:
    status = StatusCode(failure.code().value[0])
    details = failure.details() or status.name
    trailers = tuple(failure.trailing_metadata() or ())
    answered, retry_after_s = False, None
    rest: list[tuple[str, str]] = []
    for key, value in trailers:
        if key == ANSWERED_METADATA:
            answered = True
        elif key == RETRY_AFTER_METADATA and str(value).isdecimal():
            retry_after_s = int(value) / 1000
        elif isinstance(value, str) and not key.startswith("grpc-"):
            rest.append((key, value))
    if answered:
        return TransportError(status, details, retry_after_s, tuple(rest))
    if status is StatusCode.DEADLINE_EXCEEDED:
        return TransportError(status, f"no answer from {address} before the deadline")
    if status in (StatusCode.UNIMPLEMENTED, StatusCode.RESOURCE_EXHAUSTED, StatusCode.INVALID_ARGUMENT):
        return TransportError(status, f"{address}: {details}")  # gRPC's own word: too large, no such method
    return LineBroken(f"{address}: {details}", sent=not details.startswith(_UNSENT))
