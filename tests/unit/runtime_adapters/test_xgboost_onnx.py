"""A form for onnxruntime is kept only if it answers like XGBoost; otherwise XGBoost goes on."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime_adapters import onnx_trees, xgboost_onnx
from runtime_adapters.base import Array, LoadedModel, LoadOptions
from runtime_adapters.errors import BadArtifact
from runtime_adapters.tree_probes import probing_rows
from runtime_adapters.xgboost_format import model_of, read_model
from runtime_adapters.xgboost_native import NativeTrees
from runtime_adapters.xgboost_objectives import values_of
from runtime_adapters.xgboost_trees import ADAPTER

OPTIONS = LoadOptions("m")
FEATURES = 5


def rows(count: int = 300, seed: int = 0) -> Array:
    random = np.random.default_rng(seed)
    found = random.normal(size=(count, FEATURES)).astype(np.float32)
    found[random.random(found.shape) < 0.1] = np.nan
    return found


def trained(path: Path, rounds: int = 12, target: Array | None = None, **settings: Any) -> Path:
    """A bare Booster's UBJ file."""
    import xgboost

    features = rows()
    if target is None:
        target = (np.nan_to_num(features[:, 0] * features[:, 1]) > 0).astype(np.float32)
    given = {"nthread": 1, "max_depth": 4, "objective": "binary:logistic", **settings}
    xgboost.train(given, xgboost.DMatrix(features, target), rounds).save_model(path)
    return path


def prepared(artifact: Path) -> Path:
    into = artifact.with_suffix(".prepared")
    into.mkdir()
    assert ADAPTER.prepare(artifact, into, OPTIONS)
    assert xgboost_onnx.is_converted(into)
    return into


def why_not(artifact: Path, into: Path) -> str:
    reason = xgboost_onnx.convert(read_model(artifact.read_bytes()), into, OPTIONS)
    assert reason is not None
    assert not any(into.iterdir())
    return reason


def both(artifact: Path) -> tuple[LoadedModel, LoadedModel]:
    """(converted, native)."""
    return ADAPTER.load(prepared(artifact), OPTIONS), ADAPTER.load(artifact, OPTIONS)


POSITIVE = np.abs(np.nan_to_num(rows()[:, 0])) + 0.1
CLASSES = np.digitize(np.nan_to_num(rows()[:, 0]), [-0.5, 0.5])
OBJECTIVES: Mapping[str, Mapping[str, Any]] = {
    "reg:squarederror": {},
    "reg:squaredlogerror": {"target": POSITIVE},
    "reg:pseudohubererror": {},
    "reg:absoluteerror": {},
    "reg:quantileerror": {"quantile_alpha": [0.2, 0.8]},
    "reg:logistic": {},
    "reg:gamma": {"target": POSITIVE},
    "reg:tweedie": {"target": POSITIVE},
    "binary:logistic": {"scale_pos_weight": 3},
    "binary:logitraw": {},
    "binary:hinge": {},
    "count:poisson": {"target": CLASSES},
    "survival:cox": {"target": POSITIVE},
    "multi:softprob": {"num_class": 3, "target": CLASSES},
    "multi:softmax": {"num_class": 3, "target": CLASSES},
}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_answers_as_xgboost_does(tmp_path: Path, objective: str) -> None:
    artifact = trained(tmp_path / "m.ubj", objective=objective, **OBJECTIVES[objective])
    converted, native = both(artifact)
    assert converted.metadata == native.metadata
    wanted = tuple(output.name for output in native.metadata.outputs)
    asked = {"input": rows(500, seed=1)}
    expected, found = native.infer(asked, wanted), converted.infer(asked, wanted)
    for name in wanted:
        assert found[name].dtype == expected[name].dtype
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6, atol=0)
    none = {"input": np.zeros((0, FEATURES), np.float32)}
    assert {name: array.shape for name, array in converted.infer(none, wanted).items()} == {
        name: array.shape for name, array in native.infer(none, wanted).items()
    }


def test_a_survival_model_is_converted_too(tmp_path: Path) -> None:
    import xgboost

    matrix = xgboost.DMatrix(rows(), label_lower_bound=POSITIVE, label_upper_bound=POSITIVE * 2)
    xgboost.train({"objective": "survival:aft", "nthread": 1}, matrix, 5).save_model(tmp_path / "m.ubj")
    converted, native = both(tmp_path / "m.ubj")
    asked = {"input": rows(seed=1)}
    np.testing.assert_allclose(converted.infer(asked)["predict"], native.infer(asked)["predict"], rtol=1e-6)


