"""The suite's models for MLServer, as its documentation writes custom runtimes: NumPy codecs, no checks of its own."""

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse, ResponseOutput


class Identity(MLModel):
    """The output is the input."""

    async def load(self):
        """Nothing to load."""
        return True

    async def predict(self, payload):
        """BYTES go as they came, since NumPy's codec takes them for one string."""
        tensor = payload.inputs[0]
        if tensor.datatype == "BYTES":
            output = ResponseOutput(name="y", shape=tensor.shape, datatype=tensor.datatype, data=tensor.data)
        else:
            output = NumpyCodec.encode_output("y", NumpyCodec.decode_input(tensor))
        return InferenceResponse(id=payload.id, model_name=self.name, model_version=self.version, outputs=[output])


class Pair(MLModel):
    """Sum and difference."""

    async def load(self):
        """Nothing to load."""
        return True

    async def predict(self, payload):
        """By name."""
        inputs = {tensor.name: NumpyCodec.decode_input(tensor) for tensor in payload.inputs}
        outputs = {"sum": inputs["a"] + inputs["b"], "difference": inputs["a"] - inputs["b"]}
        encoded = [NumpyCodec.encode_output(name, array) for name, array in outputs.items()]
        return InferenceResponse(id=payload.id, model_name=self.name, model_version=self.version, outputs=encoded)
