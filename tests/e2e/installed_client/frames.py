"""DataFrames in and out, run by tests/e2e/test_installed_client.py where pandas and the wheel are, with a real pod.

`HEXCOMB_TEST_TARGET`: a pod with `iris` (one FP64 matrix), `churn` (XGBoost, FP32), `scale` and `columns` (a custom
model that gives its inputs back).
"""

from __future__ import annotations

import asyncio
import datetime
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mesh.client import AsyncClient, BadManifest, Client, InvalidRequest, frame_of, registrations
from mesh.client.frames import InputSpec, tensors_of

TARGET = os.environ["HEXCOMB_TEST_TARGET"]
MATRIX = (InputSpec("input", "FP32", (-1, 3)),)
WITH_MARGIN = (*MATRIX, InputSpec("base_margin", "FP32", (-1,)))
MIXED = (
    InputSpec("age", "INT32", (-1,)),
    InputSpec("city", "BYTES", (-1, 1)),
    InputSpec("vip", "BOOL", (-1,)),
    InputSpec("place", "FP64", (-1, 2)),
    InputSpec("half", "FP16", (-1,)),
    InputSpec("brain", "BF16", (-1,)),
)


@pytest.fixture
def client() -> Iterator[Client]:
    with Client(TARGET) as client:
        yield client


def test_rows_go_in_as_one_matrix_and_come_out_with_their_index(client: Client) -> None:
    frame = pd.DataFrame(
        {"a": [5.1, 6.7], "b": [3.5, 3.0], "c": [1.4, 5.2], "d": [0.2, 2.3]}, index=pd.Index(["x", "y"], name="flower")
    )
    answers = client.infer_frame("iris", frame, ["predict", "predict_proba"])
    assert list(answers.columns) == ["predict", "predict_proba_0", "predict_proba_1", "predict_proba_2"]
    assert answers.index.equals(frame.index)
    expected = client.infer("iris", {"input": frame.to_numpy()}, ["predict", "predict_proba"]).outputs
    np.testing.assert_array_equal(answers["predict"], expected["predict"])
    np.testing.assert_array_equal(answers.filter(like="proba"), expected["predict_proba"])
    answers.loc["x", "predict"] = 9  # it is the caller's own


def test_both_clients_answer_alike(client: Client) -> None:
    frame = pd.DataFrame(np.arange(12.0).reshape(3, 4))

    async def ask() -> pd.DataFrame:
        async with AsyncClient(TARGET) as client:
            return await client.infer_frame("iris", frame)

    pd.testing.assert_frame_equal(asyncio.run(ask()), client.infer_frame("iris", frame))


def test_many_rows_go_in_several_calls(client: Client) -> None:
    frame = pd.DataFrame(np.random.default_rng(1).random((10, 4)), index=pd.Index(list("abcdefghij")))
    whole = client.infer_frame("iris", frame, ["predict_proba"])
    for rows in (1, 3, 10, 99):
        pd.testing.assert_frame_equal(client.infer_frame("iris", frame, ["predict_proba"], rows_per_call=rows), whole)
    with pytest.raises(ValueError, match="rows_per_call is 0"):
        client.infer_frame("iris", frame, rows_per_call=0)
    assert client.infer_frame("iris", frame.iloc[:0], rows_per_call=3).empty


def test_a_framework_says_the_same_of_the_same_frame(client: Client) -> None:
    import xgboost

    frame = pd.read_csv(os.environ["HEXCOMB_TEST_ROWS"])
    booster = xgboost.Booster(model_file=os.environ["HEXCOMB_TEST_MODEL"])
    frame.iloc[3, 2] = np.nan
    rows = xgboost.DMatrix(frame)
    answers = client.infer_frame("churn", frame, ["predict", "predict_proba", "explanation"])
    expected = booster.predict(rows)
    np.testing.assert_allclose(answers["predict_proba_1"], expected, rtol=1e-6)
    np.testing.assert_array_equal(answers["predict"], expected > 0.5)
    contributions = answers.filter(like="explanation").to_numpy()
    np.testing.assert_allclose(contributions, booster.predict(rows, pred_contribs=True), rtol=1e-5, atol=1e-6)


