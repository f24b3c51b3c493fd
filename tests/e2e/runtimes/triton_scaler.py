"""The same for Triton's Python backend; the factor in a file beside it."""

import os
import sys
from pathlib import Path

sys.path += os.environ["TEST_PACKAGES"].split(":")

import triton_python_backend_utils as backend


class TritonPythonModel:
    def initialize(self, args):
        self._factor = float(Path(__file__).with_name("factor").read_text())

    def execute(self, requests):
        answers = []
        for request in requests:
            x = backend.get_input_tensor_by_name(request, "x").as_numpy()
            answers.append(backend.InferenceResponse([backend.Tensor("y", x * x.dtype.type(self._factor))]))
        return answers
