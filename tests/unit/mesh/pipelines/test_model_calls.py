"""One model asked for a step, on another pod."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from mesh.pipelines import model_calls
from mesh.pipelines.model_calls import TRANSLATED_HERE_BYTES_MAX, Asking, ModelCalls
from mesh.transport.base import Call, ReplyWithTrailers
from mesh.wire import messages
from mesh.wire.generated import inference_pb2
from mesh.wire.request_options import NO_OPTIONS
from mesh.wire.tensors import decode_request, encode_response
from placement.records import ModelRecord, ModelSpec

SPEC = ModelSpec("file:///m.onnx", "onnx")
ASKING = Asking(Call("/Infer", b"", (("mm-model-id", "p"), ("x-own", "1"))), "t", None, NO_OPTIONS)


def registered(at_s: float) -> ModelRecord:
    return ModelRecord("t", "m", SPEC, 1, at_s, at_s)


class NothingHere:
    """The serving of a pod without copies."""

    def hit(self, record: ModelRecord) -> None:
        return None

    def knows_metadata(self, record: ModelRecord) -> bool:
        return False

    def registered(self, record: ModelRecord) -> ModelRecord:
        return record


class OtherPods:
    """A router whose pods take `input` and answer it, as `y`."""

    def __init__(self) -> None:
        self.input = "x"
        self.calls: list[Call] = []

    async def from_client(self, call: Call, tenant: str, record: ModelRecord, run_here: Any) -> Any:
        self.calls.append(call)
        if call.method == messages.MODEL_METADATA.path:
            told = inference_pb2.ModelMetadataResponse(platform="onnx")
            told.inputs.add(name=self.input, datatype="BYTES", shape=[-1])
            return told.SerializeToString()
        given = decode_request(call.body).tensors[self.input]
        return ReplyWithTrailers(encode_response("m", "1", "", {"y": given}), ((messages.COLD_METADATA, "1"),))


@pytest.fixture
def pods() -> OtherPods:
    return OtherPods()


@pytest.fixture
def calls(pods: OtherPods) -> ModelCalls:
    serving: Any = NothingHere()
    router: Any = pods
    return ModelCalls(serving, router)


def texts(size_bytes: int) -> dict[str, Any]:
    return {"x": np.array([b"a" * size_bytes], np.object_)}


async def test_a_step_is_asked_by_the_models_name_and_tells_that_it_waited(calls: ModelCalls, pods: OtherPods) -> None:
    answered = await calls.ask(ASKING, registered(1.0), texts(3), ())
    assert (answered.outputs["y"].tolist(), answered.cold) == ([b"aaa"], True)
    assert [call.metadata for call in pods.calls] == [(("x-own", "1"),)] * 2


async def test_a_name_that_begins_at_generation_one_again_is_asked_anew_for_its_inputs(
    calls: ModelCalls, pods: OtherPods
) -> None:
    await calls.ask(ASKING, registered(1.0), texts(3), ())
    await calls.ask(ASKING, registered(1.0), texts(3), ())
    assert len(pods.calls) == 3, "its inputs are remembered"
    pods.input = "renamed"
    answered = await calls.ask(ASKING, registered(9000.0), texts(3), ())
    assert answered.outputs["y"].tolist() == [b"aaa"]


@pytest.mark.parametrize(("size_bytes", "on_the_loop"), [(3, True), (TRANSLATED_HERE_BYTES_MAX, False)])
async def test_large_messages_are_not_translated_on_the_loop(
    calls: ModelCalls, monkeypatch: pytest.MonkeyPatch, size_bytes: int, on_the_loop: bool
) -> None:
    threads: list[threading.Thread] = []
    for name in ("encode_request", "decode_response"):
        translate = getattr(model_calls, name)

        def noted(*given: Any, translate: Any = translate) -> Any:
            threads.append(threading.current_thread())
            return translate(*given)

        monkeypatch.setattr(model_calls, name, noted)
    await calls.ask(ASKING, registered(1.0), texts(size_bytes), ())
    assert [thread is threading.current_thread() for thread in threads] == [on_the_loop] * 2
