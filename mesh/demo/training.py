"""Train one recipe, write the artifact, and note what the framework itself predicts from it.

The truth that the demo holds the server to is never the object that was trained: the artifact is read back from the
file by the framework's own loader, and that predicts. It predicts each batch by itself, since a matrix product over
sixteen rows may differ in the last bit from one over a single row.

Outputs that the truth has are named as the server names them: `predict` and `predict_proba` for tables, the graph's
own names for ONNX, and `""` (the only output) for a torch program.

This module runs in worker processes only; the server and the command line never import a framework through it.
"""

from __future__ import annotations

import importlib.util
import itertools
import shutil
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mesh.demo.datasets import Dataset, load_dataset
from mesh.demo.recipes import KINDS, Recipe

BATCHES = (1, 1, 2, 4, 8)
"""Rows of each request that the demo knows the right answer to: 16 rows a model."""

ONLY_OUTPUT = ""

Array = NDArray[Any]
Outputs = dict[str, Array]
Predict = Callable[[Array], Outputs]


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A model on disk: what to register, and how to ask it. The answers lie beside it in `cases.npz`."""

    name: str
    kind: str
    format: str
    family: str
    dataset: str
    directory: str
    file_name: str
    size_bytes: int
    input_name: str
    datatype: str
    outputs: tuple[str, ...]
    """Outputs to ask for by name; empty: whatever the model gives."""

    @property
    def artifact(self) -> Path:
        """The file to register."""
        return Path(self.directory) / self.file_name

    @property
    def cases(self) -> Path:
        """Requests and right answers: arrays `<case>.in` and `<case>.out.<name>`."""
        return Path(self.directory) / "cases.npz"

    def to_json(self) -> dict[str, Any]:
        """For a manifest or a pipe; `TrainedModel.from_json` reads it."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> TrainedModel:
        """The inverse of `to_json`."""
        return cls(**{**value, "outputs": tuple(value["outputs"])})


def available_kinds() -> list[str]:
    """The kinds whose framework is installed. Looks, imports nothing."""
    return [name for name, kind in KINDS.items() if importlib.util.find_spec(kind.package) is not None]


def train(recipe: Recipe, into: Path) -> TrainedModel:
    """Make the model in the empty directory `into`."""
    data = load_dataset(recipe.dataset)
    random = np.random.default_rng(recipe.seed)
    order = random.permutation(len(data.rows))
    chosen = order[: max(10, int(len(order) * recipe.rows_share))]
    features = data.rows[:, list(recipe.features)]
    rows = features[chosen]
    target = _target(recipe, data)[chosen]
    asked = features[random.choice(len(features), sum(BATCHES))]
    artifact = into / KINDS[recipe.kind].file_name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "did not converge": nobody asked for a good model
        input_name, datatype, outputs, predict = _MAKERS[recipe.kind](recipe, data, rows, target, artifact)
        _write_cases(into / "cases.npz", asked, datatype, predict)
    return TrainedModel(
        name=recipe.name,
        kind=recipe.kind,
        format=KINDS[recipe.kind].format,
        family=recipe.family,
        dataset=recipe.dataset,
        directory=str(into),
        file_name=artifact.name,
        size_bytes=artifact.stat().st_size,
        input_name=input_name,
        datatype=datatype,
        outputs=outputs,
    )


def train_cached(recipe: Recipe, cache: Path) -> TrainedModel:
    """`train`, into a directory of the recipe's name that appears whole or not at all."""
    final = cache / recipe.name
    building = cache / f".{recipe.name}.building"
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    trained = train(recipe, building)
    shutil.rmtree(final, ignore_errors=True)
    building.rename(final)
    return TrainedModel.from_json({**trained.to_json(), "directory": str(final)})


def read_cases(cases: Path) -> list[tuple[Array, Outputs]]:
    """The requests of one model and the framework's answers."""
    with np.load(cases, allow_pickle=False) as stored:
        return [
            (
                stored[f"{case}.in"],
                {
                    name.removeprefix(f"{case}.out."): stored[name]
                    for name in stored.files
                    if name.startswith(f"{case}.out.")
                },
            )
            for case in range(len(BATCHES))
        ]


def _write_cases(path: Path, rows: Array, datatype: str, predict: Predict) -> None:
    arrays: dict[str, Array] = {}
    first = 0
    for case, size in enumerate(BATCHES):
        batch = rows[first : first + size].astype(np.float32 if datatype == "FP32" else np.float64)
        first += size
        arrays[f"{case}.in"] = batch
        for name, values in predict(batch).items():
            arrays[f"{case}.out.{name}"] = values.astype("U") if values.dtype == object else values
    np.savez(path, **arrays)  # type: ignore[arg-type]  # its signature takes the names for flags


