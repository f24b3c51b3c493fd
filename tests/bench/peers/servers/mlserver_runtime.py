"""A model for MLServer: a custom runtime, in the server's own process (`parallel_workers: 0`)."""

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse
from predictors import load_model


class BenchModel(MLModel):
    """The model of the list that is called like this one."""

    async def load(self):
        """Called by MLServer before the first request."""
        self._model = load_model(self.name)
        return True

    async def predict(self, payload):
        """One tensor in, one out."""
        answer = self._model(NumpyCodec.decode_input(payload.inputs[0]))
        return InferenceResponse(
            id=payload.id,
            model_name=self.name,
            outputs=[NumpyCodec.encode_output("y", answer.reshape(len(answer), -1))],
        )
