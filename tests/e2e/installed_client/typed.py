"""A user's code, checked by `mypy --strict` against the installed wheel: what a client gives has types."""

from __future__ import annotations

import asyncio
from typing import assert_type

import numpy as np

from mesh.client import AsyncClient, Client, HexcombError, InferResult, Overloaded, RetryPolicy, registration


def ask() -> float:
    with Client("127.0.0.1:8033", tenant="blue", retry=RetryPolicy(attempts_max=2)) as client:
        assert_type(client.register("m", uri="file:///m.onnx", priority=3).generation, int)
        client.register_many([registration("n", uri="file:///n.onnx")], on_progress=lambda count: None)
        assert_type(client.infer("m", {"x": np.ones(3)}, ["y"]), InferResult)
        for answer in client.infer_stream("m", {"x": [1.0]}):
            assert_type(answer, InferResult)
        try:
            client.wait_ready("m", timeout_s=5)
        except Overloaded as error:
            return error.retry_after_s or 0.0
        except HexcombError as error:
            assert_type(error.code, str)
        return 0.0


async def ask_on_the_loop() -> str:
    async with AsyncClient(["a:8033", "b:8033"]) as client:
        async for model in client.list_models(labels={"team": "risk"}):
            assert_type(model.id, str)
        async for answer in client.infer_stream("m", {"x": [1.0]}):
            assert_type(answer, InferResult)
        return (await client.infer("m", {"x": [[1.0]]})).model_version


asyncio.run(ask_on_the_loop())
