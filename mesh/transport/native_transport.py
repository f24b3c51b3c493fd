"""The quick transport: pygrpc-native behind the seam. HTTP/2 and gRPC's framing run in Rust, outside the GIL.

Calls come in batches: whatever arrived since the last look is taken in one trip across the GIL. Nothing but the
waiting happens on another thread. The *watcher* of each port blocks until there are calls, hands them to the event
loop and sleeps; the loop answers them, looks for more without blocking, batch after batch, one per turn of the loop so
that others have theirs, and wakes the watcher when there are none left. So all state stays with the loop, nothing is
shared that would need a lock but the right to look, and under load no thread is woken at all.

Of each batch the methods with a quick handler get their calls together, and answer what they can without a task
(`Routes.quick`); every other call is a task, as on grpcio.

What this transport leaves to grpcio, behind a private unix socket, and counts with its own: streaming methods, and
methods that nobody knows. What it cannot do at all stands in `mesh.transport.choosing`.

Deadlines are kept by the library: it answers DEADLINE_EXCEEDED by itself, and says so like any cancellation.

Deliberately absent: compression of responses, and limits on how often clients may ping (the library has none).
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from mesh.transport.admission import Admission
from mesh.transport.base import (
    ANSWERED_METADATA,
    Call,
    ListenAddress,
    Metadata,
    Reply,
    ReplyWithTrailers,
    Routes,
    StatusCode,
    TransportError,
    TransportLimits,
)
from mesh.transport.dispatch import Dispatch, Method, methods_of
from mesh.transport.grpcio_transport import GrpcioTransport
from mesh.transport.listening import Listening, check_free, taken, with_port
from mesh.transport.refusals import as_transport_error, response_too_large, sendable, trailers_of
from mesh.transport.socket_directory import SocketDirectory

if TYPE_CHECKING:
    from pygrpc_native import NativeGrpcFront

_log = logging.getLogger(__name__)

_EVENTS_MAX = 64
"""Calls taken at a time: what they take together, one or two milliseconds (five, if each runs as long as runs on the
loop may), is what everything else on the loop waits for."""
_IO_THREADS = 1
"""Of the library, per port. A second one gains nothing while Python takes longer over a call than Rust does."""
_STREAMS_MAX = 2**31 - 1
"""For the library's limit on calls per connection, where ours stands in front of it."""
_METADATA_READ_FACTOR = 4
"""Metadata up to so many times the limit is read, and refused with a reason; above it the connection is."""
_METADATA_ENTRY_BYTES = 32
"""What an entry counts beside its key and value, as HTTP/2 has it."""
_METADATA_KNOWN_MAX = 1024
_METADATA_KNOWN_BYTES_MAX = 1024
"""Metadata that was measured and is not measured again: a client sends the same with all its calls. How many, and how
long the longest of them."""
_UNSENT_LOOK_S = 0.01
"""How often `stop` looks whether all answers have been sent; the library does not say when."""
_LAST_ANSWERS_S = 0.5
"""How long it looks at least, whatever the grace."""


@dataclass(slots=True)
class _Port:
    """One listen address."""

    front: NativeGrpcFront
    address: ListenAddress
    dispatch: Dispatch
    none_left: threading.Lock = field(default_factory=threading.Lock)
    """Released by the loop when it has taken every call: the watcher's turn to wait for more."""
    watcher: threading.Thread | None = None


