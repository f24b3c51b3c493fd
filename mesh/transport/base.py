"""The transport seam: bytes, metadata and a deadline go in; bytes, or one of our errors, come out.

The endpoint is written against this file alone. A transport owns sockets, HTTP/2, TLS and the message limits; it
knows no protobuf message, no model and no tenant rule. Handlers are registered by full method name
(`/package.Service/Method`), and the transport looks a name up once per call.

What every transport promises (tests/contract/test_transport.py is this list as code):

* A handler that returns is answered with its bytes, and its trailing metadata if it gives any; one that raises
  TransportError, with that status, message (cut off where it would not fit a header) and retry hint; one that raises
  anything else, with INTERNAL and a message without its story, which goes to the log.
* When the client cancels, goes away, or its deadline passes, the handler's task is cancelled, once. Work that the
  handler left on a thread can ask `call.abandoned()` instead.
* Calls above `limits.calls_max`, or whose messages together exceed `limits.bytes_in_flight_max`, are refused at once
  with RESOURCE_EXHAUSTED and a retry hint; none waits unseen in a queue of the transport's own, none is answered
  CANCELLED for lack of room.
* A message above `limits.message_bytes_max` is refused with RESOURCE_EXHAUSTED, and the transport goes on. grpcio
  refuses it before it lies in memory whole; the native transport cannot, and so serves loopback only by default.
* `stop` refuses new calls with UNAVAILABLE, lets those that run finish for at most `grace_s`, and ends the rest with
  UNAVAILABLE.

A method may have a quick handler beside its handler: it is given calls that arrived together, and answers those that
it can at once, without waiting for anything; the rest go to the handler, each in a task of its own, or to one that the
quick handler gives for it, which need not read again what was read. It is how a call that takes less than a task costs
no task.

Streaming methods have one kind of handler, for client, server and two-way streams alike: an async generator over an
async iterator. A server stream's iterator yields one message.

Deliberately absent: routing, authentication, retries, metrics, HTTP/1 and JSON (the REST endpoint is an ASGI
application and does not pass through here).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol

Metadata = tuple[tuple[str, str | bytes], ...]
"""Pairs in the order they were sent; keys in lower case; bytes only under keys that end in `-bin`."""

RETRY_AFTER_METADATA = "retry-after-ms"
"""Trailing metadata of an error that may pass: try again after so many milliseconds."""


ANSWERED_METADATA = "hexcomb-answered"
"""Trailing metadata of every error that a handler or the transport gave. An error without it comes from the network:
nobody knows whether the call was carried out."""


class StatusCode(IntEnum):
    """How a call ended: gRPC's codes and numbers, without gRPC's package."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class TransportError(Exception):
    """What a handler raises to answer a call with an error. The message goes to the client as it is.

    `trailers`: further trailing metadata of the answer, for callers that are pods themselves.
    """

    def __init__(
        self,
        status: StatusCode,
        message: str,
        retry_after_s: float | None = None,
        trailers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.retry_after_s = retry_after_s
        self.trailers = trailers

    def __str__(self) -> str:
        return f"{self.status.name}: {self.message}"


class CannotListen(Exception):
    """`start` failed: the address is taken, not ours, or not an address. The message says which and what to do."""


def never_abandoned() -> bool:
    """`Call.abandoned` of a call that nobody can abandon, such as one made in a test."""
    return False


@dataclass(slots=True)
class Call:
    """One call as it arrived. Nobody changes it; not frozen, because making a frozen one takes three times as long.

    `deadline_s` is on this process's `time.monotonic()`; None means that the client set none.
    `listener_tenant` is the tenant of the address that was called, if that address has one.
    `abandoned` may be asked from any thread: has the client gone, or the deadline passed?
    """

    method: str
    body: bytes | memoryview
    metadata: Metadata = ()
    deadline_s: float | None = None
    peer: str = ""
    listener_tenant: str | None = None
    abandoned: Callable[[], bool] = never_abandoned

    def metadata_value(self, key: str) -> str | None:
        """The last text value under `key` (in lower case); None when there is none."""
        for name, value in reversed(self.metadata):
            if name == key and isinstance(value, str):
                return value
        return None


@dataclass(frozen=True, slots=True)
class ReplyWithTrailers:
    """A successful answer that says something beside its message, in trailing metadata."""

    body: bytes
    trailers: tuple[tuple[str, str], ...]


Reply = bytes | ReplyWithTrailers

UnaryHandler = Callable[[Call], Awaitable[Reply]]
Outcome = Reply | Exception | UnaryHandler
"""A call's answer, or its error; else who is to answer it, in a task."""


class Later:
    """The answer to a call that comes later, from elsewhere, so that no task needs to wait for it.

    Whoever promises it settles it, once; whoever answers the call hears of it, or cancels it and hears nothing more.
    """

    __slots__ = ("_hear", "_outcome", "cancel")

    def __init__(self) -> None:
        self.cancel: Callable[[], None] = _nothing
        """The client has gone: nobody waits for it any more. Set by whoever promises it."""
        self._hear: Callable[[Outcome], None] | None = None
        self._outcome: Outcome | None = None

    def settle(self, outcome: Outcome) -> None:
        """This is it."""
        hear, self._hear = self._hear, None
        self.cancel = (
            _nothing  # whoever is told, and who told it, hold one another no longer: no work for the collector
        )
        if hear is None:
            self._outcome = outcome
        else:
            hear(outcome)

    def heard_by(self, hear: Callable[[Outcome], None]) -> None:
        """Call this with the outcome, at once if there is one."""
        self._hear = hear
        if self._outcome is not None:
            hear(self._outcome)


def _nothing() -> None:
    pass


QuickReply = Outcome | Later | None
"""What becomes of a call; None: the method's handler is to answer it."""
QuickHandler = Callable[[Sequence[Call]], Sequence[QuickReply]]
"""For each call what becomes of it. Raises nothing."""
StreamHandler = Callable[[Call, AsyncIterator[bytes]], AsyncIterator[bytes]]
"""The call's `body` is empty; the messages come through the iterator."""


@dataclass(frozen=True, slots=True)
class Routes:
    """Handlers by full method name. Methods in neither mapping are UNIMPLEMENTED."""

    unary: Mapping[str, UnaryHandler]
    streaming: Mapping[str, StreamHandler] = field(default_factory=dict)
    quick: Mapping[str, QuickHandler] = field(default_factory=dict)
    """Of methods that are in `unary`, too."""


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """`HOST:PORT` (port 0: any free one; IPv6 as `[::1]:8033`) or `unix:PATH`.

    gRPC servers are not shown the name that the client dialled, so a tenant that is to be known by its address gets
    a listen address of its own.
    """

    address: str
    tenant: str | None = None

    @property
    def is_unix_socket(self) -> bool:
        return self.address.startswith("unix:")


@dataclass(frozen=True, slots=True)
class ServerTls:
    """What a transport that speaks TLS needs, in PEM. Transports that do not speak it refuse to be built with it."""

    certificate_chain_pem: bytes
    private_key_pem: bytes = field(repr=False)
    client_ca_pem: bytes | None = None
    """Given: a client must show a certificate that this authority signed."""


@dataclass(frozen=True, slots=True)
class TransportLimits:
    """Every bound a transport keeps, with its reason."""

    message_bytes_max: int = 16 * 1024 * 1024
    """A request; 16 MiB holds a batch of 26 images of 224 x 224 x 3 FP32, or 4 million FP32 features."""
    response_bytes_max: int = 2**31 - 1
    """A response; above it no protobuf parser reads the message."""
    calls_max: int = 4096
    """Calls in flight on all addresses. Beyond it, refusing at once is kinder than a queue nobody sees."""
    bytes_in_flight_max: int = 1024 * 1024 * 1024
    """Requests of all calls in flight together. Decoded, a request may take several times its bytes."""
    shed_retry_after_s: float = 0.1
    """The hint on a call that was refused for want of room."""
    metadata_bytes_max: int = 16 * 1024
    """All metadata of one call; identity tokens are the largest in use, about 8 KiB."""
    keepalive_after_s: float = 60.0
    """Ping a connection that was silent for so long, so that a client that vanished without a word is noticed."""
    keepalive_timeout_s: float = 20.0
    """Close the connection when that ping is not answered."""
    client_ping_interval_min_s: float = 10.0
    """Clients that ping more often than this are told to go away; load balancers use 10 s to 60 s."""


class LineBroken(Exception):
    """No answer: the peer cannot be reached, or went away.

    `sent`: it may have begun to work on the call. `cut`: this side hung up, because the peer seems to be gone.
    """

    def __init__(self, message: str, *, sent: bool, cut: bool = False) -> None:
        super().__init__(message)
        self.sent = sent
        self.cut = cut


Heard = Callable[[Reply | TransportError | LineBroken], None]
"""Told how a call ended that was begun without waiting for it."""


class Line(Protocol):
    """The calling side of the seam: a connection to one peer, that heals itself."""

    def begin(
        self, path: str, body: bytes | memoryview, metadata: Metadata, deadline_s: float | None, heard: Heard
    ) -> Callable[[], None] | None:
        """`call`, without waiting: `heard` is told, in a later turn of the loop, what `call` would answer or raise.

        Answers how to cancel it, after which `heard` is told nothing; or None, where only `call` can do it.
        """

    async def call(self, path: str, body: bytes | memoryview, metadata: Metadata, deadline_s: float | None) -> Reply:
        """One unary call, body untouched. `deadline_s` is on this process's `time.monotonic()`.

        Raises TransportError with the peer's own answer, LineBroken when there was none. Cancelling the caller
        cancels the call at the peer.
        """

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class PeerWays:
    """How another pod is reached."""

    address: str
    """HOST:PORT of its gRPC."""
    line: str = ""
    """HOST:PORT where it takes calls in batches; empty: nowhere."""
    socket: str = ""
    """The same as the path of a unix socket, which is there for pods on its own machine; empty: nowhere."""


Dial = Callable[[PeerWays], Line]
"""A line to a pod; connects when it is first used."""


@dataclass(frozen=True, slots=True)
class PeerDoor:
    """Where a pod is to take calls in batches from others, and from whom."""

    address: str
    """HOST:PORT; port 0: any free one."""
    admit: Callable[[Call], object]
    """Raises TransportError for a caller that is no pod of this pool."""


class Transport(Protocol):
    """One listening server. Built with routes, addresses and limits; started once, stopped once, on one loop."""

    @property
    def name(self) -> str:
        """`grpcio` or `native`: for logs and `pods`."""

    @property
    def limits(self) -> TransportLimits: ...

    @property
    def addresses(self) -> Sequence[ListenAddress]:
        """Once started: with the ports that were bound in place of 0."""

    @property
    def peer_ways(self) -> PeerWays | None:
        """Once started: where pods of the pool reach it besides its addresses, as bound; None: nowhere."""

    @property
    def calls_in_flight(self) -> int: ...

    @property
    def calls_shed(self) -> int:
        """Refused for want of room, since the start."""

    async def start(self) -> int:
        """Listen on every address, or on none. Returns the port of the first (0 for a unix socket).

        Raises CannotListen.
        """

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, let those that run finish within `grace_s`, end the rest. Idempotent.

        A stream that has no end of its own (health's Watch) runs for the whole grace, unless its handler ends it.
        """
