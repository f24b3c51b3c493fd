"""The models behind every peer: each framework called the fastest way that one thread has.

Runs in each peer's own environment, so it knows nothing of this repository: NumPy, onnxruntime and xgboost only. The
list of models is a JSON file: {name: {"format": "onnx" | "xgboost", "path": ..., "shape": [...] of one row}}.
"""

import json
import os

import numpy as np

NAME_BYTES = 32
"""Over plain HTTP a request is the model's name, padded with NUL to this length, then FP32 numbers."""


class OnnxModel:
    """A session with one thread."""

    def __init__(self, path, shape):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.shape = tuple(shape)

    def __call__(self, rows):
        """The first output for FP32 rows."""
        return self._session.run(None, {"x": rows})[0]


class XgboostModel:
    """The booster's in-place prediction, which skips the DMatrix."""

    def __init__(self, path, shape):
        import xgboost

        self._booster = xgboost.Booster({"nthread": 1})
        self._booster.load_model(path)
        self.shape = tuple(shape)

    def __call__(self, rows):
        """One number for each FP32 row."""
        return self._booster.inplace_predict(rows, validate_features=False)


_CLASSES = {"onnx": OnnxModel, "xgboost": XgboostModel}


def read_listed():
    """The list of models that this server was started with."""
    with open(os.environ["BENCH_MODELS"]) as file:
        return json.load(file)


def load_model(name, listed=None):
    """One model of the list."""
    entry = (listed or read_listed())[name]
    return _CLASSES[entry["format"]](entry["path"], entry["shape"])


def load_all():
    """Every model of the list, by name."""
    listed = read_listed()
    return {name: load_model(name, listed) for name in listed}


def read_name(body):
    """The model's name of a plain HTTP request."""
    return bytes(body[:NAME_BYTES]).rstrip(b"\0").decode()


def read_rows(body, shape):
    """The rows of a plain HTTP request, without copying."""
    return np.frombuffer(body, np.float32, offset=NAME_BYTES).reshape((-1, *shape))
