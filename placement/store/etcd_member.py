"""One member of etcd: the channel to it, calls and streams on it. The one module that imports grpc.

**A connection that says nothing is not trusted.** gRPC pings it, and a watch that waits in vain calls `Stream.renew`,
which puts a fresh channel in its place: a stream opened on the old one would hang on the same dead connection. The
old channel lives on until the calls on it are over.

**Certificates are read when a channel is made.** When a connection fails because of one, and the files have changed
since, a fresh channel is made with what they hold now.

Every failure leaves as a CallFailure. Deliberately absent: trying again, and other members (`etcd_connection`).
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Generic

from placement.errors import StoreRefused
from placement.store.etcd_api.generated import etcd_pb2
from placement.store.etcd_api.methods import STREAMED, WATCH, Method, Request, Response
from placement.store.etcd_errors import CallFailure, Verdict
from placement.store.etcd_options import EtcdOptions, Pem

if TYPE_CHECKING:
    import grpc.aio

log = logging.getLogger(__name__)

MESSAGE_BYTES_MAX = 2**31 - 1
"""What etcd's own client takes: a page of a thousand keys at their largest would be 1 GB, though none ever is."""
_RETIRED_GRACE_S = 1.0
"""A channel that was replaced is closed so long after the last call on it has reached its time limit."""


