"""A call over HTTP as the same call over gRPC: tenant, limits, errors, and clients that leave.

Every REST handler asks one of the gRPC endpoint's handlers, in this process, with the message that a gRPC client would
have sent. So whoever has the model answers, wherever the request came in, and there is no second path to go wrong. This
file is what lies between: headers become metadata, trailing metadata becomes headers, a status becomes an HTTP code.

* The tenant is `hexcomb-tenant`, else the namespace of the host that was called (`<service>.<namespace>.svc...`), else
  the default one.
* Bodies are bounded one by one (`message_bytes_max`) and together (`bytes_in_flight_max`), as they come and unpacked;
  calls in number. What is too much is refused with 413, or with 429 and Retry-After.
* A client that leaves takes its call with it.

Codes are KServe's and Triton's where both know the case: 400, 404, 501, 503, and 500 for what is the server's or the
model's fault. A load that failed for good is 503 without Retry-After: the request was right, and a retry does not help.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import secrets
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from http import HTTPStatus
from typing import TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from mesh.transport.base import (
    RETRY_AFTER_METADATA,
    Call,
    Metadata,
    Reply,
    ReplyWithTrailers,
    StatusCode,
    TransportError,
    TransportLimits,
    UnaryHandler,
)
from mesh.wire import messages
from mesh.wire.errors import InvalidMessage
from mesh.wire.json_tensors import to_json

log = logging.getLogger("hexcomb.http")

Handler = Callable[[Request], Awaitable[Response]]
AnswersTo = Callable[[Call], AsyncGenerator[bytes, None]]
"""The answers to one request, of a model that streams or of any other. Raises TransportError, or has a defect."""

T = TypeVar("T")

HTTP_CODES: Mapping[StatusCode, int] = {
    StatusCode.INVALID_ARGUMENT: 400,
    StatusCode.OUT_OF_RANGE: 400,
    StatusCode.UNAUTHENTICATED: 401,
    StatusCode.PERMISSION_DENIED: 403,
    StatusCode.NOT_FOUND: 404,
    StatusCode.ALREADY_EXISTS: 409,
    StatusCode.ABORTED: 409,
    StatusCode.RESOURCE_EXHAUSTED: 429,
    StatusCode.CANCELLED: 499,
    StatusCode.UNIMPLEMENTED: 501,
    StatusCode.UNAVAILABLE: 503,
    StatusCode.FAILED_PRECONDITION: 503,
    StatusCode.DEADLINE_EXCEEDED: 504,
}
"""All others: 500."""
PASSED_ON = frozenset(
    {
        messages.TENANT_METADATA,
        messages.REVISION_METADATA,
        messages.PREVIOUS_ATTEMPTS_METADATA,
        "traceparent",
        "tracestate",
        "x-request-id",
    }
)
"""Headers that become metadata; the others are between the client and this pod's HTTP."""
_HEADER_LENGTH_MAX = 1024


class HttpCalls:
    """Carries out calls of HTTP clients. One per pod; belongs to the event loop."""

    def __init__(self, handlers: Mapping[str, UnaryHandler], limits: TransportLimits, answers_to: AnswersTo) -> None:
        """`handlers`: of the gRPC endpoint, by path; they raise TransportError, or have a defect."""
        self._handlers = handlers
        self._answers_to = answers_to
        self._limits = limits
        self._calls = 0
        self._bytes = 0

    @property
    def in_flight(self) -> int:
        """Calls that are being answered."""
        return self._calls

    def answering(self, handler: Handler) -> Handler:
        """The handler, counted, with every error turned into an answer."""

        async def answer(request: Request) -> Response:
            if self._calls >= self._limits.calls_max:
                return error_response(self._no_room(f"{self._calls} calls are in flight on this pod, its limit"))
            with self.counted():
                try:
                    return await handler(request)
                except HTTPException:
                    raise
                except ClientDisconnect:
                    return Response(status_code=HTTP_CODES[StatusCode.CANCELLED])
                except Exception as error:
                    return error_response(told(request, error))

        return answer

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """A call is being answered."""
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1

    @contextlib.asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """The request's body, unpacked; counted as in flight until the end. Raises TransportError, HTTPException."""
        kept = bytearray()
        counted_bytes = 0

        def count(size_bytes: int) -> None:
            nonlocal counted_bytes
            if self._bytes > counted_bytes and self._bytes + size_bytes > self._limits.bytes_in_flight_max:
                raise self._no_room(f"requests of {self._bytes} bytes are in flight on this pod, near its limit")
            self._bytes += size_bytes
            counted_bytes += size_bytes

        try:
            async for chunk in request.stream():
                count(len(chunk))
                kept += chunk
                self._check_size(len(kept))
            body = bytes(kept)
            encoding = request.headers.get("content-encoding", "identity").lower()
            if encoding != "identity":
                body = await asyncio.to_thread(self._unpacked, body, encoding)
                count(len(body))
            yield body
        finally:
            self._bytes -= counted_bytes

    def _unpacked(self, body: bytes, encoding: str) -> bytes:
        """Gzip and zlib, as V2 clients send them; on a thread, since a few bytes may become many."""
        if encoding not in ("gzip", "deflate"):
            raise HTTPException(415, f"content-encoding is {encoding[:40]!r}; gzip, deflate or none are read here")
        unpacking = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # either header
        try:
            unpacked = unpacking.decompress(body, self._limits.message_bytes_max + 1)
        except zlib.error as error:
            raise TransportError(StatusCode.INVALID_ARGUMENT, f"the body is not {encoding}: {error}") from error
        self._check_size(len(unpacked))
        if not unpacking.eof:
            raise TransportError(StatusCode.INVALID_ARGUMENT, f"the body ends in the middle of its {encoding}")
        return unpacked

    def _check_size(self, size_bytes: int) -> None:
        if size_bytes > self._limits.message_bytes_max:
            raise HTTPException(
                413, f"the request is larger than {self._limits.message_bytes_max} bytes, the limit of this pod"
            )

    def _no_room(self, found: str) -> TransportError:
        return TransportError(
            StatusCode.RESOURCE_EXHAUSTED, f"{found}; try again shortly", self._limits.shed_retry_after_s
        )

    async def ask(
        self, request: Request, method: messages.Method[messages.Request, messages.Response], message: bytes
    ) -> ReplyWithTrailers:
        """What the handler of this method answers. The body must have been read. Raises TransportError."""
        handler = self._handlers[method.path]
        answer: asyncio.Task[Reply]
        call = _call(request, method.path, message)
        call.abandoned = lambda: answer.cancelling() > 0 or answer.done()

        async def handled() -> Reply:
            return await handler(call)

        answer = asyncio.ensure_future(handled())
        reply = await until_left(request, answer)
        return reply if isinstance(reply, ReplyWithTrailers) else ReplyWithTrailers(reply, ())

    def answers(self, request: Request, message: bytes) -> AsyncGenerator[bytes, None]:
        """Each answer to this ModelInferRequest, a ModelInferResponse. Raises TransportError."""
        return self._answers_to(_call(request, messages.MODEL_STREAM_INFER.path, message))

    async def ask_for(
        self,
        request: Request,
        method: messages.Method[messages.Request, messages.Response],
        message: messages.Request,
    ) -> messages.Response:
        """The same with messages. Raises TransportError."""
        reply = await self.ask(request, method, message.SerializeToString())
        return messages.parse_response(method, reply.body)


