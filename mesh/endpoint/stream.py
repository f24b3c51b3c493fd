"""Triton's ModelStreamInfer: requests in, answers out, on one stream; any model, and any pod of the pool.

Each request of a stream is routed by itself, as any other. Answers come in the order of the requests. Up to
`TOGETHER_MAX` requests of a stream are in progress at a time; those of one sequence one after the other. What goes
wrong with a request is told in the stream, which goes on.

A model that is decoupled gives any number of answers. `triton_final_response` in an answer's parameters says whether it
is its request's last; a request with the parameter `triton_enable_empty_final_response` is told the end of a decoupled
model's answers in an empty message of its own.

Between pods such answers travel in parts, by calls like all others: `BeginStream` is routed as the request that it
holds and gives the first part, `NextPart` asks that pod for the next. A pod that nobody asks for `IDLE_MAX_S` ends the
run.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, replace
from math import inf, isfinite
from typing import Any

from mesh.endpoint.access import Access
from mesh.endpoint.shared_memory import SharedMemoryEndpoint
from mesh.endpoint.status import as_transport_error
from mesh.endpoint.v2 import V2Endpoint, asked_name, decoded, shown_name
from mesh.overview import Overview
from mesh.serving import Serving
from mesh.transport.base import (
    Call,
    LineBroken,
    Reply,
    ReplyWithTrailers,
    StatusCode,
    StreamHandler,
    TransportError,
    UnaryHandler,
)
from mesh.wire import messages
from mesh.wire.errors import InvalidMessage
from mesh.wire.generated import hexcomb_pb2, inference_pb2
from mesh.wire.peek import RAW_INPUTS, Envelope, peek
from mesh.wire.request_options import options_of
from mesh.wire.tensors import encode_response, length_prefix, parsed_beside_raw
from placement.records import ModelRecord

TOGETHER_MAX = 32
"""Requests of one stream that are in progress."""
IDLE_MAX_S = 60.0
PART_TIMEOUT_S = 600.0
"""A pod may take so long for the next answer, where the client sets no deadline."""
STREAMS_MAX = 256
"""Of this pod's copies, at a time; each has a thread."""

_EMPTY_FINAL = "triton_enable_empty_final_response"
_SEQUENCE = b"sequence_id"
_ANSWER_FIELD = 2


def _parameters(final: bool) -> bytes:
    response = inference_pb2.ModelInferResponse()
    response.parameters["triton_final_response"].bool_param = final
    return response.SerializeToString()


_FINAL, _NOT_FINAL = _parameters(True), _parameters(False)


@dataclass(slots=True, eq=False)
class _Open:
    """Answers of a run on this pod."""

    answers: AsyncGenerator[bytes, None]
    idle: asyncio.TimerHandle | None = None


