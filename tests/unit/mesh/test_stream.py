"""A client's stream, around answers that come from nowhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from mesh.endpoint.access import Access
from mesh.endpoint.stream import StreamEndpoint
from mesh.transport.base import Call
from mesh.wire import messages


class Endless(StreamEndpoint):
    """Of answers that never end."""

    def __init__(self) -> None:
        nobody: Any = None
        super().__init__(nobody, nobody, nobody, nobody, Access(), lambda: 0.0)
        self.left = asyncio.Event()

    async def answers(self, call: Call, tenant: str) -> AsyncGenerator[tuple[bytes, bool], None]:
        try:
            while True:
                yield b"", False
        finally:
            self.left.set()


async def two_requests() -> AsyncIterator[bytes]:
    yield b""
    yield b""


async def test_a_stream_whose_client_leaves_between_answers_ends() -> None:
    endpoint = Endless()
    stream: Any = endpoint.stream_infer(Call(messages.MODEL_STREAM_INFER.path, b""), two_requests())
    for _ in range(3):
        await anext(stream)
    await asyncio.wait_for(stream.aclose(), 10)
    assert endpoint.left.is_set()
