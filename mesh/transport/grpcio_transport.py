"""The reference transport: grpc.aio behind the seam, the one that speaks TLS and streams.

One generic handler per server, message bytes passed through untouched, one dict lookup per call. What grpc.aio
would do otherwise and this file changes:

* It sheds above 1,000 pending calls with CANCELLED. Its own limit is raised out of reach; ours counts calls and
  answers RESOURCE_EXHAUSTED with a hint.
* It lets two servers share a port (SO_REUSEPORT) and takes over a unix socket that another server listens on. Both
  are refused with an error that says so.
* `stop` answers calls that arrive in its last moments with CANCELLED, which no client retries. Here calls are first
  refused with UNAVAILABLE while those that run finish; only then does grpc.aio stop.
* An exception's text would go to the client. It goes to the log, under a number that the client is given.

gRPC does not tell a handler which address was called, so each listen address is a server of its own; they share the
event loop, the routes and the count of calls.

Deliberately absent: compression of responses (tensors hardly shrink, and it costs more than loopback), reflection.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mesh.transport.base import (
    ANSWERED_METADATA,
    RETRY_AFTER_METADATA,
    Call,
    CannotListen,
    ListenAddress,
    ReplyWithTrailers,
    Routes,
    ServerTls,
    StatusCode,
    StreamHandler,
    TransportError,
    TransportLimits,
    UnaryHandler,
)

if TYPE_CHECKING:
    import grpc
    import grpc.aio

_log = logging.getLogger(__name__)

_BEYOND_REACH = 2**31 - 1
"""For grpc's own limits where ours stands in front of them."""
_LAST_ANSWERS_S = 0.5
"""Once nothing runs, calls that were on their way are still answered (refused) for so long, whatever the grace."""
_PORT_MAX = 65535
_MESSAGE_BYTES_MAX = 2048
"""Of an error's text: at most three times as many once encoded, and gRPC clients take 8 KiB of headers by default."""
_PUSHBACK_METADATA = "grpc-retry-pushback-ms"
"""gRPC's own spelling of a retry hint, for clients with a retry policy."""


