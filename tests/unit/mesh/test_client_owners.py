"""A client that is told which pod has a model asks there next time, and loses nothing when that is over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from mesh.client import AsyncClient, Client, NotFound, RetryPolicy
from mesh.client.attempts import Received, Send, conversation
from mesh.client.endpoints import Endpoints
from mesh.client.errors import HexcombError, error_of
from mesh.client.owners import KEPT_S, LEFT_OUT_S, Owners
from mesh.transport.base import Call, ListenAddress, Reply, ReplyWithTrailers, Routes, StatusCode, TransportError
from mesh.transport.grpcio_transport import GrpcioTransport
from mesh.wire import messages
from mesh.wire.tensors import encode_response

ONCE = RetryPolicy(attempts_max=1)


@dataclass
class Known:
    """Owners with a clock, and pods that can be reached or not."""

    now_s: float = 100.0
    unreachable: set[str] = field(default_factory=set)
    asked_for: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.owners = Owners(self.ready, lambda: self.now_s, lambda: 0.5)

    def ready(self, address: str) -> bool:
        self.asked_for.append(address)
        return address not in self.unreachable

    def call(self, answers: dict[str, Received | HexcombError], endpoints: str = "e") -> tuple[list[str], bytes]:
        """Whom a call for model `m` asks, and the answer it ends with."""
        asked: list[str] = []
        steps = conversation(
            Endpoints(endpoints, lambda: self.now_s),
            ONCE,
            (),
            self.now_s + 60,
            lambda: self.now_s,
            lambda: 0.0,
            self.owners,
            "m",
        )
        outcome: Received | HexcombError | None = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as done:
                return asked, done.value
            assert isinstance(step, Send)
            asked.append(step.address)
            outcome = answers[step.address]


def lost(*, sent: bool = True) -> HexcombError:
    error = error_of(StatusCode.UNAVAILABLE, "broken line")
    error.answered, error.sent = False, sent
    return error


def told(status: StatusCode) -> HexcombError:
    return error_of(status, f"told {status.name}")


YES = Received(b"yes")
FROM_P = Received(b"yes", owner="p")


def test_the_pod_that_an_answer_names_is_asked_next_time_for_that_model_alone() -> None:
    known = Known()
    assert known.call({"e": FROM_P}) == (["e"], b"yes")
    assert known.asked_for == ["p"], "it is connected to at once"
    assert known.call({"p": YES}) == (["p"], b"yes")
    assert known.owners.choose("another") is None


def test_a_pod_that_cannot_be_reached_yet_is_not_waited_for() -> None:
    known = Known(unreachable={"p"})
    for _ in range(2):
        assert known.call({"e": FROM_P})[0] == ["e"]
    known.unreachable.clear()
    assert known.call({"p": YES})[0] == ["p"]


def test_an_owner_that_has_another_pod_answer_names_the_new_owner() -> None:
    known = Known()
    known.owners.told("m", "p")
    assert known.call({"p": Received(b"yes", owner="q")})[0] == ["p"]
    assert known.call({"q": YES})[0] == ["q"]


@pytest.mark.parametrize("error", [lost(), lost(sent=False), told(StatusCode.UNAVAILABLE)])
def test_when_the_owner_is_gone_the_endpoints_answer_and_no_request_fails(error: HexcombError) -> None:
    known = Known()
    known.owners.told("m", "p")
    assert known.call({"p": error, "e": FROM_P}) == (["p", "e"], b"yes")
    left_out = not error.answered
    assert known.call({"p": YES, "e": YES})[0] == (["e"] if left_out else ["p"])
    known.now_s += LEFT_OUT_S
    known.call({"e": FROM_P, "p": YES})
    assert known.call({"p": YES})[0] == ["p"]


def test_an_owner_that_is_lost_does_not_use_up_an_endpoint() -> None:
    known = Known()
    known.owners.told("m", "a")
    asked, answer = known.call({"a": lost(), "b": YES}, endpoints="ab")
    assert (asked[0], asked[-1], answer) == ("a", "b", b"yes")


def test_the_models_own_error_is_the_answer_of_its_owner_too() -> None:
    known = Known()
    known.owners.told("m", "p")
    with pytest.raises(NotFound):
        known.call({"p": told(StatusCode.NOT_FOUND)})


def test_an_owner_that_drains_is_not_asked_again() -> None:
    known = Known()
    known.owners.told("m", "p")
    assert known.call({"p": Received(b"yes", draining=True)})[0] == ["p"]
    assert known.call({"e": YES})[0] == ["e"]


def test_owners_are_forgotten_after_a_while_so_that_further_copies_are_noticed() -> None:
    known = Known()
    known.owners.told("m", "p")
    known.now_s += KEPT_S * 1.4
    known.owners.told("m", "p")
    assert known.owners.choose("m") == "p"
    known.now_s += KEPT_S * 0.2
    assert known.owners.choose("m") is None


# Over real connections -----------------------------------------------------------------------------------------------


class FakePod:
    """Answers for every model, or says that another pod did."""

    def __init__(self) -> None:
        self.models: list[str] = []
        self.owner = ""
        self.refuses = False

    async def start(self) -> None:
        self.transport = GrpcioTransport(
            Routes({messages.MODEL_INFER.path: self.infer}), [ListenAddress("127.0.0.1:0")]
        )
        await self.transport.start()
        self.address = self.transport.addresses[0].address

    async def infer(self, call: Call) -> Reply:
        if self.refuses:
            raise TransportError(StatusCode.UNAVAILABLE, "not here")
        self.models.append(messages.parse(messages.MODEL_INFER, call.body).model_name)
        reply = encode_response("m", "1", "", {"y": np.ones((1, 1), np.float32)})
        return ReplyWithTrailers(reply, ((messages.OWNER_METADATA, self.owner),)) if self.owner else reply


Ask = Callable[[], Any]


@pytest.fixture
async def pods() -> AsyncIterator[tuple[FakePod, FakePod]]:
    """An endpoint, and the pod that it names."""
    pods = FakePod(), FakePod()
    for pod in pods:
        await pod.start()
    pods[0].owner = pods[1].address
    yield pods
    for pod in pods:
        await pod.transport.stop(0)


@pytest.fixture(params=["blocking", "asyncio"])
async def ask(request: pytest.FixtureRequest, pods: tuple[FakePod, FakePod]) -> AsyncIterator[Ask]:
    """Asks for model `m` at the endpoint."""
    inputs = {"x": np.ones((1, 1), np.float32)}
    if request.param == "blocking":
        with closing(Client(pods[0].address, retry=ONCE, timeout_s=20)) as client:
            yield lambda: asyncio.to_thread(client.infer, "m", inputs)
    else:
        async with AsyncClient(pods[0].address, retry=ONCE, timeout_s=20) as asynchronous:
            yield lambda: asynchronous.infer("m", inputs)


async def until_followed(ask: Ask, owner: FakePod) -> None:
    async with asyncio.timeout(20):
        while not owner.models:
            await ask()


async def test_a_client_goes_to_the_pod_that_it_was_told_of_and_stays_there(
    ask: Ask, pods: tuple[FakePod, FakePod]
) -> None:
    endpoint, owner = pods
    await until_followed(ask, owner)
    asked = len(endpoint.models)
    for _ in range(5):
        await ask()
    assert (len(endpoint.models), len(owner.models)) == (asked, 6)


@pytest.mark.parametrize("how", ["stops", "has it no more"])
async def test_when_the_owner_is_gone_the_client_is_answered_by_its_endpoint(
    ask: Ask, pods: tuple[FakePod, FakePod], how: str
) -> None:
    endpoint, owner = pods
    await until_followed(ask, owner)
    asked = len(endpoint.models)
    if how == "stops":
        await owner.transport.stop(0)
    owner.refuses = True
    for _ in range(5):
        await ask()
    assert len(endpoint.models) >= asked + 1
    assert len(endpoint.models) + len(owner.models) == asked + 6


async def test_a_client_that_is_told_not_to_follow_stays_with_its_endpoints(pods: tuple[FakePod, FakePod]) -> None:
    endpoint, owner = pods
    async with AsyncClient(endpoint.address, follow_owners=False) as client:
        for _ in range(20):
            await client.infer("m", {"x": np.ones((1, 1), np.float32)})
    assert (len(endpoint.models), len(owner.models)) == (20, 0)
