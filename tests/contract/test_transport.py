"""What the endpoint may rely on, whichever transport lies below it: an echo server through the seam, called by grpc."""

from __future__ import annotations

import asyncio
import datetime
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc
import grpc.aio
import pytest

from mesh.transport.base import (
    Call,
    CannotListen,
    Later,
    ListenAddress,
    QuickReply,
    ReplyWithTrailers,
    Routes,
    ServerTls,
    StatusCode,
    Transport,
    TransportError,
    TransportLimits,
)
from mesh.transport.grpcio_transport import GrpcioTransport
from mesh.transport.native_transport import NativeTransport
from mesh.transport.socket_directory import SocketDirectory

IMPLEMENTATIONS = {"grpcio": GrpcioTransport, "native": NativeTransport}
MIB = 1024 * 1024


@dataclass
class EchoServer:
    """Handlers that answer with what they saw, and events by which a test knows where a call is."""

    calls: list[Call] = field(default_factory=list)
    entered: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    release: asyncio.Event = field(default_factory=asyncio.Event)
    promised: list[Later] = field(default_factory=list)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait_entered(self, calls: int) -> None:
        async with asyncio.timeout(20):
            for _ in range(calls):
                await self.entered.acquire()

    async def echo(self, call: Call) -> bytes:
        self.calls.append(call)
        return bytes(call.body)

    async def hold(self, call: Call) -> bytes:
        self.calls.append(call)
        self.entered.release()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return bytes(call.body)

    async def refuse(self, call: Call) -> bytes:
        raise TransportError(StatusCode(int(call.body)), "no: the tray is full", retry_after_s=1.5)

    async def fail(self, call: Call) -> bytes:
        raise RuntimeError("password=hunter2")

    async def give_up(self, call: Call) -> bytes:
        raise asyncio.CancelledError

    async def babble(self, call: Call) -> bytes:
        raise TransportError(StatusCode.INVALID_ARGUMENT, "bad: \udc80" + "é" * int(call.body))

    async def trail(self, call: Call) -> ReplyWithTrailers:
        return ReplyWithTrailers(bytes(call.body), (("hexcomb-cold", "1"),))

    async def grow(self, call: Call) -> bytes:
        self.entered.release()
        return bytes(int(call.body))

    def quick(self, calls: Sequence[Call]) -> Sequence[QuickReply]:
        if any(call.body == b"defect" for call in calls):
            raise RuntimeError("password=hunter2")
        answers: dict[bytes, QuickReply] = {
            b"plain": b"at once",
            b"trailing": ReplyWithTrailers(b"at once", (("hexcomb-cold", "1"),)),
            b"refused": TransportError(StatusCode.NOT_FOUND, "none of that name"),
            b"broken": RuntimeError("password=hunter2"),
            b"large": bytes(2000),
            b"later": self.trail,
        }
        return [self.promise() if call.body == b"promised" else answers.get(bytes(call.body)) for call in calls]

    def promise(self) -> Later:
        later = Later()
        later.cancel = self.cancelled.set
        self.promised.append(later)
        self.entered.release()
        return later

    async def stream(self, call: Call, messages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        self.calls.append(call)
        async for message in messages:
            if message == b"refuse":
                raise TransportError(StatusCode.ABORTED, "enough")
            yield message.upper()

    async def watch(self, call: Call, messages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for message in messages:
            yield message
        self.entered.release()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    def routes(self) -> Routes:
        unary = {
            "echo": self.echo,
            "hold": self.hold,
            "refuse": self.refuse,
            "fail": self.fail,
            "give_up": self.give_up,
            "babble": self.babble,
            "grow": self.grow,
            "trail": self.trail,
        }
        streaming = {"stream": self.stream, "watch": self.watch}
        return Routes(
            {f"/test.Echo/{name}": handler for name, handler in unary.items()},
            {f"/test.Echo/{name}": handler for name, handler in streaming.items()},
            {"/test.Echo/hold": self.quick},
        )


Start = Callable[..., Awaitable[Transport]]


@pytest.fixture(params=sorted(IMPLEMENTATIONS))
def implementation(request: pytest.FixtureRequest) -> type[GrpcioTransport] | type[NativeTransport]:
    return IMPLEMENTATIONS[request.param]


@pytest.fixture
def server() -> EchoServer:
    return EchoServer()


@pytest.fixture
async def start(
    implementation: type[GrpcioTransport] | type[NativeTransport], server: EchoServer
) -> AsyncIterator[Start]:
    started: list[Transport] = []

    async def start_one(
        *addresses: ListenAddress, limits: TransportLimits | None = None, routes: Routes | None = None
    ) -> Transport:
        where = addresses or (ListenAddress("127.0.0.1:0"),)
        transport = implementation(routes or server.routes(), where, limits)
        await transport.start()
        started.append(transport)
        return transport

    yield start_one
    server.release.set()
    for transport in started:
        await transport.stop(0.0)


@pytest.fixture
async def dial() -> AsyncIterator[Callable[[str], grpc.aio.Channel]]:
    channels: list[grpc.aio.Channel] = []

    def dial_one(address: str) -> grpc.aio.Channel:
        channel = grpc.aio.insecure_channel(
            address,
            [
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.enable_retries", 0),
            ],
        )
        channels.append(channel)
        return channel

    yield dial_one
    for channel in channels:
        await channel.close()


async def test_bytes_and_metadata_arrive_unchanged_and_the_answer_comes_back(start, dial, server):
    channel = dial((await start()).addresses[0].address)
    metadata = (("hexcomb-tenant", "blue"), ("twice", "1"), ("twice", "2"), ("raw-bin", b"\x00\xff"))
    reply = await channel.unary_unary("/test.Echo/echo")(b"\x00anything\xff", metadata=metadata)
    assert reply == b"\x00anything\xff"
    (call,) = server.calls
    assert call.method == "/test.Echo/echo"
    assert [pair for pair in call.metadata if pair in metadata] == list(metadata)
    assert call.metadata_value("twice") == "2"
    assert call.metadata_value("absent") is None
    assert "127.0.0.1" in call.peer
    assert call.listener_tenant is None


async def test_an_empty_message_is_a_message(start, dial):
    channel = dial((await start()).addresses[0].address)
    assert await channel.unary_unary("/test.Echo/echo")(b"") == b""


async def test_an_answer_may_carry_trailing_metadata(start, dial):
    call = dial((await start()).addresses[0].address).unary_unary("/test.Echo/trail")(b"x")
    assert await call == b"x"
    assert ("hexcomb-cold", "1") in tuple(await call.trailing_metadata())


async def test_the_clients_deadline_reaches_the_handler_on_the_monotonic_clock(start, dial, server):
    channel = dial((await start()).addresses[0].address)
    before_s = time.monotonic()
    await channel.unary_unary("/test.Echo/echo")(b"x", timeout=30)
    await channel.unary_unary("/test.Echo/echo")(b"x")
    with_deadline, without = server.calls
    assert before_s + 28 < with_deadline.deadline_s < before_s + 32
    assert without.deadline_s is None


async def test_a_passed_deadline_cancels_the_handler(start, dial, server):
    channel = dial((await start()).addresses[0].address)
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await channel.unary_unary("/test.Echo/hold")(b"x", timeout=0.3)
    assert failure.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await asyncio.wait_for(server.cancelled.wait(), 10)
    assert server.calls[0].abandoned()


@pytest.mark.parametrize("how", ["cancel", "disconnect"])
async def test_a_client_that_leaves_mid_call_cancels_the_handler(start, dial, server, how):
    transport = await start()
    channel = dial(transport.addresses[0].address)
    call = channel.unary_unary("/test.Echo/hold")(b"x")
    await server.wait_entered(1)
    assert transport.calls_in_flight == 1
    assert not server.calls[0].abandoned()
    if how == "cancel":
        call.cancel()
    else:
        await channel.close()
    await asyncio.wait_for(server.cancelled.wait(), 10)
    assert server.calls[0].abandoned()
    assert await dial(transport.addresses[0].address).unary_unary("/test.Echo/echo")(b"next") == b"next"
    assert transport.calls_in_flight == 0


async def test_a_refusal_carries_its_status_message_and_retry_hint(start, dial):
    channel = dial((await start()).addresses[0].address)
    for status in StatusCode:
        if status is StatusCode.OK:
            continue
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await channel.unary_unary("/test.Echo/refuse")(b"%d" % status)
        assert failure.value.code().value[0] == status
        assert failure.value.details() == "no: the tray is full"
        assert ("retry-after-ms", "1500") in tuple(failure.value.trailing_metadata())


@pytest.mark.parametrize("length", [1, 1_000_000])
async def test_a_refusal_arrives_however_long_or_odd_its_message(start, dial, length):
    channel = dial((await start()).addresses[0].address)
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await channel.unary_unary("/test.Echo/babble")(b"%d" % length)
    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert failure.value.details().startswith("bad: ")


async def test_an_exception_is_answered_without_its_story_which_goes_to_the_log(start, dial, caplog):
    channel = dial((await start()).addresses[0].address)
    with caplog.at_level(logging.ERROR), pytest.raises(grpc.aio.AioRpcError) as failure:
        await channel.unary_unary("/test.Echo/fail")(b"x")
    assert failure.value.code() is grpc.StatusCode.INTERNAL
    assert "hunter2" not in failure.value.details()
    assert "Traceback" not in failure.value.details()
    incident = failure.value.details().rsplit(" ", 1)[1]
    assert any(incident in record.getMessage() and record.exc_info for record in caplog.records)
    assert await channel.unary_unary("/test.Echo/echo")(b"on we go") == b"on we go"


async def test_a_handler_that_something_else_than_its_client_cancelled_is_answered(start, dial):
    channel = dial((await start()).addresses[0].address)
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await channel.unary_unary("/test.Echo/give_up")(b"x", timeout=20)
    assert failure.value.code() is grpc.StatusCode.INTERNAL
    assert ("hexcomb-answered", "1") in tuple(failure.value.trailing_metadata())


async def test_a_quick_handler_answers_what_it_can_and_leaves_the_rest_to_a_handler(start, dial, server):
    transport = await start(limits=TransportLimits(response_bytes_max=1000))
    hold = dial(transport.addresses[0].address).unary_unary("/test.Echo/hold")
    left = hold(b"left")
    await server.wait_entered(1)
    assert await hold(b"plain") == b"at once"
    trailing = hold(b"trailing")
    assert await trailing == b"at once"
    assert ("hexcomb-cold", "1") in tuple(await trailing.trailing_metadata())
    for body, code, details in (
        (b"refused", grpc.StatusCode.NOT_FOUND, "none of that name"),
        (b"broken", grpc.StatusCode.INTERNAL, "its log tells why"),
        (b"large", grpc.StatusCode.RESOURCE_EXHAUSTED, "2000 bytes"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await hold(body)
        assert failure.value.code() is code
        assert details in failure.value.details()
        assert ("hexcomb-answered", "1") in tuple(failure.value.trailing_metadata())
    assert [call.body for call in server.calls] == [b"left"]
    later = hold(b"later")
    assert await later == b"later"
    assert ("hexcomb-cold", "1") in tuple(await later.trailing_metadata())
    server.release.set()
    assert await left == b"left"
    stopping = asyncio.create_task(transport.stop(30))
    await asyncio.sleep(0)
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await hold(b"plain")
    assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
    await stopping


async def test_a_promise_of_a_quick_handler_is_kept_when_it_is_settled_and_counts_until_then(start, dial, server):
    transport = await start()
    call = dial(transport.addresses[0].address).unary_unary("/test.Echo/hold")

    async def told(outcome):
        asked = asyncio.ensure_future(call(b"promised"))
        await server.wait_entered(1)
        assert transport.calls_in_flight == 1
        server.promised.pop().settle(outcome)
        return await asked

    assert await told(b"at last") == b"at last"
    assert await told(server.trail) == b"promised"
    for error, status, text in (
        (TransportError(StatusCode.NOT_FOUND, "none of that name"), grpc.StatusCode.NOT_FOUND, "none of that name"),
        (RuntimeError("password=hunter2"), grpc.StatusCode.INTERNAL, "incident"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await told(error)
        assert failed.value.code() is status
        assert text in failed.value.details()
    assert transport.calls_in_flight == 0


async def test_promises_kept_in_one_turn_are_all_answered_whatever_becomes_of_one(start, dial, server):
    transport = await start()
    call = dial(transport.addresses[0].address).unary_unary("/test.Echo/hold")
    asked = [asyncio.ensure_future(call(b"promised", timeout=20)) for _ in range(3)]
    await server.wait_entered(3)
    unsendable = ReplyWithTrailers(b"2", (("no key\n", "1"),))
    for later, outcome in zip(server.promised, (b"1", unsendable, b"3"), strict=True):
        later.settle(outcome)
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert sorted(answer for answer in answers if isinstance(answer, bytes)) == [b"1", b"3"]
    (failure,) = [answer for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
    assert failure.code() is grpc.StatusCode.INTERNAL


@pytest.mark.parametrize("how", ["leaves", "is late", "outlasts the grace"])
async def test_a_promise_to_a_client_that_is_not_answered_any_more_is_cancelled(start, dial, server, how):
    transport = await start()
    call = dial(transport.addresses[0].address).unary_unary("/test.Echo/hold")
    asked = asyncio.ensure_future(call(b"promised", timeout=0.2 if how == "is late" else 20))
    await server.wait_entered(1)
    if how == "leaves":
        asked.cancel()
    elif how == "outlasts the grace":
        await transport.stop(0.0)
    with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)) as ended:
        await asked
    if how == "outlasts the grace":
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
    async with asyncio.timeout(20):
        await server.cancelled.wait()
    assert transport.calls_in_flight == 0


async def test_a_defect_of_a_quick_handler_is_answered_and_the_next_call_served(start, dial):
    hold = dial((await start()).addresses[0].address).unary_unary("/test.Echo/hold")
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await hold(b"defect", timeout=20)
    assert failure.value.code() is grpc.StatusCode.INTERNAL
    assert "hunter2" not in failure.value.details()
    assert await hold(b"plain", timeout=20) == b"at once"


async def test_many_connections_are_served_and_each_cancellation_reaches_its_own_call(start, dial, server):
    """Calls that end in every way at once, from many clients: what the parts of a transport share stays whole."""
    transport = await start()
    address = transport.addresses[0].address
    chance = random.Random(1)

    async def client(number: int) -> None:
        channel = dial(address)
        for turn in range(6):
            body = b"%d %d" % (number, turn)
            kind = chance.choice(["echo", "cancel", "deadline", "quick"])
            if kind == "echo":
                assert await channel.unary_unary("/test.Echo/echo")(body) == body
            elif kind == "quick":
                assert await channel.unary_unary("/test.Echo/hold")(b"plain") == b"at once"
            elif kind == "cancel":
                call = channel.unary_unary("/test.Echo/hold")(body)
                await asyncio.sleep(0)
                call.cancel()
            else:
                with pytest.raises(grpc.aio.AioRpcError) as failure:
                    await channel.unary_unary("/test.Echo/hold")(body, timeout=0.02)
                assert failure.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED

    await asyncio.gather(*(client(number) for number in range(40)))
    assert await dial(address).unary_unary("/test.Echo/echo")(b"still whole") == b"still whole"
    async with asyncio.timeout(20):
        await transport.stop(60)  # waits for what still runs: nothing is left behind
    assert transport.calls_in_flight == 0


async def test_a_client_that_vanished_without_a_word_is_hung_up_on(start):
    transport = await start(limits=TransportLimits(keepalive_after_s=0.2, keepalive_timeout_s=0.2))
    host, _, port = transport.addresses[0].address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    preface, no_settings = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
    writer.write(preface + no_settings)
    async with asyncio.timeout(20):
        while await reader.read(4096):
            pass  # what the server says is not answered, its pings included
    writer.close()


async def test_an_unknown_method_is_unimplemented(start, dial):
    channel = dial((await start()).addresses[0].address)
    for path in ("/test.Echo/nope", "/nope.Nope/echo"):
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await channel.unary_unary(path)(b"x")
        assert failure.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_1500_calls_at_once_are_all_answered(start, dial):
    channel = dial((await start()).addresses[0].address)
    echo = channel.unary_unary("/test.Echo/echo")
    replies = await asyncio.gather(*(echo(b"%d" % index) for index in range(1500)))
    assert replies == [b"%d" % index for index in range(1500)]


async def test_1500_calls_can_be_in_flight_together(start, dial, server):
    transport = await start()
    hold = dial(transport.addresses[0].address).unary_unary("/test.Echo/hold")
    calls = [hold(b"%d" % index) for index in range(1500)]
    await server.wait_entered(1500)
    assert transport.calls_in_flight == 1500
    server.release.set()
    assert await asyncio.gather(*calls) == [b"%d" % index for index in range(1500)]


async def test_calls_above_the_limit_are_refused_at_once_with_a_hint_and_the_others_served(start, dial, server):
    transport = await start(limits=TransportLimits(calls_max=3))
    channel = dial(transport.addresses[0].address)
    held = [channel.unary_unary("/test.Echo/hold")(b"%d" % index) for index in range(3)]
    await server.wait_entered(3)
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await channel.unary_unary("/test.Echo/echo")(b"one too many")
    assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert ("retry-after-ms", "100") in tuple(failure.value.trailing_metadata())
    assert transport.calls_shed == 1
    server.release.set()
    assert await asyncio.gather(*held) == [b"0", b"1", b"2"]
    assert await channel.unary_unary("/test.Echo/echo")(b"room again") == b"room again"


async def test_calls_whose_messages_are_too_much_together_are_refused_and_one_alone_never_is(start, dial, server):
    transport = await start(limits=TransportLimits(bytes_in_flight_max=1000))
    channel = dial(transport.addresses[0].address)
    held = channel.unary_unary("/test.Echo/hold")(bytes(900))
    await server.wait_entered(1)
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await channel.unary_unary("/test.Echo/echo")(bytes(101))
    assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert ("retry-after-ms", "100") in tuple(failure.value.trailing_metadata())
    assert await channel.unary_unary("/test.Echo/echo")(bytes(100)) == bytes(100)
    server.release.set()
    assert await held == bytes(900)
    assert await channel.unary_unary("/test.Echo/echo")(bytes(2000)) == bytes(2000)


async def test_a_message_over_the_limit_is_refused_and_the_server_goes_on(start, dial, server):
    transport = await start()
    channel = dial(transport.addresses[0].address)
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await channel.unary_unary("/test.Echo/echo")(bytes(100 * MIB))
    assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert not server.calls
    assert await channel.unary_unary("/test.Echo/echo")(bytes(15 * MIB)) == bytes(15 * MIB)


async def test_a_compressed_message_is_measured_as_it_is_unpacked(start, dial, server):
    channel = dial((await start()).addresses[0].address)
    echo = channel.unary_unary("/test.Echo/echo")
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await echo(bytes(100 * MIB), compression=grpc.Compression.Gzip)
    assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert not server.calls
    assert await echo(bytes(MIB), compression=grpc.Compression.Gzip) == bytes(MIB)


async def test_a_response_may_be_larger_than_a_request(start, dial):
    channel = dial((await start()).addresses[0].address)
    assert len(await channel.unary_unary("/test.Echo/grow")(b"%d" % (64 * MIB))) == 64 * MIB


async def test_a_response_over_its_limit_is_refused(start, dial):
    channel = dial((await start(limits=TransportLimits(response_bytes_max=1000))).addresses[0].address)
    assert len(await channel.unary_unary("/test.Echo/grow")(b"1000")) == 1000
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await channel.unary_unary("/test.Echo/grow")(b"1001")
    assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "1001" in failure.value.details()


async def test_streams_go_both_ways_and_can_be_refused_midway(start, dial, server):
    channel = dial((await start(ListenAddress("127.0.0.1:0", tenant="blue"))).addresses[0].address)
    stream = channel.stream_stream("/test.Echo/stream")(iter([b"a", b"b"]), timeout=10)
    assert [message async for message in stream] == [b"A", b"B"]
    assert server.calls[0].listener_tenant == "blue"
    refused = channel.stream_stream("/test.Echo/stream")(iter([b"a", b"refuse", b"c"]))
    assert await refused.read() == b"A"
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await refused.read()
    assert failure.value.code() is grpc.StatusCode.ABORTED
    assert failure.value.details() == "enough"


async def test_a_server_stream_ends_when_its_client_leaves(start, dial, server):
    transport = await start()
    stream = dial(transport.addresses[0].address).unary_stream("/test.Echo/watch")(b"first")
    assert await stream.read() == b"first"
    await server.wait_entered(1)
    stream.cancel()
    await asyncio.wait_for(server.cancelled.wait(), 10)
    await dial(transport.addresses[0].address).unary_unary("/test.Echo/echo")(b"next")
    assert transport.calls_in_flight == 0


async def test_stop_finishes_what_runs_and_refuses_what_comes(start, dial, server):
    transport = await start()
    channel = dial(transport.addresses[0].address)
    running = channel.unary_unary("/test.Echo/hold")(b"running")
    await server.wait_entered(1)
    stopping = asyncio.create_task(transport.stop(30))
    await asyncio.sleep(0)
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await channel.unary_unary("/test.Echo/echo")(b"too late")
    assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
    server.release.set()
    assert await running == b"running"
    await stopping
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await dial(transport.addresses[0].address).unary_unary("/test.Echo/echo")(b"gone")
    assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
    await transport.stop(0)


async def test_stop_sends_to_the_end_what_was_answered_before_it(start, dial, server):
    transport = await start()
    large = dial(transport.addresses[0].address).unary_unary("/test.Echo/grow")(b"%d" % (32 * MIB))
    await server.wait_entered(1)
    await transport.stop(30)
    assert len(await large) == 32 * MIB


async def test_clients_that_go_on_calling_through_a_stop_see_answers_or_unavailable_and_nothing_else(start, dial):
    transport = await start()
    echo = [dial(transport.addresses[0].address).unary_unary("/test.Echo/echo") for _ in range(4)]
    ended: list[grpc.StatusCode] = []
    answered = asyncio.Semaphore(0)

    async def client(number: int) -> None:
        try:
            while True:
                assert await echo[number % 4](b"x") == b"x"
                answered.release()
        except grpc.aio.AioRpcError as failure:
            ended.append(failure.code())

    clients = [asyncio.create_task(client(number)) for number in range(8)]
    for _ in range(50):
        await answered.acquire()
    await transport.stop(5)
    await asyncio.gather(*clients)
    assert set(ended) == {grpc.StatusCode.UNAVAILABLE}


async def test_stop_ends_calls_that_outlast_the_grace_with_unavailable(start, dial, server):
    transport = await start()
    running = dial(transport.addresses[0].address).unary_unary("/test.Echo/hold")(b"stuck")
    await server.wait_entered(1)
    before_s = time.monotonic()
    await transport.stop(0.1)
    assert time.monotonic() - before_s < 5
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await running
    assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
    assert server.cancelled.is_set()


async def test_an_idle_transport_stops_without_using_its_grace(start):
    transport = await start()
    before_s = time.monotonic()
    await transport.stop(60)
    assert time.monotonic() - before_s < 5


async def test_a_port_in_use_is_a_clear_error(start, implementation, server):
    address = (await start()).addresses[0]
    second = implementation(server.routes(), [ListenAddress("127.0.0.1:0"), address])
    with pytest.raises(CannotListen, match=address.address):
        await second.start()
    await second.stop(0)


@pytest.mark.parametrize("address", ["nowhere", "203.0.113.7:0", "127.0.0.1:99999"])
async def test_an_address_that_cannot_be_had_is_a_clear_error(implementation, server, address):
    transport = implementation(server.routes(), [ListenAddress(address)])
    with pytest.raises(CannotListen, match="cannot listen on"):
        await transport.start()
    await transport.stop(0)


async def test_each_address_has_its_own_tenant_and_all_share_the_limit(start, dial, server, tmp_path: Path):
    transport = await start(
        ListenAddress("127.0.0.1:0"),
        ListenAddress("127.0.0.1:0", tenant="blue"),
        ListenAddress(f"unix:{tmp_path}/green.sock", tenant="green"),
        limits=TransportLimits(calls_max=1),
    )
    for listen in transport.addresses:
        await dial(listen.address).unary_unary("/test.Echo/echo")(b"x")
    assert [call.listener_tenant for call in server.calls] == [None, "blue", "green"]
    assert len({listen.address for listen in transport.addresses}) == 3
    held = dial(transport.addresses[0].address).unary_unary("/test.Echo/hold")(b"x")
    await server.wait_entered(1)
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await dial(transport.addresses[1].address).unary_unary("/test.Echo/echo")(b"x")
    assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    server.release.set()
    await held


async def test_a_unix_socket_that_another_server_uses_is_not_taken_over(start, dial, implementation, server, tmp_path):
    listen = ListenAddress(f"unix:{tmp_path}/pod.sock")
    await start(listen)
    second = implementation(server.routes(), [listen])
    with pytest.raises(CannotListen, match="another process serves it"):
        await second.start()
    assert await dial(listen.address).unary_unary("/test.Echo/echo")(b"still here") == b"still here"


async def test_grpcio_serves_a_channel_whose_target_is_a_list(dial, server):
    """The other transport cannot (`mesh.transport.choosing`)."""
    transports = [GrpcioTransport(server.routes(), [ListenAddress("127.0.0.1:0")]) for _ in range(2)]
    for transport in transports:
        await transport.start()
    target = "ipv4:" + ",".join(transport.addresses[0].address for transport in transports)
    assert await dial(target).unary_unary("/test.Echo/echo")(b"x") == b"x"
    for transport in transports:
        await transport.stop(0)


async def test_what_a_killed_process_left_of_its_sockets_is_removed_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left, alive = tmp_path / "hexcomb-sockets-left", SocketDirectory()
    left.mkdir()
    left.with_name("hexcomb-sockets-left.lock").touch()  # nobody holds a lock on it any more
    transport = NativeTransport(Routes({}), [ListenAddress("127.0.0.1:0")])
    await transport.start()
    await transport.stop(0)
    assert sorted(tmp_path.iterdir()) == [alive.path, alive.path.with_name(alive.path.name + ".lock")]
    alive.remove()
    assert not list(tmp_path.iterdir())


async def test_a_dead_unix_socket_is_replaced(start, dial, tmp_path):
    import socket

    path = tmp_path / "pod.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    await start(ListenAddress(f"unix:{path}"))
    assert await dial(f"unix:{path}").unary_unary("/test.Echo/echo")(b"x") == b"x"


async def test_metadata_over_its_limit_is_refused_and_the_server_goes_on(start, dial):
    channel = dial((await start()).addresses[0].address)
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await channel.unary_unary("/test.Echo/echo")(b"x", metadata=(("big", "x" * 20_000),))
    assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await channel.unary_unary("/test.Echo/echo")(b"x", metadata=(("fits", "x" * 12_000),)) == b"x"


@pytest.fixture(scope="module")
def certificate() -> ServerTls:
    """A certificate for `localhost` that is its own authority, for servers and clients."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return ServerTls(certificate, key_pem, client_ca_pem=certificate)


@pytest.mark.parametrize("mutual", [False, True])
async def test_grpcio_tls_serves_those_who_speak_it_and_asks_for_a_certificate_if_told_to(server, certificate, mutual):
    tls = certificate if mutual else replace(certificate, client_ca_pem=None)
    transport = GrpcioTransport(server.routes(), [ListenAddress("localhost:0")], tls=tls)
    await transport.start()
    address = transport.addresses[0].address
    own = (certificate.private_key_pem, certificate.certificate_chain_pem) if mutual else (None, None)
    good = grpc.ssl_channel_credentials(certificate.certificate_chain_pem, *own)
    anonymous = grpc.ssl_channel_credentials(certificate.certificate_chain_pem)
    async with grpc.aio.secure_channel(address, good) as channel:
        assert await channel.unary_unary("/test.Echo/echo")(b"secret") == b"secret"
    refused = [grpc.aio.insecure_channel(address)] + ([grpc.aio.secure_channel(address, anonymous)] if mutual else [])
    for channel in refused:
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await channel.unary_unary("/test.Echo/echo")(b"x")
        assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
        await channel.close()
    await transport.stop(0)


def test_the_private_key_is_not_shown(certificate):
    assert "PRIVATE KEY" not in repr(certificate)
