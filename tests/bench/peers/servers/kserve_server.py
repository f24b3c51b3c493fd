"""KServe's SDK, one process, its own gRPC server; latency logging off."""

import sys

from kserve import InferOutput, InferResponse, Model, ModelServer
from predictors import load_all


class BenchModel(Model):
    """One model of the list."""

    def __init__(self, name, model):
        super().__init__(name)
        self._model = model
        self.ready = True

    async def predict(self, payload, headers=None, response_headers=None):
        """One tensor in, one out, raw."""
        answer = self._model(payload.inputs[0].as_numpy())
        output = InferOutput(name="y", shape=list(answer.shape), datatype="FP32")
        output.set_data_from_numpy(answer, binary_data=True)
        return InferResponse(response_id=payload.id, model_name=self.name, infer_outputs=[output])


if __name__ == "__main__":
    grpc_port, http_port = (int(port) for port in sys.argv[1:3])
    del sys.argv[1:]
    server = ModelServer(grpc_port=grpc_port, http_port=http_port, workers=1, enable_latency_logging=False)
    server.start([BenchModel(name, model) for name, model in load_all().items()])