class NativeTransport(Listening):
    """`mesh.transport.base.Transport` on pygrpc-native."""

    def __init__(
        self,
        routes: Routes,
        addresses: Sequence[ListenAddress],
        limits: TransportLimits | None = None,
        admission: Admission | None = None,
    ) -> None:
        """`admission`: of the transport that this one is a part of."""
        super().__init__(routes, addresses, limits, admission)
        self._methods = methods_of(routes)  # the library's number of a method is its place here
        self._ports: list[_Port] = []
        self._streams: GrpcioTransport | None = None
        self._sockets: SocketDirectory | None = None
        self._metadata_known: set[Metadata] = set()
        self._takes = False
        """A batch of calls is being answered: whoever answers it sends what is then in"""
        self._answers: list[tuple[NativeGrpcFront, int, Reply]] = []
        """which else is sent at the end of this turn of the loop."""

    @property
    def name(self) -> str:
        return "native"

    async def start(self) -> int:
        loop = asyncio.get_running_loop()
        try:
            for wanted in self._addresses:
                self._ports.append(self._bind(wanted))
            await self._start_streams()
            for port in self._ports:
                port.front.start()
                port.watcher = threading.Thread(
                    target=self._watch, args=(port, loop), name=f"calls-{port.address.address}", daemon=True
                )
                port.none_left.acquire()
                port.watcher.start()
        except BaseException:
            await self._close(0.0)
            raise
        self._addresses = tuple(port.address for port in self._ports)
        first = self._addresses[0]
        return 0 if first.is_unix_socket else int(first.address.rpartition(":")[2])

    def _bind(self, wanted: ListenAddress) -> _Port:
        from pygrpc_native import NativeGrpcFront

        check_free(wanted.address)
        limits = self._limits
        try:
            front = NativeGrpcFront(
                wanted.address,
                [(method.path, False) for method in self._methods],
                io_threads=_IO_THREADS,
                call_details=True,
                metrics=True,
                keepalive_time_ms=int(limits.keepalive_after_s * 1000),
                keepalive_timeout_ms=int(limits.keepalive_timeout_s * 1000),
                keepalive_permit_without_calls=True,
                max_concurrent_streams=_STREAMS_MAX,
                max_metadata_size=limits.metadata_bytes_max * _METADATA_READ_FACTOR,
            )
        except OSError as error:
            raise taken(wanted.address) from error
        dispatch = Dispatch(self._admission, limits, partial(self._answer_soon, front), partial(self._fail, front))
        if wanted.is_unix_socket:
            return _Port(front, wanted, dispatch)
        return _Port(front, replace(wanted, address=with_port(wanted.address, front.bound_port)), dispatch)

    async def _start_streams(self) -> None:
        """grpcio, on a socket for each port, so that a port's tenant is known there, too."""
        self._sockets = SocketDirectory()
        paths = [self._sockets.path / str(number) for number in range(len(self._ports))]
        self._streams = GrpcioTransport(
            Routes({}, self._routes.streaming),
            [ListenAddress(f"unix:{path}", port.address.tenant) for path, port in zip(paths, self._ports, strict=True)],
            self._limits,
            admission=self._admission,
        )
        await self._streams.start()
        for path, port in zip(paths, self._ports, strict=True):
            port.front.set_fallback(str(path))

    async def stop(self, grace_s: float) -> None:
        grace_ends_s = time.monotonic() + grace_s
        await self._admission.close(grace_s)
        await self._close(max(_LAST_ANSWERS_S, grace_ends_s - time.monotonic()))

    async def _close(self, sending_s: float) -> None:
        """Wait at most `sending_s` for answers that are still being sent, to slow readers; then hang up."""
        for _ in range(round(sending_s / _UNSENT_LOOK_S)):
            if not any(_has_unsent(port.front) for port in self._ports):
                break
            await asyncio.sleep(_UNSENT_LOOK_S)
        ports, self._ports = self._ports, []
        if self._streams is not None:
            await self._streams.stop(0.0)
        for port in ports:
            await asyncio.to_thread(port.front.close)
            if port.watcher is not None:
                if port.none_left.locked():
                    port.none_left.release()
                await asyncio.to_thread(port.watcher.join)
        if self._sockets is not None:
            self._sockets.remove()

    # The watcher's thread -------------------------------------------------------------------------------------------

    def _watch(self, port: _Port, loop: asyncio.AbstractEventLoop) -> None:
        while (events := port.front.recv_batch_details(_EVENTS_MAX)) is not None:
            try:
                loop.call_soon_threadsafe(self._take, port, events)
            except RuntimeError:  # the loop ended without a stop
                return
            del events  # or this thread keeps a large request until there is another one
            port.none_left.acquire()

    # The event loop -------------------------------------------------------------------------------------------------

    def _take(self, port: _Port, events: list[Any]) -> None:
        """Answer one batch, and look for the next."""
        self._takes = True
        try:
            self._handle(port, events)
        except Exception as defect:  # ours: it must cost neither these calls their answers nor the port its next ones
            error = as_transport_error("a batch of calls", defect)
            self._send_answers()
            for _, call_id, *_ in events:
                if call_id not in port.dispatch:
                    self._fail(port.front, call_id, error)  # without effect on those that were answered
        self._takes = False
        self._send_answers()
        more = port.front.recv_batch_details(_EVENTS_MAX, 0)
        if more:
            asyncio.get_running_loop().call_soon(self._take, port, more)
        elif port.none_left.locked():
            port.none_left.release()

    def _handle(self, port: _Port, events: list[Any]) -> None:
        tenant = port.address.tenant
        arrived: list[tuple[int, Method, Call]] = []
        cancelled: list[int] = []
        for _, call_id, number, body, _, details in events:
            if details is None:
                cancelled.append(call_id)
                continue
            metadata, peer, remaining_s = details
            error = self._metadata_refusal(metadata) or port.dispatch.refusal(len(body))
            if error is not None:
                self._fail(port.front, call_id, error)
                continue
            deadline_s = None if remaining_s is None else time.monotonic() + remaining_s
            method = self._methods[number]
            arrived.append((call_id, method, Call(method.path, body, metadata, deadline_s, peer, tenant)))
        port.dispatch.take(arrived)
        for call_id in cancelled:
            port.dispatch.cancel(call_id)

    def _metadata_refusal(self, metadata: Metadata) -> TransportError | None:
        if metadata in self._metadata_known:
            return None
        limits = self._limits
        size_bytes = sum(len(key) + len(value) + _METADATA_ENTRY_BYTES for key, value in metadata)
        if size_bytes > limits.metadata_bytes_max:
            return TransportError(
                StatusCode.RESOURCE_EXHAUSTED,
                f"the metadata has {size_bytes} bytes, above the limit of {limits.metadata_bytes_max}; send less",
            )
        if size_bytes <= _METADATA_KNOWN_BYTES_MAX:
            if len(self._metadata_known) >= _METADATA_KNOWN_MAX:
                self._metadata_known.clear()
            self._metadata_known.add(metadata)
        return None

    def _answer_soon(self, front: NativeGrpcFront, call_id: int, reply: Reply) -> None:
        """With all others of this turn of the loop: the library's thread then wakes once for them, and sends those of a
        connection in one piece."""
        if not self._answers and not self._takes:
            asyncio.get_running_loop().call_soon(self._send_answers)
        self._answers.append((front, call_id, reply))

    def _send_answers(self) -> None:
        answers, self._answers = self._answers, []
        for front, call_id, reply in answers:
            try:
                self._answer(front, call_id, reply)
            except Exception as defect:  # it must not cost the others theirs
                self._fail(front, call_id, as_transport_error("an answer", defect))

    def _answer(self, front: NativeGrpcFront, call_id: int, reply: Reply) -> None:
        if isinstance(reply, ReplyWithTrailers):
            body, trailers = reply.body, reply.trailers
        else:
            body, trailers = reply, None
        if len(body) > self._limits.response_bytes_max:
            self._fail(front, call_id, response_too_large(len(body), self._limits.response_bytes_max))
            return
        try:
            front.respond(call_id, body, None, trailers)
        except ValueError as error:  # what the handler gave is no metadata
            self._fail(front, call_id, as_transport_error("trailing metadata", error))

    def _fail(self, front: NativeGrpcFront, call_id: int, error: TransportError) -> None:
        status, message = int(error.status), sendable(error.message)
        # What begins with `grpc-` the library keeps for itself: clients get our spelling of a retry hint alone.
        trailers = [(key, value) for key, value in trailers_of(error) if not key.startswith("grpc-")]
        try:
            front.fail(call_id, status, message, trailers)
        except ValueError:
            _log.warning("the trailing metadata of an error cannot be sent: %.200r", trailers)
            front.fail(call_id, status, message, ((ANSWERED_METADATA, "1"),))


def _has_unsent(front: NativeGrpcFront) -> bool:
    """Whether a call has come in whose answer has not left, as far as the library counts them."""
    counts = front.metrics()
    if counts is None:
        return False
    return any(
        method["started"] > sum(ended["count"] for ended in method["status"].values())
        for method in counts["methods"].values()
    )
