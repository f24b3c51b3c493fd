"""Few rows are answered by onnxruntime and many by XGBoost, where the owner says so and it pays."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from runtime_adapters import xgboost_batches, xgboost_onnx
from runtime_adapters.base import Array, LoadOptions, Size
from runtime_adapters.errors import AdapterError, BadArtifact
from runtime_adapters.xgboost_batches import ROWS_TRIED, RUNS, TreesBySize, rows_min_for
from runtime_adapters.xgboost_trees import ADAPTER, XgboostModel

FEATURES, ROWS_MIN = 5, 64
PLAIN = LoadOptions("m")
LARGE = LoadOptions("m", parameters={"large_batches": "yes"})


class Engine:
    """Answers its own number, and keeps count."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.asked: list[int] = []
        self.unloaded = False

    def values(self, rows: Array, margin: Array | None) -> Array:
        self.asked.append(len(rows))
        return np.full(len(rows), self.number, np.float32)

    sums = contributions = values

    def size(self) -> Size:
        return Size(100 * self.number, mapped_bytes=self.number - 1)

    def unload(self) -> None:
        self.unloaded = True


@pytest.fixture(scope="module")
def form(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared model of which XGBoost answers from ROWS_MIN rows on, whatever this machine measured."""
    import xgboost

    home = tmp_path_factory.mktemp("trees")
    model = xgboost.XGBClassifier(n_estimators=12, max_depth=4, n_jobs=1).fit(rows(400), rows(400)[:, 0] > 0)
    model.save_model(home / "model.ubj")
    into = home / "form"
    into.mkdir()
    assert ADAPTER.prepare(home / "model.ubj", into, PLAIN)
    set_rows_min(into, ROWS_MIN)
    return into


def rows(count: int) -> Array:
    return np.random.default_rng(0).normal(size=(count, FEATURES)).astype(np.float32)


def set_rows_min(form: Path, rows_min: int | None) -> None:
    content = json.loads((form / xgboost_onnx.FORM_NAME).read_text())
    assert "native_rows_min" in content, "it was not measured"
    (form / xgboost_onnx.FORM_NAME).write_text(json.dumps({**content, "native_rows_min": rows_min}))


def loaded(form: Path, options: LoadOptions) -> XgboostModel:
    model = ADAPTER.load(form, options)
    assert isinstance(model, XgboostModel)
    return model


def test_the_number_of_rows_decides_who_answers() -> None:
    both = TreesBySize(Engine(1), Engine(2), 10)
    for answer in (both.values, both.sums):
        assert [float(answer(rows(count), None)[0]) for count in (1, 9, 10, 400)] == [1, 1, 2, 2]
    assert both.contributions(rows(1), None)[0] == 2
    assert both.size() == Size(300, mapped_bytes=0)


def test_both_engines_are_freed() -> None:
    few, many = Engine(1), Engine(2)
    TreesBySize(few, many, 10).unload()
    assert (few.unloaded, many.unloaded) == (True, True)


@pytest.mark.parametrize(
    ("many_s", "found"),
    [
        ({64: 5.0, 128: 5.0, 256: 2.0, 512: 1.0, 1024: 1.0}, 256),
        ({64: 0.1, 128: 0.1, 256: 0.1, 512: 0.1, 1024: 0.1}, 64),
        ({64: 5.0, 128: 5.0, 256: 4.0, 512: 9.0, 1024: 17.0}, None),
    ],
)
def test_the_first_size_at_which_enough_is_saved_counts(
    monkeypatch: pytest.MonkeyPatch, many_s: Mapping[int, float], found: int | None
) -> None:
    few, many = Engine(1), Engine(2)
    monkeypatch.setattr(
        xgboost_batches, "_quickest_s", lambda engine, some, count: many_s[count] if engine is many else count / 64
    )
    assert rows_min_for(few, many, rows(20)) == found


def test_rows_that_are_tried_differ_and_have_the_samples_values_without_missing_ones() -> None:
    seen: list[Array] = []

    class Watched(Engine):
        def values(self, rows: Array, margin: Array | None) -> Array:
            seen.append(rows)
            return super().values(rows, margin)

    samples = rows(20)
    samples[3] = np.nan
    samples[4] = np.inf
    rows_min_for(Watched(1), Watched(2), samples)
    together = np.concatenate(seen[:RUNS])
    assert len(together) == RUNS * ROWS_TRIED[0]
    assert len(np.unique(together, axis=0)) > 0.9 * len(together)
    allowed = np.where(np.isfinite(samples), samples, 0)
    assert all(np.isin(together[:, feature], allowed[:, feature]).all() for feature in range(FEATURES))


def test_many_rows_of_which_one_value_is_missing_stay_with_onnxruntime() -> None:
    both = TreesBySize(Engine(1), Engine(2), 10)
    some = rows(400)
    some[17, 3] = np.nan
    assert both.values(some, None)[0] == 1
    some[17, 3] = np.inf
    assert both.values(some, None)[0] == 2


def test_answers_are_the_same_whoever_gives_them(form: Path) -> None:
    plain, large = loaded(form, PLAIN), loaded(form, LARGE)
    wanted = ("predict", "predict_proba", "explanation")
    for count in (1, ROWS_MIN - 1, ROWS_MIN, 300):
        expected = plain.infer({"input": rows(count)}, wanted)
        for name, answer in large.infer({"input": rows(count)}, wanted).items():
            assert answer.dtype == expected[name].dtype
            assert np.array_equal(answer, expected[name]), (name, count)
    assert large.metadata == plain.metadata
    plain.unload()
    large.unload()


def test_what_both_engines_take_is_expected_and_counted(form: Path) -> None:
    plain, large = loaded(form, PLAIN), loaded(form, LARGE)
    native_bytes = xgboost_onnx.read_facts(form).resident_bytes
    assert large.size().host_bytes == plain.size().host_bytes + native_bytes
    assert large.size() == ADAPTER.estimate(form, LARGE)
    assert plain.size() == ADAPTER.estimate(form, PLAIN)
    plain.unload()
    large.unload()
    with pytest.raises(AdapterError):
        large.infer({"input": rows(ROWS_MIN)})


def test_where_it_pays_nowhere_nothing_is_kept_beside(form: Path) -> None:
    set_rows_min(form, None)
    try:
        assert ADAPTER.estimate(form, LARGE) == ADAPTER.estimate(form, PLAIN)
        large = loaded(form, LARGE)
        assert large.size() == ADAPTER.estimate(form, PLAIN)
        large.unload()
    finally:
        set_rows_min(form, ROWS_MIN)


def test_a_form_without_its_trees_for_xgboost_is_damaged(form: Path) -> None:
    trees = form / "model.ubj"
    content = trees.read_bytes()
    trees.unlink()
    try:
        with pytest.raises(BadArtifact, match="the prepared form is damaged"):
            ADAPTER.load(form, LARGE)
    finally:
        trees.write_bytes(content)


def test_another_word_for_yes_is_refused_with_those_that_are_allowed(form: Path) -> None:
    for call in (ADAPTER.load, ADAPTER.estimate):
        with pytest.raises(BadArtifact, match="large_batches is 'true'; allowed are yes and no"):
            call(form, LoadOptions("m", parameters={"large_batches": "true"}))
