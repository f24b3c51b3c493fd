"""The suite's models for KServe's SDK, as its examples write them: NumPy in and out, no checks of their own."""

import sys

from kserve import InferOutput, InferResponse, Model, ModelServer
from kserve.utils.numpy_codec import from_np_dtype
from kserve.utils.utils import generate_uuid

DATATYPES = sys.argv[3].split(",")


class Echo(Model):
    """Names and datatypes of a model's tensors; what it computes is its function."""

    def __init__(self, name, datatype, inputs, outputs, compute):
        super().__init__(name)
        self.ready = True
        self._datatype, self._inputs, self._outputs, self._compute = datatype, inputs, outputs, compute

    def get_input_types(self):
        """For the metadata."""
        return [{"name": name, "datatype": self._datatype, "shape": [-1, 4]} for name in self._inputs]

    def get_output_types(self):
        """For the metadata."""
        return [{"name": name, "datatype": self._datatype, "shape": [-1, 4]} for name in self._outputs]

    async def predict(self, payload, headers=None, response_headers=None):
        """By name; the SDK is told which outputs and forms were asked for."""
        inputs = {tensor.name: tensor.as_numpy() for tensor in payload.inputs}
        outputs = []
        for name, array in zip(self._outputs, self._compute(*(inputs[name] for name in self._inputs)), strict=True):
            output = InferOutput(name=name, shape=list(array.shape), datatype=from_np_dtype(array.dtype))
            output.set_data_from_numpy(array, binary_data=payload.from_grpc or bool(payload.use_binary_outputs))
            outputs.append(output)
        return InferResponse(
            response_id=payload.id or generate_uuid(),
            model_name=self.name,
            infer_outputs=outputs,
            use_binary_outputs=payload.use_binary_outputs,
            requested_outputs=payload.request_outputs,
        )


if __name__ == "__main__":
    grpc_port, http_port = (int(port) for port in sys.argv[1:3])
    del sys.argv[1:]
    models = [Echo(f"identity_{each.lower()}", each, ["x"], ["y"], lambda x: (x,)) for each in DATATYPES]
    models.append(Echo("pair", "FP32", ["a", "b"], ["sum", "difference"], lambda a, b: (a + b, a - b)))
    ModelServer(grpc_port=grpc_port, http_port=http_port, workers=1, enable_latency_logging=False).start(models)
