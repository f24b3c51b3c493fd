"""The calling side on grpc.aio: one channel to one peer.

An error that the peer did not give (`grpcio_channel.FailedCall.answered`) is a broken line, except a deadline that
passed, which is nobody's failure.

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
    Heard,
    LineBroken,
    Metadata,
    Reply,
    ReplyWithTrailers,
    ServerTls,
    StatusCode,
    TransportError,
)
from mesh.transport.grpcio_channel import channel_options, failed_call

LEAST_TIMEOUT_S = 0.001
PING_TIMEOUT_S = 5.0
"""Also for a connection. Second to the probes, which are quicker; for a peer that is called without being probed."""


class GrpcioLine:
    """`mesh.transport.base.Line` on grpc.aio. Belongs to the loop that it is first used on."""

    def __init__(self, address: str, tls: ServerTls | None = None) -> None:
        import grpc
        import grpc.aio

        self._address = address
        self._rpc_error = grpc.RpcError
        options = channel_options(PING_TIMEOUT_S, through_proxy=False)
        if tls is None:
            self._channel = grpc.aio.insecure_channel(address, options)
        else:
            credentials = grpc.ssl_channel_credentials(
                tls.client_ca_pem, tls.private_key_pem, tls.certificate_chain_pem
            )
            self._channel = grpc.aio.secure_channel(address, credentials, options)
        self._methods: dict[str, Callable[..., Any]] = {}

    def begin(
        self, path: str, body: bytes | memoryview, metadata: Metadata, deadline_s: float | None, heard: Heard
    ) -> None:
        """See `Line`: gRPC's calls have to be waited for."""

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
    failed = failed_call(failure)
    status = StatusCode(failed.status)
    details = failed.details or status.name
    if failed.answered:
        return TransportError(status, details, failed.retry_after_s, failed.trailers)
    if status is StatusCode.DEADLINE_EXCEEDED:
        return TransportError(status, f"no answer from {address} before the deadline")
    if status in (StatusCode.UNIMPLEMENTED, StatusCode.RESOURCE_EXHAUSTED, StatusCode.INVALID_ARGUMENT):
        return TransportError(status, f"{address}: {details}")  # gRPC's own word: too large, no such method
    return LineBroken(f"{address}: {details}", sent=not failed.never_left)
