"""The suite's pair model for Triton's Python backend."""

import os
import sys

# Triton's interpreter does not read PYTHONPATH.
sys.path += os.environ["BENCH_PACKAGES"].split(":")

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Sum and difference."""

    def execute(self, requests):
        """One answer for each."""
        answers = []
        for request in requests:
            a, b = (pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in ("a", "b"))
            outputs = [pb_utils.Tensor("sum", a + b), pb_utils.Tensor("difference", a - b)]
            answers.append(pb_utils.InferenceResponse(outputs))
        return answers
