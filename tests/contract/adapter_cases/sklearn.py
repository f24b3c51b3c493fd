"""scikit-learn estimators of each kind that is served: skops from anybody, pickle and joblib from trusted prefixes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from runtime_adapters.contract import AdapterCase, Example, Prediction

METHODS = ("predict", "predict_proba", "decision_function", "score_samples", "transform")


def _sent(array: Any) -> Any:
    """As the V2 protocol carries it: strings are bytes."""
    array = np.asarray(array.toarray() if hasattr(array, "toarray") else array)
    if array.dtype.kind not in "UO":
        return array
    sent = np.empty(array.shape, object)
    sent.ravel()[:] = [str(item).encode() for item in array.flat]
    return sent


def _example(model: Any, directory: Path, rows: Any, *, save: str = "skops", refused: bool = True) -> Example:
    if save == "skops":
        import skops.io

        artifact = directory / "model.skops"
        skops.io.dump(model, artifact)
    elif save == "pickle":
        import pickle

        artifact = directory / "model.pkl"
        artifact.write_bytes(pickle.dumps(model))
    else:
        import joblib

        artifact = directory / "model.joblib"
        joblib.dump(model, artifact, compress=3)
    texts = rows.dtype == object
    # A vectoriser takes a list of documents, everything else takes the array.
    taken = [item.decode() for item in rows] if texts and rows.ndim == 1 else rows
    if texts and rows.ndim == 2:
        taken = np.array([[item.decode() for item in row] for row in rows], object)
    expected = {name: _sent(getattr(model, name)(taken)) for name in METHODS if callable(getattr(model, name, None))}
    bad = ({"input": np.full((2, rows.shape[1]), np.nan)},) if refused and not texts else ()
    if texts:
        bad = ({"input": np.full((2, *rows.shape[1:]), b"\xff\xfe", object)},)
    return Example(artifact, (Prediction({"input": rows}, expected),), refused=bad)


def _iris() -> tuple[Any, Any, Any]:
    from sklearn.datasets import load_iris

    data = load_iris()
    return data.data, data.target, data.target_names[data.target]


def _forest(directory: Path) -> Example:
    from sklearn.ensemble import RandomForestClassifier

    rows, _, names = _iris()
    return _example(
        RandomForestClassifier(7, random_state=0, n_jobs=2).fit(rows, names), directory, rows[::9], refused=False
    )


def _multi_output_forest(directory: Path) -> Example:
    from sklearn.ensemble import ExtraTreesRegressor

    rows, labels, _ = _iris()
    model = ExtraTreesRegressor(5, random_state=0).fit(rows, np.stack([labels, -labels], 1))
    return _example(model, directory, rows[::9], refused=False)


def _gradient_boosting(directory: Path) -> Example:
    from sklearn.ensemble import GradientBoostingClassifier

    rows, labels, _ = _iris()
    return _example(GradientBoostingClassifier(n_estimators=6, random_state=0).fit(rows, labels), directory, rows[::9])


def _histogram_boosting(directory: Path) -> Example:
    from sklearn.ensemble import HistGradientBoostingRegressor

    rows, labels, _ = _iris()
    rows = rows.copy()
    rows[:, 3] = np.arange(len(rows)) % 5
    model = HistGradientBoostingRegressor(max_iter=5, categorical_features=[3]).fit(rows, labels + rows[:, 3])
    return _example(model, directory, rows[::9], refused=False)


def _isolation_forest(directory: Path) -> Example:
    from sklearn.ensemble import IsolationForest

    rows, _, _ = _iris()
    return _example(IsolationForest(n_estimators=5, random_state=0).fit(rows), directory, rows[::9], refused=False)


def _pipeline(directory: Path, save: str = "skops") -> Example:
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows, _, names = _iris()
    model = make_pipeline(StandardScaler(), PCA(3), LogisticRegression()).fit(rows, names)
    return _example(model, directory, rows[::9], save=save)


def _support_vectors(directory: Path) -> Example:
    from sklearn.svm import SVC

    rows, labels, _ = _iris()
    return _example(SVC().fit(rows, labels), directory, rows[::9])


def _scaler(directory: Path) -> Example:
    from sklearn.preprocessing import PolynomialFeatures

    rows, _, _ = _iris()
    return _example(PolynomialFeatures(2).fit(rows), directory, rows[::9])


def _texts(directory: Path) -> Example:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    documents = ["honey and wax", "wax for candles", "bees dance", "bees make honey", "candles burn"] * 4
    model = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(
        documents, ["hive", "shop", "hive", "hive", "shop"] * 4
    )
    rows = np.array([document.encode() for document in documents[:5]], object)
    return _example(model, directory, rows)


def _string_columns(directory: Path) -> Example:
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    rows = np.array([["red", "s"], ["blue", "m"], ["red", "l"], ["green", "m"]] * 3, object)
    model = make_pipeline(OneHotEncoder(handle_unknown="ignore"), Ridge()).fit(rows, np.arange(12.0))
    sent = np.array([[item.encode() for item in row] for row in rows[:4]], object)
    return _example(model, directory, sent)


def _case(name: str, build: Callable[[Path], Example], **settings: Any) -> AdapterCase:
    return AdapterCase(
        name=f"sklearn-{name}", format="sklearn", build=build, modules=("sklearn", "skops"), load_cycles=30, **settings
    )


def _pickled(name: str) -> AdapterCase:
    return AdapterCase(
        name=f"pickle-{name}",
        format="pickle",
        build=lambda directory: _pipeline(directory, name),
        trusted=True,
        modules=("sklearn", "joblib"),
        load_cycles=30,
    )


CASES = [
    _case("random-forest", _forest),
    _case("extra-trees-two-outputs", _multi_output_forest),
    _case("gradient-boosting", _gradient_boosting),
    _case("histogram-boosting", _histogram_boosting),
    _case("isolation-forest", _isolation_forest),
    _case("pipeline", _pipeline),
    _case("support-vectors", _support_vectors),
    _case("transformer", _scaler),
    _case("texts", _texts),
    _case("string-columns", _string_columns),
    _pickled("pickle"),
    _pickled("joblib"),
]