def test_what_will_be_converted_answers_from_xgboost_first_and_to_the_last_bit(tmp_path: Path) -> None:
    artifact = trained(tmp_path / "m.ubj")
    size = ADAPTER.size_as_fetched(artifact, OPTIONS)
    assert size is not None
    model = ADAPTER.load(artifact, replace(OPTIONS, as_fetched=True))
    assert model.size() == size
    first = model.infer({"input": rows()})["predict"]
    form = prepared(artifact)
    assert ADAPTER.size_as_fetched(form, OPTIONS) is None
    model.go_on_as(ADAPTER.load(form, OPTIONS))
    assert model.size() == ADAPTER.estimate(form, OPTIONS)
    assert np.array_equal(model.infer({"input": rows()})["predict"], first)


def test_the_sums_of_a_small_model_agree_to_the_last_bit(tmp_path: Path) -> None:
    artifact = trained(tmp_path / "m.ubj", rounds=60, objective="reg:squarederror", max_depth=6)
    converted, native = both(artifact)
    some = rows(3000, seed=2)
    assert np.array_equal(converted.infer({"input": some})["predict"], native.infer({"input": some})["predict"])
    one = {"input": some[:1]}
    assert np.array_equal(converted.infer(one)["predict"], native.infer(one)["predict"])
    columns = {"input": np.asfortranarray(some)}
    assert np.array_equal(converted.infer(columns)["predict"], native.infer(columns)["predict"])


def test_a_large_model_is_several_operators_and_stays_within_rounding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_trees, "NODES_PER_OPERATOR", 40)
    artifact = trained(tmp_path / "m.ubj", rounds=60, objective="reg:squarederror")
    converted, native = both(artifact)
    some = {"input": rows(1000, seed=2)}
    # Sums of at most 2: what float32 may lose.
    np.testing.assert_allclose(converted.infer(some)["predict"], native.infer(some)["predict"], rtol=0, atol=2e-6)


@pytest.mark.parametrize("settings", [{}, {"num_class": 3, "objective": "multi:softprob", "target": CLASSES}])
def test_a_base_margin_takes_the_place_of_the_constant(tmp_path: Path, settings: dict[str, Any]) -> None:
    converted, native = both(trained(tmp_path / "m.ubj", base_score=0.7, **settings))
    shape = tuple(20 if size < 0 else size for size in native.metadata.inputs[1].shape)
    margin = np.linspace(-3, 3, int(np.prod(shape)), dtype=np.float32).reshape(shape)
    asked = {"input": rows(20, seed=1), "base_margin": margin}
    np.testing.assert_allclose(
        converted.infer(asked, ("predict",))["predict"], native.infer(asked, ("predict",))["predict"], rtol=1e-5
    )


def test_dart_s_weights_are_kept_and_its_margin_is_added_once(tmp_path: Path) -> None:
    import xgboost

    artifact = trained(tmp_path / "m.ubj", booster="dart", rate_drop=0.4, objective="reg:squarederror")
    converted, native = both(artifact)
    some = rows(50, seed=1)
    margin = np.linspace(-2, 2, 50, dtype=np.float32)
    booster = xgboost.Booster(model_file=artifact)
    for given in ({}, {"base_margin": margin}):
        expected = booster.predict(xgboost.DMatrix(some, **given))
        for model in (converted, native):
            np.testing.assert_allclose(model.infer({"input": some, **given})["predict"], expected, rtol=1e-5, atol=1e-6)


def test_only_the_rounds_that_predict_uses_are_converted(tmp_path: Path) -> None:
    import xgboost

    features, target = rows(), np.nan_to_num(rows()[:, 0])
    model = xgboost.XGBRegressor(n_estimators=200, learning_rate=0.9, early_stopping_rounds=2, n_jobs=1)
    model.fit(features[:200], target[:200], eval_set=[(features[200:], target[200:])], verbose=False)
    model.save_model(tmp_path / "m.ubj")
    facts = read_model((tmp_path / "m.ubj").read_bytes()).facts
    assert 0 < facts.trees_used < facts.trees
    converted, _ = both(tmp_path / "m.ubj")
    assert np.array_equal(converted.infer({"input": features})["predict"], model.predict(features))