def _target(recipe: Recipe, data: Dataset) -> Array:
    if data.is_classification:
        return np.asarray(data.class_names)[data.target] if recipe.named_classes else data.target
    if data.target.ndim > 1 and (recipe.seed % 2 or recipe.kind == "onnx"):
        return data.target[:, recipe.seed % data.target.shape[1]]
    return data.target


# One maker per kind: fit, write the file, read it back, say how to ask. -------------------------------------------

Made = tuple[str, str, tuple[str, ...], Predict]


def _make_onnx(recipe: Recipe, data: Dataset, rows: Array, target: Array, artifact: Path) -> Made:
    import onnxruntime
    import skl2onnx
    from skl2onnx.common.data_types import FloatTensorType

    estimator = _fit_estimator(recipe, data, rows.astype(np.float32), target)
    options = {id(estimator): {"zipmap": False}} if data.is_classification else None
    graph = skl2onnx.convert_sklearn(
        estimator, initial_types=[("features", FloatTensorType([None, rows.shape[1]]))], options=options
    )
    artifact.write_bytes(graph.SerializeToString())
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(artifact), settings, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def predict(batch: Array) -> Outputs:
        return dict(zip(names, session.run(None, {"features": batch}), strict=True))

    return "features", "FP32", (), predict


def _make_xgboost(recipe: Recipe, data: Dataset, rows: Array, target: Array, artifact: Path) -> Made:
    import xgboost

    wrapper = xgboost.XGBClassifier if data.is_classification else xgboost.XGBRegressor
    model = wrapper(
        n_estimators=recipe.parameters["rounds"],
        max_depth=recipe.parameters["depth"],
        learning_rate=recipe.parameters["learning_rate"],
        random_state=recipe.seed,
        n_jobs=1,
    )
    model.fit(rows, target)
    model.save_model(artifact)
    loaded = wrapper()
    loaded.load_model(artifact)
    loaded.set_params(n_jobs=1)
    return _table("FP32", loaded, data)


def _make_lightgbm(recipe: Recipe, data: Dataset, rows: Array, target: Array, artifact: Path) -> Made:
    import lightgbm

    settings = {
        "num_leaves": 2 ** int(str(recipe.parameters["depth"])) - 1,
        "learning_rate": recipe.parameters["learning_rate"],
        "min_data_in_leaf": 5,
        "seed": recipe.seed,
        "num_threads": 1,
        "verbosity": -1,
    }
    classes = len(data.class_names)
    if classes > 2:
        settings |= {"objective": "multiclass", "num_class": classes}
    else:
        settings |= {"objective": "binary" if classes else "regression"}
    trained = lightgbm.train(settings, lightgbm.Dataset(rows, target), num_boost_round=recipe.parameters["rounds"])
    trained.save_model(artifact)
    booster = lightgbm.Booster(model_file=artifact, params={"num_threads": 1, "verbosity": -1})

    def predict(batch: Array) -> Outputs:
        values = np.asarray(booster.predict(batch))
        if not classes:
            return {"predict": values}
        # LGBMClassifier's own reading of these numbers, which the file knows nothing of.
        shares = values if classes > 2 else np.vstack((1.0 - values, values)).transpose()
        return {"predict": np.argmax(shares, axis=1), "predict_proba": shares}

    return "rows", "FP64", ("predict", "predict_proba") if classes else ("predict",), predict


def _make_skops(recipe: Recipe, data: Dataset, rows: Array, target: Array, artifact: Path) -> Made:
    import skops.io

    skops.io.dump(_fit_estimator(recipe, data, rows, target), artifact)
    # The file was written two lines up; a server must not trust what a file says of itself.
    loaded = skops.io.load(artifact, trusted=skops.io.get_untrusted_types(file=artifact))
    return _table("FP64", loaded, data)


def _make_joblib(recipe: Recipe, data: Dataset, rows: Array, target: Array, artifact: Path) -> Made:
    import joblib

    joblib.dump(_fit_estimator(recipe, data, rows, target), artifact)
    return _table("FP64", joblib.load(artifact), data)


