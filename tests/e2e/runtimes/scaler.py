"""A model for MLServer: y = factor * x, the factor in the JSON file that its settings' `uri` names."""

import json
from pathlib import Path

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse


class Scaler(MLModel):
    async def load(self):
        self._factor = factor_in(self.settings.parameters.uri)
        return True

    async def predict(self, payload):
        x = NumpyCodec.decode_input(payload.inputs[0])
        outputs = [NumpyCodec.encode_output("y", x * x.dtype.type(self._factor))]
        return InferenceResponse(id=payload.id, model_name=self.name, outputs=outputs)


def factor_in(path):
    return json.loads(Path(path).read_text())["factor"]
