"""A model that gives many answers to one request, from an asynchronous generator: its text, word by word.

hexcomb models register talker --format python --uri deploy/examples/custom-models/talker
curl -N 127.0.0.1:8008/v2/models/talker/generate_stream -d '{"text_input": "one by one"}'
"""

import asyncio

import numpy as np

from runtime_adapters.custom import Model, TensorSpec


class Talker(Model):
    inputs = (TensorSpec("text_input", "BYTES", (1,)), TensorSpec("pause_s", "FP32", (1,), optional=True))
    outputs = (TensorSpec("text_output", "BYTES", (1,)),)

    async def predict(self, inputs):
        for word in inputs["text_input"].item().split():
            await asyncio.sleep(inputs["pause_s"].item() if "pause_s" in inputs else 0)
            yield np.array([word], object)