def _make_torch(recipe: Recipe, data: Dataset, rows: Array, target: Array, artifact: Path) -> Made:
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(recipe.seed)
    widths = [rows.shape[1], *_widths(recipe)]
    layers: list[Any] = [torch.nn.BatchNorm1d(widths[0])]
    for before, after in itertools.pairwise(widths):
        layers += [torch.nn.Linear(before, after), torch.nn.ReLU()]
    layers.append(torch.nn.Linear(widths[-1], len(data.class_names) or (target.shape[1] if target.ndim > 1 else 1)))
    network = torch.nn.Sequential(*layers)
    features = torch.from_numpy(rows.astype(np.float32))
    goal = torch.from_numpy(target if data.is_classification else target.astype(np.float32).reshape(len(rows), -1))
    loss = torch.nn.CrossEntropyLoss() if data.is_classification else torch.nn.MSELoss()
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(30):
        optimiser.zero_grad()
        loss(network(features), goal).backward()
        optimiser.step()
    network.eval()
    program = torch.export.export(
        network, (features[:2],), dynamic_shapes={"input": {0: torch.export.Dim("rows", min=1)}}
    )
    torch.export.save(program, artifact)
    loaded = torch.export.load(artifact).module()

    def predict(batch: Array) -> Outputs:
        with torch.inference_mode():
            return {ONLY_OUTPUT: loaded(torch.from_numpy(batch)).numpy()}

    return "input", "FP32", (), predict


_MAKERS: dict[str, Callable[[Recipe, Dataset, Array, Array, Path], Made]] = {
    "onnx": _make_onnx,
    "xgboost json": _make_xgboost,
    "xgboost ubj": _make_xgboost,
    "lightgbm": _make_lightgbm,
    "sklearn skops": _make_skops,
    "sklearn joblib": _make_joblib,
    "torch pt2": _make_torch,
}


def _table(datatype: str, model: Any, data: Dataset) -> Made:
    """An estimator with scikit-learn's interface."""
    with_shares = data.is_classification and hasattr(model, "predict_proba")

    def predict(batch: Array) -> Outputs:
        answers = {"predict": np.asarray(model.predict(batch))}
        if with_shares:
            answers["predict_proba"] = np.asarray(model.predict_proba(batch))
        return answers

    return "rows", datatype, ("predict", "predict_proba") if with_shares else ("predict",), predict


def _widths(recipe: Recipe) -> list[int]:
    widths = recipe.parameters["widths"]
    return widths if isinstance(widths, list) else [int(widths)]


def _fit_estimator(recipe: Recipe, data: Dataset, rows: Array, target: Array) -> Any:
    from sklearn import ensemble, linear_model, naive_bayes, neural_network, pipeline, preprocessing, svm, tree

    parameters = recipe.parameters
    seed = recipe.seed % 2**31
    classify = data.is_classification
    scale = preprocessing.StandardScaler()
    if recipe.family == "mlp":
        network = neural_network.MLPClassifier if classify else neural_network.MLPRegressor
        body = network(
            hidden_layer_sizes=tuple(_widths(recipe)),
            max_iter=parameters["epochs"],
            random_state=seed,
            batch_size=min(64, len(rows)),
        )
        return pipeline.make_pipeline(scale, body).fit(rows, target)
    if recipe.family in {"forest", "extra_trees"}:
        name = "RandomForest" if recipe.family == "forest" else "ExtraTrees"
        grower = getattr(ensemble, name + ("Classifier" if classify else "Regressor"))
        return grower(n_estimators=parameters["trees"], max_depth=parameters["depth"], random_state=seed, n_jobs=1).fit(
            rows, target
        )
    if recipe.family == "tree":
        grower = tree.DecisionTreeClassifier if classify else tree.DecisionTreeRegressor
        return grower(max_depth=parameters["depth"], random_state=seed).fit(rows, target)
    if recipe.family == "boosted":
        booster = ensemble.GradientBoostingClassifier if classify else ensemble.GradientBoostingRegressor
        return booster(n_estimators=max(5, int(str(parameters["rounds"])) // 4), max_depth=3, random_state=seed).fit(
            rows, target
        )
    if recipe.family == "logistic":
        body = linear_model.LogisticRegression(C=parameters["C"], max_iter=100)
        return pipeline.make_pipeline(scale, body).fit(rows, target)
    if recipe.family == "svm":
        return pipeline.make_pipeline(scale, svm.SVC(C=parameters["C"])).fit(rows, target)
    if recipe.family == "linear":
        return pipeline.make_pipeline(scale, linear_model.Ridge(alpha=parameters["alpha"])).fit(rows, target)
    return naive_bayes.GaussianNB(var_smoothing=parameters["smoothing"]).fit(rows, target)
