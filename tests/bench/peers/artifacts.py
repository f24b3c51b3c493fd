"""The models that every contestant serves, and what they answer.

They are small on purpose: what is compared is the cost of serving, not of running. Each is the artifact as a user has
it, an ONNX or an XGBoost file; what a server makes of it is its own affair (Hexcomb converts trees to ONNX, onnxruntime
optimises graphs). Right answers come from the frameworks, called directly.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime_adapters.base import Array

OPSET, IR_VERSION = 17, 8
MANY = 200
ZIPF = 100
ZIPF_SHARE = 5
"""The working set is so many times the memory for it."""
_TREES, _DEPTH, _TREE_FEATURES = 100, 6, 10
_LARGE_NUMBERS = 2_000_000
_VARIANTS = 16
_VARIANT_BYTES_MAX = 1 << 16
"""Requests larger than this are all the same: 16 of them would fill the memory."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """A model file, and the shape of one row of its input `x`."""

    name: str
    format: str
    path: Path
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for a model, and its right answer."""

    model: str
    rows: Array
    answer: Array


Fleet = dict[str, Artifact]
"""The models that a server is started with, by name."""


def make_fleets(home: Path) -> dict[str, Fleet]:
    """`single` models of several kinds, `many` tiny ones, and a `zipf` working set; made once, then read."""
    home.mkdir(parents=True, exist_ok=True)
    single = [
        _onnx(home, "tiny", (16,), _layers(16, 8, 3)),
        _onnx(home, "wide", (1024,), _layers(1024, 8, 3)),
        _onnx(home, "image", (3, 224, 224), _convolutions),
        _onnx(home, "large", (_LARGE_NUMBERS,), _mean),
        _trees(home, "trees"),
    ]
    many = [_onnx(home, f"tiny-{number:03}", (16,), _layers(16, 8, 3), number) for number in range(MANY)]
    zipf = [_onnx(home, f"zipf-{number:03}", (64,), _layers(64, 460, 460, 8), number) for number in range(ZIPF)]
    return {
        name: {artifact.name: artifact for artifact in artifacts}
        for name, artifacts in (("single", single), ("many", many), ("zipf", zipf))
    }


def write_list(fleet: Fleet, into: Path) -> None:
    """The list of models that the peers' servers read (servers/predictors.py)."""
    into.write_text(
        json.dumps(
            {
                artifact.name: {"format": artifact.format, "path": str(artifact.path), "shape": artifact.shape}
                for artifact in fleet.values()
            }
        )
    )


def ask(artifact: Artifact, rows: int) -> list[Asked]:
    """Different requests of so many rows, with what the framework answers when it is called directly."""
    random = np.random.default_rng(rows)
    run = load_directly(artifact)
    size_bytes = rows * int(np.prod(artifact.shape)) * 4
    asked = []
    for _ in range(_VARIANTS if size_bytes <= _VARIANT_BYTES_MAX else 1):
        given = random.standard_normal((rows, *artifact.shape), np.float32)
        asked.append(Asked(artifact.name, given, run(given)))
    return asked


def load_directly(artifact: Artifact) -> Callable[[Array], Array]:
    """The framework, as the peers' servers call it."""
    from tests.bench.peers.servers import predictors

    described = {"format": artifact.format, "path": str(artifact.path), "shape": artifact.shape}
    run: Callable[[Array], Array] = predictors.load_model(artifact.name, {artifact.name: described})
    return run


_Build = Callable[[np.random.Generator], tuple[list[Any], list[Any], Sequence[int | str]]]
"""Nodes from `x` to `y`, weights, and the shape of `y`."""


def _onnx(home: Path, name: str, shape: tuple[int, ...], build: _Build, seed: int = 1) -> Artifact:
    path = home / f"{name}.onnx"
    if not path.exists():
        from onnx import TensorProto, helper

        nodes, weights, out = build(np.random.default_rng(seed))
        graph = helper.make_graph(
            nodes,
            name,
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
            weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        path.write_bytes(model.SerializeToString())
    return Artifact(name, "onnx", path, shape)


def _layers(*sizes: int) -> _Build:
    def build(random: np.random.Generator) -> tuple[list[Any], list[Any], Sequence[int | str]]:
        from onnx import helper

        nodes, weights, last = [], [], "x"
        for layer, (rows, columns) in enumerate(itertools.pairwise(sizes)):
            weights += [
                _weight(f"w{layer}", random.standard_normal((rows, columns)) / np.sqrt(rows)),
                _weight(f"b{layer}", random.standard_normal(columns)),
            ]
            end = "y" if layer == len(sizes) - 2 else f"h{layer}"
            nodes.append(helper.make_node("Gemm", [last, f"w{layer}", f"b{layer}"], [f"g{layer}"]))
            nodes.append(helper.make_node("Tanh", [f"g{layer}"], [end]))
            last = end
        return nodes, weights, ["N", sizes[-1]]

    return build


def _convolutions(random: np.random.Generator) -> tuple[list[Any], list[Any], Sequence[int | str]]:
    """Two convolutions of large strides and a linear layer: less than half a millisecond on one core."""
    from onnx import helper

    weights = [
        _weight("c0", random.standard_normal((8, 3, 8, 8)) / 14),
        _weight("c1", random.standard_normal((16, 8, 3, 3)) / 8),
        _weight("w", random.standard_normal((16, 10))),
        _weight("b", random.standard_normal(10)),
    ]
    nodes = [
        helper.make_node("Conv", ["x", "c0"], ["h0"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Relu", ["h0"], ["h1"]),
        helper.make_node("Conv", ["h1", "c1"], ["h2"], kernel_shape=[3, 3], strides=[2, 2]),
        helper.make_node("Relu", ["h2"], ["h3"]),
        helper.make_node("GlobalAveragePool", ["h3"], ["h4"]),
        helper.make_node("Flatten", ["h4"], ["h5"]),
        helper.make_node("Gemm", ["h5", "w", "b"], ["y"]),
    ]
    return nodes, weights, ["N", 10]


def _mean(random: np.random.Generator) -> tuple[list[Any], list[Any], Sequence[int | str]]:
    from onnx import helper

    return [helper.make_node("ReduceMean", ["x"], ["y"], axes=[1], keepdims=1)], [], ["N", 1]


def _weight(name: str, values: Any) -> Any:
    from onnx import numpy_helper

    return numpy_helper.from_array(np.asarray(values, np.float32), name)


def _trees(home: Path, name: str) -> Artifact:
    """A regressor, whose answer every server gives in the same form. Noise is what makes trees grow full."""
    path = home / f"{name}.ubj"
    if not path.exists():
        import xgboost

        random = np.random.default_rng(7)
        features = random.standard_normal((8000, _TREE_FEATURES), np.float32)
        model = xgboost.XGBRegressor(n_estimators=_TREES, max_depth=_DEPTH, learning_rate=0.1, n_jobs=1)
        model.fit(features, random.standard_normal(8000))
        model.save_model(path)
    return Artifact(name, "xgboost", path, (_TREE_FEATURES,))
