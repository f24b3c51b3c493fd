"""A trial is bounded, and ends with a verdict whatever the model does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mesh.batching.joining import Request, run_together
from mesh.batching.row_wise import NotRowWise, RowWise, Unproven
from mesh.batching.trial import TRIAL_S_MAX, try_model
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


def trial_of_rows_that_take(row_s: float, rows_max: int = 64) -> tuple[Any, list[int], float]:
    """The verdict, how many rows each run had, and how long all runs took together."""
    now_s = 0.0

    def double(x: Any) -> Any:
        nonlocal now_s
        now_s += row_s * len(x)
        return x * 2

    model = Model(double)
    verdict, _ = try_model(model, ROWS, rows_max, lambda: now_s)
    return verdict, model.rows, now_s


@pytest.mark.parametrize(
    ("row_s", "runs"),
    [
        (0.05, [1, 1, 1, 24]),
        (0.1, [1, 1, 1, 12]),
        (0.2, [1, 1, 1, 6]),
        (0.3, [1, 1, 4]),
    ],
)
def test_a_slow_model_is_tried_with_fewer_rows(row_s: float, runs: list[int]) -> None:
    verdict, rows, took_s = trial_of_rows_that_take(row_s)
    assert isinstance(verdict, RowWise)
    assert rows == runs
    assert took_s <= TRIAL_S_MAX


def test_a_trial_keeps_a_copy_no_longer_than_its_limit_and_its_first_row() -> None:
    for hundredths in range(1, 1000):
        for rows_max in (2, 3, 5, 64):
            assert trial_of_rows_that_take(hundredths / 100, rows_max)[2] <= max(TRIAL_S_MAX, hundredths / 100) + 1e-9


def test_a_model_that_is_slow_on_one_row_is_not_run_on_many() -> None:
    verdict, rows, _ = trial_of_rows_that_take(0.34)
    assert isinstance(verdict, NotRowWise)
    assert "too long" in verdict.why
    assert rows == [1]


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