def test_trees_are_taken_by_their_number_and_not_by_their_place_in_the_file(tmp_path: Path) -> None:
    document = json.loads(_as_json(trained(tmp_path / "m.ubj")))
    model_of(document)["trees"].reverse()
    (tmp_path / "reversed.json").write_text(json.dumps(document))
    converted, native = both(tmp_path / "reversed.json")
    some = {"input": rows(seed=1)}
    assert np.array_equal(converted.infer(some)["predict"], native.infer(some)["predict"])


def test_nodes_that_pruning_left_behind_are_not_converted(tmp_path: Path) -> None:
    artifact = trained(tmp_path / "m.ubj", tree_method="exact", gamma=1.5, max_depth=8)
    trees = model_of(read_model(artifact.read_bytes()).document)["trees"]
    assert sum(int(tree["tree_param"]["num_deleted"]) for tree in trees) > 0
    converted, native = both(artifact)
    some = {"input": rows(seed=1)}
    assert np.array_equal(converted.infer(some)["predict"], native.infer(some)["predict"])


def test_categories_stay_with_xgboost_and_the_log_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import xgboost

    features = rows()
    features[:, 2] = np.arange(len(features)) % 9
    model = xgboost.XGBRegressor(
        n_estimators=3, n_jobs=1, enable_categorical=True, feature_types=list("qqcqq"), max_cat_to_onehot=1
    ).fit(features, features[:, 2] % 3)
    model.save_model(tmp_path / "m.json")
    into = tmp_path / "prepared"
    into.mkdir()
    with caplog.at_level(logging.INFO):
        assert ADAPTER.prepare(tmp_path / "m.json", into, OPTIONS)
    assert [path.name for path in into.iterdir()] == ["model.ubj"]
    assert "model m stays with XGBoost: there are categorical splits" in caplog.text
    assert ADAPTER.size_as_fetched(tmp_path / "m.json", OPTIONS) is None, "it would be loaded twice for nothing"


def test_an_unknown_objective_a_deep_tree_and_a_wide_row_stay_with_xgboost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = trained(tmp_path / "m.ubj")
    assert values_of("reg:expectileerror") is None
    for name, value, reason in (("DEPTH_MAX", 3, "deeper than 3"), ("_PROBE_BYTES_MAX", 100, "too wide")):
        with monkeypatch.context() as changed:
            changed.setattr(xgboost_onnx, name, value)
            assert reason in why_not(artifact, _empty(tmp_path / name))
    with monkeypatch.context() as changed:
        changed.setattr(xgboost_onnx, "values_of", lambda objective: None)
        assert "objective binary:logistic is not known" in why_not(artifact, _empty(tmp_path / "objective"))


def test_without_onnxruntime_models_stay_with_xgboost_and_are_prepared_anew_when_it_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = trained(tmp_path / "m.ubj")
    with_it = ADAPTER.runtime_version()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert why_not(artifact, _empty(tmp_path / "into")) == "onnxruntime is not installed"
    assert ADAPTER.runtime_version() != with_it


@pytest.mark.parametrize("change", ["value", "missing_left", "feature"])
def test_a_form_that_answers_differently_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    artifact = trained(tmp_path / "m.ubj")
    write = xgboost_onnx.write_trees

    def wrong(trees: onnx_trees.Trees, features: int, outputs: int) -> bytes:
        changed = getattr(trees, change).copy()
        (branch, *_) = np.flatnonzero(trees.left >= 0)
        changed[branch] = {
            "value": np.nextafter(trees.value[branch], np.float32(np.inf)),
            "missing_left": not trees.missing_left[branch],
            "feature": (trees.feature[branch] + 1) % FEATURES,
        }[change]
        return write(replace(trees, **{change: changed}), features, outputs)

    monkeypatch.setattr(xgboost_onnx, "write_trees", wrong)
    assert "sums differ" in why_not(artifact, _empty(tmp_path / "into"))


