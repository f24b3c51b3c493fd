"""A trial is bounded, and ends with a verdict whatever the model does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mesh.batching import trial
from mesh.batching.joining import Request, run_together
from mesh.batching.row_wise import NotRowWise, RowWise, Unproven
from mesh.batching.trial import try_model
from runtime_adapters.base import ModelMetadata, TensorSpec
from runtime_adapters.errors import BadInput, ModelCrashed, ModelRaised

ROWS = [{"x": np.array([[float(number)]], np.float32)} for number in range(3)]


class Model:
    """Has an optional output that it refuses to give."""

    metadata = ModelMetadata(
        "test",
        (TensorSpec("x", "FP32", (-1, 1)),),
        (TensorSpec("y", "FP32", (-1, 1)), TensorSpec("z", "FP32", (-1, 1), optional=True)),
        batch_dimension=True,
    )

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function
        self.rows: list[int] = []

    def infer(self, inputs: Any, outputs: Any) -> Any:
        if "z" in outputs:
            raise BadInput("not that one")
        self.rows.append(len(inputs["x"]))
        return {"y": self.function(inputs["x"])}


def tried(model: Any, rows_max: int = 64) -> Any:
    return try_model(model, ROWS, rows_max)


def test_a_few_rows_are_run_alone_and_two_dozen_together_without_the_outputs_that_are_refused() -> None:
    model = Model(lambda x: x * 2)
    verdict, alone_s = tried(model)
    assert verdict == RowWise(0.0)
    assert model.rows == [1, 1, 1, 24]
    assert len(alone_s) == 3


def test_no_run_has_more_rows_than_the_model_may_get() -> None:
    model = Model(lambda x: x * 2)
    assert tried(model, rows_max=2)[0] == RowWise(0.0)
    assert max(model.rows) == 2


def test_a_model_that_is_slow_on_one_row_is_not_run_on_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "ROW_S_MAX", -1.0)
    model = Model(lambda x: x)
    verdict, _ = tried(model)
    assert isinstance(verdict, NotRowWise)
    assert "too long" in verdict.why
    assert model.rows == [1]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ModelCrashed("gone"), NotRowWise),
        (BadInput("no"), Unproven),
        (MemoryError(), Unproven),
        (ZeroDivisionError(), Unproven),
        (SystemExit(), Unproven),
    ],
)
def test_whatever_a_model_raises_ends_in_a_verdict(error: BaseException, kind: type) -> None:
    def fails(x: Any) -> Any:
        raise error

    assert isinstance(tried(Model(fails))[0], kind)


def test_a_model_that_ends_its_thread_fails_its_requests_and_not_the_thread() -> None:
    def exits(inputs: Any, outputs: Any) -> Any:
        raise SystemExit

    requests = [Request(row, (), 4) for row in ROWS]
    assert all(isinstance(answer, ModelRaised) for answer in run_together(exits, requests).answers)
