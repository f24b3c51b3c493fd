"""A client of several pods: whom it asks next, what it makes of a pod that is lost, and that its user never notices."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from mesh.client import SERVICE_CONFIG, AsyncClient, Client, DeadlineExceeded, NotFound, RetryPolicy, Unavailable
from mesh.client.attempts import Pause, Received, Send, conversation
from mesh.client.endpoints import (
    DRAINING_S,
    LEFT_OUT_FIRST_S,
    LEFT_OUT_MAX_S,
    WRITE_RECENT_S,
    Endpoints,
    parse_endpoints,
)
from mesh.client.errors import HexcombError, error_of
from mesh.transport.base import Call, ListenAddress, Reply, ReplyWithTrailers, Routes, StatusCode, TransportError
from mesh.transport.grpcio_transport import GrpcioTransport
from mesh.wire import messages
from mesh.wire.generated import inference_pb2

POLICY = RetryPolicy(attempts_max=2, backoff_first_s=1.0, backoff_max_s=1.0)
LIVE = inference_pb2.ServerLiveResponse(live=True).SerializeToString()


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


# Which endpoint is next ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "addresses"),
    [
        ("a:1", ("a:1",)),
        ("a:1,b:2", ("a:1", "b:2")),
        (" a:1 , b:2,, a:1", ("a:1", "b:2")),
        (["a:1", "b:2,c:3"], ("a:1", "b:2", "c:3")),
        ("ipv4:10.0.0.1:1,10.0.0.2:2", ("10.0.0.1:1", "10.0.0.2:2")),
        ("unix:/run/pod.sock", ("unix:/run/pod.sock",)),
        ("dns:///pods:8033", ("dns:///pods:8033",)),
    ],
)
def test_endpoints_are_one_text_or_a_list(given: Any, addresses: tuple[str, ...]) -> None:
    assert parse_endpoints(given) == addresses


@pytest.mark.parametrize("given", ["", " , ", []])
def test_no_endpoint_is_an_error_at_once(given: Any) -> None:
    with pytest.raises(ValueError, match="no endpoint"):
        Client(given)


def test_a_url_is_no_endpoint() -> None:
    with pytest.raises(ValueError, match=r"'http://a:8033' is a URL; write HOST:PORT of the gRPC port"):
        Client("b:8033,http://a:8033")


def test_calls_go_round_over_endpoints_that_are_well(clock: Clock) -> None:
    endpoints = Endpoints("abc", clock, first=1)
    assert "".join(endpoints.choose() for _ in range(6)) == "bcabca"


def test_one_that_does_not_answer_is_left_out_for_a_while_that_grows(clock: Clock) -> None:
    endpoints = Endpoints("ab", clock)
    for pause_s in (LEFT_OUT_FIRST_S, 2 * LEFT_OUT_FIRST_S, 4 * LEFT_OUT_FIRST_S):
        endpoints.failed("a")
        endpoints.failed("a")  # another call, that was under way at the same time
        clock.now_s += 0.99 * pause_s
        assert [endpoints.choose() for _ in range(3)] == ["b", "b", "b"]
        clock.now_s += 0.02 * pause_s
        assert {endpoints.choose() for _ in range(2)} == {"a", "b"}
    for _ in range(20):
        endpoints.failed("a")
        clock.now_s += LEFT_OUT_MAX_S
    assert "a" in [endpoints.choose() for _ in range(2)]
    endpoints.answered("a", draining=False)
    endpoints.failed("a")
    clock.now_s += LEFT_OUT_FIRST_S
    assert "a" in [endpoints.choose() for _ in range(2)], "an answer makes it well"


def test_when_all_are_left_out_the_one_nearest_to_its_chance_is_asked(clock: Clock) -> None:
    endpoints = Endpoints("ab", clock)
    endpoints.failed("b")
    clock.now_s += 0.1
    endpoints.failed("a")
    assert {endpoints.choose() for _ in range(3)} == {"b"}
    assert endpoints.choose(["b"]) == "a"


def test_a_draining_pod_is_asked_only_when_no_other_is_well(clock: Clock) -> None:
    endpoints = Endpoints("ab", clock)
    endpoints.answered("a", draining=True)
    assert {endpoints.choose() for _ in range(4)} == {"b"}
    endpoints.failed("b")
    assert {endpoints.choose() for _ in range(4)} == {"a"}
    clock.now_s += DRAINING_S
    assert {endpoints.choose() for _ in range(4)} == {"a", "b"}


# The steps of a call -------------------------------------------------------------------------------------------------


def broken(sent: bool = True) -> HexcombError:
    error = error_of(StatusCode.UNAVAILABLE, "broken line")
    error.answered, error.sent = False, sent
    return error


def told(status: StatusCode, hint_s: float | None = None) -> HexcombError:
    return error_of(status, f"told {status.name}", hint_s)


@dataclass
class Played:
    """What one conversation did."""

    asked: list[str] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    attempts: list[str | None] = field(default_factory=list)
    answer: bytes = b""


def play(
    endpoints: Endpoints,
    clock: Clock,
    answers: dict[str, Callable[[], Received | HexcombError]],
    timeout_s: float = 60,
    *,
    repeats: bool = True,
) -> Played:
    played = Played()
    steps = conversation(endpoints, POLICY, (("k", "v"),), clock() + timeout_s, clock, lambda: 0.0, repeats=repeats)
    outcome: Received | HexcombError | None = None
    while True:
        try:
            step = steps.send(outcome)
        except StopIteration as done:
            played.answer = done.value
            return played
        if isinstance(step, Pause):
            clock.now_s += step.seconds
            played.pauses.append(step.seconds)
            outcome = None
            continue
        assert isinstance(step, Send)
        played.asked.append(step.address)
        assert step.metadata[0] == ("k", "v")
        attempts = dict(step.metadata).get(messages.PREVIOUS_ATTEMPTS_METADATA)
        played.attempts.append(attempts if isinstance(attempts, str) else None)
        outcome = answers[step.address]()


def test_a_broken_line_leads_to_the_next_endpoint_at_once(clock: Clock) -> None:
    endpoints = Endpoints("abc", clock)
    played = play(endpoints, clock, {"a": broken, "b": broken, "c": lambda: Received(b"yes")})
    assert (played.asked, played.pauses, played.answer) == (["a", "b", "c"], [], b"yes")
    assert played.attempts == [None, "1", "2"]
    assert play(endpoints, clock, {"c": lambda: Received(b"yes")}).asked == ["c"], "the lost ones are remembered"


def test_tries_that_never_left_count_for_nobodys_death(clock: Clock) -> None:
    endpoints = Endpoints("ab", clock)
    played = play(endpoints, clock, {"a": lambda: broken(sent=False), "b": lambda: Received(b"")})
    assert played.attempts == [None, None]


def test_what_has_an_effect_each_time_is_not_done_again_when_it_may_have_been_done(clock: Clock) -> None:
    answers = {"a": lambda: broken(sent=False), "b": lambda: told(StatusCode.UNAVAILABLE), "c": lambda: Received(b"c")}
    assert play(Endpoints("abc", clock), clock, answers, repeats=False).asked == ["a", "b", "c"]
    with pytest.raises(Unavailable, match="broken line") as failure:
        play(Endpoints("abc", clock), clock, {**answers, "b": broken}, repeats=False)
    assert (failure.value.endpoint, failure.value.attempts) == ("b", 2)


def test_a_pod_that_says_unavailable_is_no_lost_pod(clock: Clock) -> None:
    endpoints = Endpoints("ab", clock)
    answers = {"a": lambda: told(StatusCode.UNAVAILABLE, 5.0), "b": lambda: Received(b"yes")}
    played = play(endpoints, clock, answers)
    assert (played.asked, played.pauses, played.attempts) == (["a", "b"], [], [None, None])
    assert {endpoints.choose() for _ in range(2)} == {"a", "b"}


def test_when_all_were_asked_the_round_begins_again_after_a_pause(clock: Clock) -> None:
    endpoints = Endpoints("ab", clock)
    outcomes = iter([broken(), told(StatusCode.CANCELLED), Received(b"late")])
    answers = dict.fromkeys("ab", lambda: next(outcomes))
    played = play(endpoints, clock, answers)
    assert (len(played.asked), played.pauses, played.answer) == (3, [1.0], b"late")


def test_dead_endpoints_do_not_use_up_the_attempts(clock: Clock) -> None:
    endpoints = Endpoints([f"dead-{number}" for number in range(20)] + ["well"], clock)
    answers: dict[str, Callable[[], Received | HexcombError]] = {f"dead-{number}": broken for number in range(20)}
    played = play(endpoints, clock, {**answers, "well": lambda: Received(b"yes")})
    assert (len(played.asked), played.pauses, played.answer) == (21, [], b"yes")


def test_a_pods_word_is_shown_rather_than_a_broken_line(clock: Clock) -> None:
    answers = {"a": lambda: told(StatusCode.UNAVAILABLE, 2.0), "b": broken}
    with pytest.raises(Unavailable, match="told UNAVAILABLE"):
        play(Endpoints("ab", clock), clock, answers)


@pytest.mark.parametrize("status", [StatusCode.NOT_FOUND, StatusCode.INTERNAL, StatusCode.INVALID_ARGUMENT])
def test_what_another_pod_would_say_as_well_is_raised_at_once(status: StatusCode, clock: Clock) -> None:
    with pytest.raises(HexcombError, match=f"told {status.name}"):
        play(Endpoints("ab", clock), clock, {"a": lambda: told(status)})


def test_an_overloaded_pod_is_asked_again_when_it_says_so_and_another_one_first(clock: Clock) -> None:
    outcomes = iter([told(StatusCode.RESOURCE_EXHAUSTED, 3.0), Received(b"yes")])
    answers = dict.fromkeys("ab", lambda: next(outcomes))
    played = play(Endpoints("ab", clock), clock, answers)
    assert (played.asked, played.pauses) == (["a", "b"], [3.0])


def test_no_try_begins_after_the_deadline(clock: Clock) -> None:
    def hangs() -> HexcombError:
        clock.now_s += 60
        return broken()

    with pytest.raises(Unavailable):
        play(Endpoints("ab", clock), clock, {"a": hangs})


def test_after_a_write_the_next_pods_are_told_of_it_for_a_while(clock: Clock) -> None:
    endpoints = Endpoints("ab", clock)
    play(endpoints, clock, {"a": lambda: Received(b"", revision=7)})
    endpoints.wrote(5)
    assert endpoints.metadata() == ((messages.REVISION_METADATA, "7"),)
    clock.now_s += WRITE_RECENT_S + 0.1
    assert endpoints.metadata() == ()


# Over real connections -----------------------------------------------------------------------------------------------


@dataclass
class LivePod:
    """Answers ServerLive with whatever `reply` gives."""

    transport: GrpcioTransport | None = None
    endpoint: str = ""
    calls: list[Call] = field(default_factory=list)
    reply: Callable[[Call], Reply] = lambda call: LIVE

    async def answer(self, call: Call) -> Reply:
        self.calls.append(call)
        return self.reply(call)

    async def start(self, address: str = "127.0.0.1:0") -> None:
        routes = Routes({messages.SERVER_LIVE.path: self.answer, messages.MODEL_READY.path: self.answer})
        self.transport = GrpcioTransport(routes, [ListenAddress(address)])
        await self.transport.start()
        self.endpoint = self.transport.addresses[0].address

    async def stop(self) -> None:
        if self.transport is not None:
            await self.transport.stop(0)


@asynccontextmanager
async def live_pods(count: int) -> AsyncIterator[list[LivePod]]:
    async with AsyncExitStack() as stack:
        pods = [LivePod() for _ in range(count)]
        for pod in pods:
            await pod.start()
            stack.push_async_callback(pod.stop)
        yield pods


Live = Callable[..., Any]


@pytest.fixture(params=["blocking", "asyncio"])
def live(request: pytest.FixtureRequest) -> Live:
    """`await live(endpoints, calls)`: that many times `server_live`, by whichever client."""

    async def blocking(endpoints: Any, calls: int, timeout_s: float = 20.0) -> list[bool]:
        def ask() -> list[bool]:
            with Client(endpoints, timeout_s=timeout_s) as client:
                return [client.server_live() for _ in range(calls)]

        return await asyncio.to_thread(ask)

    async def on_the_loop(endpoints: Any, calls: int, timeout_s: float = 20.0) -> list[bool]:
        async with AsyncClient(endpoints, timeout_s=timeout_s) as client:
            return [await client.server_live() for _ in range(calls)]

    return blocking if request.param == "blocking" else on_the_loop


async def test_calls_are_spread_over_all_endpoints(live: Live) -> None:
    async with live_pods(3) as pods:
        assert all(await live([pod.endpoint for pod in pods], 9))
        assert [len(pod.calls) for pod in pods] == [3, 3, 3]


async def test_a_stopped_pod_is_no_error_of_any_call(live: Live) -> None:
    async with live_pods(2) as pods:
        endpoints = ",".join(pod.endpoint for pod in pods)
        await pods[0].stop()
        assert all(await live(endpoints, 20))
        assert len(pods[1].calls) == 20


async def test_a_pod_that_accepts_and_never_speaks_is_passed_over(live: Live) -> None:
    async with live_pods(1) as pods:
        with closing(socket.create_server(("127.0.0.1", 0))) as mute:
            endpoint = f"127.0.0.1:{mute.getsockname()[1]}"
            assert all(await live([endpoint, pods[0].endpoint], 4, timeout_s=10))


async def test_a_pod_that_says_it_drains_is_asked_no_more(live: Live) -> None:
    async with live_pods(2) as pods:
        pods[0].reply = lambda call: ReplyWithTrailers(LIVE, ((messages.DRAINING_METADATA, "1"),))
        assert all(await live([pod.endpoint for pod in pods], 20))
        assert len(pods[0].calls) == 1


@pytest.mark.parametrize("status", [StatusCode.UNAVAILABLE, StatusCode.CANCELLED])
async def test_a_server_that_says_unavailable_or_cancelled_is_not_the_last_word(live: Live, status: StatusCode) -> None:
    def refuse(call: Call) -> Reply:
        raise TransportError(status, "not me")

    async with live_pods(2) as pods:
        pods[0].reply = refuse
        assert all(await live([pod.endpoint for pod in pods], 10))
        assert len(pods[1].calls) == 10
        (first, *_) = pods[1].calls
        assert first.metadata_value(messages.PREVIOUS_ATTEMPTS_METADATA) is None


async def test_an_error_of_the_request_is_raised_by_the_first_pod(live: Live) -> None:
    def refuse(call: Call) -> Reply:
        raise TransportError(StatusCode.NOT_FOUND, "no")

    async with live_pods(2) as pods:
        for pod in pods:
            pod.reply = refuse
        with pytest.raises(NotFound):
            await live([pod.endpoint for pod in pods], 1)
        assert sum(len(pod.calls) for pod in pods) == 1


async def test_the_revision_of_a_write_goes_to_the_next_pod() -> None:
    async with live_pods(2) as pods:
        pods[0].reply = pods[1].reply = lambda call: ReplyWithTrailers(LIVE, ((messages.REVISION_METADATA, "42"),))
        async with AsyncClient([pod.endpoint for pod in pods]) as client:
            await client.server_live()
            await client.server_live()
        told = sorted(str(call.metadata_value(messages.REVISION_METADATA)) for pod in pods for call in pod.calls)
        assert told == ["42", "None"]


async def test_a_cancelled_caller_is_cancelled_and_tries_nobody_else() -> None:
    gate = asyncio.Event()

    async def hang(call: Call) -> Reply:
        gate.set()
        await asyncio.Event().wait()
        return LIVE

    async with live_pods(2) as pods:
        for pod in pods:
            pod.answer = hang  # type: ignore[method-assign]
            await pod.stop()
            await pod.start()
        async with AsyncClient([pod.endpoint for pod in pods]) as client:
            call = asyncio.create_task(client.server_live())
            await gate.wait()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call


async def test_a_deadline_that_passes_without_an_answer_moves_the_next_call_elsewhere() -> None:
    frozen = asyncio.Event()

    async def hang(call: Call) -> Reply:
        await frozen.wait()
        return LIVE

    async with live_pods(2) as pods:
        pods[0].answer = hang  # type: ignore[method-assign]
        await pods[0].stop()
        await pods[0].start()
        async with AsyncClient([pod.endpoint for pod in pods], retry=RetryPolicy(attempts_max=1)) as client:
            errors = 0
            for _ in range(6):
                try:
                    await client.server_live(timeout_s=0.2)
                except DeadlineExceeded:
                    errors += 1
            assert errors == 1
        frozen.set()


@pytest.fixture
def free_ports() -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


async def test_a_plain_channel_with_our_service_config_does_not_notice_a_lost_pod(free_ports: list[int]) -> None:
    pods = [LivePod(), LivePod()]
    for pod, port in zip(pods, free_ports, strict=True):
        await pod.start(f"127.0.0.1:{port}")
    target = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in free_ports)
    method = messages.SERVER_LIVE.path
    try:
        async with grpc.aio.insecure_channel(target, options=[("grpc.service_config", SERVICE_CONFIG)]) as channel:
            call = channel.unary_unary(method)
            for _ in range(10):
                assert await call(b"", timeout=10, wait_for_ready=True) == LIVE
            assert all(pod.calls for pod in pods), "it goes round"
            await pods[0].stop()
            for _ in range(20):
                assert await call(b"", timeout=10) == LIVE

            seen = len(pods[1].calls)

            def refuse_twice(call: Call) -> Reply:
                if len(pods[1].calls) <= seen + 2:
                    raise TransportError(StatusCode.CANCELLED, "going")
                return LIVE

            pods[1].reply = refuse_twice
            assert await call(b"", timeout=10) == LIVE
    finally:
        for pod in pods:
            await pod.stop()
