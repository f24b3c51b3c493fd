"""The load generator of `make bench-peers`, against servers that other people wrote."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import numpy as np
import pytest

from tests.bench.peers.answers import LoadFailed
from tests.bench.peers.load import Load, run_load

PATH = "/inference.GRPCInferenceService/ModelInfer"


@contextmanager
def grpc_server(answer: Callable[[bytes], bytes]) -> Iterator[tuple[str, int]]:
    """grpcio's own server; an exception in `answer` becomes a failed call."""
    unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    server = grpc.server(ThreadPoolExecutor(4), options=unlimited)
    handler = grpc.unary_unary_rpc_method_handler(lambda request, context: answer(request))
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("inference.GRPCInferenceService", {"ModelInfer": handler})]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield "127.0.0.1", port
    finally:
        server.stop(None).wait()


@contextmanager
def http_server(*, chunked: bool = False, status: int = 200) -> Iterator[tuple[str, int]]:
    """The standard library's server: answers the body it got."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            self.send_response(status)
            if chunked:
                self.send_header("transfer-encoding", "chunked")
                half = len(body) // 2
                body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:half], body[half:], b""))
            else:
                self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,)).start()
    try:
        yield "127.0.0.1", server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def load_of(address: tuple[str, int], messages: tuple[bytes, ...], **rest: Any) -> Load:
    """A short closed load of an echo."""
    fields: dict[str, Any] = {
        "address": address,
        "grpc_path": PATH,
        "requests": messages,
        "expected": messages,
        "order": tuple(range(len(messages))),
        "in_flight": 6,
        "rate_per_s": 0.0,
        "warm_up_s": 0.1,
        "duration_s": 0.3,
        "server_pids": (os.getpid(),),
    }
    return Load(**(fields | rest))


def http_request(body: bytes) -> bytes:
    """A whole one."""
    return b"POST /predict HTTP/1.1\r\nhost: here\r\ncontent-length: %d\r\n\r\n" % len(body) + body


@pytest.mark.parametrize("sizes", [(0, 1, 64, 4096), (600_000, 17), (8_000_000,)])
def test_every_grpc_answer_is_the_one_to_its_own_request(sizes: tuple[int, ...]) -> None:
    random = np.random.default_rng(1)
    messages = tuple(random.bytes(size) or b"\n\0" for size in sizes)
    with grpc_server(lambda request: request) as address:
        result = run_load(load_of(address, messages))
    assert result.answered > 0
    assert result.wrong == 0


def test_a_failed_call_counts_as_wrong_and_never_as_answered() -> None:
    def answer(request: bytes) -> bytes:
        if request == b"bad":
            raise ValueError("as asked")
        return request

    with grpc_server(answer) as address:
        result = run_load(load_of(address, (b"good", b"bad"), duration_s=0.1))
    assert result.answered > 0
    assert result.wrong > 0


def test_an_answer_to_another_request_counts_as_wrong() -> None:
    with grpc_server(lambda request: b"first") as address:
        result = run_load(load_of(address, (b"first", b"second"), duration_s=0.1))
    assert result.answered > 0
    assert result.wrong > 0


def test_a_paced_load_asks_at_its_rate_whatever_the_server_could_do() -> None:
    with grpc_server(lambda request: request) as address:
        result = run_load(load_of(address, (b"ping",), rate_per_s=100.0, duration_s=1.0))
    # Poisson: 100 give or take 10; less only where the machine is too busy to send them.
    assert 0 < result.answered < 150
    assert result.wrong == 0


def test_a_server_that_goes_away_ends_the_load_with_a_reason() -> None:
    with http_server() as address:
        pass
    with pytest.raises((LoadFailed, ConnectionRefusedError)):
        run_load(load_of(address, (http_request(b"1234"),), grpc_path=""))


@pytest.mark.parametrize("chunked", [False, True])
def test_http_answers_are_read_with_a_length_and_in_chunks(chunked: bool) -> None:
    body = np.arange(5000, dtype=np.float32)
    with http_server(chunked=chunked) as address:
        asked = (http_request(body.tobytes()),)
        result = run_load(load_of(address, asked, expected=(body,), grpc_path="", in_flight=3))
    assert result.answered > 0
    assert result.wrong == 0


def test_an_http_status_other_than_200_counts_as_wrong() -> None:
    with http_server(status=500) as address:
        result = run_load(load_of(address, (http_request(b"1234"),), grpc_path="", in_flight=1, duration_s=0.1))
    assert result.answered == 0
    assert result.wrong > 0
