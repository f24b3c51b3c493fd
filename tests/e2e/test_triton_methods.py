"""Every public method of tritonclient's four client classes, each called against a pod, and against a pool.

The table below is held against the classes: a method that a new tritonclient brings fails the first test until it is
here. All of them work, but for one that needs a GPU: `register_cuda_shared_memory`, which is refused in words.
"""

from __future__ import annotations

import inspect
import queue
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from tritonclient.utils import InferenceServerException
from tritonclient.utils import shared_memory as shm

from mesh.client import Client
from tests.e2e.streaming_models import REPEATER

if TYPE_CHECKING:
    from tests.e2e.conftest import ModelFiles, StartPod, StartPool

X = np.array([[1, 2, 3, 4]], np.float32)
TIMEOUT_S = 30.0
LIBRARIES: Mapping[str, Any] = {
    "grpc": tritonclient.grpc,
    "grpc.aio": tritonclient.grpc.aio,
    "http": tritonclient.http,
    "http.aio": tritonclient.http.aio,
}


async def told(answer: Any) -> Any:
    """What a method gives: at once, or awaited."""
    return await answer if inspect.isawaitable(answer) else answer


def as_json(answer: Any) -> Any:
    """Answers of HTTP are JSON; those of gRPC are messages, and asked for as JSON."""
    return answer.get_response() if hasattr(answer, "get_response") else answer


class Caller:
    """One client, and how it is asked."""

    def __init__(self, kind: str, client: Any) -> None:
        self.client = client
        self.is_grpc = kind.startswith("grpc")
        self.library = tritonclient.grpc if self.is_grpc else tritonclient.http

    def inputs(self) -> list[Any]:
        asked = self.library.InferInput("x", [1, 4], "FP32")
        asked.set_data_from_numpy(X)
        return [asked]

    async def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        if self.is_grpc and method.startswith(("get_", "update_")):
            options["as_json"] = True
        return await told(getattr(self.client, method)(*arguments, **options))


def check(answer: Any) -> None:
    np.testing.assert_array_equal(answer.as_numpy("y"), 2 * X)


async def server_is_there(caller: Caller) -> None:
    for method in ("is_server_live", "is_server_ready"):
        assert await caller.call(method) is True
    assert (await caller.call("get_server_metadata"))["name"] == "hexcomb"


async def models_are_there(caller: Caller) -> None:
    assert await caller.call("is_model_ready", "scale") is True
    assert await caller.call("is_model_ready", "nobody") is False
    assert (await caller.call("get_model_metadata", "scale"))["inputs"][0]["name"] == "x"
    config = await caller.call("get_model_config", "scale")
    assert config.get("config", config)["max_batch_size"] == 64
    index = await caller.call("get_model_repository_index")
    assert "scale" in [model["name"] for model in (index["models"] if caller.is_grpc else index)]


async def models_are_loaded_and_unloaded(caller: Caller) -> None:
    await caller.call("load_model", "scale")
    await caller.call("unload_model", "scale")
    check(await caller.call("infer", "scale", caller.inputs()))


async def inference(caller: Caller) -> None:
    options = {"request_id": "r", "priority": 1, "timeout": 20_000_000, "parameters": {"own": "value"}}
    check(await caller.call("infer", "scale", caller.inputs(), model_version="1", **options))


async def statistics(caller: Caller) -> None:
    check(await caller.call("infer", "scale", caller.inputs()))
    found = await caller.call("get_inference_statistics", "scale")
    assert int(found["model_stats"][0]["inference_stats"]["success"]["count"]) > 0
    assert (await caller.call("get_inference_statistics"))["model_stats"]


async def trace_and_log_settings(caller: Caller) -> None:
    for model in ("", "scale"):
        await caller.call("update_trace_settings", model, {"trace_rate": "5"})
        found = await caller.call("get_trace_settings", model)
        rate = (found["settings"] if caller.is_grpc else found)["trace_rate"]
        assert (rate["value"] if caller.is_grpc else [rate]) == ["5"]
    await caller.call("update_log_settings", {"log_verbose_level": 0})
    assert await caller.call("get_log_settings")


async def system_shared_memory(caller: Caller) -> None:
    key = "/hexcomb-test-methods"
    region = shm.create_shared_memory_region("methods", key, 16)
    try:
        shm.set_shared_memory_region(region, [X])
        await caller.call("register_system_shared_memory", "methods", key, 16)
        assert await caller.call("get_system_shared_memory_status", "methods")
        asked = caller.library.InferInput("x", [1, 4], "FP32")
        asked.set_shared_memory("methods", 16)
        check(await caller.call("infer", "scale", [asked]))
    finally:
        await caller.call("unregister_system_shared_memory", "methods")
        shm.destroy_shared_memory_region(region)


async def cuda_shared_memory(caller: Caller) -> None:
    assert not await caller.call("get_cuda_shared_memory_status")
    with pytest.raises(InferenceServerException, match="CUDA shared memory is not supported"):
        await caller.call("register_cuda_shared_memory", "r", b"aGFuZGxl", 0, 64)
    await caller.call("unregister_cuda_shared_memory")


async def plugins(caller: Caller) -> None:
    plugin = type(
        "Plugin", (tritonclient._plugin.InferenceServerClientPlugin,), {"__call__": lambda self, request: None}
    )()
    caller.client.register_plugin(plugin)
    assert caller.client.plugin() is plugin
    check(await caller.call("infer", "scale", caller.inputs()))
    caller.client.unregister_plugin()