class StreamEndpoint:
    """Handlers of `ModelStreamInfer`, and of the two methods by which pods pass such answers on."""

    def __init__(
        self,
        v2: V2Endpoint,
        serving: Serving,
        shared_memory: SharedMemoryEndpoint,
        overview: Overview,
        access: Access,
        clock: Callable[[], float],
    ) -> None:
        self._v2 = v2
        self._serving = serving
        self._shared_memory = shared_memory
        self._overview = overview
        self._access = access
        self._clock = clock
        self._numbers = itertools.count(1)
        self._open: dict[int, _Open] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def streams(self) -> dict[str, StreamHandler]:
        """Handlers by method."""
        return {messages.MODEL_STREAM_INFER.path: self.stream_infer}

    def peer_routes(self) -> dict[str, UnaryHandler]:
        """Handlers by method, of a pod in a pool."""
        return {messages.BEGIN_STREAM.path: self.begin_stream, messages.NEXT_PART.path: self.next_part}

    # A client's stream --------------------------------------------------------------------------------------

    async def stream_infer(self, call: Call, requests: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Answers in the order of the requests."""
        tenant = self._access.caller(call).tenant
        waiting: deque[asyncio.Queue[bytes | None]] = deque()
        tasks: set[asyncio.Task[None]] = set()
        sequences: dict[str, asyncio.Task[None]] = {}
        changed, room = asyncio.Event(), asyncio.Semaphore(TOGETHER_MAX)

        async def read() -> None:
            nonlocal sequences
            try:
                async for body in requests:
                    await room.acquire()
                    answers: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=1)
                    sequence = _sequence_of(body)
                    before = sequences.get(sequence) if sequence else None
                    task = asyncio.ensure_future(self._into(answers, call, tenant, body, before))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
                    if sequence:
                        sequences = {name: other for name, other in sequences.items() if not other.done()}
                        sequences[sequence] = task
                    waiting.append(answers)
                    changed.set()
            finally:
                waiting.append(asyncio.Queue())
                waiting[-1].put_nowait(_END)
                changed.set()

        reading = asyncio.ensure_future(read())
        try:
            while True:
                while not waiting:
                    changed.clear()
                    await changed.wait()
                answers = waiting.popleft()
                while (message := await answers.get()) is not None:
                    if message is _END:
                        await reading
                        return
                    yield message
                room.release()
        finally:
            for task in (reading, *tasks):
                task.cancel()
            await asyncio.gather(reading, *tasks, return_exceptions=True)

    async def _into(
        self,
        answers: asyncio.Queue[bytes | None],
        call: Call,
        tenant: str,
        body: bytes,
        before: asyncio.Task[None] | None,
    ) -> None:
        """One request's messages, and None after them. `before`: the request that has to have ended."""
        try:
            if before is not None:
                await asyncio.wait({before})
            async with contextlib.aclosing(self._messages(call, tenant, body)) as messages_of_request:
                async for message in messages_of_request:
                    await answers.put(message)
        except asyncio.CancelledError:
            # Nobody may be there any more to take what waits, and to wait for that would be for ever.
            if answers.full():
                answers.get_nowait()
            answers.put_nowait(None)
            raise
        except BaseException:
            await answers.put(None)
            raise
        await answers.put(None)

    async def _messages(self, call: Call, tenant: str, body: bytes) -> AsyncGenerator[bytes, None]:
        try:
            async with contextlib.aclosing(self.answers(replace(call, body=body), tenant)) as answers:
                async for answer, final in answers:
                    yield _message(answer + (_FINAL if final else _NOT_FINAL))
        except Exception as error:
            known = as_transport_error(error)
            if known is None:
                raise
            yield _error_message(body, known)

    async def answers_to(self, call: Call) -> AsyncGenerator[bytes, None]:
        """The answers to the request that a call holds, each a ModelInferResponse. Raises TransportError."""
        try:
            tenant = self._access.caller(call).tenant
            async with contextlib.aclosing(self.answers(call, tenant)) as answers:
                async for answer, _ in answers:
                    yield answer
        except Exception as error:
            known = as_transport_error(error)
            if known is None:
                raise
            raise known from error

    async def answers(self, call: Call, tenant: str) -> AsyncGenerator[tuple[bytes, bool], None]:
        """The answers to one request, each a ModelInferResponse, and whether it is the last: the last of a decoupled
        model's is an empty one, and comes only to whoever asks for it. Raises what the request's errors are."""
        async with self._shared_memory.plain(call, tenant) as (call, places):
            inner = replace(call, method=messages.BEGIN_STREAM.path, listener_tenant=tenant)
            part = _part(await self._begin(inner, tenant))
            if part.ended and not part.stream:
                (answer,) = part.responses
                yield await self._shared_memory.delivered(answer, places), True
                return
            pod, stream, ended = part.pod, part.stream, False
            try:
                while True:
                    for answer in part.responses:
                        yield await self._shared_memory.delivered(answer, places), False
                    if part.ended:
                        ended = True
                        break
                    part = await self._next(pod, stream, call.deadline_s, tenant)
            finally:
                if not ended:
                    self._in_background(self._cancel(pod, stream, tenant))
            if _wants_empty_final(call.body):
                envelope = peek(call.body)
                empty = inference_pb2.ModelInferResponse(model_name=envelope.model_name, id=envelope.request_id)
                yield empty.SerializeToString(), True

    async def _next(self, pod: str, stream: int, deadline_s: float | None, tenant: str) -> hexcomb_pb2.StreamPart:
        if pod == self._overview.own_pod:
            return await self._taken(stream)
        request = hexcomb_pb2.NextPartRequest(stream=stream).SerializeToString()
        metadata = ((messages.TENANT_METADATA, tenant),)
        until_s = min(deadline_s or inf, self._clock() + PART_TIMEOUT_S)
        try:
            return _part(await self._overview.call(pod, messages.NEXT_PART.path, request, metadata, until_s))
        except LineBroken as broken:
            raise TransportError(
                StatusCode.UNAVAILABLE, f"the pod that answered went away in the middle of it ({broken})", 0.1
            ) from broken

    async def _cancel(self, pod: str, stream: int, tenant: str) -> None:
        if pod == self._overview.own_pod:
            await self._end(stream)
            return
        request = hexcomb_pb2.NextPartRequest(stream=stream, cancel=True).SerializeToString()
        metadata = ((messages.TENANT_METADATA, tenant),)
        with suppress(LineBroken, TransportError):  # then it ends by itself, when nobody asks
            await self._overview.call(pod, messages.NEXT_PART.path, request, metadata, self._clock() + IDLE_MAX_S)

    # The pod that answers -----------------------------------------------------------------------------------

    async def begin_stream(self, call: Call) -> Reply:
        """For another pod: the first part."""
        return await self._begin(call, self._access.caller(call).tenant)

    async def next_part(self, call: Call) -> Reply:
        """For another pod: the next part, or none any more."""
        self._access.caller(call)
        request = messages.parse(messages.NEXT_PART, call.body)
        if request.cancel:
            await self._end(request.stream)
            return hexcomb_pb2.StreamPart(ended=True).SerializeToString()
        return (await self._taken(request.stream)).SerializeToString()

    async def _begin(self, call: Call, tenant: str) -> Reply:
        envelope = peek(call.body)
        name = asked_name(call, envelope.model_name)
        record, hop = await self._v2.resolve(call, tenant, name, envelope.model_version)

        if not record.spec.has_copies:
            return _whole(await self._v2.run_pipeline(call, tenant, envelope, name, record))

        async def here(current: ModelRecord, space_wait_s: float = inf) -> Reply:
            return await self._first_part(call, envelope, name, current, space_wait_s)

        resident = self._serving.hit(record)
        if resident is None:
            return await self._v2.routed(call, tenant, hop, record, here)
        resident.let_go()
        return await here(record)

    async def _first_part(
        self, call: Call, envelope: Envelope, name: str, record: ModelRecord, space_wait_s: float
    ) -> Reply:
        metadata = await self._serving.metadata(record, call.deadline_s, space_wait_s)
        if not metadata.decoupled:
            resident = self._serving.hit(record)
            return _whole(await self._v2.run(call, envelope, name, record, resident, space_wait_s))
        if len(self._open) >= STREAMS_MAX:
            raise TransportError(
                StatusCode.RESOURCE_EXHAUSTED, f"{STREAMS_MAX} streams are open on this pod, its limit", 1.0
            )
        tensors = await decoded(call.body, envelope)
        shown = shown_name(name, envelope, record)

        async def encoded() -> AsyncGenerator[bytes, None]:
            found = self._serving.stream(record, call.deadline_s, tensors, space_wait_s)
            async with contextlib.aclosing(found) as answers:
                async for outputs in answers:
                    version = str(record.generation)
                    yield encode_response(shown, version, envelope.request_id, outputs, tensors.outputs)

        stream = next(self._numbers)
        self._open[stream] = _Open(encoded())
        return (await self._taken(stream)).SerializeToString()

    async def _taken(self, stream: int) -> hexcomb_pb2.StreamPart:
        """The next answer of a stream here."""
        found = self._open.get(stream)
        if found is None:
            raise TransportError(StatusCode.NOT_FOUND, f"stream {stream} has ended on pod {self._overview.own_pod!r}")
        if found.idle is not None:
            found.idle.cancel()
            found.idle = None
        part = hexcomb_pb2.StreamPart(pod=self._overview.own_pod, stream=stream)
        try:
            part.responses.append(await anext(found.answers))
        except StopAsyncIteration:
            part.ended = True
        except BaseException:
            await self._end(stream)
            raise
        if part.ended:
            self._open.pop(stream, None)
        else:
            loop = asyncio.get_running_loop()
            found.idle = loop.call_later(IDLE_MAX_S, lambda: self._in_background(self._end(stream)))
        return part

    async def _end(self, stream: int) -> None:
        found = self._open.pop(stream, None)
        if found is None:
            return
        if found.idle is not None:
            found.idle.cancel()
        with suppress(RuntimeError):  # somebody waits for its next answer at this very moment, and ends it then
            await found.answers.aclose()

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


_END = b"the end of a stream"


def _part(reply: Reply) -> hexcomb_pb2.StreamPart:
    body = reply.body if isinstance(reply, ReplyWithTrailers) else reply
    return messages.parse_response(messages.BEGIN_STREAM, body)


def _whole(reply: Reply) -> Reply:
    """An answer that comes in one part."""
    body = reply.body if isinstance(reply, ReplyWithTrailers) else reply
    return hexcomb_pb2.StreamPart(responses=[body], ended=True).SerializeToString()


def _message(answer: bytes) -> bytes:
    """A ModelStreamInferResponse around an answer, which is not read for that."""
    return length_prefix(_ANSWER_FIELD, len(answer)) + answer


def _error_message(body: bytes, error: TransportError) -> bytes:
    envelope = _readable(body)
    told = inference_pb2.ModelStreamInferResponse(error_message=error.message)
    told.infer_response.model_name, told.infer_response.id = envelope.model_name, envelope.request_id
    parameters = told.infer_response.parameters
    parameters["triton_final_response"].bool_param = True
    parameters[messages.STREAM_STATUS_PARAMETER].int64_param = int(error.status)
    if error.retry_after_s is not None and isfinite(error.retry_after_s):
        parameters[messages.STREAM_RETRY_AFTER_PARAMETER].int64_param = round(1000 * error.retry_after_s)
    return told.SerializeToString()


def _readable(body: bytes) -> Envelope:
    """What can be read of a request; nothing of one that cannot be read at all."""
    try:
        return peek(body)
    except InvalidMessage:
        return Envelope("", "", "", (), ())


def _sequence_of(body: bytes) -> str:
    """The sequence that a request belongs to, with its model; empty: none that can be read."""
    if _SEQUENCE not in body:
        return ""
    try:
        envelope = peek(body, RAW_INPUTS)
        request = parsed_beside_raw(inference_pb2.ModelInferRequest, body, envelope)
        part = options_of(request.parameters).sequence
    except InvalidMessage:
        return ""  # it is told when its turn comes
    return "" if part is None else f"{envelope.model_name}/{part.id}"


def _wants_empty_final(body: bytes | memoryview) -> bool:
    body = bytes(body)
    if _EMPTY_FINAL.encode() not in body:
        return False
    request = parsed_beside_raw(inference_pb2.ModelInferRequest, body, peek(body, RAW_INPUTS))
    return _EMPTY_FINAL in request.parameters and request.parameters[_EMPTY_FINAL].bool_param
