"""What a pod may rely on when it calls another: the same whether its calls go in batches or each by itself.

On uvloop, as in a pod: its streams are of other classes than asyncio's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest

from mesh.transport.admission import Admission
from mesh.transport.base import (
    Call,
    Line,
    LineBroken,
    ListenAddress,
    Metadata,
    PeerDoor,
    PeerWays,
    Reply,
    ReplyWithTrailers,
    Routes,
    StatusCode,
    Transport,
    TransportError,
    TransportLimits,
)
from mesh.transport.batched_line import BatchedLine
from mesh.transport.frames import CALL_BYTES_MAX, PART_BYTES, VERSION, Frame, Kind, Packer, Unpacker
from mesh.transport.grpcio_line import GrpcioLine
from mesh.transport.grpcio_transport import GrpcioTransport
from mesh.transport.native_transport import NativeTransport
from mesh.transport.pooled_transport import PooledTransport
from tests.contract.tcp_proxy import TcpProxy

KEY = (("key", "of this pod"),)
CALL_S = 20.0
IMPLEMENTATIONS: dict[str, Callable[..., Transport]] = {"grpcio": GrpcioTransport, "native": NativeTransport}


pytestmark = pytest.mark.uvloop


@dataclass
class Pod:
    """A transport as a pod has it, with handlers that answer with what they saw."""

    transport: PooledTransport = field(init=False)
    calls: list[Call] = field(default_factory=list)
    together: list[int] = field(default_factory=list)
    """Calls that the quick handler was given at a time."""
    entered: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    release: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

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
        raise TransportError(StatusCode.UNAVAILABLE, "it is ëlsewhere", 1.5, (("hexcomb-holder", "p2"),))

    async def fail(self, call: Call) -> bytes:
        raise RuntimeError("password=hunter2")

    async def large(self, call: Call) -> ReplyWithTrailers:
        self.entered.release()
        return ReplyWithTrailers(pattern(int(call.body)), (("hexcomb-cold", "1"),))

    async def trail(self, call: Call) -> ReplyWithTrailers:
        return ReplyWithTrailers(bytes(call.body), (("hexcomb-cold", "1"),))

    async def wait_entered(self, calls: int = 1) -> None:
        async with asyncio.timeout(CALL_S):
            for _ in range(calls):
                await self.entered.acquire()

    def quick(self, calls: Sequence[Call]) -> Sequence[Reply | Exception | None]:
        if any(call.body == b"defect" for call in calls):
            raise RuntimeError("password=hunter2")
        self.together.append(len(calls))
        return [b"at once" if call.body == b"quick" else None for call in calls]

    def admit(self, call: Call) -> None:
        if KEY[0] not in call.metadata:
            raise TransportError(StatusCode.PERMISSION_DENIED, "a stranger")

    async def start(self, within: Callable[..., Transport], limits: TransportLimits) -> None:
        handlers = (self.echo, self.hold, self.refuse, self.fail, self.trail, self.large)
        routes = Routes({f"/{handler.__name__}": handler for handler in handlers}, quick={"/echo": self.quick})

        def make(admission: Admission) -> Transport:
            return within(routes, [ListenAddress("127.0.0.1:0")], limits, admission=admission)

        self.transport = PooledTransport(make, routes, limits, PeerDoor("127.0.0.1:0", self.admit))
        await self.transport.start()

    @property
    def ways(self) -> PeerWays:
        assert self.transport.peer_ways is not None
        return self.transport.peer_ways


@pytest.fixture(params=sorted(IMPLEMENTATIONS))
async def pod(request: pytest.FixtureRequest) -> AsyncIterator[Pod]:
    pod = Pod()
    await pod.start(IMPLEMENTATIONS[request.param], TransportLimits(message_bytes_max=2**20))
    yield pod
    pod.release.set()
    await pod.transport.stop(0.0)


@pytest.fixture
async def dial() -> AsyncIterator[Callable[[PeerWays], BatchedLine]]:
    lines: list[BatchedLine] = []

    def make(ways: PeerWays) -> BatchedLine:
        lines.append(BatchedLine(GrpcioLine(ways.address), ways))
        return lines[-1]

    yield make
    await asyncio.gather(*(line.close() for line in lines))


async def call(line: Line, path: str, body: bytes = b"x", metadata: Metadata = KEY, timeout_s: float = CALL_S) -> Reply:
    return await line.call(path, body, metadata, time.monotonic() + timeout_s)


async def batched(line: BatchedLine) -> BatchedLine:
    """The line, once calls on it go in batches."""
    async with asyncio.timeout(CALL_S):
        while not line.is_batched:
            await call(line, "/echo")
            await asyncio.sleep(0.01)
    return line


def pattern(size_bytes: int) -> bytes:
    """Bytes that tell where they belong."""
    numbers = b"".join(b"%8d" % at for at in range(0, min(size_bytes + 8, 2**20), 8))
    return (numbers * (size_bytes // 2**20 + 1))[:size_bytes]


def by_itself(ways: PeerWays) -> PeerWays:
    return PeerWays(ways.address)


def over_tcp(ways: PeerWays) -> PeerWays:
    return replace(ways, socket="")


def from_another_machine(ways: PeerWays) -> PeerWays:
    return replace(ways, socket="/nowhere/peers")


def as_they_are(ways: PeerWays) -> PeerWays:
    return replace(ways, line="")


@pytest.fixture(params=[by_itself, over_tcp, from_another_machine, as_they_are], ids=lambda way: way.__name__)
async def line(request: pytest.FixtureRequest, pod: Pod, dial: Callable[[PeerWays], BatchedLine]) -> BatchedLine:
    line = dial(request.param(pod.ways))
    return line if request.param is by_itself else await batched(line)


async def test_a_call_is_answered_with_what_the_handler_gives(pod: Pod, line: BatchedLine) -> None:
    metadata: Metadata = (*KEY, ("text", "a"), ("text", "b"), ("more-bin", b"\xff\0"))
    assert await call(line, "/echo", b"hello", metadata) == b"hello"
    seen = pod.calls[-1]
    assert (seen.method, seen.body) == ("/echo", b"hello")
    assert [pair for pair in metadata if pair not in seen.metadata] == []
    assert seen.deadline_s is not None
    # gRPC rounds a timeout of tens of seconds up to a tenth.
    assert 0 < seen.deadline_s - time.monotonic() <= CALL_S + 0.1
    assert await call(line, "/trail") == ReplyWithTrailers(b"x", (("hexcomb-cold", "1"),))
    assert await line.call("/echo", b"", KEY, None) == b""
    assert pod.calls[-1].deadline_s is None


async def test_an_error_arrives_as_the_pod_gave_it(line: BatchedLine) -> None:
    with pytest.raises(TransportError) as refused:
        await call(line, "/refuse")
    error = refused.value
    assert (error.status, error.message, error.retry_after_s) == (StatusCode.UNAVAILABLE, "it is ëlsewhere", 1.5)
    assert ("hexcomb-holder", "p2") in error.trailers


async def test_the_story_of_an_unexpected_error_stays_with_the_pod(line: BatchedLine) -> None:
    for path, body in (("/fail", b""), ("/echo", b"defect")):
        with pytest.raises(TransportError) as failed:
            await call(line, path, body)
        assert failed.value.status is StatusCode.INTERNAL
        assert "hunter2" not in str(failed.value)
    assert await call(line, "/echo", b"next") == b"next"


async def test_a_method_that_is_not_served_is_unimplemented(line: BatchedLine) -> None:
    with pytest.raises(TransportError) as refused:
        await call(line, "/nothing")
    assert refused.value.status is StatusCode.UNIMPLEMENTED


async def test_a_request_that_is_too_large_is_refused_and_the_line_goes_on(line: BatchedLine) -> None:
    for size_bytes in (CALL_BYTES_MAX, CALL_BYTES_MAX + 1):
        assert await call(line, "/echo", bytes(size_bytes)) == bytes(size_bytes)
    with pytest.raises(TransportError) as refused:
        await call(line, "/echo", bytes(2**20 + 1))
    assert refused.value.status is StatusCode.RESOURCE_EXHAUSTED
    assert await call(line, "/echo", b"next") == b"next"


async def test_an_answer_of_any_size_comes_whole(line: BatchedLine) -> None:
    sizes_bytes = (PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES, 3 * PART_BYTES + 1)
    replies = await asyncio.gather(*(call(line, "/large", b"%d" % size_bytes) for size_bytes in sizes_bytes))
    for size_bytes, reply in zip(sizes_bytes, replies, strict=True):
        assert reply == ReplyWithTrailers(pattern(size_bytes), (("hexcomb-cold", "1"),))


async def test_a_deadline_ends_the_call_on_both_sides(pod: Pod, line: BatchedLine) -> None:
    with pytest.raises(TransportError) as late:
        await call(line, "/hold", timeout_s=0.2)
    assert late.value.status is StatusCode.DEADLINE_EXCEEDED
    async with asyncio.timeout(CALL_S):
        await pod.cancelled.wait()


async def test_a_caller_that_leaves_cancels_its_call(pod: Pod, line: BatchedLine) -> None:
    leaving = asyncio.create_task(call(line, "/hold"))
    await pod.wait_entered()
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    async with asyncio.timeout(CALL_S):
        await pod.cancelled.wait()
    assert await call(line, "/echo", b"next") == b"next"


async def test_calls_are_counted_among_those_of_the_pod(pod: Pod, line: BatchedLine) -> None:
    held = [asyncio.create_task(call(line, "/hold", b"%d" % number)) for number in range(3)]
    await pod.wait_entered(3)
    assert pod.transport.calls_in_flight == 3
    pod.release.set()
    assert await asyncio.gather(*held) == [b"0", b"1", b"2"]
    assert pod.transport.calls_in_flight == 0


async def test_a_pod_that_stops_finishes_what_it_has_and_refuses_the_rest(pod: Pod, line: BatchedLine) -> None:
    held = asyncio.create_task(call(line, "/hold"))
    await pod.wait_entered()
    stopping = asyncio.create_task(pod.transport.stop(CALL_S))
    await asyncio.sleep(0)
    with pytest.raises(TransportError) as refused:
        await call(line, "/echo")
    assert refused.value.status is StatusCode.UNAVAILABLE
    pod.release.set()
    assert await held == b"x"
    await stopping
    with pytest.raises(LineBroken) as broken:
        await call(line, "/echo")
    assert not broken.value.sent, "nothing was begun there"


async def test_what_runs_when_the_grace_is_over_is_told_so(pod: Pod, line: BatchedLine) -> None:
    held = asyncio.create_task(call(line, "/hold"))
    await pod.wait_entered()
    await pod.transport.stop(0.0)
    with pytest.raises(TransportError) as ended:
        await held
    assert ended.value.status is StatusCode.UNAVAILABLE
    assert "stopped" in ended.value.message


async def test_calls_of_one_turn_of_the_loop_arrive_together(pod: Pod, dial: Callable[[PeerWays], BatchedLine]) -> None:
    line = await batched(dial(pod.ways))
    pod.together.clear()
    answers = await asyncio.gather(*(call(line, "/echo", b"quick" if n % 2 else b"%d" % n) for n in range(10)))
    assert answers == [b"at once" if n % 2 else b"%d" % n for n in range(10)]
    assert pod.together == [10]


async def test_a_stranger_gets_no_line_and_its_calls_are_calls_all_the_same(
    pod: Pod, dial: Callable[[PeerWays], BatchedLine]
) -> None:
    line = dial(pod.ways)
    for _ in range(20):
        assert await call(line, "/echo", b"hello", ()) == b"hello"
    assert not line.is_batched


async def test_who_does_not_show_the_key_soon_and_in_few_words_is_hung_up_on(
    pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mesh.transport.answering.GREETED_WITHIN_S", 0.05)
    long = b"".join(Packer().pack(Kind.HELLO, VERSION, metadata=KEY, body=b"x"))
    for said in (b"", long):
        reader, writer = await asyncio.open_unix_connection(pod.ways.socket)
        writer.write(said)
        async with asyncio.timeout(CALL_S):
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        writer.close()


async def test_a_call_without_a_hello_is_hung_up_on(pod: Pod) -> None:
    reader, writer = await asyncio.open_unix_connection(pod.ways.socket)
    writer.write(b"POST / HTTP/1.1\r\nHost: nobody's business\r\n\r\n")
    async with asyncio.timeout(CALL_S):
        assert await reader.read() == b""
    writer.close()
    assert pod.calls == []


@pytest.fixture
async def way(pod: Pod) -> AsyncIterator[TcpProxy]:
    """Through which batches go, and nothing else."""
    async with TcpProxy(int(pod.ways.line.rpartition(":")[2])) as proxy:
        yield proxy


async def test_when_the_line_breaks_every_call_on_it_does_and_the_next_ones_go_by_themselves(
    pod: Pod, way: TcpProxy, dial: Callable[[PeerWays], BatchedLine]
) -> None:
    line = await batched(dial(PeerWays(pod.ways.address, way.endpoint)))
    held = [asyncio.create_task(call(line, "/hold")) for _ in range(3)]
    await pod.wait_entered(3)
    way.cut()
    for each in held:
        with pytest.raises(LineBroken) as broken:
            await each
        assert (broken.value.sent, broken.value.cut) == (True, False)
    async with asyncio.timeout(CALL_S):
        await pod.cancelled.wait()
    assert await call(line, "/echo", b"next") == b"next"
    await batched(line)


async def test_a_frozen_line_keeps_no_call_beyond_its_deadline(
    pod: Pod, way: TcpProxy, dial: Callable[[PeerWays], BatchedLine]
) -> None:
    line = await batched(dial(PeerWays(pod.ways.address, way.endpoint)))
    way.freeze()
    with pytest.raises(TransportError) as late:
        await call(line, "/echo", timeout_s=0.2)
    assert late.value.status is StatusCode.DEADLINE_EXCEEDED
    way.thaw()
    assert await call(line, "/echo", b"next") == b"next"


async def test_where_batches_are_not_let_through_calls_go_by_themselves(
    pod: Pod, way: TcpProxy, dial: Callable[[PeerWays], BatchedLine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mesh.transport.batched_line.OPEN_WITHIN_S", 0.1)
    way.freeze()
    line = dial(PeerWays(pod.ways.address, way.endpoint))
    ask: Callable[[], Awaitable[Reply]] = partial(call, line, "/echo")
    for _ in range(10):
        assert await ask() == b"x"
    assert not line.is_batched


async def test_a_line_that_is_hung_up_ends_at_both_sides(pod: Pod, dial: Callable[[PeerWays], BatchedLine]) -> None:
    line = await batched(dial(pod.ways))
    held = asyncio.create_task(call(line, "/hold"))
    await pod.wait_entered()
    await line.close()
    async with asyncio.timeout(CALL_S):
        with pytest.raises(LineBroken):
            await held
        await pod.cancelled.wait()


async def test_a_pod_that_does_not_read_is_sent_no_more_than_the_limit_and_is_called_another_way(
    pod: Pod, way: TcpProxy, dial: Callable[[PeerWays], BatchedLine]
) -> None:
    line = await batched(dial(PeerWays(pod.ways.address, way.endpoint)))
    way.freeze()
    body = bytes(CALL_BYTES_MAX)
    held = [asyncio.create_task(call(line, "/echo", body)) for _ in range(80)]
    await asyncio.sleep(0)
    async with asyncio.timeout(CALL_S):
        while await asyncio.wait([asyncio.create_task(call(line, "/echo", body, timeout_s=0.2))]):
            with contextlib.suppress(TransportError):
                assert await call(line, "/echo", b"next", timeout_s=0.5) == b"next"
                break
    assert line.is_batched
    way.thaw()
    assert await asyncio.gather(*held) == [body] * 80


async def test_a_caller_that_does_not_read_is_not_answered_without_end_and_loses_nothing(pod: Pod) -> None:
    reader, writer = await asyncio.open_unix_connection(pod.ways.socket, limit=2**16)
    packer, calls = Packer(), 200
    writer.write(b"".join(packer.pack(Kind.HELLO, VERSION, metadata=KEY)))
    unpacker, answers = Unpacker(CALL_BYTES_MAX), list[Frame]()
    while not answers:
        answers += unpacker.take(await reader.read(2**16))
    for number in range(calls):
        writer.write(b"".join(packer.pack(Kind.CALL, number, text="/echo", body=bytes(CALL_BYTES_MAX))))
    reader._transport.pause_reading()  # type: ignore[attr-defined]
    seen = -1
    while seen < len(pod.calls):
        seen = len(pod.calls)
        for _ in range(30):
            await asyncio.sleep(0.01)
    assert len(pod.calls) < calls, "so many bytes of answers that nobody reads"
    reader._transport.resume_reading()  # type: ignore[attr-defined]
    async with asyncio.timeout(CALL_S):
        while len(answers) <= calls:
            answers += unpacker.take(await reader.read(2**20))
    assert sorted(answer.id for answer in answers[1:]) == list(range(calls))
    assert {(answer.kind, len(answer.body)) for answer in answers[1:]} == {(Kind.ANSWER, CALL_BYTES_MAX)}
    writer.close()


async def test_a_large_answer_holds_up_no_small_one_behind_it(
    pod: Pod, way: TcpProxy, dial: Callable[[PeerWays], BatchedLine]
) -> None:
    line = await batched(dial(PeerWays(pod.ways.address, way.endpoint)))
    way.freeze_answers()
    ended: list[str] = []
    large = asyncio.create_task(call(line, "/large", b"%d" % 2**26))
    large.add_done_callback(lambda _: ended.append("large"))
    await pod.wait_entered()
    small = asyncio.create_task(call(line, "/echo"))
    small.add_done_callback(lambda _: ended.append("small"))
    leaving = asyncio.create_task(call(line, "/large", b"%d" % 2**26))
    await pod.wait_entered()
    leaving.cancel()
    way.thaw()
    assert await large == ReplyWithTrailers(pattern(2**26), (("hexcomb-cold", "1"),))
    assert await small == b"x"
    assert ended == ["small", "large"]


async def test_a_pod_that_stops_finishes_the_answers_that_are_being_read(
    pod: Pod, way: TcpProxy, dial: Callable[[PeerWays], BatchedLine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mesh.transport.pooled_transport._GOODBYE_S", 0.0)
    line = await batched(dial(PeerWays(pod.ways.address, way.endpoint)))
    way.freeze_answers()
    large = asyncio.create_task(call(line, "/large", b"%d" % 2**26))
    await pod.wait_entered()
    stopping = asyncio.create_task(pod.transport.stop(CALL_S))
    asyncio.get_running_loop().call_later(0.5, way.thaw)
    assert await large == ReplyWithTrailers(pattern(2**26), (("hexcomb-cold", "1"),))
    await stopping


async def test_a_socket_that_others_may_have_put_there_is_not_called(
    pod: Pod, dial: Callable[[PeerWays], BatchedLine], tmp_path: Path
) -> None:
    taken = tmp_path / "peers"
    strangers = 0

    async def lure(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal strangers
        strangers += 1
        writer.close()

    os.chmod(tmp_path, 0o777)
    async with await asyncio.start_unix_server(lure, taken):
        line = await batched(dial(replace(pod.ways, socket=str(taken))))
        assert await call(line, "/echo", b"next") == b"next"
    assert strangers == 0


async def test_where_nobody_listens_on_the_socket_batches_go_over_tcp(
    pod: Pod, dial: Callable[[PeerWays], BatchedLine], tmp_path: Path
) -> None:
    os.chmod(tmp_path, 0o700)
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(tmp_path / "peers"))
    await batched(dial(replace(pod.ways, socket=str(tmp_path / "peers"))))


async def test_a_pod_that_can_have_no_socket_takes_batches_over_tcp(
    dial: Callable[[PeerWays], BatchedLine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    pod = Pod()
    await pod.start(GrpcioTransport, TransportLimits())
    assert pod.ways.socket == ""
    await batched(dial(pod.ways))
    await pod.transport.stop(0.0)


async def test_a_pod_that_says_what_no_pod_says_is_hung_up_on(
    pod: Pod, dial: Callable[[PeerWays], BatchedLine]
) -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"".join(Packer().pack(Kind.HELLO, VERSION)))
        unpacker = Unpacker(CALL_BYTES_MAX)
        while not any(frame.kind == Kind.CALL for frame in unpacker.take(await reader.read(2**16))):
            pass
        writer.write(bytes(range(256)))
        async with asyncio.timeout(CALL_S):
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        writer.close()

    async with await asyncio.start_server(babble, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        line = await batched(dial(PeerWays(pod.ways.address, f"{host}:{port}")))
        with pytest.raises(LineBroken):
            await call(line, "/echo")
        assert not line.is_batched
        assert await call(line, "/echo", b"next") == b"next"
