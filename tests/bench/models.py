"""The models that are measured: every format, from a few hundred bytes to tens of megabytes.

They are made in a process of their own (`python -m tests.bench.models`), so that no trainer's memory or threads enter
a measurement, and are kept in `.cache/bench` under a key of this file and the frameworks' versions. Their prepared
forms, which is what a pod loads from, are kept under a key of the adapters' source as well.

Nobody needs a good model here, so most weights are random and most labels noise; noise is what makes trees grow full.

`weight_bytes` is what a copy cannot do without, in the format's native binary form: the arrays of a network or of a
skops file (as an npz would hold them), the UBJ file of an XGBoost ensemble, the node arrays of a scikit-learn forest,
the ONNX file of a converted one. LightGBM has no binary form; there it is the text.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import itertools
import json
import shutil
import struct
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime_adapters.base import CPU, DYNAMIC, Array, LoadOptions, ModelMetadata
from runtime_adapters.datatypes import DTYPE_OF
from runtime_adapters.registry import adapter_for, adapters
from tests.bench.figures import Reporter

MB = 1_000_000
_PACKAGES = ("numpy", "onnx", "onnxruntime", "scikit-learn", "skl2onnx", "skops", "lightgbm", "torch", "xgboost-cpu")
_ROWS = 8_000
_COLUMNS = 10


@dataclass(frozen=True, slots=True)
class BenchModel:
    """A model on disk. `prepared` is what a pod would load: the adapter's prepared form, else the artifact."""

    name: str
    format: str
    artifact: Path
    prepared: Path
    weight_bytes: int

    @property
    def file_bytes(self) -> int:
        """The artifact's size."""
        return bytes_under(self.artifact)

    @property
    def options(self) -> LoadOptions:
        """As a pod would load it from a trusted prefix."""
        return options_of(self.name)

    def load(self) -> Any:
        """A loaded copy, by its adapter."""
        return adapter_for(self.format).load(self.prepared, self.options)


@dataclass(frozen=True, slots=True)
class _Recipe:
    name: str
    format: str
    make: Callable[[Path], tuple[str, int]]
    """Writes the artifact into a directory; answers its name there (empty: the directory itself) and weight_bytes."""
    quick: bool = False