async def asynchronous_inference(caller: Caller) -> None:
    if caller.is_grpc:
        answers: queue.Queue[Any] = queue.Queue()
        caller.client.async_infer("scale", caller.inputs(), lambda result, error: answers.put(error or result))
        check(answers.get(timeout=TIMEOUT_S))
    else:
        check(caller.client.async_infer("scale", caller.inputs()).get_result())


def repeated(caller: Caller) -> list[Any]:
    made = []
    for name, value in (("number", 7), ("times", 2)):
        asked = caller.library.InferInput(name, [1], "INT32")
        asked.set_data_from_numpy(np.array([value], np.int32))
        made.append(asked)
    return made


async def callback_stream(caller: Caller) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    caller.client.start_stream(lambda result, error: answers.put(error or result))
    caller.client.async_stream_infer("repeater", repeated(caller))
    assert [answers.get(timeout=TIMEOUT_S).as_numpy("nth").item() for _ in range(2)] == [0, 1]
    caller.client.stop_stream()


async def awaited_stream(caller: Caller) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": "repeater", "inputs": repeated(caller)}

    stream = caller.client.stream_infer(requests())
    assert [result.as_numpy("nth").item() async for result, error in stream if error is None] == [0, 1]


async def bodies(caller: Caller) -> None:
    """Made and read without a server."""
    assert caller.client.generate_request_body(caller.inputs())
    body = b'{"outputs": [{"name": "y", "datatype": "FP32", "shape": [1], "data": [2.0]}]}'
    assert caller.client.parse_response_body(body).as_numpy("y") == 2.0


async def closing(caller: Caller) -> None:
    """The fixture closes it."""
    assert await told(caller.client.is_server_live())


Use = Callable[[Caller], Awaitable[None]]
OF_ALL: Mapping[Use, tuple[str, ...]] = {
    server_is_there: ("is_server_live", "is_server_ready", "get_server_metadata"),
    models_are_there: ("is_model_ready", "get_model_metadata", "get_model_config", "get_model_repository_index"),
    models_are_loaded_and_unloaded: ("load_model", "unload_model"),
    inference: ("infer",),
    statistics: ("get_inference_statistics",),
    trace_and_log_settings: (
        "get_trace_settings",
        "update_trace_settings",
        "get_log_settings",
        "update_log_settings",
    ),
    system_shared_memory: (
        "get_system_shared_memory_status",
        "register_system_shared_memory",
        "unregister_system_shared_memory",
    ),
    cuda_shared_memory: (
        "get_cuda_shared_memory_status",
        "register_cuda_shared_memory",
        "unregister_cuda_shared_memory",
    ),
    plugins: ("plugin", "register_plugin", "unregister_plugin"),
    closing: ("close",),
}
OF_SOME: Mapping[str, Mapping[Use, tuple[str, ...]]] = {
    "grpc": {
        asynchronous_inference: ("async_infer",),
        callback_stream: ("start_stream", "async_stream_infer", "stop_stream"),
    },
    "grpc.aio": {awaited_stream: ("stream_infer",)},
    "http": {asynchronous_inference: ("async_infer",), bodies: ("generate_request_body", "parse_response_body")},
    "http.aio": {bodies: ("generate_request_body", "parse_response_body")},
}
USES = [(kind, use) for kind in LIBRARIES for use in (*OF_ALL, *OF_SOME[kind])]
THROUGH_A_POOL = {
    models_are_there, models_are_loaded_and_unloaded, inference, statistics, system_shared_memory,
    asynchronous_inference, callback_stream, awaited_stream,
}  # fmt: skip


@pytest.mark.parametrize("kind", LIBRARIES)
def test_the_table_has_every_public_method(kind: str) -> None:
    public = {name for name in dir(LIBRARIES[kind].InferenceServerClient) if not name.startswith("_")}
    used = [name for names in (*OF_ALL.values(), *OF_SOME[kind].values()) for name in names]
    assert sorted(used) == sorted(public)


def prepare(endpoint: str, files: ModelFiles) -> None:
    with Client(endpoint) as client:
        client.register("scale", uri=files.scale().uri)
        client.register("repeater", uri=files.python(REPEATER, "repeater").as_uri(), format="python")
        client.infer("scale", files.scale().inputs)


@pytest.fixture(scope="module")
def addresses(start_module_pod: StartPod, files: ModelFiles) -> Mapping[str, str]:
    pod = start_module_pod()
    prepare(pod.target, files)
    return {"grpc": pod.target, "http": pod.http.removeprefix("http://")}


@pytest.fixture(scope="module")
def pool_addresses(start_pool: StartPool, files: ModelFiles) -> Mapping[str, str]:
    """Of the pod that has not loaded the models."""
    first, second = start_pool(2).pods
    prepare(first.grpc_endpoint, files)
    return {"grpc": second.grpc_endpoint, "http": second.http_endpoint}


async def run(kind: str, use: Use, addresses: Mapping[str, str]) -> None:
    client = LIBRARIES[kind].InferenceServerClient(addresses[kind.partition(".")[0]])
    try:
        await use(Caller(kind, client))
    finally:
        await told(client.close())


@pytest.mark.parametrize(("kind", "use"), USES, ids=[f"{kind}-{use.__name__}" for kind, use in USES])
async def test_it_works_against_a_pod(kind: str, use: Use, addresses: Mapping[str, str]) -> None:
    await run(kind, use, addresses)


POOLED = [(kind, use) for kind, use in USES if use in THROUGH_A_POOL]


@pytest.mark.parametrize(("kind", "use"), POOLED, ids=[f"{kind}-{use.__name__}" for kind, use in POOLED])
async def test_it_works_against_a_pool(kind: str, use: Use, pool_addresses: Mapping[str, str]) -> None:
    await run(kind, use, pool_addresses)
