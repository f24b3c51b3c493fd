"""Triton's streams, as `tritonclient` unmodified uses them: many answers, sequences, errors; on one pod and on two."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio

from mesh.client import Client
from mesh.client.errors import HexcombError
from tests.e2e.streaming_models import ADDER, REPEATER

if TYPE_CHECKING:
    from tests.e2e.conftest import ModelFiles, Pod, StartPod, StartPool

X = np.array([[1, 2, 3, 4]], np.float32)
ANSWER_TIMEOUT_S = 30.0


@pytest.fixture(scope="module")
def pod(start_module_pod: StartPod, files: ModelFiles) -> Pod:
    pod = start_module_pod()
    with pod.client() as client:
        register(client, files)
    return pod


def register(client: Client, files: ModelFiles) -> None:
    client.register("scale", uri=files.scale().uri)
    client.register("repeater", uri=files.python(REPEATER, "repeater").as_uri(), format="python")
    client.register("adder", uri=files.python(ADDER, "adder").as_uri(), format="python", copies_max=1)


class Stream:
    """A stream of tritonclient, whose answers are taken one after the other."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._answers: queue.Queue[Any] = queue.Queue()
        client.start_stream(callback=lambda result, error: self._answers.put(error or result))

    def ask(self, model: str, inputs: list[Any], **options: Any) -> None:
        self._client.async_stream_infer(model, inputs, **options)

    def answer(self) -> Any:
        found = self._answers.get(timeout=ANSWER_TIMEOUT_S)
        if isinstance(found, Exception):
            raise found
        return found


@pytest.fixture
def open_stream(pod: Pod) -> Iterator[Callable[[], Stream]]:
    with triton.InferenceServerClient(pod.target) as client:
        yield lambda: Stream(client)
        client.stop_stream()


def tensor(name: str, array: Any, datatype: str) -> Any:
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def number(value: int, name: str = "number") -> Any:
    return tensor(name, np.array([value], np.int32), "INT32")


def final(answer: Any) -> bool:
    return bool(answer.get_response().parameters["triton_final_response"].bool_param)


def test_any_model_answers_in_the_order_of_the_requests(open_stream: Callable[[], Stream]) -> None:
    stream = open_stream()
    for nth in range(100):
        stream.ask("scale", [tensor("x", nth * X, "FP32")], request_id=str(nth))
    for nth in range(100):
        answer = stream.answer()
        assert answer.get_response().id == str(nth)
        assert final(answer)
        np.testing.assert_array_equal(answer.as_numpy("y"), 2 * nth * X)


def test_an_error_is_told_in_the_stream_which_goes_on(open_stream: Callable[[], Stream]) -> None:
    stream = open_stream()
    stream.ask("nobody", [tensor("x", X, "FP32")], request_id="lost")
    with pytest.raises(triton.InferenceServerException, match="unknown model"):
        stream.answer()
    stream.ask("scale", [tensor("x", X[:, :2], "FP32")])
    with pytest.raises(triton.InferenceServerException, match=r"\[1, 2\]"):
        stream.answer()
    stream.ask("repeater", [number(13), number(2, "times")])
    with pytest.raises(triton.InferenceServerException, match="no luck"):
        stream.answer()
    stream.ask("scale", [tensor("x", X, "FP32")])
    np.testing.assert_array_equal(stream.answer().as_numpy("y"), 2 * X)


def test_a_decoupled_model_gives_as_many_answers_as_it_likes(open_stream: Callable[[], Stream]) -> None:
    stream = open_stream()
    stream.ask("repeater", [number(7), number(3, "times")], enable_empty_final_response=True, request_id="r")
    stream.ask("repeater", [number(8), number(0, "times")], enable_empty_final_response=True)
    stream.ask("repeater", [number(9), number(1, "times")])
    for nth in range(3):
        answer = stream.answer()
        assert (answer.as_numpy("number").item(), answer.as_numpy("nth").item()) == (7, nth)
        assert not final(answer)
    last = stream.answer()
    assert final(last)
    assert (last.get_response().id, len(last.get_response().outputs)) == ("r", 0)
    assert final(stream.answer())
    assert stream.answer().as_numpy("number").item() == 9


def test_a_decoupled_model_says_so_and_refuses_to_give_one_answer(pod: Pod) -> None:
    with triton.InferenceServerClient(pod.target) as client:
        assert client.get_model_config("repeater").config.model_transaction_policy.decoupled
        assert not client.get_model_config("scale").config.model_transaction_policy.decoupled
        with pytest.raises(triton.InferenceServerException, match="ModelStreamInfer") as refused:
            client.infer("repeater", [number(7), number(3, "times")])
        assert refused.value.status() == "StatusCode.UNIMPLEMENTED"


