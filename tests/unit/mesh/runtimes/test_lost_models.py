"""What a server's NOT_FOUND says: that it has lost the model, or nothing of the kind."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import grpc
import numpy as np
import pytest

from mesh.runtimes.channel import RuntimeChannel
from mesh.runtimes.v2 import V2Models
from mesh.wire.generated import inference_pb2
from runtime_adapters.errors import ModelCrashed, ModelRaised

X = {"x": np.zeros((1, 4), np.float32)}


@dataclass
class Server:
    """One whose every inference ends in this error; `ready`: what it says of the model, None: nothing."""

    status: grpc.StatusCode = grpc.StatusCode.NOT_FOUND
    details: str = "no such thing"
    ready: bool | None = True
    asked: list[str] = field(default_factory=list)

    def infer(self, body: bytes, context: grpc.ServicerContext) -> bytes:
        context.abort(self.status, self.details)

    def is_ready(self, body: bytes, context: grpc.ServicerContext) -> bytes:
        self.asked.append(inference_pb2.ModelReadyRequest.FromString(body).name)
        if self.ready is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "not here")
        return inference_pb2.ModelReadyResponse(ready=bool(self.ready)).SerializeToString()


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def models(server: Server) -> Iterator[V2Models]:
    handlers = {
        "ModelInfer": grpc.unary_unary_rpc_method_handler(server.infer),
        "ModelReady": grpc.unary_unary_rpc_method_handler(server.is_ready),
    }
    grpc_server = grpc.server(ThreadPoolExecutor(1))
    service = "inference.GRPCInferenceService"
    grpc_server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = grpc_server.add_insecure_port("127.0.0.1:0")
    grpc_server.start()
    channel = RuntimeChannel(f"127.0.0.1:{port}")
    yield V2Models(channel, "there", 10.0)
    channel.close()
    grpc_server.stop(None).wait()


@pytest.mark.parametrize(
    ("status", "details"),
    [
        (grpc.StatusCode.NOT_FOUND, "row 7 is not in the table"),
        (grpc.StatusCode.INTERNAL, "lookup failed: unknown model of car"),
    ],
)
def test_a_model_whose_own_code_finds_nothing_keeps_its_copy(
    server: Server, models: V2Models, status: grpc.StatusCode, details: str
) -> None:
    server.status, server.details = status, details
    with pytest.raises(ModelRaised, match=f"the model itself answered: .*{details}"):
        models.infer("m", X, ("y",))
    assert server.asked == ["m"]


@pytest.mark.parametrize("ready", [False, None], ids=["says that it is not ready", "does not know it"])
def test_a_model_that_its_server_has_no_more_is_a_lost_copy(
    server: Server, models: V2Models, ready: bool | None
) -> None:
    server.ready = ready
    with pytest.raises(ModelCrashed, match="has it no more"):
        models.infer("m", X, ("y",))


def test_an_error_that_says_nothing_of_a_loss_costs_no_question(server: Server, models: V2Models) -> None:
    server.status, server.details = grpc.StatusCode.INTERNAL, "division by zero"
    with pytest.raises(ModelRaised, match="division by zero"):
        models.infer("m", X, ("y",))
    assert not server.asked