class GrpcioTransport:
    """`mesh.transport.base.Transport` on grpc.aio."""

    def __init__(
        self,
        routes: Routes,
        addresses: Sequence[ListenAddress],
        limits: TransportLimits | None = None,
        tls: ServerTls | None = None,
    ) -> None:
        if not addresses:
            raise ValueError("a transport needs at least one address to listen on")
        self._routes = routes
        self._addresses = tuple(addresses)
        self._limits = limits or TransportLimits()
        self._tls = tls
        self._servers: list[grpc.aio.Server] = []
        self._running: set[asyncio.Task[Any]] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._refusing = False
        self._ending = False
        self._calls_shed = 0
        self._bytes_in_flight = 0

    @property
    def name(self) -> str:
        return "grpcio"

    @property
    def limits(self) -> TransportLimits:
        return self._limits

    @property
    def addresses(self) -> Sequence[ListenAddress]:
        return self._addresses

    @property
    def calls_in_flight(self) -> int:
        return len(self._running)

    @property
    def calls_shed(self) -> int:
        return self._calls_shed

    async def start(self) -> int:
        import grpc.aio

        bound: list[ListenAddress] = []
        first_port = 0
        try:
            for wanted in self._addresses:
                server = grpc.aio.server(options=_server_options(self._limits))
                self._servers.append(server)
                server.add_generic_rpc_handlers((self._generic_handler(wanted.tenant),))
                port = _bind(server, wanted.address, self._tls)
                first_port = first_port or port
                bound.append(wanted if wanted.is_unix_socket else replace(wanted, address=_at(wanted.address, port)))
            for server in self._servers:
                await server.start()
        except BaseException:
            await self._stop_servers(0.0)
            raise
        self._addresses = tuple(bound)
        return 0 if bound[0].is_unix_socket else first_port

    async def stop(self, grace_s: float) -> None:
        self._refusing = True
        grace_ends_s = time.monotonic() + grace_s
        try:
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
        except TimeoutError:
            _log.warning("%d calls did not finish within %.1f s of grace and are ended", len(self._running), grace_s)
            self._ending = True
            for task in tuple(self._running):
                task.cancel()
        # What is left of the grace is for answers that are still being sent, to slow readers.
        await self._stop_servers(max(_LAST_ANSWERS_S, grace_ends_s - time.monotonic()))

    async def _stop_servers(self, grace_s: float) -> None:
        servers, self._servers = self._servers, []
        await asyncio.gather(*(server.stop(grace_s) for server in servers))

    def _generic_handler(self, tenant: str | None) -> grpc.GenericRpcHandler:
        import grpc

        # No serialisers: grpc then hands over the bytes as they came.
        methods = {
            path: grpc.unary_unary_rpc_method_handler(self._unary(path, handler, tenant))
            for path, handler in self._routes.unary.items()
        } | {
            path: grpc.stream_stream_rpc_method_handler(self._stream(path, handler, tenant))
            for path, handler in self._routes.streaming.items()
        }

        class Lookup(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc ships no types
            def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
                return methods.get(details.method)

        return Lookup()

    def _unary(self, path: str, handler: UnaryHandler, tenant: str | None) -> Callable[..., Any]:
        response_bytes_max = self._limits.response_bytes_max

        async def serve(body: bytes, context: grpc.aio.ServicerContext) -> bytes | None:
            task = self._admit(len(body))
            if isinstance(task, TransportError):
                await _refuse(context, task)
                return None
            error: TransportError
            try:
                reply = await handler(_call(path, body, context, tenant, task))
                if isinstance(reply, ReplyWithTrailers):
                    context.set_trailing_metadata(reply.trailers)
                    reply = reply.body
                if len(reply) <= response_bytes_max:
                    return reply
                error = TransportError(
                    StatusCode.RESOURCE_EXHAUSTED,
                    f"the response has {len(reply)} bytes, above the limit of {response_bytes_max}; ask for less",
                )
            except asyncio.CancelledError:
                if not self._ending:
                    raise  # the client's doing: nobody is left to answer
                error = self._stopped()
            except Exception as failure:
                error = _as_transport_error(path, failure)
            finally:
                self._leave(task, len(body))
            await _refuse(context, error)
            return None

        return serve

    def _stream(self, path: str, handler: StreamHandler, tenant: str | None) -> Callable[..., Any]:
        async def serve(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
            task = self._admit()
            if isinstance(task, TransportError):
                await _refuse(context, task)
                return
            try:
                async for reply in handler(_call(path, b"", context, tenant, task), requests):
                    yield reply
                return
            except asyncio.CancelledError:
                if not self._ending:
                    raise  # the client's doing: nobody is left to answer
                error = self._stopped()
            except Exception as failure:
                error = _as_transport_error(path, failure)
            finally:
                self._leave(task)
            await _refuse(context, error)

        return serve

    def _admit(self, body_bytes: int = 0) -> asyncio.Task[Any] | TransportError:
        """Count the call that the current task serves, or say why there is no room for it."""
        if self._refusing:
            return TransportError(
                StatusCode.UNAVAILABLE, "this pod is stopping; try another one", self._limits.shed_retry_after_s
            )
        if len(self._running) >= self._limits.calls_max:
            self._calls_shed += 1
            return TransportError(
                StatusCode.RESOURCE_EXHAUSTED,
                f"{self._limits.calls_max} calls are in flight on this pod, its limit; try again shortly",
                self._limits.shed_retry_after_s,
            )
        if self._running and self._bytes_in_flight + body_bytes > self._limits.bytes_in_flight_max:
            self._calls_shed += 1
            return TransportError(
                StatusCode.RESOURCE_EXHAUSTED,
                f"requests of {self._bytes_in_flight} bytes are in flight on this pod, near its limit of "
                f"{self._limits.bytes_in_flight_max}; try again shortly",
                self._limits.shed_retry_after_s,
            )
        self._bytes_in_flight += body_bytes
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        self._idle.clear()
        return task

    def _leave(self, task: asyncio.Task[Any], body_bytes: int = 0) -> None:
        self._bytes_in_flight -= body_bytes
        self._running.discard(task)
        if not self._running:
            self._idle.set()

    def _stopped(self) -> TransportError:
        """The answer to a call that `stop` cancelled."""
        return TransportError(
            StatusCode.UNAVAILABLE,
            "this pod stopped before the call was done; try another one",
            self._limits.shed_retry_after_s,
        )


def _call(
    path: str, body: bytes, context: grpc.aio.ServicerContext, tenant: str | None, task: asyncio.Task[Any]
) -> Call:
    remaining_s = context.time_remaining()

    def abandoned() -> bool:
        # Not context.done(): that becomes true only after the handler has returned.
        return task.cancelling() > 0 or task.done()

    return Call(
        method=path,
        body=body,
        metadata=tuple((key, value) for key, value in context.invocation_metadata()),
        deadline_s=None if remaining_s is None else time.monotonic() + remaining_s,
        peer=context.peer(),
        listener_tenant=tenant,
        abandoned=abandoned,
    )


def _as_transport_error(path: str, failure: Exception) -> TransportError:
    if isinstance(failure, TransportError):
        return failure
    incident = secrets.token_hex(4)
    _log.error("incident %s: %s failed", incident, path, exc_info=failure)
    return TransportError(
        StatusCode.INTERNAL, f"the server failed on this call; its log tells why under incident {incident}"
    )


async def _refuse(context: grpc.aio.ServicerContext, error: TransportError) -> None:
    """Answer with an error: sets status and trailers, then raises grpc's own AbortError."""
    trailers = ((ANSWERED_METADATA, "1"), *error.trailers)
    if error.retry_after_s is not None:
        retry_after_ms = str(max(0, round(error.retry_after_s * 1000)))
        trailers = (*trailers, (RETRY_AFTER_METADATA, retry_after_ms), (_PUSHBACK_METADATA, retry_after_ms))
    try:
        await context.abort(_grpc_code(error.status), _sendable(error.message), trailers)
    except Exception as raised:
        import grpc.aio

        if isinstance(raised, grpc.aio.AbortError):
            raise  # how abort ends a handler once its status is sent
        # Not sent: the client left in this very moment, which is no error of anybody's.
        raise asyncio.CancelledError from raised


def _sendable(message: str) -> str:
    """A message travels in a header, percent-encoded; of one that is too long for it, the client gets nothing."""
    encoded = message.encode(errors="replace")
    if len(encoded) <= _MESSAGE_BYTES_MAX:
        return encoded.decode()
    return encoded[:_MESSAGE_BYTES_MAX].decode(errors="ignore") + " ..."


_GRPC_CODES: dict[int, grpc.StatusCode] = {}


def _grpc_code(status: StatusCode) -> grpc.StatusCode:
    if not _GRPC_CODES:
        import grpc

        _GRPC_CODES.update({code.value[0]: code for code in grpc.StatusCode})
    return _GRPC_CODES[status]


def _server_options(limits: TransportLimits) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", limits.message_bytes_max),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", limits.metadata_bytes_max),
        ("grpc.absolute_max_metadata_size", limits.metadata_bytes_max),
        ("grpc.server.max_pending_requests", _BEYOND_REACH),
        ("grpc.server.max_pending_requests_hard_limit", _BEYOND_REACH),
        ("grpc.so_reuseport", 0),
        ("grpc.keepalive_time_ms", int(limits.keepalive_after_s * 1000)),
        # The name that gRPC documents, `keepalive_timeout_ms`, does nothing (1.85: 60 s whatever it says).
        ("grpc.http2.ping_timeout_ms", int(limits.keepalive_timeout_s * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", int(limits.client_ping_interval_min_s * 1000)),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", int(limits.client_ping_interval_min_s * 1000)),
    ]


def _bind(server: grpc.aio.Server, address: str, tls: ServerTls | None) -> int:
    if address.startswith("unix:"):
        _refuse_live_socket(address.removeprefix("unix:"))
    else:
        _, _, port_text = address.rpartition(":")
        if ":" not in address or not port_text.isdecimal() or int(port_text) > _PORT_MAX:
            # gRPC would take 99999 for 34463, and a lone host name for port 443.
            raise CannotListen(f"cannot listen on {address}: write HOST:PORT, [IPv6]:PORT or unix:PATH")
    try:
        if tls is None:
            return int(server.add_insecure_port(address))
        return int(server.add_secure_port(address, _credentials(tls)))
    except (RuntimeError, OSError) as error:
        raise CannotListen(
            f"cannot listen on {address}: it is taken by another process, or is no address of this machine; stop that "
            f"process or choose another address (port 0 takes any free one)"
        ) from error


def _refuse_live_socket(path: str) -> None:
    """gRPC deletes a socket file that is in its way, in use or not; leave it to do so only with dead ones."""
    if not os.path.exists(path):
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except OSError:
            return
    raise CannotListen(f"cannot listen on unix:{path}: another process serves it; stop that one or choose another path")


def _credentials(tls: ServerTls) -> grpc.ServerCredentials:
    import grpc

    return grpc.ssl_server_credentials(
        [(tls.private_key_pem, tls.certificate_chain_pem)],
        root_certificates=tls.client_ca_pem,
        require_client_auth=tls.client_ca_pem is not None,
    )


def _at(address: str, port: int) -> str:
    return f"{address.rpartition(':')[0]}:{port}"