def test_a_stream_that_its_client_leaves_gives_its_copy_back(pod: Pod) -> None:
    with triton.InferenceServerClient(pod.target) as client:
        stream = Stream(client)
        stream.ask("repeater", [number(7), number(1_000_000, "times")])
        assert stream.answer().as_numpy("nth").item() == 0
        client.stop_stream(cancel_requests=True)
    pod.wait_settled()
    with triton.InferenceServerClient(pod.target) as client:
        stream = Stream(client)
        stream.ask("repeater", [number(7), number(1, "times")])
        assert stream.answer().as_numpy("number").item() == 7
        client.stop_stream()


def test_sequences_are_kept_apart_and_in_order(open_stream: Callable[[], Stream], pod: Pod) -> None:
    stream = open_stream()
    for nth in range(1, 5):
        for sequence in (11, "another"):
            stream.ask("adder", [number(nth)], sequence_id=sequence, sequence_start=nth == 1, sequence_end=nth == 4)
    sums = [stream.answer().as_numpy("sum").item() for _ in range(8)]
    assert sums == [1, 1, 3, 3, 6, 6, 10, 10]
    stream.ask("adder", [number(1)], sequence_id=11)
    with pytest.raises(triton.InferenceServerException, match="has not begun"):
        stream.answer()
    with triton.InferenceServerClient(pod.target) as client:
        assert client.get_model_config("adder").config.HasField("sequence_batching")
        one = client.infer("adder", [number(5)], sequence_id=3, sequence_start=True)
        two = client.infer("adder", [number(6)], sequence_id=3, sequence_end=True)
        assert (one.as_numpy("sum").item(), two.as_numpy("sum").item()) == (5, 11)
        with pytest.raises(triton.InferenceServerException, match="sequence_id"):
            client.infer("adder", [number(5)])


async def test_the_asyncio_client_streams_as_well(pod: Pod) -> None:
    async with triton_aio.InferenceServerClient(pod.target) as client:

        async def requests() -> Any:
            for value in (1, 2):
                yield {"model_name": "repeater", "inputs": [number(value), number(2, "times")]}

        async def ask() -> list[tuple[int, int]]:
            return [
                (result.as_numpy("number").item(), result.as_numpy("nth").item())
                async for result, error in client.stream_infer(requests())
                if error is None
            ]

        assert await asyncio.wait_for(ask(), ANSWER_TIMEOUT_S) == [(1, 0), (1, 1), (2, 0), (2, 1)]


def test_a_stream_reaches_the_pod_that_has_the_model(start_pool: StartPool, files: ModelFiles) -> None:
    pool = start_pool(2)
    first, second = pool.pods
    with Client(first.grpc_endpoint) as client:
        register(client, files)
        # A second copy of what keeps sequences would split them, so in a pool it is not loaded unless it may have one.
        client.register("many", uri=files.python(ADDER, "adder").as_uri(), format="python")
        with pytest.raises(HexcombError, match="copies_max is not set: register it with copies_max 1"):
            client.infer("many", {"number": np.ones(1, np.int32)})
    with triton.InferenceServerClient(first.grpc_endpoint) as client:
        stream = Stream(client)
        stream.ask("repeater", [number(1), number(1, "times")])
        stream.answer()
        stream.ask("adder", [number(1)], sequence_id=1, sequence_start=True)
        stream.answer()
        client.stop_stream()
    with triton.InferenceServerClient(second.grpc_endpoint) as client:
        stream = Stream(client)
        stream.ask("repeater", [number(7), number(3, "times")], enable_empty_final_response=True)
        stream.ask("adder", [number(2)], sequence_id=1, sequence_end=True)
        stream.ask("repeater", [number(13), number(3, "times")])
        assert [stream.answer().as_numpy("nth").item() for _ in range(3)] == [0, 1, 2]
        assert final(stream.answer())
        assert stream.answer().as_numpy("sum").item() == 3
        with pytest.raises(triton.InferenceServerException, match="no luck"):
            stream.answer()
        stream.ask("repeater", [number(7), number(1_000_000, "times")])
        stream.answer()
        client.stop_stream(cancel_requests=True)
    with triton.InferenceServerClient(second.grpc_endpoint) as client:
        stream = Stream(client)
        stream.ask("repeater", [number(9), number(1, "times")])
        assert stream.answer().as_numpy("number").item() == 9
        client.stop_stream()