def bytes_under(path: Path) -> int:
    """Bytes of a file, or of all files in a directory."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def options_of(name: str) -> LoadOptions:
    """What a pod on this machine would load with."""
    return LoadOptions(model_id=name, device=CPU, trusted=True)


def sample_inputs(metadata: ModelMetadata, rows: int = 1) -> dict[str, Array]:
    """A request for any of these models: `rows` rows of small random numbers."""
    random = np.random.default_rng(1)
    return {
        spec.name: random.normal(size=[rows if size == DYNAMIC else size for size in spec.shape]).astype(
            DTYPE_OF[spec.datatype]
        )
        for spec in metadata.inputs
        if not spec.optional
    }


def read_models(cache_dir: Path) -> dict[str, BenchModel]:
    """The models that the set-up made, by name."""
    listed = json.loads((cache_dir / "models.json").read_text())
    return {
        entry["name"]: BenchModel(
            **{**entry, "artifact": Path(entry["artifact"]), "prepared": Path(entry["prepared"])},
        )
        for entry in listed
    }


def with_a_note(content: bytes, format_name: str, number: int) -> bytes:
    """The same model in other bytes: a note that no framework reads. As it is where no check is remembered."""
    note = b"note %06d" % number
    match format_name:
        case "onnx":  # ModelProto.doc_string
            return content + b"\x32" + bytes([len(note)]) + note
        case "lightgbm":
            return content.replace(b"\nparameters:\n", b"\nparameters:\n[" + note + b"]\n")
        case "xgboost":  # one more key of the outermost object
            length = struct.Struct(">q")
            entry = b"L" + length.pack(4) + b"note" + b"SL" + length.pack(len(note)) + note
            return content.removesuffix(b"}") + entry + b"}"
    return content


def read_tiny(cache_dir: Path, count: int) -> list[BenchModel]:
    """Tiny ONNX models with weights of their own, each a different file."""
    root = Path(json.loads((cache_dir / "tiny.json").read_text()))
    return [
        BenchModel(
            f"tiny-{number:05}", "onnx", root / f"{number:05}.onnx", root / f"{number:05}.prepared", TINY_WEIGHT_BYTES
        )
        for number in range(count)
    ]


# Making them ----------------------------------------------------------------------------------------------------


def _network(sizes: Sequence[int], seed: int = 3) -> tuple[Any, int]:
    """A multi-layer perceptron as an ONNX graph, and the bytes of its weights."""
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(seed)
    nodes, weights, last = [], [], "x"
    for layer, (rows, columns) in enumerate(itertools.pairwise(sizes)):
        matrix = (random.standard_normal((rows, columns)) / np.sqrt(rows)).astype(np.float32)
        weights += [
            numpy_helper.from_array(matrix, f"w{layer}"),
            numpy_helper.from_array(np.full(columns, 0.1, np.float32), f"b{layer}"),
        ]
        nodes += [
            helper.make_node("Gemm", [last, f"w{layer}", f"b{layer}"], [f"gemm{layer}"]),
            helper.make_node("Relu", [f"gemm{layer}"], [f"relu{layer}"]),
        ]
        last = f"relu{layer}"
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", sizes[0]])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, ["N", sizes[-1]])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    return model, sum(len(weight.raw_data) for weight in weights)


def _onnx(*sizes: int) -> Callable[[Path], tuple[str, int]]:
    def make(into: Path) -> tuple[str, int]:
        model, weight_bytes = _network(sizes)
        (into / "model.onnx").write_bytes(model.SerializeToString())
        return "model.onnx", weight_bytes

    return make


def _data(rows: int = _ROWS) -> tuple[Any, Any]:
    random = np.random.default_rng(7)
    return random.normal(size=(rows, _COLUMNS)).astype(np.float32), random.integers(0, 2, rows)


def _forest(trees: int, rows: int) -> tuple[Any, Any]:
    from sklearn.ensemble import RandomForestClassifier

    features, labels = _data(rows)
    return RandomForestClassifier(n_estimators=trees, random_state=0, n_jobs=1).fit(features, labels), features


def _onnx_forest(into: Path) -> tuple[str, int]:
    from skl2onnx import to_onnx

    forest, features = _forest(240, 4000)
    content = to_onnx(forest, features[:1], options={"zipmap": False}).SerializeToString()
    (into / "model.onnx").write_bytes(content)
    return "model.onnx", len(content)


def _xgboost(trees: int, depth: int, name: str = "model.ubj") -> Callable[[Path], tuple[str, int]]:
    def make(into: Path) -> tuple[str, int]:
        import xgboost

        features, labels = _data()
        # One thread: OpenMP's threads wait for one another in loops, which is minutes on a busy machine.
        model = xgboost.XGBClassifier(
            n_estimators=trees, max_depth=depth, learning_rate=0.01, min_child_weight=0, n_jobs=1
        )
        model.fit(features, labels)
        model.save_model(into / name)
        return name, len(model.get_booster().save_raw("ubj"))

    return make


def _lightgbm(trees: int, leaves: int) -> Callable[[Path], tuple[str, int]]:
    def make(into: Path) -> tuple[str, int]:
        import lightgbm

        features, labels = _data()
        settings = {"objective": "binary", "num_leaves": leaves, "min_data_in_leaf": 3}
        settings |= {"num_threads": 1, "verbosity": -1}
        booster = lightgbm.train(settings, lightgbm.Dataset(features, labels), num_boost_round=trees)
        booster.save_model(into / "model.txt")
        return "model.txt", (into / "model.txt").stat().st_size

    return make


def _skops(fit: Callable[[], Any]) -> Callable[[Path], tuple[str, int]]:
    def make(into: Path) -> tuple[str, int]:
        import skops.io

        skops.io.dump(fit(), into / "model.skops")
        with zipfile.ZipFile(into / "model.skops") as file:
            arrays = sum(entry.file_size for entry in file.infolist() if entry.filename.endswith(".npy"))
        return "model.skops", arrays

    return make


def _pipeline() -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features, labels = _data(2000)
    return make_pipeline(StandardScaler(), LogisticRegression()).fit(features, labels)


def _perceptron(width: int) -> Callable[[], Any]:
    def fit() -> Any:
        from sklearn.neural_network import MLPClassifier

        features, labels = _data(200)
        # lbfgs: the other solvers leave their own state, twice the weights, in the fitted model.
        return MLPClassifier((width, width), solver="lbfgs", max_iter=2, random_state=0).fit(features, labels)

    return fit


def _joblib_forest(into: Path) -> tuple[str, int]:
    import joblib

    forest, _ = _forest(150, 4000)
    joblib.dump(forest, into / "model.joblib")
    states = [tree.tree_.__getstate__() for tree in forest.estimators_]
    return "model.joblib", sum(state["nodes"].nbytes + state["values"].nbytes for state in states)


def _torch(*sizes: int) -> Callable[[Path], tuple[str, int]]:
    def make(into: Path) -> tuple[str, int]:
        import torch

        layers: list[Any] = []
        for before, after in itertools.pairwise(sizes):
            layers += [torch.nn.Linear(before, after), torch.nn.ReLU()]
        return _export(torch.nn.Sequential(*layers), (torch.zeros(2, sizes[0]),), into)

    return make


def _torch_convolutions(into: Path) -> tuple[str, int]:
    import torch

    widths = (3, 64, 256, 512, 512)
    layers: list[Any] = []
    for before, after in itertools.pairwise(widths):
        layers += [torch.nn.Conv2d(before, after, 3, stride=2, padding=1), torch.nn.BatchNorm2d(after), torch.nn.ReLU()]
    layers += [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(512, 10)]
    return _export(torch.nn.Sequential(*layers), (torch.zeros(2, 3, 32, 32),), into)


def _export(network: Any, example: tuple[Any, ...], into: Path) -> tuple[str, int]:
    import torch

    network.eval()
    shapes = tuple({0: torch.export.Dim("rows", min=1)} for _ in example)
    torch.export.save(torch.export.export(network, example, dynamic_shapes=shapes), into / "model.pt2")
    return "model.pt2", sum(tensor.nbytes for tensor in network.state_dict().values())


_PYTHON_SOURCE = '''
"""A dot product, as somebody's own Python model."""

