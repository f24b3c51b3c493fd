"""Both clients against a pod of canned answers, over the real transport: same messages, same errors."""

from __future__ import annotations

import asyncio
import inspect
import pickle
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest

from mesh.client import (
    AlreadyExists,
    AsyncClient,
    Client,
    DeadlineExceeded,
    HexcombError,
    InvalidRequest,
    NotFound,
    Overloaded,
    RetryPolicy,
    ServerFailed,
    Unavailable,
    Unsupported,
    operations,
    registration,
)
from mesh.client.errors import error_of
from mesh.client.operations import CHUNK_BYTES_MAX, CHUNK_ENTRIES_MAX
from mesh.transport.base import Call, ListenAddress, Routes, StatusCode, TransportError
from mesh.transport.grpcio_transport import GrpcioTransport
from mesh.wire import messages
from mesh.wire.generated import hexcomb_pb2, inference_pb2, mmesh_pb2
from mesh.wire.generated.inference_pb2 import ModelInferResponse as InferResponse
from mesh.wire.generated.inference_pb2 import ModelStreamInferResponse
from mesh.wire.tensors import decode_request, encode_response

SOON = RetryPolicy(attempts_max=3, backoff_first_s=0.001, backoff_max_s=0.01)


class CannedPod:
    """Answers by path: a message, bytes, an exception, a function of the call, or a list of these in turn."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.answers: dict[str, Any] = {}

    async def answer(self, call: Call) -> bytes:
        self.calls.append(call)
        answer = self.answers.get(call.method, TransportError(StatusCode.UNIMPLEMENTED, "no such canned answer"))
        if isinstance(answer, list):
            answer = answer.pop(0)
        if callable(answer):
            answer = answer(call)
        if isinstance(answer, Exception):
            raise answer
        if asyncio.iscoroutine(answer):
            answer = await answer
        return answer if isinstance(answer, bytes) else answer.SerializeToString()


@pytest.fixture
async def pod() -> AsyncIterator[CannedPod]:
    canned = CannedPod()
    methods = [row for row in vars(messages).values() if isinstance(row, messages.Method) and not row.streams]
    transport = GrpcioTransport(
        Routes({method.path: canned.answer for method in methods}), [ListenAddress("127.0.0.1:0")]
    )
    await transport.start()
    canned.endpoint = transport.addresses[0].address
    yield canned
    await transport.stop(0)


Ask = Callable[..., Any]


@pytest.fixture(params=["blocking", "asyncio"])
async def ask(request: pytest.FixtureRequest, pod: CannedPod) -> AsyncIterator[Ask]:
    """`await ask("infer", ...)`: a method of whichever client, its iterators as lists."""
    if request.param == "blocking":
        with Client(pod.endpoint, tenant="blue", retry=SOON, timeout_s=20) as client:

            def blocking(name: str, *args: Any, **kwargs: Any) -> Any:
                result = getattr(client, name)(*args, **kwargs)
                return list(result) if name.startswith("list_") else result

            async def ask_blocking(name: str, *args: Any, **kwargs: Any) -> Any:
                return await asyncio.to_thread(blocking, name, *args, **kwargs)

            yield ask_blocking
    else:
        async with AsyncClient(pod.endpoint, tenant="blue", retry=SOON, timeout_s=20) as client:

            async def ask_asyncio(name: str, *args: Any, **kwargs: Any) -> Any:
                result = getattr(client, name)(*args, **kwargs)
                return [item async for item in result] if name.startswith("list_") else await result

            yield ask_asyncio


def doubled(call: Call) -> bytes:
    request = decode_request(call.body)
    outputs = {"y": request.tensors["x"] * 2, "z": np.array(["a"])}
    return encode_response(request.model_name, "1", request.request_id, outputs, request.outputs)


async def test_inference_takes_and_gives_numpy_arrays(pod, ask):
    pod.answers[messages.MODEL_INFER.path] = doubled
    result = await ask("infer", "m", {"x": np.float32([[1, 2]])}, request_id="r", version="1")
    assert (result.model_name, result.model_version, result.request_id) == ("m", "1", "r")
    assert result.outputs["y"].tolist() == [[2.0, 4.0]]
    assert result.outputs["z"].tolist() == [b"a"]
    assert list((await ask("infer", "m", {"x": [1.0]}, ["y"])).outputs) == ["y"]


async def test_the_tenant_and_the_deadline_travel(pod, ask):
    pod.answers[messages.SERVER_LIVE.path] = inference_pb2.ServerLiveResponse(live=True)
    assert await ask("server_live", timeout_s=5) is True
    (call,) = pod.calls
    assert call.metadata_value("hexcomb-tenant") == "blue"
    assert call.deadline_s is not None


async def test_arrays_that_cannot_be_sent_are_refused_before_they_are(pod, ask):
    with pytest.raises(InvalidRequest, match="complex128"):
        await ask("infer", "m", {"x": np.array([1j])})
    assert not pod.calls


async def test_metadata_and_readiness(pod, ask):
    pod.answers |= {
        messages.SERVER_READY.path: inference_pb2.ServerReadyResponse(ready=False),
        messages.SERVER_METADATA.path: inference_pb2.ServerMetadataResponse(name="hexcomb"),
        messages.MODEL_READY.path: inference_pb2.ModelReadyResponse(ready=True),
        messages.MODEL_METADATA.path: inference_pb2.ModelMetadataResponse(platform="onnx"),
    }
    assert await ask("server_ready") is False
    assert (await ask("server_metadata")).name == "hexcomb"
    assert await ask("model_ready", "m") is True
    assert (await ask("model_metadata", "m", "3")).platform == "onnx"
    assert inference_pb2.ModelMetadataRequest.FromString(pod.calls[-1].body).version == "3"


async def test_register_sends_the_whole_spec(pod, ask):
    result = hexcomb_pb2.RegistrationResult(id="m", outcome="CREATED", generation=1)
    pod.answers[messages.REGISTER_MODELS.path] = hexcomb_pb2.RegisterModelsResponse(results=[result])
    answered = await ask(
        "register", "m", uri="file:///m", format="onnx", labels={"a": "b"}, copies_max=2, if_generation=0, load_now=True
    )
    assert answered == result
    (entry,) = hexcomb_pb2.RegisterModelsRequest.FromString(pod.calls[0].body).entries
    assert (entry.id, entry.spec.uri, entry.spec.format, dict(entry.spec.labels)) == (
        "m",
        "file:///m",
        "onnx",
        {"a": "b"},
    )
    assert entry.HasField("if_generation")
    assert entry.load_now
    assert entry.spec.HasField("copies_max")
    assert not entry.spec.HasField("ttl_s")


async def test_a_refused_registration_is_raised(pod, ask):
    refusal = hexcomb_pb2.RegistrationResult(id="m", status_code=StatusCode.ALREADY_EXISTS, message="another spec")
    pod.answers[messages.REGISTER_MODELS.path] = hexcomb_pb2.RegisterModelsResponse(results=[refusal])
    with pytest.raises(AlreadyExists, match="another spec"):
        await ask("register", "m", uri="file:///m")


@pytest.mark.parametrize("fields", [{"uri": 3}, {"uri": "u", "copies_min": -1}, {"uri": "u", "colour": "blue"}])
def test_a_spec_that_the_message_cannot_hold_is_refused(fields):
    with pytest.raises(InvalidRequest, match="model 'm'"):
        registration("m", **fields)


def register_all(call: Call) -> hexcomb_pb2.RegisterModelsResponse:
    entries = hexcomb_pb2.RegisterModelsRequest.FromString(call.body).entries
    return hexcomb_pb2.RegisterModelsResponse(results=[hexcomb_pb2.RegistrationResult(id=e.id) for e in entries])


async def test_thousands_are_registered_in_messages_of_bounded_size(pod, ask):
    pod.answers[messages.REGISTER_MODELS.path] = register_all
    entries = [registration(f"m{number}", uri="u") for number in range(2500)]
    entries += [registration(f"big{number}", uri="u" * 300_000) for number in range(8)]
    progress: list[int] = []
    results = await ask("register_many", entries, on_progress=progress.append)
    assert [result.id for result in results] == [entry.id for entry in entries]
    assert sum(progress) == 2508
    assert all(len(call.body) < CHUNK_BYTES_MAX + 10_000 for call in pod.calls)
    assert max(progress) <= CHUNK_ENTRIES_MAX


async def test_a_bulk_that_breaks_off_says_of_each_entry_what_became_of_it(pod, ask):
    def some(call: Call) -> Any:
        if len(pod.calls) == 2:
            raise TransportError(StatusCode.INTERNAL, "the store fell over")
        return register_all(call)

    pod.answers[messages.REGISTER_MODELS.path] = some
    entries = [registration(f"m{number}", uri="u") for number in range(7)]
    progress: list[int] = []
    results = await ask("register_many", entries, on_progress=progress.append, entries_per_call=2)
    assert [result.id for result in results] == [entry.id for entry in entries]
    assert [result.status_code for result in results] == [0, 0, *[StatusCode.INTERNAL] * 5]
    assert all("not known" in result.message and "the store fell over" in result.message for result in results[2:4])
    assert all(result.message.startswith("not sent") for result in results[4:])
    assert (progress, len(pod.calls)) == ([2, 2, 2, 1], 2)
    # Again, from the beginning.
    assert not any(result.status_code for result in await ask("register_many", entries))
    pod.calls.clear()
    pod.answers[messages.UNREGISTER_MODELS.path] = [TransportError(StatusCode.INTERNAL, "not now")]
    with pytest.raises(ServerFailed, match="not now"):
        await ask("unregister_many", ["a", "b"])
    with pytest.raises(ValueError, match="entries_per_call is 0"):
        await ask("register_many", entries, entries_per_call=0)


async def test_registering_nothing_calls_nobody(pod, ask):
    assert await ask("register_many", []) == []
    assert not pod.calls


async def test_a_bulk_answer_of_the_wrong_length_is_an_error(pod, ask):
    pod.answers[messages.REGISTER_MODELS.path] = hexcomb_pb2.RegisterModelsResponse()
    with pytest.raises(ServerFailed, match="1 entries were sent and 0 results"):
        await ask("register_many", [registration("m", uri="u")])
    with pytest.raises(ServerFailed, match="cannot read"):
        await ask("register", "m", uri="u")


async def test_unregister_tells_whether_there_was_one(pod, ask):
    results = [hexcomb_pb2.UnregistrationResult(id="m", existed=True)]
    pod.answers[messages.UNREGISTER_MODELS.path] = hexcomb_pb2.UnregisterModelsResponse(results=results)
    assert await ask("unregister", "m") is True
    assert await ask("unregister_many", ["m"]) == results


async def test_list_models_walks_over_all_pages(pod, ask):
    def page(call: Call) -> hexcomb_pb2.ListModelsResponse:
        request = hexcomb_pb2.ListModelsRequest.FromString(call.body)
        number = int(request.page_token or "0")
        assert request.id_prefix == "m"
        models = [hexcomb_pb2.ModelDescription(id=f"m{number}")]
        return hexcomb_pb2.ListModelsResponse(models=models, next_page_token=str(number + 1) if number < 2 else "")

    pod.answers[messages.LIST_MODELS.path] = page
    assert [model.id for model in await ask("list_models", id_prefix="m")] == ["m0", "m1", "m2"]


async def test_the_other_management_calls_reach_their_methods(pod, ask):
    pod.answers |= {
        messages.DESCRIBE_MODEL.path: hexcomb_pb2.ModelDescription(id="m"),
        messages.SET_PINNED.path: hexcomb_pb2.ModelDescription(id="m"),
        messages.POD_STATUS.path: hexcomb_pb2.PodStatusResponse(pods=[hexcomb_pb2.PodDescription(pod="p")]),
        messages.ENSURE_LOADED.path: mmesh_pb2.ModelStatusInfo(status="LOADED"),
        messages.GET_MODEL_STATUS.path: mmesh_pb2.ModelStatusInfo(status="LOADING"),
        messages.SET_VMODEL.path: mmesh_pb2.VModelStatusInfo(status="DEFINED"),
        messages.GET_VMODEL_STATUS.path: mmesh_pb2.VModelStatusInfo(status="TRANSITIONING"),
        messages.DELETE_VMODEL.path: mmesh_pb2.DeleteVModelResponse(),
    }
    assert (await ask("describe", "m")).id == "m"
    assert (await ask("set_pinned", "m", True)).id == "m"
    assert [pod.pod for pod in await ask("pod_status")] == ["p"]
    assert (await ask("ensure_loaded", "m")).status == mmesh_pb2.ModelStatusInfo.LOADED
    assert (await ask("model_status", "m")).status == mmesh_pb2.ModelStatusInfo.LOADING
    await ask("set_alias", "a", "m", owner="me", wait=True)
    sent = mmesh_pb2.SetVModelRequest.FromString(pod.calls[-1].body)
    assert (sent.vModelId, sent.targetModelId, sent.owner, sent.sync, sent.force) == ("a", "m", "me", True, False)
    assert (await ask("alias_status", "a")).status == mmesh_pb2.VModelStatusInfo.TRANSITIONING
    assert await ask("delete_alias", "a") is None


async def test_what_a_pool_is_asked_reaches_its_methods(pod, ask):
    page = hexcomb_pb2.ListAliasesResponse(aliases=[hexcomb_pb2.AliasDescription(id="a")], next_page_token="a")
    pod.answers |= {
        messages.EXPLAIN.path: hexcomb_pb2.Explanation(summary="Served."),
        messages.DRAIN_POD.path: hexcomb_pb2.DrainPodResponse(was_draining=True),
        messages.RELEASE_MODEL.path: hexcomb_pb2.ModelDescription(id="m"),
        messages.SET_ALIAS.path: hexcomb_pb2.AliasDescription(id="a", active="m"),
        messages.LIST_ALIASES.path: [page, hexcomb_pb2.ListAliasesResponse()],
    }
    assert (await ask("explain", "m")).summary == "Served."
    assert await ask("drain_pod", "p") is True
    assert (await ask("release", "m")).id == "m"
    assert [alias.id for alias in await ask("list_aliases")] == ["a"]
    assert (await ask("put_alias", "a", weights={"m": 90, "n": 90, "k": 10}, owner="me")).active == "m"
    sent = hexcomb_pb2.SetAliasRequest.FromString(pod.calls[-1].body)
    assert (sent.target, dict(sent.weights), sent.owner) == ("m", {"m": 90, "n": 90, "k": 10}, "me")
    with pytest.raises(InvalidRequest, match="alias 'a'"):
        await ask("put_alias", "a", "m", weights={"m": -1})


async def test_what_may_pass_is_tried_again_and_the_rest_is_raised(pod, ask):
    path = messages.SERVER_LIVE.path
    live = inference_pb2.ServerLiveResponse(live=True)
    full = TransportError(StatusCode.RESOURCE_EXHAUSTED, "full", retry_after_s=0.001)
    pod.answers[path] = [TransportError(StatusCode.UNAVAILABLE, "stopping"), full, live]
    assert await ask("server_live") is True
    assert len(pod.calls) == 3
    pod.answers[path] = [full, full, full]
    with pytest.raises(Overloaded, match="full") as failure:
        await ask("server_live")
    assert failure.value.retry_after_s == 0.001
    for status, kind in ((StatusCode.NOT_FOUND, NotFound), (StatusCode.UNIMPLEMENTED, Unsupported)):
        pod.answers[path] = [TransportError(status, "no")]
        with pytest.raises(kind, match="no"):
            await ask("server_live")
        assert not pod.answers[path]


async def test_the_deadline_ends_a_call(pod, ask):
    pod.answers[messages.SERVER_LIVE.path] = lambda call: asyncio.Event().wait()
    with pytest.raises(DeadlineExceeded):
        await ask("server_live", timeout_s=0.2)
    assert len(pod.calls) == 1


async def test_an_answer_that_cannot_be_read_is_the_servers_fault(pod, ask):
    pod.answers |= {messages.SERVER_LIVE.path: b"\xff\xff", messages.MODEL_INFER.path: b"\x32\x05x"}
    for call in (("server_live",), ("infer", "m", {"x": [1.0]})):
        with pytest.raises(ServerFailed, match="cannot read the server's answer"):
            await ask(*call)


def test_nobody_there_is_an_error_that_says_what_to_do(unused_tcp_port):
    with (
        Client(f"127.0.0.1:{unused_tcp_port}", retry=RetryPolicy(attempts_max=1), timeout_s=10) as client,
        pytest.raises(Unavailable, match=f"127.0.0.1:{unused_tcp_port}.*is `hexcomb serve` running there"),
    ):
        client.server_live()


def test_a_client_returns_when_its_server_does(unused_tcp_port):
    """Attempts go on until the server is back, within the deadline."""

    async def serve_one_call() -> None:
        pod = CannedPod()
        pod.answers[messages.SERVER_LIVE.path] = inference_pb2.ServerLiveResponse(live=True)
        routes = Routes({messages.SERVER_LIVE.path: pod.answer})
        patient = RetryPolicy(attempts_max=100, backoff_first_s=0.05, backoff_max_s=0.2)
        async with AsyncClient(f"127.0.0.1:{unused_tcp_port}", retry=patient, timeout_s=20) as client:
            waiting = asyncio.create_task(client.server_live())
            impatient = RetryPolicy(attempts_max=1)
            async with AsyncClient(f"127.0.0.1:{unused_tcp_port}", retry=impatient, timeout_s=10) as other:
                with pytest.raises(HexcombError):
                    await other.server_live()
            transport = GrpcioTransport(routes, [ListenAddress(f"127.0.0.1:{unused_tcp_port}")])
            await transport.start()
            assert await waiting is True
            await transport.stop(0)

    asyncio.run(serve_one_call())


@pytest.mark.parametrize("order", [("mesh.client", "tritonclient.grpc"), ("tritonclient.grpc", "mesh.client")])
def test_the_client_imports_beside_tritonclient(order):
    program = "\n".join(f"import {name}" for name in order)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_importing_the_client_does_not_import_grpc():
    program = "import sys, mesh.client; assert 'grpc' not in sys.modules, 'grpc came along'"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


async def test_a_pod_on_this_machine_is_not_asked_for_through_a_proxy(
    pod: CannedPod, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    pod.answers[messages.SERVER_LIVE.path] = inference_pb2.ServerLiveResponse(live=True)
    for endpoint in (pod.endpoint, pod.endpoint.replace("127.0.0.1", "localhost")):
        async with AsyncClient(endpoint, retry=RetryPolicy(attempts_max=1)) as client:
            assert await client.server_live(timeout_s=10)


def test_an_error_goes_through_a_process_boundary_as_it_is():
    error = error_of(StatusCode.RESOURCE_EXHAUSTED, "full", 0.5)
    error.endpoint, error.attempts, error.answered = "pod:1", 3, False
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert type(copy) is Overloaded
    assert (copy.message, copy.code, copy.retry_after_s) == ("full", "RESOURCE_EXHAUSTED", 0.5)
    assert (copy.endpoint, copy.attempts, copy.answered) == ("pod:1", 3, False)


async def test_an_error_says_who_was_asked_and_how_often(pod, ask):
    full = TransportError(StatusCode.RESOURCE_EXHAUSTED, "full", retry_after_s=0.001)
    pod.answers[messages.SERVER_LIVE.path] = [full, full, full]
    with pytest.raises(Overloaded) as failure:
        await ask("server_live")
    assert (failure.value.endpoint, failure.value.attempts) == (pod.endpoint, 3)
    with pytest.raises(InvalidRequest) as failure:
        await ask("infer", "m", {"x": np.array([1j])})
    assert (failure.value.endpoint, failure.value.attempts) == ("", 0)


@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
async def test_a_stream_is_begun_again_until_its_first_answer_and_not_after(kind):
    """What was answered once is not asked for again: the answers would come twice."""
    begun: list[int] = []
    answer = ModelStreamInferResponse(infer_response=InferResponse(model_name="m"))
    in_band = ModelStreamInferResponse(error_message="full")
    in_band.infer_response.parameters[messages.STREAM_STATUS_PARAMETER].int64_param = StatusCode.UNAVAILABLE

    async def stream(call: Call, requests: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        begun.append(len(begun))
        if len(begun) == 1:
            raise TransportError(StatusCode.UNAVAILABLE, "not yet")
        if len(begun) == 2:
            yield in_band.SerializeToString()
            return
        yield answer.SerializeToString()
        raise TransportError(StatusCode.UNAVAILABLE, "gone")

    routes = Routes({}, {messages.MODEL_STREAM_INFER.path: stream})
    transport = GrpcioTransport(routes, [ListenAddress("127.0.0.1:0")])
    await transport.start()
    endpoint = transport.addresses[0].address
    taken: list[str] = []

    def blocking() -> None:
        with Client(endpoint, retry=SOON, timeout_s=20) as client:
            taken.extend(result.model_name for result in client.infer_stream("m", {}))

    async def on_the_loop() -> None:
        async with AsyncClient(endpoint, retry=SOON, timeout_s=20) as client:
            async for result in client.infer_stream("m", {}):
                taken.extend([result.model_name])

    with pytest.raises(Unavailable, match="gone"):
        await (asyncio.to_thread(blocking) if kind == "blocking" else on_the_loop())
    assert (taken, len(begun)) == (["m"], 3)
    await transport.stop(0)


async def test_a_request_of_a_sequence_is_not_sent_twice():
    sequence = {"sequence_id": 7}
    assert not operations.infer("m", {}, parameters=sequence).repeats
    assert not operations.infer_stream("m", {}, parameters=sequence).repeats
    assert operations.infer("m", {}, parameters={"priority": 1}).repeats


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf"), 1e30])
async def test_a_time_that_grpc_would_misread_is_refused(pod, ask, timeout_s):
    with pytest.raises(ValueError, match="timeout_s is"):
        await ask("server_live", timeout_s=timeout_s)
    with pytest.raises(ValueError, match="timeout_s is"):
        Client(pod.endpoint, timeout_s=timeout_s)
    assert not pod.calls


@pytest.mark.parametrize(
    "options", [{"tenant": "grün"}, {"metadata": (("Upper", "x"),)}, {"metadata": (("k-bin", "text"),)}]
)
def test_metadata_that_cannot_be_sent_is_refused_at_once(options):
    for kind in (Client, AsyncClient):
        with pytest.raises(ValueError, match="metadata"):
            kind("127.0.0.1:1", **options)


async def test_a_closed_client_says_so(pod, ask):
    client, on_the_loop = Client(pod.endpoint), AsyncClient(pod.endpoint)
    client.close()
    await on_the_loop.close()
    for call in (client.server_live, lambda: list(client.infer_stream("m", {}))):
        with pytest.raises(RuntimeError, match="this client is closed"):
            await asyncio.to_thread(call)
    with pytest.raises(RuntimeError, match="this client is closed"):
        await on_the_loop.server_live()


async def test_an_asyncio_client_belongs_to_the_loop_of_its_first_call(pod):
    pod.answers[messages.SERVER_LIVE.path] = inference_pb2.ServerLiveResponse(live=True)
    made_without_a_loop = await asyncio.to_thread(AsyncClient, pod.endpoint)
    assert await made_without_a_loop.server_live()

    async def elsewhere() -> None:
        with pytest.raises(RuntimeError, match="another event loop"):
            await made_without_a_loop.server_live()

    await asyncio.to_thread(asyncio.run, elsewhere())
    await made_without_a_loop.close()


def test_both_clients_have_the_same_methods_with_the_same_arguments():
    def surface(kind: type) -> dict[str, list[str]]:
        methods = {name: getattr(kind, name) for name in vars(kind) if not name.startswith("_")}
        return {
            name: [str(each) for each in inspect.signature(method).parameters.values()]
            for name, method in methods.items()
        }

    assert surface(AsyncClient) == surface(Client)
    assert all(
        vars(Client)[name].__doc__ for name in ("infer", "infer_frame", "infer_stream", "register_many", "wait_ready")
    )
