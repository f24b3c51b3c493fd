"""Few rows go through LightGBM's interface for single rows, and are answered as Booster.predict answers them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime_adapters.base import Array, LoadOptions
from runtime_adapters.errors import AdapterError, BadInput, OutOfMemory
from runtime_adapters.lightgbm_rows import ROWS_MAX, handle_bytes
from runtime_adapters.lightgbm_trees import ADAPTER, LightgbmModel

FEATURES = 5
AS_VALUES = LoadOptions("m", threads=1, parameters={"predict": "values"})
KINDS: dict[str, dict[str, Any]] = {
    "regression": {},
    "binary": {"objective": "binary"},
    "multiclass": {"objective": "multiclass", "num_class": 3},
    "linear leaves": {"linear_tree": True},
    "missing is zero": {"zero_as_missing": True},
    "random forest": {"boosting": "rf", "bagging_fraction": 0.6, "bagging_freq": 1},
}


def _rows(count: int) -> Array:
    """With categories, missing values, zeros of either sign and infinities among them."""
    rng = np.random.default_rng(count)
    rows = rng.normal(size=(count, FEATURES))
    rows[:, 4] = rng.integers(0, 40, count)
    for value, share in ((np.nan, 0.1), (0.0, 0.1), (-0.0, 0.05), (np.inf, 0.05), (-np.inf, 0.05)):
        rows[:, :4][rng.random((count, 4)) < share] = value
    return rows


def _trained(directory: Path, **settings: Any) -> Any:
    import lightgbm

    rng = np.random.default_rng(2)
    rows = np.where(np.isfinite(found := _rows(600)), found, 0.5)
    labels = rng.integers(0, settings.get("num_class", 2), 600)
    parameters = {"verbose": -1, "num_threads": 1, "min_data_in_leaf": 5, "num_leaves": 15, **settings}
    data = lightgbm.Dataset(rows, labels, categorical_feature=[4], params={"verbose": -1})
    booster = lightgbm.train(parameters, data, num_boost_round=12)
    booster.save_model(directory / "model.txt")
    return lightgbm.Booster(model_file=directory / "model.txt")


@pytest.fixture
def loaded(tmp_path: Path) -> Iterator[LightgbmModel]:
    _trained(tmp_path)
    model = ADAPTER.load(tmp_path / "model.txt", AS_VALUES)
    assert isinstance(model, LightgbmModel)
    yield model
    model.unload()


@pytest.mark.parametrize("kind", KINDS)
def test_few_rows_are_answered_to_the_bit_as_the_framework_answers_them(tmp_path: Path, kind: str) -> None:
    booster = _trained(tmp_path, **KINDS[kind])
    model = ADAPTER.load(tmp_path / "model.txt", AS_VALUES)
    for count in (1, 2, ROWS_MAX, ROWS_MAX + 1, 40):
        for rows in (_rows(count), np.asfortranarray(_rows(count)), _rows(2 * count)[::2]):
            answer = model.infer({"input": rows})["predict"]
            expected = np.asarray(booster.predict(rows, num_threads=1))
            assert (answer.dtype, answer.shape) == (expected.dtype, expected.shape)
            assert answer.tobytes() == expected.tobytes()
    model.unload()


def test_rows_of_many_threads_do_not_mix(loaded: LightgbmModel) -> None:
    rows = _rows(400)
    expected = loaded.infer({"input": rows})["predict"]

    def one_by_one(start: int) -> list[float]:
        turned = np.roll(np.arange(400), -start)
        answers = np.empty(400)
        for number in turned:
            answers[number] = loaded.infer({"input": rows[number : number + 1]})["predict"][0]
        return answers.tolist()

    with ThreadPoolExecutor(8) as threads:
        for answers in threads.map(one_by_one, range(0, 400, 50)):
            assert np.array_equal(answers, expected)


def test_what_single_rows_need_is_counted(loaded: LightgbmModel, tmp_path: Path) -> None:
    estimate = ADAPTER.estimate(tmp_path / "model.txt", AS_VALUES)
    assert loaded.size() == estimate
    in_use = loaded._single_rows._idle.pop()
    loaded.infer({"input": _rows(1)})
    loaded._single_rows._idle.append(in_use)
    assert loaded.size().host_bytes == estimate.host_bytes + handle_bytes(FEATURES)


def test_after_an_unload_a_row_is_an_error_and_no_crash(loaded: LightgbmModel) -> None:
    loaded.unload()
    loaded.unload()
    with pytest.raises(AdapterError):
        loaded.infer({"input": _rows(1)})


@pytest.mark.parametrize("rows", [np.zeros((1, FEATURES - 1)), np.zeros((1, FEATURES + 1))])
def test_rows_of_another_width_never_reach_the_library(loaded: LightgbmModel, rows: Array) -> None:
    with pytest.raises(BadInput, match=f"{FEATURES} doubles"):
        loaded.infer({"input": rows})


def test_want_of_memory_is_told_from_bad_input(loaded: LightgbmModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = loaded._single_rows
    monkeypatch.setattr(rows, "_predict", lambda *_: -1)
    monkeypatch.setattr(rows, "_last_error", lambda: b"std::bad_alloc")
    with pytest.raises(OutOfMemory):
        loaded.infer({"input": _rows(1)})
    monkeypatch.setattr(rows, "_last_error", lambda: b"no such row")
    with pytest.raises(BadInput, match="no such row"):
        loaded.infer({"input": _rows(1)})
