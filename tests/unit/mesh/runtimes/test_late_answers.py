"""What no answer in time says of a server beside the pod."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from mesh.runtimes.channel import RuntimeChannel, RuntimeLate
from mesh.runtimes.v2 import run_error
from runtime_adapters.errors import ModelRaised


def test_an_answer_that_its_client_does_not_wait_for_takes_no_copy_away() -> None:
    held = threading.Event()
    handler = grpc.unary_unary_rpc_method_handler(lambda body, _: body if held.wait(20) else b"")
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("s.S", {"Ask": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    channel = RuntimeChannel(f"127.0.0.1:{port}")
    try:
        with pytest.raises(RuntimeLate) as late:
            channel.call("/s.S/Ask", b"", 0.2)
        assert isinstance(run_error("there", late.value), ModelRaised)
    finally:
        held.set()
        channel.close()
        server.stop(None).wait()
