"""When an answer counts as right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mesh.demo.checking import compare_answers


def _array(values: Any, dtype: Any = None) -> Any:
    return np.array(values, dtype)


@pytest.mark.parametrize(
    ("expected", "answered", "right", "bit_equal"),
    [
        (_array([1, 2]), _array([1, 2]), True, True),
        (_array([1, 2], np.int64), _array([1, 2], np.int32), True, True),
        (_array([1, 2]), _array([1, 3]), False, False),
        (_array([1.0, 2.0], np.float32), _array([1.0, 2.0], np.float32), True, True),
        (_array([1.0, 2.0], np.float32), _array([1.0, 2.000001], np.float32), True, False),
        (_array([1.0, 2.0], np.float32), _array([1.0, 2.001], np.float32), False, False),
        (_array([1.0], np.float64), _array([1.0 + 1e-12], np.float64), True, False),
        (_array([1.0], np.float64), _array([1.0 + 1e-6], np.float64), False, False),
        (_array([np.nan]), _array([np.nan]), True, True),
        (_array([1.0]), _array([np.nan]), False, False),
        (_array(["setosa"]), _array([b"setosa"], object), True, True),
        (_array(["setosa"]), _array([b"virginica"], object), False, False),
        (_array([[1.0]]), _array([1.0]), False, False),
        (_array([0, 1]), _array([0.0, 1.0000001], np.float32), False, False),
    ],
)
def test_labels_are_exact_and_numbers_agree_to_their_last_digits(
    expected: Any, answered: Any, right: bool, bit_equal: bool
) -> None:
    verdict = compare_answers({"predict": expected}, {"predict": answered})
    assert (verdict.right, verdict.bit_equal) == (right, bit_equal)
    assert right or "predict" in verdict.why


def test_a_missing_output_is_wrong() -> None:
    verdict = compare_answers({"predict": _array([1]), "predict_proba": _array([[1.0]])}, {"predict": _array([1])})
    assert "predict_proba" in verdict.why


def test_outputs_that_nobody_asked_about_do_no_harm() -> None:
    assert compare_answers({"label": _array([1])}, {"label": _array([1]), "extra": _array([2])}).right


def test_the_only_output_is_compared_whatever_its_name() -> None:
    assert compare_answers({"": _array([1.5])}, {"output_0": _array([1.5])}).bit_equal
    assert "one output" in compare_answers({"": _array([1.5])}, {"a": _array([1.5]), "b": _array([1.5])}).why


def test_one_wrong_output_makes_the_answer_wrong() -> None:
    verdict = compare_answers({"a": _array([1]), "b": _array([2])}, {"a": _array([1]), "b": _array([3])})
    assert verdict.why.startswith("b: [3] in place of [2]")
