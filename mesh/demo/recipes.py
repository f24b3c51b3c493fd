"""Which models the demo trains: a list that follows from the seed alone.

Recipe `i` depends on the seed and on `i`, not on how many there are: a demo of 20 models uses the first 20 of the
300, and the cache of trained models serves both. Kinds rotate in a fixed pattern, so that any prefix has all of
them; data set, features, rows, family, size and hyper-parameters are drawn, so that no two models are alike.

A *kind* is a row of the report: a format and, where a format has two files, which. Sizes reach from a few kilobytes
(a logistic regression) to about two megabytes (a wide network, a forest), since a cache of equal sizes is easy.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from mesh.demo.datasets import CLASSIFICATION, FEATURES, REGRESSION


@dataclass(frozen=True, slots=True)
class Kind:
    """One row of the report. `package` must be importable for the kind to take part."""

    name: str
    format: str
    file_name: str
    package: str


KINDS = {
    kind.name: kind
    for kind in (
        Kind("onnx", "onnx", "model.onnx", "onnxruntime"),
        Kind("xgboost json", "xgboost", "model.json", "xgboost"),
        Kind("xgboost ubj", "xgboost", "model.ubj", "xgboost"),
        Kind("lightgbm", "lightgbm", "model.txt", "lightgbm"),
        Kind("sklearn skops", "sklearn", "model.skops", "skops"),
        Kind("sklearn joblib", "pickle", "model.joblib", "joblib"),
        Kind("torch pt2", "torch", "model.pt2", "torch"),
    )
}

_TORCH_EVERY_CYCLES = 3
"""Exporting a torch program takes a second or two, so only one model in sixty is one."""

_CYCLE = (
    "onnx", "xgboost ubj", "sklearn skops", "lightgbm", "torch pt2", "xgboost json", "sklearn joblib", "onnx",
    "sklearn skops", "lightgbm", "xgboost ubj", "onnx", "xgboost json", "sklearn skops", "onnx", "lightgbm",
    "xgboost ubj", "sklearn skops", "sklearn joblib", "xgboost json",
)  # fmt: skip

_FAMILIES = {
    "onnx": ("mlp", "mlp", "mlp", "logistic", "forest", "linear", "tree"),
    "xgboost json": ("boosted",),
    "xgboost ubj": ("boosted",),
    "lightgbm": ("boosted",),
    "sklearn skops": ("logistic", "linear", "mlp", "mlp", "bayes", "forest"),
    "sklearn joblib": ("forest", "extra_trees", "boosted", "svm"),
    "torch pt2": ("mlp",),
}
_CLASSIFIERS_ONLY = {"logistic", "bayes", "svm"}
_REGRESSORS_ONLY = {"linear"}
_ONE_TARGET_ONLY = {"boosted", "svm"}
_WIDTHS_SKOPS = ((32,), (64, 32), (128, 64), (128, 128), (256, 128))
"""A skops file keeps the optimiser's state beside the weights, three times their size."""
_WIDTHS = ((32,), (64, 32), (128, 128), (256, 128), (256, 256), (384, 384), (512, 384), (640, 512))
_REGRESSION_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to make one model. `parameters` are the family's own, by name."""

    name: str
    kind: str
    family: str
    dataset: str
    features: tuple[int, ...]
    rows_share: float
    seed: int
    named_classes: bool
    parameters: dict[str, int | float | list[int]]


def plan_recipes(models: int, seed: int, kinds: Sequence[str]) -> list[Recipe]:
    """The first `models` recipes of this seed, over these kinds."""
    if unknown := sorted(set(kinds) - set(KINDS)):
        raise ValueError(f"kinds: {', '.join(unknown)} not known; known are {', '.join(KINDS)}")
    return [_recipe(index, seed, _kind_at(index, kinds)) for index in range(models)]


def _kind_at(index: int, kinds: Sequence[str]) -> str:
    cycle, place = divmod(index, len(_CYCLE))
    wanted = _CYCLE[place]
    if wanted == "torch pt2" and cycle % _TORCH_EVERY_CYCLES:
        wanted = "onnx"
    if wanted in kinds:
        return wanted
    # A kind that does not take part leaves its places to the others, in turn.
    others = [kind for kind in kinds if kind != "torch pt2"] or list(kinds)
    return others[index % len(others)]


def _recipe(index: int, seed: int, kind: str) -> Recipe:
    draw = random.Random(f"{seed}/{index}")
    family = draw.choice(_FAMILIES[kind])
    is_regression = family in _REGRESSORS_ONLY or (
        family not in _CLASSIFIERS_ONLY and draw.random() < _REGRESSION_SHARE
    )
    if is_regression:
        dataset = "diabetes" if family in _ONE_TARGET_ONLY else draw.choice(REGRESSION)
    else:
        dataset = draw.choice(CLASSIFICATION)
    features_total = FEATURES[dataset]
    features = sorted(draw.sample(range(features_total), draw.randint(max(2, features_total // 2), features_total)))
    return Recipe(
        name=f"{dataset.replace('_', '-')}-{kind.replace(' ', '-')}-{family.replace('_', '-')}-{index:03d}",
        kind=kind,
        family=family,
        dataset=dataset,
        features=tuple(features),
        rows_share=round(draw.uniform(0.6, 0.95), 3),
        seed=draw.randrange(2**31),
        # Digits stay numbers; XGBoost and LightGBM files hold class indices, not names.
        named_classes=kind in {"onnx", "sklearn skops", "sklearn joblib"}
        and not is_regression
        and dataset != "digits"
        and draw.random() < 0.5,
        parameters=_parameters(draw, family, dataset, _WIDTHS_SKOPS if kind == "sklearn skops" else _WIDTHS),
    )


def _parameters(
    draw: random.Random, family: str, dataset: str, widths: tuple[tuple[int, ...], ...]
) -> dict[str, int | float | list[int]]:
    if family == "mlp":
        return {"widths": list(draw.choice(widths)), "epochs": draw.randint(4, 9)}
    if family == "boosted":
        classes = 10 if dataset == "digits" else 1
        return {
            "rounds": draw.randint(20, 160) // (4 if classes > 1 else 1),
            "depth": draw.randint(3, 7),
            "learning_rate": round(draw.uniform(0.05, 0.3), 3),
        }
    if family in {"forest", "extra_trees"}:
        return {"trees": draw.randint(8, 50), "depth": draw.randint(4, 12)}
    if family == "tree":
        return {"depth": draw.randint(3, 12)}
    if family in {"logistic", "svm"}:
        return {"C": round(10 ** draw.uniform(-2, 1), 4)}
    if family == "linear":
        return {"alpha": round(10 ** draw.uniform(-3, 1), 4)}
    return {"smoothing": 10 ** draw.uniform(-10, -6)}
