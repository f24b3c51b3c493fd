"""What clients ask and are answered, handed on to those who watch."""

from __future__ import annotations

import base64
import json
import queue
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from mesh.endpoint.access import Access
from mesh.endpoint.payloads import WAITING_MAX, PayloadProcessors, parse_watcher
from mesh.transport.base import Call, Reply, StatusCode, TransportError
from mesh.wire import messages
from mesh.wire.generated import inference_pb2

INFER = messages.MODEL_INFER.path


class Heard:
    """A watcher's server: what it was told, and a gate that holds its answers back."""

    def __init__(self) -> None:
        self.told: queue.Queue[dict[str, Any]] = queue.Queue()
        self.gate = threading.Event()
        self.gate.set()
        self.speaks_nonsense = False
        heard = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                heard.gate.wait(30)
                self.wfile.write(b"no HTTP\r\n" if heard.speaks_nonsense else b"HTTP/1.0 200 OK\r\n\r\n")
                heard.told.put(json.loads(body))

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/seen"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def heard() -> Iterator[Heard]:
    heard = Heard()
    yield heard
    heard.gate.set()
    heard.server.shutdown()
    heard.server.server_close()


def infer(model: str) -> Call:
    return Call(INFER, inference_pb2.ModelInferRequest(model_name=model).SerializeToString())


async def test_a_request_and_its_answer_are_told_with_one_id(heard: Heard) -> None:
    async def handler(call: Call) -> Reply:
        return b"answer"

    processors = PayloadProcessors([parse_watcher(heard.url)], Access())
    assert await processors.watched(handler)(infer("m")) == b"answer"
    request, response = heard.told.get(timeout=30), heard.told.get(timeout=30)
    assert (request["kind"], request["modelid"], request["method"]) == ("request", "m", INFER[1:])
    assert inference_pb2.ModelInferRequest.FromString(base64.b64decode(request["data"])).model_name == "m"
    assert (response["kind"], response["status"], base64.b64decode(response["data"])) == ("response", "OK", b"answer")
    assert request["id"] == response["id"]


async def test_an_error_is_told_with_its_code_and_goes_on_to_the_client(heard: Heard) -> None:
    async def handler(call: Call) -> Reply:
        raise TransportError(StatusCode.NOT_FOUND, "no")

    with pytest.raises(TransportError):
        await PayloadProcessors([parse_watcher(heard.url)], Access()).watched(handler)(infer("m"))
    heard.told.get(timeout=30)
    assert heard.told.get(timeout=30)["status"] == "NOT_FOUND"


async def test_a_watcher_is_told_of_what_it_is_for_and_never_waited_for(heard: Heard) -> None:
    async def handler(call: Call) -> Reply:
        return b""

    processors = PayloadProcessors([parse_watcher(f"{heard.url}?/mine#{INFER[1:]}")], Access())
    watched = processors.watched(handler)
    heard.gate.clear()
    for _ in range(WAITING_MAX):
        await watched(infer("mine"))
        await watched(infer("other"))
    assert processors.dropped > 0
    heard.gate.set()
    assert {heard.told.get(timeout=30)["modelid"] for _ in range(WAITING_MAX)} == {"mine"}


async def test_a_watcher_that_answers_nonsense_is_told_of_the_next_request(heard: Heard) -> None:
    async def handler(call: Call) -> Reply:
        return b""

    watched = PayloadProcessors([parse_watcher(heard.url)], Access()).watched(handler)
    heard.speaks_nonsense = True
    for model in ("first", "second"):
        await watched(infer(model))
    assert [heard.told.get(timeout=30)["modelid"] for _ in range(4)] == ["first", "first", "second", "second"]


@pytest.mark.parametrize("text", ["ftp://x", "http://", "nothing", ""])
def test_what_is_no_processor_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="payload processor"):
        parse_watcher(text)


def test_stars_and_nothing_mean_all() -> None:
    assert parse_watcher("logger://*?*#*") == parse_watcher("logger://")