def test_columns_named_as_inputs_go_there_whatever_pandas_made_of_them(client: Client) -> None:
    frame = pd.DataFrame(
        {
            "flag": pd.Series([True, False, True], dtype="boolean"),
            "count": pd.Series([1, 2, 3], dtype="Int64"),
            "word": pd.Series(["eins", "", "zwölf"], dtype="string"),
            "kind": pd.Categorical(["a", "b", "a"]),
            "weight": pd.Series([1, None, 3], dtype="Float32"),
        }
    ).set_axis([7, 8, 9])
    answers = client.infer_frame("columns", frame)
    assert answers["flag_out"].tolist() == [True, False, True]
    assert answers["count_out"].tolist() == [1, 2, 3]
    assert answers["word_out"].tolist() == ["eins", "", "zwölf"]
    assert answers["kind_out"].tolist() == ["a", "b", "a"]
    assert answers["weight_out"].isna().tolist() == [False, True, False]
    assert answers.index.tolist() == [7, 8, 9]


def test_series_are_arrays_wherever_arrays_are(client: Client) -> None:
    row = pd.Series([1, 2, 3, 4], dtype="Int64")
    answer = client.infer("scale", {"x": np.array([row], np.float32)})
    np.testing.assert_array_equal(answer.outputs["y"], [[2, 4, 6, 8]])
    inputs: dict[str, Any] = {
        "flag": pd.Series([True]), "count": pd.Series([4], dtype="Int64"), "word": pd.Series(["a"]),
        "kind": pd.Series(["b"], dtype="category"), "weight": pd.Series([1.5], dtype="float32"),
    }  # fmt: skip
    assert client.infer("columns", inputs).outputs["count_out"].tolist() == [4]
    with pytest.raises(InvalidRequest, match="'count' cannot be made an array"):
        client.infer("columns", {**inputs, "count": pd.Series([None], dtype="Int64")})


def test_a_model_that_takes_other_inputs_now_is_asked_once_more(client: Client) -> None:
    frame = pd.DataFrame(np.ones((2, 4)))
    uri = client.describe("scale").spec.uri
    client.register("changing", uri=client.describe("churn").spec.uri)
    with pytest.raises(InvalidRequest, match="takes 6 columns, the frame has 4"):
        client.infer_frame("changing", frame)
    assert client.infer_frame("changing", pd.DataFrame(np.ones((2, 6)))).shape == (2, 1)
    client.register("changing", uri=uri, if_generation=client.describe("changing").generation)
    client.ensure_loaded("changing")
    assert client.infer_frame("changing", frame).shape == (2, 4)
    client.unregister("changing")


def test_an_optional_input_takes_the_column_of_its_name() -> None:
    plain = pd.DataFrame({"a": [1], "b": [2], "c": [3]})
    assert {name: array.tolist() for name, array in tensors_of(plain, WITH_MARGIN).items()} == {"input": [[1, 2, 3]]}
    assert tensors_of(plain.assign(base_margin=0.5), WITH_MARGIN)["base_margin"].tolist() == [0.5]
    # A matrix as wide as the frame takes all of it, though a column is named as another input.
    named = pd.DataFrame({"a": [1], "b": [2], "base_margin": [3]})
    assert set(tensors_of(named, WITH_MARGIN)) == {"input"}


def test_every_datatype_is_reached() -> None:
    frame = pd.DataFrame(
        {
            "age": [1.0, 2.0],
            "city": ["Bonn", b"K\xf6ln"],
            "vip": [True, False],
            "place": [[1, 2], (3, 4)],
            "half": [0.5, 1],
            "brain": pd.Series([1.5, None], dtype="Float64"),
        }
    )
    found = tensors_of(frame, MIXED)
    assert {name: (array.dtype.name, array.shape) for name, array in found.items()} == {
        "age": ("int32", (2,)), "city": ("object", (2, 1)), "vip": ("bool", (2,)), "place": ("float64", (2, 2)),
        "half": ("float16", (2,)), "brain": ("bfloat16", (2,)),
    }  # fmt: skip
    assert found["place"].tolist() == [[1, 2], [3, 4]]
    back = frame_of(found)
    assert back["city"].tolist() == ["Bonn", b"K\xf6ln"]
    assert (back["place_0"].tolist(), back["brain"].dtype.name) == ([1, 3], "float32")