def test_the_probes_reach_nearly_every_leaf_of_a_small_model(tmp_path: Path) -> None:
    checked = read_model(trained(tmp_path / "m.ubj", rounds=4).read_bytes())
    trees = xgboost_onnx._trees(checked, np.zeros(1, np.float32))
    assert isinstance(trees, onnx_trees.Trees)
    numbered = replace(trees, value=np.where(trees.left < 0, np.arange(trees.nodes), trees.value).astype(np.float32))
    reached: set[float] = set()
    for first, after in zip(trees.starts[1:], [*trees.starts[2:], trees.nodes], strict=True):
        one = _slice(numbered, int(first), int(after))
        reached |= {_walk(one, row) for row in probing_rows(trees, FEATURES, 192)}
    leaves = np.flatnonzero(trees.left < 0)
    assert len(reached) >= 0.9 * (len(leaves) - 1)


def test_a_damaged_form_is_a_bad_artifact(tmp_path: Path) -> None:
    form = prepared(trained(tmp_path / "m.ubj"))
    whole = (form / xgboost_onnx.FORM_NAME).read_text()
    for damaged in ("", "{}", whole[: len(whole) // 2], whole.replace("binary:logistic", "binary:unknown")):
        (form / xgboost_onnx.FORM_NAME).write_text(damaged)
        with pytest.raises(BadArtifact, match="prepared form is damaged"):
            ADAPTER.load(form, OPTIONS)


def test_an_artifact_cannot_pass_itself_off_as_a_form(tmp_path: Path) -> None:
    form = prepared(trained(tmp_path / "m.ubj"))
    with pytest.raises(BadArtifact, match="reserved"):
        ADAPTER.prepare(form, _empty(tmp_path / "into"), OPTIONS)


def test_the_converted_form_is_expected_to_take_what_its_copy_says_and_less_than_xgboost(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 2, 300)
    artifact = trained(tmp_path / "m.ubj", rounds=100, max_depth=8, target=noise, min_child_weight=0, reg_lambda=0)
    form = prepared(artifact)
    assert ADAPTER.estimate(form, OPTIONS) == ADAPTER.load(form, OPTIONS).size()
    nodes = read_model(artifact.read_bytes()).facts.nodes
    assert ADAPTER.estimate(form, OPTIONS).total_bytes < 40 * nodes
    assert ADAPTER.estimate(artifact, OPTIONS).total_bytes > 53 * nodes


def test_labels_or_values_are_chosen_at_the_load_and_not_in_the_form(tmp_path: Path) -> None:
    form = prepared(trained(tmp_path / "m.ubj"))
    some = {"input": rows(seed=1)}
    labels = ADAPTER.load(form, LoadOptions("m", parameters={"predict": "labels"})).infer(some)["predict"]
    values = ADAPTER.load(form, LoadOptions("m", parameters={"predict": "values"})).infer(some)["predict"]
    assert labels.tolist() == (values > 0.5).astype(int).tolist()


def test_the_constant_of_the_sums_is_what_xgboost_makes_of_its_base_score(tmp_path: Path) -> None:
    checked = read_model(trained(tmp_path / "m.ubj", base_score=0.25).read_bytes())
    native = NativeTrees(checked.ubj, checked.facts, OPTIONS)
    some = rows(10)
    constants = xgboost_onnx._constants(checked, OPTIONS)
    np.testing.assert_allclose(constants, [np.log(0.25 / 0.75)], rtol=1e-6)
    margin = np.repeat(constants, 10)
    assert np.array_equal(native.sums(some, None), native.sums(some, margin))


def _empty(directory: Path) -> Path:
    directory.mkdir()
    return directory


def _as_json(artifact: Path) -> bytes:
    import xgboost

    return bytes(xgboost.Booster(model_file=artifact).save_raw("json"))


def _slice(trees: onnx_trees.Trees, first: int, after: int) -> onnx_trees.Trees:
    part = slice(first, after)
    return replace(
        trees,
        left=trees.left[part] - first,
        right=trees.right[part] - first,
        feature=trees.feature[part],
        value=trees.value[part],
        missing_left=trees.missing_left[part],
    )


def _walk(tree: onnx_trees.Trees, row: Array) -> float:
    node = 0
    while tree.left[node] >= 0:
        value = row[tree.feature[node]]
        goes_left = tree.missing_left[node] if np.isnan(value) else value < tree.value[node]
        node = int(tree.left[node] if goes_left else tree.right[node])
    return float(tree.value[node])
