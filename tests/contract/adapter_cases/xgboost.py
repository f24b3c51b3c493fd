"""XGBoost models of each kind that is served, saved as their users save them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from runtime_adapters.contract import AdapterCase, Example, Prediction

FEATURES = 7


def _data(rows: int = 400) -> tuple[Any, Any]:
    rng = np.random.default_rng(11)
    features = rng.normal(size=(rows, FEATURES)).astype(np.float32)
    features[rng.random(features.shape) < 0.05] = np.nan
    return features, np.nan_to_num(features[:, 0] * features[:, 1] + features[:, 2])


def _classifier(directory: Path, name: str, classes: int, **settings: Any) -> Example:
    import xgboost

    features, target = _data()
    labels = (target > 0).astype(int) if classes == 2 else np.digitize(target, [-0.7, 0.7])
    model = xgboost.XGBClassifier(n_estimators=12, max_depth=4, n_jobs=1, **settings).fit(features, labels)
    model.save_model(directory / name)
    rows = features[:9]
    explained = model.get_booster().predict(xgboost.DMatrix(rows), pred_contribs=True)
    expected = {"predict": model.predict(rows), "predict_proba": model.predict_proba(rows), "explanation": explained}
    return Example(directory / name, (Prediction({"input": rows}, expected),))


def _binary_ubj(directory: Path) -> Example:
    example = _classifier(directory, "model.ubj", 2)
    import xgboost

    model = xgboost.XGBClassifier()
    model.load_model(example.artifact)
    rows, margin = _data()[0][:5], np.linspace(-2, 2, 5).astype(np.float32)
    expected = {
        "predict": model.predict(rows, base_margin=margin),
        "predict_proba": model.predict_proba(rows, base_margin=margin),
        "explanation": model.get_booster().predict(xgboost.DMatrix(rows, base_margin=margin), pred_contribs=True),
    }
    with_margin = Prediction({"input": rows, "base_margin": margin}, expected)
    return Example(example.artifact, (*example.predictions, with_margin))


def _early_stopped(directory: Path) -> Example:
    import xgboost

    features, target = _data()
    model = xgboost.XGBRegressor(n_estimators=200, learning_rate=0.5, early_stopping_rounds=3, n_jobs=1)
    model.fit(features[:300], target[:300], eval_set=[(features[300:], target[300:])], verbose=False)
    assert model.best_iteration + 1 < model.get_booster().num_boosted_rounds()
    model.save_model(directory / "model.ubj")
    rounds = (0, model.best_iteration + 1)
    explained = model.get_booster().predict(xgboost.DMatrix(features), pred_contribs=True, iteration_range=rounds)
    expected = {"predict": model.predict(features), "explanation": explained}
    return Example(directory / "model.ubj", (Prediction({"input": features}, expected),))


def _regressor(directory: Path, name: str, outputs: int = 1, **settings: Any) -> Example:
    import xgboost

    features, target = _data()
    targets = target if outputs == 1 else np.stack([target * (n + 1) for n in range(outputs)], 1)
    model = xgboost.XGBRegressor(n_estimators=10, max_depth=4, n_jobs=1, **settings).fit(features, targets)
    model.save_model(directory / name)
    predictions = [Prediction({"input": features[:6]}, {"predict": model.predict(features[:6])})]
    if outputs > 1:
        margin = np.random.default_rng(1).normal(size=(6, outputs)).astype(np.float32)
        shifted = model.predict(features[:6], base_margin=margin)
        predictions.append(Prediction({"input": features[:6], "base_margin": margin}, {"predict": shifted}))
    return Example(directory / name, tuple(predictions))


def _multi_label(directory: Path) -> Example:
    import xgboost

    features, target = _data()
    labels = np.stack([target > 0, target > 1], 1).astype(int)
    model = xgboost.XGBClassifier(n_estimators=10, max_depth=3, n_jobs=1).fit(features, labels)
    model.save_model(directory / "model.json")
    rows = features[:6]
    expected = {"predict": model.predict(rows), "predict_proba": model.predict_proba(rows)}
    return Example(directory / "model.json", (Prediction({"input": rows}, expected),))


def _ranker(directory: Path) -> Example:
    import xgboost

    features, target = _data()
    model = xgboost.XGBRanker(n_estimators=8, max_depth=3, n_jobs=1)
    model.fit(features, np.digitize(target, [-0.5, 0.5]), group=[200, 200])
    model.save_model(directory / "model.ubj")
    scores = model.predict(features[:6])
    return Example(directory / "model.ubj", (Prediction({"input": features[:6]}, {"predict": scores}),))


def _categorical(directory: Path) -> Example:
    import xgboost

    features, target = _data()
    features[:, 3] = np.arange(len(features)) % 40
    model = xgboost.XGBRegressor(
        n_estimators=10, n_jobs=1, enable_categorical=True, feature_types=list("qqqcqqq"), max_cat_to_onehot=1
    ).fit(features, target + (features[:, 3] % 3))
    model.save_model(directory / "model.json")
    return Example(directory / "model.json", (Prediction({"input": features}, {"predict": model.predict(features)}),))


def _bare_booster(directory: Path) -> Example:
    import xgboost

    features, target = _data()
    matrix = xgboost.DMatrix(features, target > 0)
    booster = xgboost.train({"objective": "binary:logistic", "nthread": 1, "max_depth": 3}, matrix, 8)
    booster.save_model(directory / "model.ubj")
    chances = booster.predict(xgboost.DMatrix(features[:6]))
    expected = {"predict": chances, "predict_proba": np.stack([1 - chances, chances], 1)}
    return Example(directory / "model.ubj", (Prediction({"input": features[:6]}, expected),))


def _case(name: str, build: Callable[[Path], Example], **settings: Any) -> AdapterCase:
    return AdapterCase(name=f"xgboost-{name}", format="xgboost", build=build, modules=("xgboost",), **settings)


CASES = [
    _case("binary-ubj", _binary_ubj, cuda=True),
    _case("multi-class-json", lambda directory: _classifier(directory, "model.json", 3), load_cycles=60),
    _case(
        "multi-softmax",
        lambda directory: _classifier(directory, "model.ubj", 3, objective="multi:softmax"),
        load_cycles=60,
    ),
    _case("early-stopped", _early_stopped, load_cycles=60),
    _case("regressor-json", lambda directory: _regressor(directory, "model.json"), load_cycles=60),
    _case(
        "multi-output",
        lambda directory: _regressor(directory, "model.ubj", outputs=3),
        load_cycles=60,
        # A margin that nearly cancels the trees: the prepared form adds it last, XGBoost first.
        prepared_tolerance=1e-5,
    ),
    _case("dart", lambda directory: _regressor(directory, "model.ubj", booster="dart", rate_drop=0.3), load_cycles=60),
    _case("multi-label", _multi_label, load_cycles=60),
    _case("ranker", _ranker, load_cycles=60),
    _case("categorical", _categorical, load_cycles=60),
    _case("bare-booster", _bare_booster, load_cycles=60),
]
