"""Answers one after the other over HTTP: server-sent events, one `data:` line each.

The first answer is there before the response begins, so that what goes wrong until then is an HTTP code as any other
error. What goes wrong later is told in an event, `{"error": ...}`, and the stream ends. A client that reads slowly
slows the model down; one that leaves ends its run.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mesh.endpoint.rest.calls import HttpCalls, told, until_left
from mesh.endpoint.rest.v2 import off_the_loop
from mesh.wire.json_tensors import to_json

MEDIA_TYPE = "text/event-stream"


class Events(Response):
    """The response. Made with the first event's JSON in hand."""

    media_type = MEDIA_TYPE

    def __init__(
        self,
        calls: HttpCalls,
        request: Request,
        first: bytes | None,
        answers: AsyncGenerator[bytes, None],
        held: contextlib.AsyncExitStack,
        as_json: Callable[[bytes], bytes],
    ) -> None:
        """`first`: None where the model had nothing to say. `held`: let go of when the last event was sent; it closes
        `answers`, too."""
        super().__init__(headers={"cache-control": "no-cache"})
        del self.headers["content-length"]
        self._calls = calls
        self._request = request
        self._first = first
        self._answers = answers
        self._held = held
        self._as_json = as_json

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        with self._calls.counted():
            async with self._held:
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                with contextlib.suppress(ClientDisconnect):
                    await self._send_events(send)
                await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_events(self, send: Send) -> None:
        try:
            answer = self._first
            while answer is not None:
                await _send_event(send, await self._event(answer))
                answer = await next_answer(self._request, self._answers)
        except ClientDisconnect:
            raise
        except Exception as error:
            await _send_event(send, to_json({"error": told(self._request, error).message}))

    async def _event(self, answer: bytes) -> bytes:
        return await off_the_loop(len(answer), lambda: self._as_json(answer))


async def next_answer(request: Request, answers: AsyncGenerator[bytes, None]) -> bytes | None:
    """The next one; None after the last. Raises TransportError, ClientDisconnect."""

    async def taken() -> bytes | None:
        return await anext(answers, None)

    taking = asyncio.ensure_future(taken())
    try:
        return await until_left(request, taking)
    finally:
        await asyncio.wait({taking})  # nobody can close a generator while it runs


async def _send_event(send: Send, text: bytes) -> None:
    await send({"type": "http.response.body", "body": b"data: %b\n\n" % text, "more_body": True})
