"""The client's end of the wire: bytes over one gRPC channel, blocking or on asyncio, with our errors.

The only file of the client that knows gRPC. Retries are not gRPC's but `mesh.client.retries`, so that hints are
honoured and a test can read the rule; message limits are the server's to keep.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mesh.client.errors import HexcombError, error_of
from mesh.transport.base import RETRY_AFTER_METADATA, Metadata

_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_retries", 0),
    # A server that comes back is found within a second, not after gRPC's two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Connections are this client's own, not shared with every other one in the process.
    ("grpc.use_local_subchannel_pool", 1),
]


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
        self._callables: dict[str, Callable[..., bytes]] = {}

    def call(self, path: str, body: bytes, metadata: Metadata, timeout_s: float) -> bytes:
        """One attempt. Raises HexcombError."""
        callable_ = self._callables.get(path)
        if callable_ is None:
            callable_ = self._callables.setdefault(path, self._channel.unary_unary(path))
        try:
            return callable_(body, timeout=timeout_s, metadata=metadata)
        except self._rpc_error as failure:
            raise _as_ours(failure, self._endpoint) from failure

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

    async def call(self, path: str, body: bytes, metadata: Metadata, timeout_s: float) -> bytes:
        """One attempt. Raises HexcombError."""
        callable_ = self._callables.get(path)
        if callable_ is None:
            callable_ = self._callables.setdefault(path, self._channel.unary_unary(path))
        try:
            reply: bytes = await callable_(body, timeout=timeout_s, metadata=metadata)
        except self._rpc_error as failure:
            raise _as_ours(failure, self._endpoint) from failure
        return reply

    async def close(self) -> None:
        await self._channel.close()


def _options(endpoint: str) -> list[tuple[str, int]]:
    # gRPC would ask the proxy in `http_proxy` even for this machine, which is not the proxy's machine.
    return [*_OPTIONS, ("grpc.enable_http_proxy", 0)] if _is_loopback(endpoint) else _OPTIONS


def _is_loopback(endpoint: str) -> bool:
    host = endpoint.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _credentials(tls: ClientTls) -> Any:
    import grpc

    return grpc.ssl_channel_credentials(tls.server_ca_pem, tls.private_key_pem, tls.certificate_chain_pem)


def _as_ours(failure: Any, endpoint: str) -> HexcombError:
    details = failure.details() or "no further word from the server"
    if details.startswith(("failed to connect", "Failed to connect", "connections to all backends failing")):
        details = f"cannot reach {endpoint} ({details}); is `hexcomb serve` running there?"
    retry_after_s = None
    for key, value in failure.trailing_metadata() or ():
        if key == RETRY_AFTER_METADATA and str(value).isdecimal():
            retry_after_s = int(value) / 1000
    return error_of(failure.code().value[0], details, retry_after_s)
