"""Which rows a model is tried with, and what is made of its answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mesh.batching.row_wise import NotRowWise, RowWise, Unproven, compare, orders_to_try, rows_to_try, together
from runtime_adapters.datatypes import DTYPE_OF

FLOATS = np.arange(6, dtype=np.float32).reshape(3, 2)


def test_different_rows_of_the_requests_themselves_are_tried() -> None:
    rows = rows_to_try([{"x": FLOATS[:1]}, {"x": FLOATS[:1]}, {"x": FLOATS}])
    assert [row["x"].tolist() for row in rows] == [[[0, 1]], [[2, 3]], [[4, 5]]]


@pytest.mark.parametrize("datatype", list(DTYPE_OF))
def test_rows_of_every_type_are_told_apart_by_their_values(datatype: str) -> None:
    numbers = [[b"1", b"0"], [b"1", b"0"], [b"0", b"1"]] if datatype == "BYTES" else [[1, 0], [1, 0], [0, 1]]
    rows = rows_to_try([{"x": np.array(numbers, DTYPE_OF[datatype])}], varied=False)
    assert [row["x"].tolist() for row in rows] == [[numbers[0]], [numbers[2]]]


def test_rows_are_compared_without_a_list_of_their_numbers() -> None:
    """Which took the event loop half a second for a row of 8 MiB."""

    class Large(np.ndarray[Any, Any]):
        def tolist(self) -> Any:
            raise AssertionError("a list was made of a large row")

    assert len(rows_to_try([{"x": np.array([[1.0], [1.0], [2.0]]).view(Large)}], varied=False)) == 2


@pytest.mark.parametrize(
    ("row", "valid"),
    [
        (np.array([[1.5, -2.0]], np.float32), np.isfinite),
        (np.array([[7, 3]], np.int64), lambda array: (array >= 0) & (array <= 7)),  # they may be indices
        (np.array([[True, False, False]]), lambda array: array.sum() == 1),
    ],
)
def test_of_one_row_variations_of_its_kind_are_made(row: Any, valid: Any) -> None:
    rows = rows_to_try([{"x": row}, {"x": row}])
    assert len({str(each["x"].tolist()) for each in rows}) == len(rows) == 3
    for each in rows:
        assert (each["x"].dtype, each["x"].shape) == (row.dtype, row.shape)
        assert np.all(valid(each["x"]))


def test_a_text_alone_has_no_variations() -> None:
    row = np.array([[b"hello"]], np.object_)
    assert len(rows_to_try([{"x": row}, {"x": row}])) == 1


def test_rows_are_tried_there_and_back_up_to_the_size_of_a_batch() -> None:
    assert orders_to_try(3, 24) == [(0, 1, 2, 2, 1, 0) * 4]
    assert orders_to_try(3, 7) == [(0, 1, 2, 2, 1, 0)]
    assert orders_to_try(3, 5) == [(0, 1, 2), (2, 1, 0)]
    rows = [{"x": FLOATS[number : number + 1]} for number in range(3)]
    assert together(rows, (2, 0))["x"].tolist() == [FLOATS[2].tolist(), FLOATS[0].tolist()]


def answers(*rows: Any, dtype: Any = np.float32) -> list[dict[str, Any]]:
    return [{"y": np.array([row], dtype)} for row in rows]


@pytest.mark.parametrize(
    ("alone", "company", "verdict"),
    [
        (answers(1.0, 2.0), [1.0, 2.0], RowWise(0.0)),
        (answers(1.0, 2.0), [1.0, np.float32(2.0) + np.float32(2e-6)], RowWise(pytest.approx(1e-6, rel=0.1))),
        (answers(1.0, np.nan), [1.0, np.nan], RowWise(0.0)),
        (answers(1.0, np.inf), [1.0, np.inf], RowWise(0.0)),
    ],
)
def test_last_digits_may_differ_and_are_told(alone: Any, company: Any, verdict: RowWise) -> None:
    assert compare(alone, {"y": np.array(company, np.float32)}, range(2)) == verdict


@pytest.mark.parametrize(
    ("alone", "company", "why"),
    [
        (answers(1.0, 2.0), np.array([1.0, 2.001], np.float32), "differs"),
        (answers(1, 2, dtype=np.int64), np.array([1, 3], np.int64), "differs"),
        (answers(b"a", b"b", dtype=np.object_), np.array([b"a", b"c"], np.object_), "differs"),
        (answers(0.0, np.nan), np.array([0.0, 1.0], np.float32), "differs"),
        (answers(0.0, np.inf), np.array([0.0, -np.inf], np.float32), "differs"),
        (answers(0.0, 0.0), np.array([0.0, 1e-30], np.float32), "differs"),
        (answers(1.0, 2.0), np.array([1.0, 2.0, 3.0], np.float32), "one row for each"),
        (answers(1.0, 2.0), np.array(1.0, np.float32), "one row for each"),
        (answers([1.0], [2.0]), np.array([[1.0, 1.0], [2.0, 2.0]], np.float32), "shape"),
    ],
)
def test_what_differs_by_more_is_not_batched(alone: Any, company: Any, why: str) -> None:
    verdict = compare(alone, {"y": company}, range(2))
    assert isinstance(verdict, NotRowWise)
    assert why in verdict.why


def test_answers_that_are_all_alike_prove_nothing() -> None:
    assert isinstance(compare(answers(1.0, 1.0), {"y": np.array([1.0, 1.0], np.float32)}, range(2)), Unproven)


def test_one_output_that_tells_rows_apart_is_enough() -> None:
    alone = [{"label": np.array([0]), "p": np.array([p])} for p in (0.1, 0.2)]
    assert compare(alone, {"label": np.array([0, 0]), "p": np.array([0.1, 0.2])}, range(2)) == RowWise(0.0)
