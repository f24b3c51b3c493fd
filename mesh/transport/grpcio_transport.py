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
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mesh.transport.admission import Admission
from mesh.transport.base import (
    Call,
    Later,
    ListenAddress,
    Outcome,
    QuickHandler,
    Reply,
    ReplyWithTrailers,
    Routes,
    ServerTls,
    StatusCode,
    StreamHandler,
    TransportError,
    TransportLimits,
    UnaryHandler,
)
from mesh.transport.listening import Listening, check_free, taken, with_port
from mesh.transport.refusals import as_transport_error, gave_up, response_too_large, sendable, trailers_of

if TYPE_CHECKING:
    import grpc
    import grpc.aio

_BEYOND_REACH = 2**31 - 1
"""For grpc's own limits where ours stands in front of them."""
_LAST_ANSWERS_S = 0.5
"""Once nothing runs, calls that were on their way are still answered (refused) for so long, whatever the grace."""


class GrpcioTransport(Listening):
    """`mesh.transport.base.Transport` on grpc.aio."""

    def __init__(
        self,
        routes: Routes,
        addresses: Sequence[ListenAddress],
        limits: TransportLimits | None = None,
        tls: ServerTls | None = None,
        admission: Admission | None = None,
    ) -> None:
        """`admission`: of the transport that this one is a part of."""
        super().__init__(routes, addresses, limits, admission)
        self._tls = tls
        self._servers: list[grpc.aio.Server] = []

    @property
    def name(self) -> str:
        return "grpcio"

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
                address = wanted.address if wanted.is_unix_socket else with_port(wanted.address, port)
                bound.append(replace(wanted, address=address))
            for server in self._servers:
                await server.start()
        except BaseException:
            await self._stop_servers(0.0)
            raise
        self._addresses = tuple(bound)
        return 0 if bound[0].is_unix_socket else first_port

    async def stop(self, grace_s: float) -> None:
        grace_ends_s = time.monotonic() + grace_s
        await self._admission.close(grace_s)
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
        quick = self._routes.quick.get(path)
        admission = self._admission

        async def serve(body: bytes, context: grpc.aio.ServicerContext) -> bytes | None:
            error = admission.refusal(len(body))
            if error is not None:
                await _refuse(context, error)
                return None
            task = _current_task()
            admission.enter(task, len(body))
            try:
                call = _call(path, body, context, tenant, task)
                reply = handler if quick is None else await _quick_reply(quick, call) or handler
                if not isinstance(reply, bytes | ReplyWithTrailers):
                    reply = await reply(call)
                if isinstance(reply, ReplyWithTrailers):
                    context.set_trailing_metadata(reply.trailers)
                    reply = reply.body
                if len(reply) <= response_bytes_max:
                    return reply
                error = response_too_large(len(reply), response_bytes_max)
            except asyncio.CancelledError:
                if task.cancelling() and not admission.ending:
                    raise  # the client's doing: nobody is left to answer
                error = admission.stopped() if admission.ending else gave_up(path)
            except Exception as failure:
                error = as_transport_error(path, failure)
            finally:
                admission.leave(task, len(body))
            await _refuse(context, error)
            return None

        return serve

    def _stream(self, path: str, handler: StreamHandler, tenant: str | None) -> Callable[..., Any]:
        admission = self._admission

        async def serve(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
            error = admission.refusal()
            if error is not None:
                await _refuse(context, error)
                return
            task = _current_task()
            admission.enter(task)
            try:
                async for reply in handler(_call(path, b"", context, tenant, task), requests):
                    yield reply
                return
            except asyncio.CancelledError:
                if task.cancelling() and not admission.ending:
                    raise  # the client's doing: nobody is left to answer
                error = admission.stopped() if admission.ending else gave_up(path)
            except Exception as failure:
                error = as_transport_error(path, failure)
            finally:
                admission.leave(task)
            await _refuse(context, error)

        return serve


def _current_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


async def _quick_reply(quick: QuickHandler, call: Call) -> Reply | UnaryHandler | None:
    """The answer to one call, if there is or will be one without a handler, or who gives it. Raises what the quick
    handler gives as its error."""
    (reply,) = quick((call,))
    if isinstance(reply, Exception):
        raise reply
    if not isinstance(reply, Later):
        return reply
    outcome = await _settled(reply)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


async def _settled(later: Later) -> Outcome:
    settled: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    def hear(outcome: Outcome) -> None:
        if not settled.done():  # else the task is being cancelled
            settled.set_result(outcome)

    later.heard_by(hear)
    try:
        return await settled
    except asyncio.CancelledError:
        later.cancel()
        raise


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


async def _refuse(context: grpc.aio.ServicerContext, error: TransportError) -> None:
    """Answer with an error: sets status and trailers, then raises grpc's own AbortError."""
    try:
        await context.abort(_grpc_code(error.status), sendable(error.message), trailers_of(error))
    except Exception as raised:
        import grpc.aio

        if isinstance(raised, grpc.aio.AbortError):
            raise  # how abort ends a handler once its status is sent
        # Not sent: the client left in this very moment, which is no error of anybody's.
        raise asyncio.CancelledError from raised


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
    check_free(address)
    try:
        if tls is None:
            return int(server.add_insecure_port(address))
        return int(server.add_secure_port(address, _credentials(tls)))
    except (RuntimeError, OSError) as error:
        raise taken(address) from error


def _credentials(tls: ServerTls) -> grpc.ServerCredentials:
    import grpc

    return grpc.ssl_server_credentials(
        [(tls.private_key_pem, tls.certificate_chain_pem)],
        root_certificates=tls.client_ca_pem,
        require_client_auth=tls.client_ca_pem is not None,
    )
