"""PyTorch programs: exported ones with dynamic and fixed shapes, nested inputs, tied weights; and TorchScript."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from runtime_adapters.contract import AdapterCase, Example, Prediction


def _rows(rows: int, columns: int = 4) -> Any:
    return np.random.default_rng(5).normal(size=(rows, columns)).astype(np.float32)


def _two_heads(directory: Path) -> Example:
    import torch

    class TwoHeads(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = torch.nn.Embedding(10, 4)
            self.body = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))

        def forward(self, x: Any, ids: Any) -> Any:
            logits = self.body(x + self.words(ids))
            return {"logits": logits, "label": logits.argmax(-1)}

    torch.manual_seed(0)
    model = TwoHeads().eval()
    batch = torch.export.Dim("batch", max=64)
    example = (torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64))
    program = torch.export.export(model, example, dynamic_shapes=({0: batch}, {0: batch}))
    torch.export.save(program, directory / "model.pt2")
    predictions = []
    for rows in (5, 1):
        inputs = {"x": _rows(rows), "ids": np.arange(rows, dtype=np.int64)}
        with torch.inference_mode():
            answer = model(*(torch.from_numpy(array) for array in inputs.values()))
        predictions.append(Prediction(inputs, {name: tensor.numpy() for name, tensor in answer.items()}))
    refused = (
        {"x": _rows(65), "ids": np.zeros(65, dtype=np.int64)},
        {"x": _rows(3), "ids": np.zeros(2, dtype=np.int64)},
        {"x": _rows(1), "ids": np.array([10])},
    )
    return Example(directory / "model.pt2", tuple(predictions), refused)


def _nested_fixed(directory: Path) -> Example:
    """Fixed shapes, a dict and a keyword among the inputs, a constant among the outputs, bfloat16 and bool."""
    import ml_dtypes
    import torch

    class Nested(torch.nn.Module):
        def forward(self, a: Any, pair: Any, *, gate: Any) -> Any:
            return a + pair["left"], [pair["right"] & gate, None]

    left = torch.arange(6, dtype=torch.bfloat16).reshape(2, 3)
    flags = torch.tensor([True, False, True])
    program = torch.export.export(Nested(), (left, {"left": left, "right": flags}), {"gate": flags})
    torch.export.save(program, directory / "model.pt2")
    numbers = np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16)
    inputs = {
        "a": numbers,
        "pair_left": numbers,
        "pair_right": np.array([True, True, False]),
        "gate": np.array([True, False, False]),
    }
    expected = {"output_0": numbers + numbers, "output_1": np.array([True, False, False])}
    return Example(directory / "model.pt2", (Prediction(inputs, expected),))


def _script(directory: Path) -> Example:
    import torch

    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(model).save(str(directory / "model.pt"))
    inputs = {"x": _rows(5)}
    with torch.inference_mode():
        expected = {"y": model(torch.from_numpy(inputs["x"])).numpy()}
    return Example(directory / "model.pt", (Prediction(inputs, expected),))


_SCRIPT_PARAMETERS = {
    "inputs": json.dumps([{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]),
    "outputs": json.dumps([{"name": "y", "datatype": "FP32", "shape": [-1, 2]}]),
    "batch_dimension": "true",
}

CASES = [
    AdapterCase(
        name="torch-exported",
        format="torch",
        build=_two_heads,
        trusted=True,
        parameters={"batch_dimension": "true"},
        modules=("torch",),
        tolerance=1e-6,  # the exported graph may run other kernels than the eager module
        cuda=True,
        load_cycles=100,
    ),
    AdapterCase(
        name="torch-nested", format="torch", build=_nested_fixed, trusted=True, modules=("torch",), load_cycles=50
    ),
    AdapterCase(
        name="torch-script",
        format="torch",
        build=_script,
        trusted=True,
        parameters=_SCRIPT_PARAMETERS,
        modules=("torch",),
        tolerance=1e-6,
        cuda=True,
        load_cycles=100,
    ),
]
