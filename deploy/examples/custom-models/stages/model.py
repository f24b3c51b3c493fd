"""Every method that a custom model may have, some of them coroutines: flowers by a rule of thumb.

hexcomb models register stages --format python --uri deploy/examples/custom-models/stages
curl 127.0.0.1:8008/v1/models/stages:predict -d '{"instances": [[5.1, 3.5, 1.4, 0.2]]}'
"""

import json
from typing import ClassVar

import numpy as np

from runtime_adapters.custom import Model, TensorSpec
from runtime_adapters.errors import BadInput


class Stages(Model):
    inputs = (TensorSpec("centimetres", "FP32", (-1, 4)),)
    outputs = (
        TensorSpec("kind", "BYTES", (-1,)),
        TensorSpec("explanation", "FP32", (-1, 4), optional=True),
    )
    batch_dimension = True
    parameters: ClassVar[dict[str, str]] = {"wide_from_cm": "0.8"}

    async def load(self):
        self.kinds = np.array(json.loads((self.artifact / "kinds.json").read_text()), object)
        self.wide_from_cm = float(self.parameters["wide_from_cm"])

    def preprocess(self, inputs):
        rows = inputs["centimetres"]
        if (rows < 0).any():
            raise BadInput("centimetres: nothing is shorter than 0")
        return rows

    async def predict(self, rows):
        return (rows[:, 3] > self.wide_from_cm).astype(int)

    def postprocess(self, numbers):
        return {"kind": self.kinds[numbers]}

    def explain(self, rows):
        mattered = np.zeros(rows.shape, np.float32)
        mattered[:, 3] = rows[:, 3] - self.wide_from_cm
        return mattered
