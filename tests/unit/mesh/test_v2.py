"""Which model a request names, and where it is decoded: on a thread when every other call would wait for it."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from math import inf
from typing import Any

import numpy as np
import pytest

from mesh.endpoint import v2
from mesh.endpoint.access import Access
from mesh.request import Answer, Tensors
from mesh.routing.hop import FORWARD_METADATA, Hop, encode_hop
from mesh.transport.base import Call, Metadata, Reply, ReplyWithTrailers
from mesh.wire.errors import InvalidMessage
from mesh.wire.messages import COLD_METADATA, DRAINING_METADATA, MODEL_INFER, PEER_KEY_METADATA
from mesh.wire.peek import peek
from mesh.wire.tensors import decode_request, encode_request
from placement.records import ModelRecord, ModelSpec


class Echo:
    """Answers with the request's own tensors."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def resolve(self, tenant: str, name: str, version: str) -> ModelRecord:
        self.asked.append(name)
        return ModelRecord(tenant, name, ModelSpec(uri="file:///m.onnx"), 1, 0.0, 0.0)

    def hit(self, record: ModelRecord) -> None:
        return None

    def current(self, record: ModelRecord) -> ModelRecord:
        return record

    def registered(self, record: ModelRecord) -> ModelRecord:
        return record

    async def infer(
        self,
        record: ModelRecord,
        resident: object,
        deadline_s: float | None,
        decode: Callable[[], Awaitable[Tensors]],
        space_wait_s: float,
    ) -> Answer:
        tensors = await decode()
        return Answer(tensors.inputs, (), record, cold=False)


@pytest.mark.parametrize(("elements", "on_the_loop"), [(1, True), (100_000, False)])
async def test_only_small_requests_are_decoded_on_the_loop(
    monkeypatch: pytest.MonkeyPatch, elements: int, on_the_loop: bool
) -> None:
    threads: list[int] = []

    def decode(*arguments: Any) -> Any:
        threads.append(threading.get_ident())
        return decode_request(*arguments)

    monkeypatch.setattr(v2, "decode_request", decode)
    echo: Any = Echo()
    endpoint = v2.V2Endpoint(echo, Access(), lambda: "")
    body = encode_request("m", {"x": np.array([b""] * elements, dtype=object)})
    assert await endpoint.model_infer(Call(MODEL_INFER.path, body))
    assert [thread == threading.get_ident() for thread in threads] == [on_the_loop]


@pytest.mark.parametrize(
    ("metadata", "asked", "shown"),
    [
        ((), "m", "m"),
        ((("mm-model-id", "other"),), "other", "other"),
        ((("mm-vmodel-id", "alias"),), "alias", "alias"),
        ((("mm-model-id-bin", "modèle".encode()),), "modèle", "modèle"),
        ((("mm-vmodel-id-bin", "modèle".encode()), ("mm-model-id", "other")), "other", "other"),
    ],
)
async def test_modelmesh_headers_name_the_model_before_the_message_does(
    metadata: Metadata, asked: str, shown: str
) -> None:
    echo: Any = Echo()
    endpoint = v2.V2Endpoint(echo, Access(), lambda: "")
    reply = await endpoint.model_infer(Call(MODEL_INFER.path, encode_request("m", {"x": np.zeros(1)}), metadata))
    assert isinstance(reply, bytes)
    assert echo.asked == [asked]
    assert peek(reply).model_name == shown


async def test_a_header_that_is_no_text_is_refused() -> None:
    echo: Any = Echo()
    endpoint = v2.V2Endpoint(echo, Access(), lambda: "")
    with pytest.raises(InvalidMessage, match="mm-model-id-bin"):
        await endpoint.model_infer(Call(MODEL_INFER.path, encode_request("m", {}), (("mm-model-id-bin", b"\xff"),)))


class Elsewhere:
    """A router whose other pods answer everything; a forwarded request runs here."""

    def saturated(self, record: ModelRecord, in_flight: int) -> bool:
        return False

    async def registered(self, tenant: str, hop: Hop) -> ModelRecord:
        return ModelRecord(tenant, hop.model_id, ModelSpec(uri="file:///m.onnx"), 1, 0.0, 0.0)

    async def from_client(self, call: Call, tenant: str, record: ModelRecord, run_here: Any) -> Reply:
        return ReplyWithTrailers(b"there", ((COLD_METADATA, "1"),))

    async def from_pod(self, hop: Hop, record: ModelRecord, run_here: Callable[[float], Awaitable[Reply]]) -> Reply:
        return await run_here(inf)


async def test_a_client_hears_that_the_pod_it_called_drains_and_not_the_one_that_ran_its_request() -> None:
    body = encode_request("m", {"x": np.zeros(1)})
    called = Call(MODEL_INFER.path, body)
    hop = (FORWARD_METADATA, encode_hop(Hop("p1", "m", 1, 1, load=False)))
    forwarded = Call(MODEL_INFER.path, body, (hop, (PEER_KEY_METADATA, "key")))
    echo: Any = Echo()
    elsewhere: Any = Elsewhere()

    alone = v2.V2Endpoint(echo, Access(), lambda: "draining")
    assert _trailers(await alone.model_infer(called)) == {DRAINING_METADATA: "1"}
    leaving = v2.V2Endpoint(echo, Access("key"), lambda: "draining", elsewhere)
    assert _trailers(await leaving.model_infer(called)) == {COLD_METADATA: "1", DRAINING_METADATA: "1"}
    assert _trailers(await leaving.model_infer(forwarded)) == {}
    staying = v2.V2Endpoint(echo, Access(), lambda: "", elsewhere)
    assert _trailers(await staying.model_infer(called)) == {COLD_METADATA: "1"}


@pytest.mark.parametrize("hop", [encode_hop(Hop("p1", "secret", 1, 1, load=True)), "no hop at all"])
async def test_what_a_client_says_of_a_forwarding_is_not_heeded(hop: str) -> None:
    echo: Any = Echo()
    elsewhere: Any = Elsewhere()
    endpoint = v2.V2Endpoint(echo, Access("key"), lambda: "", elsewhere)
    body = encode_request("m", {"x": np.zeros(1)})
    reply = await endpoint.model_infer(Call(MODEL_INFER.path, body, ((FORWARD_METADATA, hop),)))
    assert isinstance(reply, ReplyWithTrailers)
    assert reply.body == b"there"  # as any client's call: routed from here
    assert echo.asked == ["m"]


def _trailers(reply: Reply) -> dict[str, str]:
    return dict(reply.trailers) if isinstance(reply, ReplyWithTrailers) else {}
