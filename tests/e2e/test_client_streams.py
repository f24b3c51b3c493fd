"""Our own client, blocking and asyncio: answers that come one by one, sequences, readiness, statistics, unloading."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import aclosing, closing
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mesh.client import AsyncClient, Client, DeadlineExceeded, HexcombError, InvalidRequest, NotFound, Refused
from mesh.client.errors import Unsupported
from tests.e2e.streaming_models import ADDER, REPEATER

if TYPE_CHECKING:
    from tests.e2e.conftest import ModelFiles, Pod, StartPod

X = np.array([[1, 2, 3, 4]], np.float32)


@pytest.fixture(scope="module")
def pod(start_module_pod: StartPod, files: ModelFiles) -> Pod:
    pod = start_module_pod()
    with pod.client() as client:
        client.register("scale", uri=files.scale().uri)
        client.register("repeater", uri=files.python(REPEATER, "repeater").as_uri(), format="python")
        client.register("adder", uri=files.python(ADDER, "adder").as_uri(), format="python")
        client.register("bad", uri=files.python("this is no Python", "bad").as_uri(), format="python")
    return pod


@pytest.fixture
def client(pod: Pod) -> Iterator[Client]:
    with pod.client() as client:
        yield client


Taken = tuple[list[int], HexcombError | None]
Take = Callable[..., Taken]


@pytest.fixture(params=["blocking", "asyncio"])
def take(request: pytest.FixtureRequest, pod: Pod) -> Take:
    """`take(model, inputs, at_most=N)`: the `nth` of each answer, and the error that ended them."""

    def blocking(model: str, inputs: Any, at_most: int = 1000, **options: Any) -> Taken:
        found: list[int] = []
        with pod.client() as client, closing(client.infer_stream(model, inputs, **options)) as answers:
            try:
                for answer in answers:
                    found.append(answer.outputs["nth"].item())
                    if len(found) == at_most:
                        break
            except HexcombError as error:
                return found, error
        return found, None

    async def on_the_loop(model: str, inputs: Any, at_most: int = 1000, **options: Any) -> Taken:
        found: list[int] = []
        async with (
            AsyncClient(pod.target) as client,
            aclosing(client.infer_stream(model, inputs, **options)) as answers,
        ):
            try:
                async for answer in answers:
                    found.append(answer.outputs["nth"].item())
                    if len(found) == at_most:
                        break
            except HexcombError as error:
                return found, error
        return found, None

    if request.param == "blocking":
        return blocking
    return lambda *arguments, **options: asyncio.run(on_the_loop(*arguments, **options))


def repeat(number: int, times: int) -> dict[str, Any]:
    return {"number": np.array([number], np.int32), "times": np.array([times], np.int32)}


def test_answers_come_one_by_one_as_many_as_there_are(take: Take) -> None:
    assert take("repeater", repeat(7, 5)) == ([0, 1, 2, 3, 4], None)
    assert take("repeater", repeat(7, 0)) == ([], None)


def test_a_stream_that_is_left_gives_its_copy_back(take: Take, pod: Pod) -> None:
    assert take("repeater", repeat(7, 1_000_000), at_most=3) == ([0, 1, 2], None)
    pod.wait_settled()


def test_an_error_in_a_stream_has_the_class_that_it_has_elsewhere(take: Take) -> None:
    found, error = take("nobody", repeat(7, 1))
    assert (found, type(error)) == ([], NotFound)
    assert error is not None
    assert error.code == "NOT_FOUND"
    assert error.answered
    _, error = take("repeater", {"number": np.zeros(3, np.int32)})
    assert type(error) is InvalidRequest
    _, error = take("repeater", repeat(13, 1))
    assert error is not None
    assert "no luck" in error.message


def test_the_deadline_ends_a_stream(take: Take, pod: Pod) -> None:
    found, error = take("repeater", repeat(7, 100_000_000), at_most=100_000_000, timeout_s=1.0)
    assert type(error) is DeadlineExceeded
    assert found[:2] == [0, 1]
    pod.wait_settled()


def test_a_model_with_one_answer_streams_that(client: Client) -> None:
    (answer,) = client.infer_stream("scale", {"x": X}, request_id="r")
    np.testing.assert_array_equal(answer.outputs["y"], 2 * X)
    assert answer.request_id == "r"
    with pytest.raises(Unsupported, match="ModelStreamInfer"):
        client.infer("repeater", repeat(1, 1))


def test_what_cannot_be_sent_is_refused_before_the_first_answer_is_asked_for(client: Client) -> None:
    with pytest.raises(InvalidRequest, match="complex128"):
        client.infer_stream("scale", {"x": np.array([1j])})
    with pytest.raises(InvalidRequest, match=r"'x' cannot be made an array"):
        client.infer("scale", {"x": [[1.0], [1.0, 2.0]]})
    with pytest.raises(InvalidRequest, match="give a list of names"):
        client.infer("scale", {"x": X}, "y")


def test_parameters_name_the_sequence_that_a_request_belongs_to(client: Client) -> None:
    def add(number: int, **parameters: bool) -> int:
        inputs = {"number": np.array([number], np.int32)}
        return int(client.infer("adder", inputs, parameters={"sequence_id": "s", **parameters}).outputs["sum"].item())

    assert [add(1, sequence_start=True), add(2), add(3, sequence_end=True)] == [1, 3, 6]
    with pytest.raises(InvalidRequest, match="priority"):
        client.infer("scale", {"x": X}, parameters={"priority": 1.5})
    with pytest.raises(InvalidRequest, match="a parameter is true or false"):
        client.infer("scale", {"x": X}, parameters={"priority": 2**70})


def test_ready_means_loaded_and_unloading_ends_that(client: Client, pod: Pod) -> None:
    client.wait_ready("scale", timeout_s=30)
    assert client.describe("scale").copies
    client.infer("scale", {"x": X})
    (statistics,) = client.statistics("scale").model_stats
    assert statistics.inference_stats.success.count >= 1
    client.unload("scale")
    pod.wait_until(lambda: not client.describe("scale").copies, "the copy left")
    with pytest.raises(NotFound):
        client.wait_ready("nobody")
    with pytest.raises(Refused):
        client.wait_ready("bad", timeout_s=60)


async def test_a_pod_that_is_not_there_yet_is_waited_for(start_pod: StartPod, unused_tcp_port: int) -> None:
    async with AsyncClient(f"127.0.0.1:{unused_tcp_port}") as client:
        with pytest.raises(DeadlineExceeded, match="not ready in time: cannot reach"):
            await client.wait_ready(timeout_s=0.5)
        waiting = asyncio.create_task(client.wait_ready(timeout_s=60))
        await asyncio.to_thread(start_pod, grpc_port=unused_tcp_port)
        await waiting
        assert await client.server_ready()