class Member:
    """One member of etcd, and the channel to it."""

    def __init__(self, endpoint: str, options: EtcdOptions) -> None:
        self.endpoint = endpoint
        self._options = options
        self._file_times_s: tuple[float, ...] = ()
        self._channel = self._make_channel()
        self._retired: dict[asyncio.Task[None], grpc.aio.Channel] = {}

    async def call(self, method: Method[Request, Response], request: Request, limit_s: float, token: str) -> Response:
        """Ask this member, once. Raises CallFailure."""
        limit_s = max(limit_s, 0.001)
        if method.path in STREAMED:
            return await self._call_stream(method, request, limit_s, token)
        import grpc.aio

        call = self._channel.unary_unary(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        try:
            answer = await call(request, timeout=limit_s, metadata=_metadata(token))
        except grpc.aio.AioRpcError as error:
            raise self.failure(error) from error
        assert isinstance(answer, method.response)
        return answer

    async def _call_stream(
        self, method: Method[Request, Response], request: Request, limit_s: float, token: str
    ) -> Response:
        stream = self.stream(method, token)
        try:
            await stream.send(request, limit_s)
            answer = await stream.receive(limit_s)
        finally:
            stream.cancel()
        if answer is None:
            raise CallFailure(self.endpoint, "DEADLINE_EXCEEDED", "no answer within the time limit")
        return answer

    def watch(self, token: str) -> Stream[etcd_pb2.WatchRequest, etcd_pb2.WatchResponse]:
        """A stream for watches on this member."""
        return self.stream(WATCH, token)

    def stream(self, method: Method[Request, Response], token: str) -> Stream[Request, Response]:
        """A call on which both sides speak when they like."""
        channel = self._channel
        call = channel.stream_stream(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        return Stream(self, channel, call(metadata=_metadata(token)))

    def renew(self, hanging: grpc.aio.Channel) -> None:
        """Put a fresh channel in the place of this one, unless that has been done."""
        if hanging is not self._channel:
            return
        try:
            fresh = self._make_channel()
        except StoreRefused as error:
            log.warning("the connection to etcd at %s is kept as it is: %s", self.endpoint, error)
            return
        closing = asyncio.create_task(hanging.close(self._options.call_timeout_s + _RETIRED_GRACE_S))
        self._channel = fresh
        self._retired[closing] = hanging
        closing.add_done_callback(self._retired.pop)

    async def close(self) -> None:
        """Hang up now."""
        retired = dict(self._retired)
        for closing in retired:
            closing.cancel()
        for channel in (*retired.values(), self._channel):
            await channel.close()

    def failure(self, error: grpc.aio.AioRpcError) -> CallFailure:
        """gRPC's error in our words. One about certificates whose files have changed since is worth another try."""
        failure = CallFailure(self.endpoint, error.code().name, error.details() or "")
        if failure.verdict is Verdict.NOT_TRUSTED and self._file_times_s != _file_times_s(self._options):
            log.info("the certificate files for etcd have changed; they are read again")
            self.renew(self._channel)
            failure.verdict = Verdict.NOT_REACHED
        return failure

    def _make_channel(self) -> grpc.aio.Channel:
        import grpc
        import grpc.aio

        options = self._options
        arguments: list[tuple[str, int | str]] = [
            ("grpc.initial_reconnect_backoff_ms", min(100, options.max_reconnect_backoff_ms)),
            ("grpc.min_reconnect_backoff_ms", int(options.connect_timeout_s * 1000)),  # in fact: for one connection
            ("grpc.max_reconnect_backoff_ms", options.max_reconnect_backoff_ms),
            ("grpc.keepalive_time_ms", int(options.keepalive_time_s * 1000)),
            # The name that gRPC documents, `keepalive_timeout_ms`, does nothing (1.85: 60 s whatever it says).
            ("grpc.http2.ping_timeout_ms", int(options.keepalive_timeout_s * 1000)),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
            ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
            # A fresh channel must mean a fresh connection, not the one that another channel to this address holds.
            ("grpc.use_local_subchannel_pool", 1),
            # A pool's etcd is nearby: a proxy for the outside world is not asked for it.
            ("grpc.enable_http_proxy", 0),
        ]
        if not options.tls:
            return grpc.aio.insecure_channel(self.endpoint, arguments)
        if options.server_name:
            arguments.append(("grpc.ssl_target_name_override", options.server_name))
        self._file_times_s = _file_times_s(options)
        pems = {name: _pem_bytes(name, pem) for name, pem in options.pems}
        credentials = grpc.ssl_channel_credentials(pems["ca"], pems["key"], pems["cert"])
        return grpc.aio.secure_channel(self.endpoint, credentials, arguments)


class Stream(Generic[Request, Response]):
    """One streamed call. Its end, of whatever kind, is a CallFailure."""

    def __init__(self, member: Member, channel: grpc.aio.Channel, call: Any) -> None:
        self.member = member
        self._channel = channel
        self._call = call
        self._reading: asyncio.Task[Any] | None = None

    async def send(self, request: Request, limit_s: float) -> None:
        """Raises CallFailure, also when the other side takes nothing within the limit."""
        import grpc.aio

        try:
            async with asyncio.timeout(limit_s):
                await self._call.write(request)
        except TimeoutError:
            raise self._failed("DEADLINE_EXCEEDED", "it takes no requests") from None
        except grpc.aio.AioRpcError as error:
            raise self.member.failure(error) from error
        except asyncio.InvalidStateError as error:
            raise self._failed("UNAVAILABLE", "the stream has ended") from error

    async def receive(self, limit_s: float) -> Response | None:
        """The next message; None when there is none within the limit, and the stream stays as it is."""
        import grpc.aio

        # Cancelling a read would cancel the call, so it waits in a task of its own.
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._call.read())
        await asyncio.wait({self._reading}, timeout=limit_s)
        if not self._reading.done():
            return None
        reading, self._reading = self._reading, None
        try:
            message = reading.result()
        except grpc.aio.AioRpcError as error:
            raise self.member.failure(error) from error
        except asyncio.CancelledError:  # of the read, not of us: its channel was closed
            raise self._failed("CANCELLED", "the connection was given up") from None
        if message is grpc.aio.EOF:
            raise self._failed("UNAVAILABLE", "the stream was ended by etcd")
        response: Response = message
        return response

    def renew(self) -> None:
        """Whatever is opened next on this member has a connection of its own: this one says nothing."""
        self.member.renew(self._channel)

    def cancel(self) -> None:
        """Hang up."""
        self._call.cancel()
        if self._reading is not None:
            self._reading.cancel()
            # Whatever it still comes to, nobody waits for it.
            self._reading.add_done_callback(lambda reading: reading.cancelled() or reading.exception())

    def _failed(self, code: str, details: str) -> CallFailure:
        return CallFailure(self.member.endpoint, code, details)


def _metadata(token: str) -> tuple[tuple[str, str], ...]:
    # hasleader: a member that is cut off from the others says so, where it would be silent on a watch.
    always = ("hasleader", "true")
    return (always, ("token", token)) if token else (always,)


def _pem_bytes(name: str, pem: Pem | None) -> bytes | None:
    if pem is None:
        return None
    if pem.file is None:
        return pem.text.encode()
    try:
        return pem.file.read_bytes()
    except OSError as error:
        raise StoreRefused(
            f"the {name} file for etcd, {pem.file}, cannot be read: {error.strerror or error}"
        ) from error


def _file_times_s(options: EtcdOptions) -> tuple[float, ...]:
    """When each certificate file was last written; 0: it is not there now."""
    times_s = []
    for _, pem in options.pems:
        if pem is not None and pem.file is not None:
            try:
                times_s.append(pem.file.stat().st_mtime)
            except OSError:
                times_s.append(0.0)
    return tuple(times_s)
