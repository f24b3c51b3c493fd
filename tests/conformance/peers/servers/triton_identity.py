"""The suite's identity models for Triton's Python backend."""

import os
import sys

# Triton's interpreter does not read PYTHONPATH.
sys.path += os.environ["BENCH_PACKAGES"].split(":")

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """The output is the input."""

    def execute(self, requests):
        """One answer for each."""
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("y", pb_utils.get_input_tensor_by_name(each, "x").as_numpy())])
            for each in requests
        ]
