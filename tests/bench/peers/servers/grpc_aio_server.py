"""The floor: grpc.aio, the whole message parsed, the framework called. What anybody writes in an afternoon.

Runs in this checkout's environment. No routing, accounting, eviction, metrics or batching.
"""

import sys

import grpc
import numpy as np
import uvloop

from mesh.wire.generated.inference_pb2 import ModelInferRequest, ModelInferResponse
from tests.bench.peers.servers.predictors import load_all


async def _serve(port):
    models = load_all()

    async def infer(request, context):
        tensor = request.inputs[0]
        rows = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(tuple(tensor.shape))
        answer = models[request.model_name](rows)
        response = ModelInferResponse(model_name=request.model_name, id=request.id)
        response.outputs.add(name="y", datatype="FP32", shape=answer.shape)
        response.raw_output_contents.append(answer.tobytes())
        return response

    handler = grpc.unary_unary_rpc_method_handler(
        infer, ModelInferRequest.FromString, ModelInferResponse.SerializeToString
    )
    server = grpc.aio.server(
        options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)],
    )
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("inference.GRPCInferenceService", {"ModelInfer": handler})]
    )
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
