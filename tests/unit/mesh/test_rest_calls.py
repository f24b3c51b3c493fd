"""A call over HTTP as one over gRPC: what is passed on, what is refused, what is said when it fails."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from mesh.endpoint.http import HttpFront, build_app
from mesh.endpoint.rest.calls import HTTP_CODES, AnswersTo, HttpCalls
from mesh.transport.base import Call, Reply, ReplyWithTrailers, StatusCode, TransportError, TransportLimits
from mesh.wire import messages
from mesh.wire.generated import inference_pb2
from mesh.wire.json_tensors import to_json

LIVE = inference_pb2.ServerLiveResponse(live=True).SerializeToString()
INFER = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]}).encode()


async def no_answers(call: Call) -> AsyncGenerator[bytes, None]:
    for none in ():
        yield none


@dataclass
class Http:
    """A client of the application, which sends what ASGI servers send."""

    handler: Callable[[Call], Awaitable[Reply]]
    limits: TransportLimits = field(default_factory=TransportLimits)

    answers_to: AnswersTo = no_answers

    def __post_init__(self) -> None:
        methods = (messages.SERVER_LIVE, messages.MODEL_INFER, messages.REPOSITORY_LOAD, messages.REPOSITORY_INDEX)
        self.calls = HttpCalls({method.path: self.handler for method in methods}, self.limits, self.answers_to)
        self.app = build_app(CollectorRegistry(), lambda: "", self.calls, "1")

    async def ask(
        self, path: str, *chunks: bytes, headers: dict[str, str] | None = None, leaves: asyncio.Event | None = None
    ) -> tuple[int, dict[str, str], Any]:
        """Code, headers, and the JSON. POST where there is a body. `leaves`: when set, the client hangs up."""
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST" if chunks else "GET",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "scheme": "http",
            "headers": [(key.lower().encode(), value.encode()) for key, value in (headers or {}).items()],
            "client": ("127.0.0.1", 5),
            "server": ("127.0.0.1", 8008),
        }
        waiting = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
        waiting.append({"type": "http.request", "body": b"", "more_body": False})
        sent: list[Any] = []

        async def receive() -> Any:
            if waiting:
                return waiting.pop(0)
            await (leaves or asyncio.Event()).wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        await self.app(scope, receive, send)
        body = b"".join(message.get("body", b"") for message in sent)
        found = {key.decode(): value.decode() for key, value in sent[0]["headers"]}
        return sent[0]["status"], found, json.loads(body) if body else None


async def live(call: Call) -> Reply:
    return LIVE


@pytest.mark.parametrize("status", [status for status in StatusCode if status is not StatusCode.OK])
async def test_every_status_has_a_code_and_the_handlers_words(status: StatusCode) -> None:
    async def refuse(call: Call) -> Reply:
        raise TransportError(status, "why", 0.25)

    code, headers, answer = await Http(refuse).ask("/v2/health/live")
    assert (code, answer) == (HTTP_CODES.get(status, 500), {"error": "why"})
    assert (headers["retry-after"], headers["retry-after-ms"]) == ("1", "250")


async def test_a_defect_is_a_number_in_the_log_and_no_story(caplog: pytest.LogCaptureFixture) -> None:
    async def break_down(call: Call) -> Reply:
        raise RuntimeError("the secret path")

    code, _, answer = await Http(break_down).ask("/v2/health/live")
    assert code == 500
    assert "secret" not in answer["error"]
    assert answer["error"].rpartition(" ")[2] in caplog.text


async def test_headers_that_mean_something_are_passed_on_and_no_others() -> None:
    asked: list[Call] = []

    async def remember(call: Call) -> Reply:
        asked.append(call)
        return LIVE

    headers = {"hexcomb-tenant": "blue", "traceparent": "00-1-2-03", "Host": "models.green.svc", "x-request-id": "a\tb"}
    forged = {"hexcomb-forward": "1;p;m;1;1;1;0;", "hexcomb-peer-key": "k", "cookie": "c", "mm-model-id": "m"}
    await Http(remember).ask("/v2/health/live", headers=headers | forged)
    assert dict(asked[0].metadata) == {"hexcomb-tenant": "blue", "traceparent": "00-1-2-03"}
    assert asked[0].listener_tenant == "green"


@pytest.mark.parametrize("tenant", ["x" * 2000, "zwölf", "a\tb"])
async def test_a_tenant_that_cannot_be_passed_on_is_refused_and_does_not_become_the_default_one(tenant: str) -> None:
    code, _, answer = await Http(live).ask("/v2/health/live", headers={"hexcomb-tenant": tenant})
    assert (code, "hexcomb-tenant is" in answer["error"]) == (400, True)


@pytest.mark.parametrize(
    "parameters", [{"\ud800": "1"}, {"config": 1}, {"config": "ü"}, {"file:1/m": "no base64!"}, 5, True, ["a"]]
)
async def test_parameters_of_a_load_that_say_nothing_are_refused(parameters: object) -> None:
    path, body = "/v2/repository/models/m/load", json.dumps({"parameters": parameters}).encode()
    code, _, answer = await Http(live).ask(path, body)
    assert (code, "parameter" in answer["error"]) == (400, True)


async def test_parameters_of_a_load_reach_the_handler() -> None:
    asked: list[inference_pb2.RepositoryModelLoadRequest] = []

    async def remember(call: Call) -> Reply:
        asked.append(messages.parse(messages.REPOSITORY_LOAD, call.body))
        return inference_pb2.RepositoryModelLoadResponse().SerializeToString()

    body = json.dumps({"parameters": {"config": "{}", "file:1/model.onnx": "AAE="}}).encode()
    assert (await Http(remember).ask("/v2/repository/models/m/load", body))[0] == 200
    assert asked[0].parameters["config"].string_param == "{}"
    assert asked[0].parameters["file:1/model.onnx"].bytes_param == b"\x00\x01"


async def test_other_calls_do_not_wait_while_the_index_of_many_models_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads: list[int] = []

    def watched(value: object) -> bytes:
        threads.append(threading.get_ident())
        return to_json(value)

    async def list_all(call: Call) -> Reply:
        response = inference_pb2.RepositoryIndexResponse()
        for number in range(3000):
            response.models.add(name=f"a model with a name: {number}", version="1", state="READY")
        return response.SerializeToString()

    monkeypatch.setattr("mesh.endpoint.rest.repository.to_json", watched)
    code, _, answer = await Http(list_all).ask("/v2/repository/index", b"{}")
    assert (code, len(answer)) == (200, 3000)
    assert answer[7] == {"name": "a model with a name: 7", "version": "1", "state": "READY", "reason": ""}
    assert len(threads) == 1
    assert threads[0] != threading.get_ident()


async def test_what_the_handler_says_beside_its_answer_becomes_headers() -> None:
    async def cold(call: Call) -> Reply:
        body = inference_pb2.ModelInferResponse(model_name="m", model_version="1").SerializeToString()
        return ReplyWithTrailers(body, (("hexcomb-cold", "1"),))

    code, headers, _ = await Http(cold).ask("/v2/models/m/infer", INFER)
    assert (code, headers["hexcomb-cold"]) == (200, "1")


async def test_a_client_that_leaves_takes_its_call_with_it_whether_it_sent_a_body_or_not() -> None:
    for path, chunks in (("/v2/health/live", ()), ("/v2/models/m/infer", (INFER,))):
        began, left, cancelled = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def wait(call: Call, began: asyncio.Event = began, cancelled: asyncio.Event = cancelled) -> Reply:
            began.set()
            try:
                await asyncio.Event().wait()
            finally:
                if call.abandoned():
                    cancelled.set()
            return LIVE

        http = Http(wait)
        asking = asyncio.create_task(http.ask(path, *chunks, leaves=left))
        await began.wait()
        assert http.calls.in_flight == 1
        left.set()
        assert (await asking)[0] == 499
        await cancelled.wait()
        assert http.calls.in_flight == 0


async def test_calls_beyond_the_limit_are_refused_at_once_with_a_hint() -> None:
    goes_on = asyncio.Event()

    async def wait(call: Call) -> Reply:
        await goes_on.wait()
        return LIVE

    http = Http(wait, TransportLimits(calls_max=1))
    first = asyncio.create_task(http.ask("/v2/health/live"))
    await asyncio.sleep(0)
    code, headers, answer = await http.ask("/v2/health/live")
    assert (code, headers["retry-after-ms"]) == (429, "100")
    assert "its limit" in answer["error"]
    goes_on.set()
    assert (await first)[0] == 200


async def test_bodies_are_bounded_one_by_one_and_together() -> None:
    began, goes_on = asyncio.Semaphore(0), asyncio.Event()

    async def wait(call: Call) -> Reply:
        began.release()
        await goes_on.wait()
        return inference_pb2.ModelInferResponse(model_name="m", model_version="1").SerializeToString()

    size = len(INFER)
    http = Http(wait, TransportLimits(message_bytes_max=size + 10, bytes_in_flight_max=2 * size))
    assert (await http.ask("/v2/models/m/infer", INFER, b" " * 11))[0] == 413
    running = [asyncio.create_task(http.ask("/v2/models/m/infer", INFER)) for _ in range(2)]
    for _ in running:
        await began.acquire()
    code, _, answer = await http.ask("/v2/models/m/infer", INFER)
    assert (code, "in flight on this pod" in answer["error"]) == (429, True)
    goes_on.set()
    assert [(await each)[0] for each in running] == [200, 200]
    assert (await http.ask("/v2/models/m/infer", INFER))[0] == 200


async def test_what_a_packed_body_unpacks_to_is_counted_as_in_flight() -> None:
    began, goes_on = asyncio.Event(), asyncio.Event()

    async def wait(call: Call) -> Reply:
        began.set()
        await goes_on.wait()
        return inference_pb2.ModelInferResponse(model_name="m", model_version="1").SerializeToString()

    large = INFER + b" " * 10_000
    http = Http(wait, TransportLimits(bytes_in_flight_max=len(large) + 1000))
    packed, headers = gzip.compress(large), {"Content-Encoding": "gzip"}
    running = asyncio.create_task(http.ask("/v2/models/m/infer", packed, headers=headers))
    await began.wait()
    code, _, answer = await http.ask("/v2/models/m/infer", packed, headers=headers)
    assert (code, "in flight on this pod" in answer["error"]) == (429, True)
    goes_on.set()
    assert (await running)[0] == 200
    assert (await http.ask("/v2/models/m/infer", packed, headers={"Content-Encoding": "GZIP"}))[0] == 200


async def test_a_connection_is_probed_when_it_is_silent_so_that_a_client_that_vanished_is_noticed() -> None:
    limits = TransportLimits(keepalive_after_s=7, keepalive_timeout_s=12)
    front = HttpFront(Http(live).app, "127.0.0.1", 0, limits, 1)
    reader, writer = await asyncio.open_connection("127.0.0.1", await front.start())
    try:
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"ok")
        (connection,) = front._server.server_state.connections
        line = connection.transport.get_extra_info("socket")
        assert line.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        assert [line.getsockopt(socket.IPPROTO_TCP, option) for option in options] == [7, 3, 4]
    finally:
        writer.close()
        await front.stop()


async def test_an_encoding_that_is_not_known_is_refused() -> None:
    code, _, answer = await Http(live).ask("/v2/models/m/infer", INFER, headers={"Content-Encoding": "br"})
    assert (code, "gzip" in answer["error"]) == (415, True)
