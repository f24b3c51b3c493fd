"""Whatever XGBoost trains, its trees answer the same when onnxruntime runs them, or they stay with XGBoost."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime_adapters import xgboost_onnx
from runtime_adapters.base import LoadOptions
from runtime_adapters.tree_probes import probing_rows, reach_of
from runtime_adapters.xgboost_format import read_model
from runtime_adapters.xgboost_native import NativeTrees

OPTIONS = LoadOptions("m")


@st.composite
def forests(draw: st.DrawFn) -> tuple[bytes, Any]:
    """(a small model's UBJ, rows of the kind that it was trained on)."""
    import xgboost

    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    features = draw(st.integers(1, 6))
    count = draw(st.integers(2, 120))
    scale = draw(st.sampled_from((1e-30, 1.0, 1e6, 1e30)))
    rows = random.normal(size=(count, features)).astype(np.float32) * np.float32(scale)
    if draw(st.booleans()):  # few distinct values: rows lie on thresholds, and many trees are single leaves
        rows = np.round(rows / np.float32(scale)) * np.float32(scale)
    rows[random.random(rows.shape) < draw(st.sampled_from((0.0, 0.1, 0.6)))] = np.nan
    target = random.normal(size=count) * draw(st.sampled_from((1e-3, 1.0, 1e4)))
    given: dict[str, Any] = {
        "nthread": 1,
        "max_depth": draw(st.integers(1, 7)),
        "eta": draw(st.sampled_from((0.01, 0.3, 1.0))),
        "min_child_weight": 0,
        "reg_lambda": draw(st.sampled_from((0.0, 1.0))),
        "num_parallel_tree": draw(st.integers(1, 2)),
        "tree_method": draw(st.sampled_from(("hist", "exact"))),
        "booster": draw(st.sampled_from(("gbtree", "gbtree", "dart"))),
        "objective": draw(st.sampled_from(("reg:squarederror", "binary:logistic", "multi:softprob"))),
    }
    if given["booster"] == "dart":
        given["rate_drop"] = 0.5
    if given["objective"] == "binary:logistic":
        target = (target > 0).astype(np.float32)
    if given["objective"] == "multi:softprob":
        given["num_class"] = 3
        target = random.integers(0, 3, count)
    if given["objective"] != "multi:softprob" and draw(st.booleans()):
        given["base_score"] = draw(st.sampled_from((0.01, 0.5, 0.9)))
    booster = xgboost.train(given, xgboost.DMatrix(rows, target), draw(st.integers(1, 6)))
    return bytes(booster.save_raw("ubj")), rows


@settings(max_examples=60, deadline=None)
@given(forest=forests())
def test_a_converted_forest_answers_as_xgboost_does(forest: tuple[bytes, Any]) -> None:
    checked = read_model(forest[0])
    with tempfile.TemporaryDirectory() as directory:
        reason = xgboost_onnx.convert(checked, Path(directory), OPTIONS)
        assert reason is None
        converted = xgboost_onnx.load_converted(Path(directory), OPTIONS)
    native = NativeTrees(checked.ubj, checked.facts, OPTIONS)
    trees = xgboost_onnx._trees(checked, xgboost_onnx._constants(checked, OPTIONS))
    assert not isinstance(trees, str)
    # Other rows than those that the conversion was judged by: the training rows, and edges of other trees' leaves.
    others = probing_rows(replace(trees, value=trees.value[::-1].copy()), checked.facts.features, 40)
    for rows in (forest[1], others):
        expected, found = native.sums(rows, None), converted.sums(rows, None)
        if checked.facts.booster == "gbtree":
            assert np.array_equal(found, expected, equal_nan=True)
        else:
            assert (np.abs(found - expected) <= 1e-6 * reach_of(trees, checked.facts.groups)).all()
        np.testing.assert_allclose(converted.values(rows, None)[0], native.values(rows, None)[0], rtol=1e-4, atol=1e-6)
