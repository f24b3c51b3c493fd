"""A model of Triton's Python backend: what arrived together (dynamic batching without a delay) runs together."""

import os
import sys

# Triton's interpreter does not read PYTHONPATH.
sys.path += os.environ["BENCH_PACKAGES"].split(":")

import numpy as np
import triton_python_backend_utils as pb_utils
from predictors import load_model


class TritonPythonModel:
    """The model of the list that is called like this one."""

    def initialize(self, args):
        """Called by Triton in the model's own process."""
        self._model = load_model(args["model_name"])

    def execute(self, requests):
        """One run for all requests."""
        inputs = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        answer = self._model(inputs[0] if len(inputs) == 1 else np.concatenate(inputs))
        answer = answer.reshape(len(answer), -1)
        responses, begin = [], 0
        for rows in inputs:
            tensor = pb_utils.Tensor("y", answer[begin : begin + len(rows)])
            responses.append(pb_utils.InferenceResponse(output_tensors=[tensor]))
            begin += len(rows)
        return responses
