"""LightGBM models of each kind that is served, saved as their users save them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from runtime_adapters.contract import AdapterCase, Example, Prediction

FEATURES = 6


def _data() -> tuple[Any, Any]:
    rng = np.random.default_rng(3)
    features = rng.normal(size=(500, FEATURES))
    target = features[:, 0] * features[:, 1] + features[:, 2]
    features[:, 5] = np.arange(500) % 45
    features[rng.random(features.shape) < 0.03] = np.nan
    return features, target


def _classifier(directory: Path, classes: int, **settings: Any) -> Example:
    import lightgbm

    features, target = _data()
    labels = target > 0 if classes == 2 else np.digitize(target, [-0.6, 0.6])
    model = lightgbm.LGBMClassifier(n_estimators=10, num_leaves=9, n_jobs=1, verbose=-1, **settings)
    model.fit(features, labels.astype(int), categorical_feature=[5])
    model.booster_.save_model(directory / "model.txt")
    rows = features[:9]
    explained = model.predict(rows, pred_contrib=True)
    expected = {
        "predict": model.predict(rows),
        "predict_proba": model.predict_proba(rows),
        "explanation": explained if classes == 2 else explained.reshape(len(rows), classes, FEATURES + 1),
    }
    return Example(directory / "model.txt", (Prediction({"input": rows}, expected),))


def _regressor(directory: Path, **settings: Any) -> Example:
    import lightgbm

    features, target = _data()
    model = lightgbm.LGBMRegressor(n_estimators=12, num_leaves=11, n_jobs=1, verbose=-1, **settings)
    model.fit(features, target)
    model.booster_.save_model(directory / "model.txt")
    expected = {"predict": model.predict(features)}
    if not settings.get("linear_tree"):
        expected["explanation"] = model.predict(features, pred_contrib=True)
    return Example(directory / "model.txt", (Prediction({"input": features}, expected),))


def _early_stopped(directory: Path) -> Example:
    import lightgbm

    features, target = _data()
    model = lightgbm.LGBMRegressor(n_estimators=300, learning_rate=0.5, n_jobs=1, verbose=-1)
    stop = lightgbm.early_stopping(3, verbose=False)
    model.fit(features[:300], target[:300], eval_set=[(features[300:], target[300:])], callbacks=[stop])
    model.booster_.save_model(directory / "model.txt")
    return Example(directory / "model.txt", (Prediction({"input": features}, {"predict": model.predict(features)}),))


def _ranker(directory: Path) -> Example:
    import lightgbm

    features, target = _data()
    model = lightgbm.LGBMRanker(n_estimators=8, num_leaves=7, n_jobs=1, verbose=-1)
    model.fit(features, np.digitize(target, [-0.5, 0.5]), group=[250, 250])
    model.booster_.save_model(directory / "model.txt")
    scores = model.predict(features[:6])
    return Example(directory / "model.txt", (Prediction({"input": features[:6]}, {"predict": scores}),))


def _case(name: str, build: Callable[[Path], Example], **settings: Any) -> AdapterCase:
    return AdapterCase(name=f"lightgbm-{name}", format="lightgbm", build=build, modules=("lightgbm",), **settings)


CASES = [
    _case("binary", lambda directory: _classifier(directory, 2)),
    _case("multi-class", lambda directory: _classifier(directory, 3), load_cycles=40),
    _case("one-versus-all", lambda directory: _classifier(directory, 3, objective="multiclassova"), load_cycles=40),
    _case("regressor", _regressor, load_cycles=40),
    _case("linear-leaves", lambda directory: _regressor(directory, linear_tree=True), load_cycles=40),
    _case(
        "random-forest",
        lambda directory: _regressor(directory, boosting_type="rf", subsample=0.6, subsample_freq=1),
        load_cycles=40,
    ),
    _case("early-stopped", _early_stopped, load_cycles=40),
    _case("ranker", _ranker, load_cycles=40),
]
