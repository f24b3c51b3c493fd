"""A custom Python model with weights beside it, as untrusted code: every check runs against the jailed process."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from runtime_adapters.contract import AdapterCase, Example, Prediction

_SOURCE = '''
"""Scores and a verdict."""

import numpy as np

from runtime_adapters.custom import Model, TensorSpec
from runtime_adapters.errors import BadInput


class Verdict(Model):
    inputs = (TensorSpec("x", "FP32", (-1, 3)), TensorSpec("who", "BYTES", (-1,)))
    outputs = (
        TensorSpec("score", "FP32", (-1,)),
        TensorSpec("verdict", "BYTES", (-1,)),
        TensorSpec("detail", "FP64", (-1, 3), optional=True),
    )
    batch_dimension = True
    parameters = {"limit": "0.0"}

    def load(self):
        self.weights = np.load(self.artifact / "weights.npy")
        self.limit = float(self.parameters["limit"])

    def predict(self, inputs):
        x = inputs["x"]
        if np.isnan(x).any():
            raise BadInput("x holds NaN; send numbers")
        score = (x * self.weights).sum(axis=1)
        verdict = [name + (b" passes" if one > self.limit else b" fails") for name, one in zip(inputs["who"], score)]
        return {"score": score, "verdict": np.array(verdict, dtype=object), "detail": x.astype(np.float64)}
'''


def _verdict(directory: Path) -> Example:
    weights = np.array([0.5, -1.0, 2.0], dtype=np.float32)
    (directory / "model.py").write_text(_SOURCE)
    np.save(directory / "weights.npy", weights)
    rng = np.random.default_rng(3)
    predictions = []
    for rows in (5, 1, 200):
        x = rng.normal(size=(rows, 3)).astype(np.float32)
        who = np.array([f"row {index}".encode() for index in range(rows)], dtype=object)
        score = (x * weights).sum(axis=1)
        verdict = [name + (b" passes" if one > 0.25 else b" fails") for name, one in zip(who, score, strict=True)]
        expected = {"score": score, "verdict": np.array(verdict, dtype=object), "detail": x.astype(np.float64)}
        predictions.append(Prediction({"x": x, "who": who}, expected))
    refused = {"x": np.full((1, 3), np.nan, dtype=np.float32), "who": np.array([b"nobody"], dtype=object)}
    return Example(directory, tuple(predictions), (refused,))


CASES = [
    AdapterCase(
        name="python-jailed",
        format="python",
        build=_verdict,
        parameters={"limit": "0.25"},
        main_file="model.py",
        truncation_breaks=False,
        untrusted_is_refused=False,
        load_cycles=20,  # each starts a process
    )
]
