"""What callers may rely on, pods and clients alike, when the other end is slow to greet them, or never does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from mesh.client.connection import AsyncConnection, BlockingConnection
from mesh.client.errors import Unavailable
from mesh.transport.base import Call, LineBroken, ListenAddress, Routes
from mesh.transport.grpcio_line import GrpcioLine
from mesh.transport.grpcio_transport import GrpcioTransport
from tests.contract.tcp_proxy import TcpProxy

Ask = Callable[[str, bytes], Awaitable[bytes]]
"""One call over a new connection to an address."""
PATH = "/test.Echo/echo"
CALLS_S = 20.0


async def over_a_line(address: str, body: bytes) -> bytes:
    line = GrpcioLine(address)
    try:
        reply = await line.call(PATH, body, (), time.monotonic() + CALLS_S)
    finally:
        await line.close()
    assert isinstance(reply, bytes)
    return reply


async def as_a_client(address: str, body: bytes) -> bytes:
    connection = AsyncConnection(address, None)
    try:
        return (await connection.call(PATH, body, (), CALLS_S)).body
    finally:
        await connection.close()


async def as_a_blocking_client(address: str, body: bytes) -> bytes:
    connection = BlockingConnection(address, None)
    try:
        return (await asyncio.to_thread(connection.call, PATH, body, (), CALLS_S)).body
    finally:
        connection.close()


@pytest.fixture(params=[over_a_line, as_a_client, as_a_blocking_client], ids=lambda ask: ask.__name__)
def ask(request: pytest.FixtureRequest) -> Ask:
    found: Ask = request.param
    return found


@pytest.fixture
async def way() -> AsyncIterator[TcpProxy]:
    """To a server that answers what it is sent."""

    async def echo(call: Call) -> bytes:
        return bytes(call.body)

    transport = GrpcioTransport(Routes({PATH: echo}, {}), [ListenAddress("127.0.0.1:0")])
    port = await transport.start()
    async with TcpProxy(port) as proxy:
        yield proxy
    await transport.stop(0.0)


async def test_a_peer_that_is_slow_to_greet_is_waited_for(ask: Ask, way: TcpProxy) -> None:
    way.delay_s = 0.3  # a machine that is busy, or far away
    assert await ask(way.endpoint, b"hello") == b"hello"
    assert way.connections == 1


async def test_a_peer_that_never_greets_is_given_up(ask: Ask, way: TcpProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.transport.grpcio_line.PING_TIMEOUT_S", 0.5)
    monkeypatch.setattr("mesh.client.connection.PING_TIMEOUT_S", 0.5)
    way.freeze()
    began_s = time.monotonic()
    with pytest.raises((LineBroken, Unavailable)) as raised:
        await ask(way.endpoint, b"hello")
    assert not raised.value.sent
    assert time.monotonic() - began_s < CALLS_S / 2