@pytest.mark.parametrize(
    ("column", "values", "match"),
    [
        ("age", [1.5], "1.5 of row 0 is not a whole number that INT32 holds"),
        ("age", [2**40], "not a whole number that INT32"),
        ("age", [np.inf], "not a whole number"),
        ("age", [None], "row 0 is missing"),
        ("age", pd.Series([1, None], dtype="Int64"), "row 1 is missing"),
        ("age", ["1"], "neither numbers nor booleans"),
        ("age", [1j], "no complex numbers"),
        ("age", pd.Categorical(["a"]), "categories are no numbers"),
        ("age", [datetime.datetime(2026, 1, 1)], "neither numbers nor booleans"),
        ("half", [1.0, 1e6], "1000000.0 of row 1 is beyond what FP16 holds"),
        ("brain", [1e300], "beyond what BF16 holds"),
        ("vip", [1], "numbers are no booleans"),
        ("city", [1], "BYTES takes text"),
        ("city", [None], "row 0 is missing"),
        ("place", [[1, 2, 3]], r"its cells have shape \[3\]"),
        ("place", [[1], [1, 2]], "arrays of one shape"),
        ("other", [1], "no inputs of the model, and it has no matrix"),
    ],
)
def test_a_column_that_would_change_its_meaning_is_refused(column: str, values: Any, match: str) -> None:
    specs = tuple(spec for spec in MIXED if spec.name != "place" or column == "place")
    with pytest.raises(InvalidRequest, match=match):
        tensors_of(pd.DataFrame({column: values}), specs)


def test_frames_that_are_no_rows_of_the_model_are_refused(client: Client) -> None:
    with pytest.raises(InvalidRequest, match="takes 3 columns, the frame has 2 for it: 'a', 'b'"):
        tensors_of(pd.DataFrame({"a": [1], "b": [2]}), MATRIX)
    with pytest.raises(InvalidRequest, match="no columns"):
        tensors_of(pd.DataFrame(), MATRIX)
    with pytest.raises(InvalidRequest, match="a name twice"):
        tensors_of(pd.DataFrame([[1, 2]], columns=["age", "age"]), MIXED)
    with pytest.raises(InvalidRequest, match="takes 1 rows at a time, the frame has 2"):
        tensors_of(pd.DataFrame({"text": ["a", "b"]}), (InputSpec("text", "BYTES", (1,)),))
    with pytest.raises(InvalidRequest, match="expected a pandas DataFrame, found ndarray"):
        client.infer_frame("iris", np.ones((1, 4)))  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match=r"output 'y' has shape \[3\], not 2 rows"):
        frame_of({"y": np.ones(3)}, pd.RangeIndex(2))
    with pytest.raises(InvalidRequest, match="two outputs make a column 'y_0'"):
        frame_of({"y": np.ones((1, 2)), "y_0": np.ones(1)})
    assert tensors_of(pd.DataFrame({"a": [], "b": [], "c": []}, dtype=float), MATRIX)["input"].shape == (0, 3)


def test_a_frame_is_a_manifest(client: Client) -> None:
    uri = client.describe("scale").spec.uri
    frame = pd.DataFrame(
        {
            "name": ["f1", "f2"],
            "uri": uri,
            "priority": [None, 3],
            "pinned": [False, True],
            "ttl_s": [np.nan, np.nan],
            "labels.team": ["risk", None],
        }
    )
    first, second = registrations(frame)
    assert (first.spec.priority, dict(first.spec.labels), first.spec.HasField("ttl_s")) == (0, {"team": "risk"}, False)
    assert (second.spec.priority, second.spec.pinned, dict(second.spec.labels)) == (3, True, {})
    assert [result.generation for result in client.register_many([first, second])] == [1, 1]
    assert [result.existed for result in client.unregister_many(["f1", "f2", "f3"])] == [True, True, False]
    with pytest.raises(BadManifest, match=r"row 1: .*given in row 0 already"):
        registrations(pd.DataFrame({"name": ["a", "a"], "uri": ["u://a", "u://a"]}))
    with pytest.raises(ValueError, match="has a column twice; its columns are name, uri, uri"):
        registrations(pd.DataFrame([["a", "u://a", "u://b"]], columns=["name", "uri", "uri"]))


def test_cells_of_deeper_answers_hold_arrays() -> None:
    frame = frame_of({"y": np.arange(12).reshape(2, 2, 3)}, pd.Index([4, 5]))
    assert frame.loc[5, "y"].tolist() == [[6, 7, 8], [9, 10, 11]]
