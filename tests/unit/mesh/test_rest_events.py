"""Answers as server-sent events: what a client is told when a stream fails, and what is let go of when it leaves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from starlette.requests import Request

from mesh.endpoint.rest.calls import HttpCalls
from mesh.endpoint.rest.events import Events, next_answer
from mesh.transport.base import Call, StatusCode, TransportError, TransportLimits


class Client:
    """An ASGI client that hangs up when it has seen `leaves_after` events."""

    def __init__(self, leaves_after: int = 1000) -> None:
        self.text = b""
        self.ended = False
        self._leaves_after = leaves_after
        self._left = asyncio.Event()
        self.request = Request({"type": "http", "method": "POST", "path": "/", "headers": []}, self.receive)

    async def receive(self) -> Any:
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.text += message.get("body", b"")
        self.ended = message["type"] == "http.response.body" and not message["more_body"]
        if self.text.count(b"data: ") >= self._leaves_after:
            self._left.set()


class Stream:
    """Answers, of which `fails` comes last."""

    def __init__(self, *answers: bytes, fails: Exception | None = None, hangs: bool = False) -> None:
        self._answers, self._fails, self._hangs = answers, fails, hangs
        self.closed = False

    async def __call__(self) -> AsyncGenerator[bytes, None]:
        try:
            for answer in self._answers:
                yield answer
            if self._fails is not None:
                raise self._fails
            if self._hangs:
                await asyncio.Event().wait()
        finally:
            self.closed = True


async def refuse(call: Call) -> AsyncGenerator[bytes, None]:
    raise TransportError(StatusCode.UNIMPLEMENTED, "nobody asks here")
    yield b""


async def sent_to(client: Client, stream: Stream) -> HttpCalls:
    handlers: dict[str, Any] = {}
    calls = HttpCalls(handlers, TransportLimits(), refuse)
    answers = stream()
    first = await next_answer(client.request, answers)
    async with contextlib.AsyncExitStack() as held:
        await held.enter_async_context(contextlib.aclosing(answers))
        response = Events(calls, client.request, first, answers, held.pop_all(), lambda answer: answer)
    sending = asyncio.create_task(response({}, client.receive, client.send))
    await asyncio.wait_for(sending, 30)
    assert calls.in_flight == 0
    return calls


async def test_each_answer_is_an_event() -> None:
    client, stream = Client(), Stream(b"1", b"2")
    await sent_to(client, stream)
    assert (client.text, client.ended, stream.closed) == (b"data: 1\n\ndata: 2\n\n", True, True)


async def test_a_model_that_has_nothing_to_say_says_nothing() -> None:
    client = Client()
    await sent_to(client, Stream())
    assert (client.text, client.ended) == (b"", True)


@pytest.mark.parametrize(
    ("error", "told"),
    [(TransportError(StatusCode.INTERNAL, "predict raised"), b"predict raised"), (RuntimeError("secret"), b"incident")],
)
async def test_what_goes_wrong_after_the_first_answer_is_the_last_event(error: Exception, told: bytes) -> None:
    client = Client()
    await sent_to(client, Stream(b"1", fails=error))
    assert client.text.startswith(b'data: 1\n\ndata: {"error":')
    assert told in client.text
    assert b"secret" not in client.text
    assert client.ended


async def test_a_client_that_leaves_ends_the_stream() -> None:
    client, stream = Client(leaves_after=1), Stream(b"1", hangs=True)
    await sent_to(client, stream)
    assert stream.closed
