"""The client's end of the wire: bytes over one gRPC channel, blocking or on asyncio, with our errors.

The only file of the client that knows gRPC. Retries are not gRPC's but `mesh.client.retries`, so that hints are
honoured and a test can read the rule; message limits are the server's to keep.
"""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncGenerator, Callable, Generator
from dataclasses import dataclass, field
from typing import Any

from mesh.client.attempts import Received
from mesh.client.errors import HexcombError, error_of
from mesh.transport.base import Metadata, StatusCode
from mesh.transport.grpcio_channel import channel_options, failed_call
from mesh.wire.messages import DRAINING_METADATA, OWNER_METADATA, REVISION_METADATA

PING_TIMEOUT_S = 4.0
"""A pod that leaves a ping, or a new connection, unanswered is frozen or cut off; the call goes to another one."""

_BROKEN_LINES = ("RST_STREAM", "Stream removed")
_MISNAMED = (StatusCode.UNKNOWN, StatusCode.INTERNAL)
"""What gRPC calls some broken lines."""
_OF_THE_NETWORK = frozenset(
    {
        StatusCode.UNAVAILABLE,
        StatusCode.CANCELLED,
        StatusCode.DEADLINE_EXCEEDED,
        StatusCode.UNKNOWN,
        StatusCode.INTERNAL,
    }
)
"""What gRPC itself says when there was no answer; the rest is somebody's word, a foreign server's too."""


@dataclass(frozen=True, slots=True)
class ClientTls:
    """PEM. Without `server_ca_pem` the machine's own authorities are trusted."""

    server_ca_pem: bytes | None = None
    certificate_chain_pem: bytes | None = None
    private_key_pem: bytes | None = field(default=None, repr=False)


class BlockingConnection:
    """May be used from several threads."""

    def __init__(self, endpoint: str, tls: ClientTls | None) -> None:
        import grpc

        self._endpoint = endpoint
        self._rpc_error = grpc.RpcError
        if tls is None:
            self._channel = grpc.insecure_channel(endpoint, _options(endpoint))
        else:
            self._channel = grpc.secure_channel(endpoint, _credentials(tls), _options(endpoint))
        self._callables: dict[str, Callable[..., Any]] = {}
        self._ready_state = grpc.ChannelConnectivity.READY
        self._is_ready = self._is_watched = False

    def call(self, path: str, body: bytes, metadata: Metadata, timeout_s: float) -> Received:
        """One attempt. Raises HexcombError."""
        callable_ = self._callables.get(path)
        if callable_ is None:
            callable_ = self._callables.setdefault(path, self._channel.unary_unary(path).with_call)
        try:
            reply, call = callable_(body, timeout=timeout_s, metadata=metadata)
        except self._rpc_error as failure:
            error = _as_ours(failure, self._endpoint)
            self._is_ready &= error.answered
            raise error from failure
        return _received(reply, call.trailing_metadata())

    def stream(self, path: str, body: bytes, metadata: Metadata, timeout_s: float) -> Generator[bytes, None, None]:
        """One request, and its answers as they come; to be closed, which ends the call. Raises HexcombError."""
        call = self._channel.stream_stream(path)(iter((body,)), timeout=timeout_s, metadata=metadata)
        try:
            yield from call
        except self._rpc_error as failure:
            raise _as_ours(failure, self._endpoint) from failure
        finally:
            call.cancel()

    def is_ready(self) -> bool:
        """Whether a call would leave at once; else it connects, in the background."""
        if not self._is_ready and not self._is_watched:
            self._is_watched = True
            self._channel.subscribe(self._changed, try_to_connect=True)
        return self._is_ready

    def _changed(self, state: Any) -> None:
        if state is self._ready_state:
            self._is_ready = True
            # A channel that is watched has a thread that polls; who calls it hears of its end anyway.
            self._channel.unsubscribe(self._changed)
            self._is_watched = False

    def close(self) -> None:
        self._channel.close()


class AsyncConnection:
    """Belongs to the loop that it is first used on."""

    def __init__(self, endpoint: str, tls: ClientTls | None) -> None:
        import grpc
        import grpc.aio

        self._endpoint = endpoint
        self._rpc_error = grpc.RpcError
        if tls is None:
            self._channel = grpc.aio.insecure_channel(endpoint, _options(endpoint))
        else:
            self._channel = grpc.aio.secure_channel(endpoint, _credentials(tls), _options(endpoint))
        self._callables: dict[str, Callable[..., Any]] = {}
        self._ready_state = grpc.ChannelConnectivity.READY

    async def call(self, path: str, body: bytes, metadata: Metadata, timeout_s: float) -> Received:
        """One attempt. Raises HexcombError."""
        callable_ = self._callables.get(path)
        if callable_ is None:
            callable_ = self._callables.setdefault(path, self._channel.unary_unary(path))
        call = callable_(body, timeout=timeout_s, metadata=metadata)
        try:
            return _received(await call, await call.trailing_metadata())
        except self._rpc_error as failure:
            raise _as_ours(failure, self._endpoint) from failure

    async def stream(self, path: str, body: bytes, metadata: Metadata, timeout_s: float) -> AsyncGenerator[bytes, None]:
        """One request, and its answers as they come; to be closed, which ends the call. Raises HexcombError."""
        call = self._channel.stream_stream(path)(iter((body,)), timeout=timeout_s, metadata=metadata)
        try:
            async for message in call:
                yield message
        except self._rpc_error as failure:
            raise _as_ours(failure, self._endpoint) from failure
        finally:
            call.cancel()

    def is_ready(self) -> bool:
        """Whether a call would leave at once; else it connects, in the background."""
        return self._channel.get_state(try_to_connect=True) is self._ready_state

    async def close(self) -> None:
        await self._channel.close()


def _options(endpoint: str) -> list[tuple[str, int]]:
    # This machine is not the proxy's machine.
    return channel_options(PING_TIMEOUT_S, through_proxy=not _is_loopback(endpoint))


def _is_loopback(endpoint: str) -> bool:
    host = endpoint.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _credentials(tls: ClientTls) -> Any:
    import grpc

    return grpc.ssl_channel_credentials(tls.server_ca_pem, tls.private_key_pem, tls.certificate_chain_pem)


def _received(reply: bytes, trailers: Any) -> Received:
    if not trailers:
        return Received(reply)
    draining, revision, owner = False, 0, ""
    for key, value in trailers:
        if key == DRAINING_METADATA:
            draining = True
        elif key == REVISION_METADATA and str(value).isdecimal():
            revision = int(value)
        elif key == OWNER_METADATA:
            owner = str(value)
    return Received(reply, draining, revision, owner)


def _as_ours(failure: Any, endpoint: str) -> HexcombError:
    failed = failed_call(failure)
    status, details = failed.status, failed.details or "no further word from the server"
    answered = failed.answered or status not in _OF_THE_NETWORK
    sent = answered or not failed.never_left
    if not sent:
        details = f"cannot reach {endpoint} ({details}); is `hexcomb serve` running there?"
    elif not answered and status in _MISNAMED and any(sign in details for sign in _BROKEN_LINES):
        status = StatusCode.UNAVAILABLE
    error = error_of(status, details, failed.retry_after_s)
    error.answered, error.sent = answered, sent
    error.draining = any(key == DRAINING_METADATA for key, _ in failed.trailers)
    return error