async def until_left(request: Request, answer: asyncio.Task[T]) -> T:
    """What the task gives; a client that leaves takes it along. The body must have been read. Raises
    ClientDisconnect."""

    async def client_left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass  # a body that nobody asked for

    left = asyncio.ensure_future(client_left())
    try:
        await asyncio.wait({answer, left}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientDisconnect
        return answer.result()
    finally:
        for task in (answer, left):
            task.cancel()


def told(request: Request, error: Exception) -> TransportError:
    """What the client hears of an error; of a defect, under which number the log has it."""
    if isinstance(error, TransportError):
        return error
    if isinstance(error, InvalidMessage):
        return TransportError(StatusCode.INVALID_ARGUMENT, str(error))
    incident = secrets.token_hex(4)
    log.error("incident %s: %s %s failed", incident, request.method, request.url.path, exc_info=error)
    return TransportError(
        StatusCode.INTERNAL, f"the server failed on this call; its log tells why under incident {incident}"
    )


def _call(request: Request, path: str, message: bytes) -> Call:
    """The call that a gRPC client would have made. Raises InvalidMessage."""
    return Call(
        path,
        message,
        metadata_of(request),
        peer="" if request.client is None else f"{request.client.host}:{request.client.port}",
        listener_tenant=tenant_of_host(request.headers.get("host", "")),
    )


def metadata_of(request: Request) -> Metadata:
    """The headers that mean something to the handlers. Raises InvalidMessage for a tenant that metadata cannot hold:
    left out, it would become another tenant."""
    passed: list[tuple[str, str]] = []
    for key, value in request.headers.items():
        if key not in PASSED_ON:
            continue
        if len(value) <= _HEADER_LENGTH_MAX and value.isascii() and value.isprintable():
            passed.append((key, value))
        elif key == messages.TENANT_METADATA:
            raise InvalidMessage(f"{key} is {value[:40]!r}; it must be printable ASCII, as over gRPC, and no longer")
    return tuple(passed)


def tenant_of_host(host: str) -> str | None:
    """The namespace of a Kubernetes service's name: `<service>.<namespace>.svc...`; None for any other host."""
    labels = host.partition(":")[0].split(".")
    return labels[1] if len(labels) >= 3 and labels[2] == "svc" and labels[1] else None


def error_response(error: TransportError) -> Response:
    """The error as KServe and Triton say it: a code, and `{"error": ...}`."""
    headers = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after_s))
        headers[RETRY_AFTER_METADATA] = str(max(0, round(error.retry_after_s * 1000)))
    return json_response({"error": error.message}, HTTP_CODES.get(error.status, 500), headers)


def json_response(value: object, code: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON document."""
    return Response(to_json(value), code, headers, "application/json")


async def http_error(request: Request, error: Exception) -> Response:
    """No such path, or no such method on it."""
    assert isinstance(error, HTTPException)
    said = str(error.detail)
    path = request.url.path[:200]
    if error.status_code == HTTPStatus.NOT_FOUND:
        said = f"{said}: {path!r} is no path of this server; /openapi.json has them all"
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = ", ".join(sorted((error.headers or {}).get("Allow", "").split(", ")))
        said = f"{said}: {path!r} takes {allowed}, found {request.method}; /openapi.json has the paths that do"
    return json_response({"error": said}, error.status_code, error.headers)
