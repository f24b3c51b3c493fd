"""A class written for the KServe SDK: only the import is another one. V1 and V2, over REST and gRPC.

hexcomb models register flowers --format python --uri deploy/examples/custom-models/kserve-flowers
curl 127.0.0.1:8008/v1/models/flowers:predict -d '{"instances": [{"petals": [1.4, 0.2]}]}'
"""

import asyncio
import json

import numpy as np

from runtime_adapters.kserve import (  # was: from kserve import ...
    InferOutput,
    InferRequest,
    InferResponse,
    InvalidInput,
    Model,
    generate_uuid,
)


class Flowers(Model):
    def __init__(self, name: str):
        super().__init__(name, return_response_headers=True)
        self.weights = None
        self.load()

    def load(self):
        with open("weights.json") as file:
            self.weights = np.array(json.load(file), dtype=np.float32)
        self.ready = True

    def preprocess(self, payload, headers=None) -> np.ndarray:
        if isinstance(payload, InferRequest):
            headers["request-type"] = "v2"
            return payload.get_input_by_name("petals").as_numpy()
        try:
            return np.array([row["petals"] for row in payload["instances"]], dtype=np.float32)
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInput("instances: each must have petals, two numbers") from error

    async def predict(self, payload: np.ndarray, headers=None, response_headers=None) -> dict | InferResponse:
        await asyncio.sleep(0)
        scores = payload @ self.weights
        response_headers.update({"rows": str(len(scores))})
        if headers.get("request-type") == "v2":
            output = InferOutput(name="score", shape=list(scores.shape), datatype="FP32", data=scores.tolist())
            return InferResponse(response_id=generate_uuid(), model_name=self.name, infer_outputs=[output])
        return {"predictions": scores}

    async def explain(self, payload: np.ndarray, headers=None) -> dict:
        return {"explanations": (payload * self.weights).tolist()}

    def get_input_types(self):
        return [{"name": "petals", "datatype": "FP32", "shape": [-1, 2]}]

    def get_output_types(self):
        return [{"name": "score", "datatype": "FP32", "shape": [-1]}]
