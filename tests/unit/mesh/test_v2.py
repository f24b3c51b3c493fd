"""Where a request is decoded: at once when that is quick, on a thread when every other call would wait for it."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from mesh.endpoint import v2
from mesh.endpoint.access import Access
from mesh.serving import Answer, Tensors
from mesh.transport.base import Call
from mesh.wire.messages import MODEL_INFER
from mesh.wire.tensors import decode_request, encode_request
from placement.records import ModelRecord, ModelSpec


class Echo:
    """Answers with the request's own tensors."""

    async def infer(
        self, tenant: str, name: str, version: str, deadline_s: float | None, decode: Callable[[], Awaitable[Tensors]]
    ) -> Answer:
        tensors = await decode()
        record = ModelRecord(tenant, name, ModelSpec(uri="file:///m.onnx"), 1, 0.0, 0.0)
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