import numpy as np

from runtime_adapters.custom import Model, TensorSpec


class Weighted(Model):
    inputs = (TensorSpec("x", "FP32", (-1, 4)),)
    outputs = (TensorSpec("score", "FP32", (-1,)),)
    batch_dimension = True

    def load(self):
        self.weights = np.load(self.artifact / "weights.npy")

    def predict(self, inputs):
        return {"score": inputs["x"] @ self.weights[:4]}
'''


def _python(numbers: int) -> Callable[[Path], tuple[str, int]]:
    def make(into: Path) -> tuple[str, int]:
        (into / "model").mkdir()
        (into / "model" / "model.py").write_text(_PYTHON_SOURCE)
        weights = np.random.default_rng(2).normal(size=numbers).astype(np.float32)
        np.save(into / "model" / "weights.npy", weights)
        return "model", weights.nbytes

    return make


TINY_SIZES = (4, 8, 3)
TINY_WEIGHT_BYTES = 4 * (4 * 8 + 8 + 8 * 3 + 3)

_RECIPES = (
    _Recipe("onnx-tiny", "onnx", _onnx(*TINY_SIZES), quick=True),
    _Recipe("onnx-0.1mb", "onnx", _onnx(64, 128, 128, 8), quick=True),
    _Recipe("onnx-6mb", "onnx", _onnx(64, 1160, 1160, 8)),
    _Recipe("onnx-25mb", "onnx", _onnx(64, 1730, 1730, 1730, 8), quick=True),
    _Recipe("onnx-100mb", "onnx", _onnx(64, 3500, 3500, 3500, 8)),
    _Recipe("onnx-forest", "onnx", _onnx_forest),
    _Recipe("xgboost-100x6", "xgboost", _xgboost(100, 6), quick=True),
    _Recipe("xgboost-6mb", "xgboost", _xgboost(350, 10)),
    _Recipe("xgboost-12mb", "xgboost", _xgboost(750, 10)),
    _Recipe("xgboost-json", "xgboost", _xgboost(350, 10, "model.json")),
    _Recipe("lightgbm-100x63", "lightgbm", _lightgbm(100, 63), quick=True),
    _Recipe("lightgbm-6mb", "lightgbm", _lightgbm(65, 1023)),
    _Recipe("lightgbm-15mb", "lightgbm", _lightgbm(160, 1023)),
    _Recipe("sklearn-pipeline", "sklearn", _skops(_pipeline), quick=True),
    _Recipe("sklearn-mlp-7mb", "sklearn", _skops(_perceptron(950))),
    _Recipe("sklearn-mlp-20mb", "sklearn", _skops(_perceptron(1580)), quick=True),
    _Recipe("sklearn-forest", "pickle", _joblib_forest),
    _Recipe("torch-small", "torch", _torch(4, 32, 3), quick=True),
    _Recipe("torch-6mb", "torch", _torch(64, 1160, 1160, 8)),
    _Recipe("torch-25mb", "torch", _torch(64, 1730, 1730, 1730, 8), quick=True),
    _Recipe("torch-conv", "torch", _torch_convolutions),
    _Recipe("python-small", "python", _python(4), quick=True),
    _Recipe("python-12mb", "python", _python(3_000_000)),
)


def make_all(bench: Reporter, tiny_count: int) -> None:
    """Make what is missing, and write the lists that the benches read."""
    known = adapters()
    recipes = [recipe for recipe in _RECIPES if recipe.quick or not bench.quick]
    models = bench.cache_dir / "models" / _digest([Path(__file__)])
    for stale in (bench.cache_dir / "models").glob("*"):
        if stale != models:
            shutil.rmtree(stale, ignore_errors=True)
    steps = len(recipes) + 1
    made: list[BenchModel] = []
    for number, recipe in enumerate(recipes):
        bench.progress(number, steps, recipe.name)
        if recipe.format not in known:
            bench.skip(recipe.name, f"no adapter for {recipe.format}")
            continue
        try:
            made.append(_made(recipe, models))
        except ImportError as error:
            bench.skip(recipe.name, f"{error.name} is not installed")
    listed = [{**asdict(model), "artifact": str(model.artifact), "prepared": str(model.prepared)} for model in made]
    (bench.cache_dir / "models.json").write_text(json.dumps(listed, indent=1))
    _make_tiny(bench, models, tiny_count)
    bench.progress(steps, steps)


def _made(recipe: _Recipe, models: Path) -> BenchModel:
    home = models / recipe.name
    if not (home / "made.json").exists():
        shutil.rmtree(home, ignore_errors=True)
        (home / "artifact").mkdir(parents=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            file_name, weight_bytes = recipe.make(home / "artifact")
        (home / "made.json").write_text(json.dumps([file_name, weight_bytes]))
    file_name, weight_bytes = json.loads((home / "made.json").read_text())
    artifact = home / "artifact" / file_name
    prepared = _prepared(recipe.format, artifact, home, recipe.name)
    return BenchModel(recipe.name, recipe.format, artifact, prepared, weight_bytes)


def _prepared(format_name: str, artifact: Path, home: Path, name: str) -> Path:
    adapter = adapter_for(format_name)
    into = home / f"prepared-{_adapter_digest(format_name)}"
    if not into.exists():
        building = into.with_suffix(".building")
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir()
        if not adapter.prepare(artifact, building, options_of(name)):
            (building / ".none").touch()
        building.rename(into)
    return artifact if (into / ".none").exists() else into


def _make_tiny(bench: Reporter, models: Path, count: int) -> None:
    root = models / f"tiny-{_adapter_digest('onnx')}"
    root.mkdir(parents=True, exist_ok=True)
    adapter = adapter_for("onnx")
    model, _ = _network(TINY_SIZES)
    random = np.random.default_rng(9)
    for number in range(count):
        artifact, prepared = root / f"{number:05}.onnx", root / f"{number:05}.prepared"
        for weight in model.graph.initializer:
            weight.raw_data = random.standard_normal(len(weight.raw_data) // 4).astype(np.float32).tobytes()
        if not (prepared / "optimised.onnx").exists():
            artifact.write_bytes(model.SerializeToString())
            shutil.rmtree(prepared, ignore_errors=True)
            prepared.mkdir()
            adapter.prepare(artifact, prepared, options_of("tiny"))
        if number % 100 == 0:
            bench.progress(number, count, "tiny ONNX")
    (bench.cache_dir / "tiny.json").write_text(json.dumps(str(root)))


def _digest(sources: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.read_bytes())
    for package in _PACKAGES:
        try:
            digest.update(f"{package}={importlib.metadata.version(package)};".encode())
        except importlib.metadata.PackageNotFoundError:
            continue
    return digest.hexdigest()[:12]


def _adapter_digest(format_name: str) -> str:
    """Of everything in `runtime_adapters` whose name says this format: what decides a prepared form."""
    import runtime_adapters

    home = Path(str(runtime_adapters.__file__)).parent
    version = adapter_for(format_name).runtime_version().encode()
    return hashlib.sha256(_digest(sorted(home.glob(f"{format_name}_*.py"))).encode() + version).hexdigest()[:12]
