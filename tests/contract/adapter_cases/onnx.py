"""ONNX models of each kind that the adapter treats differently; the reference is an ordinary onnxruntime session."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runtime_adapters.base import Tensors
from runtime_adapters.contract import AdapterCase, Example, Prediction


def _session(artifact: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(artifact), options, providers=["CPUExecutionProvider"])


def _predictions(artifact: Path, requests: Sequence[Tensors]) -> tuple[Prediction, ...]:
    session = _session(artifact)
    names = [output.name for output in session.get_outputs()]
    return tuple(
        Prediction(inputs, dict(zip(names, session.run(names, dict(inputs)), strict=True))) for inputs in requests
    )


def _save(nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: Sequence[Any], path: Path) -> Any:
    import onnx
    from onnx import helper

    graph = helper.make_graph(nodes, "graph", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(model, path)
    return model


def _mlp_nodes(sizes: Sequence[int]) -> tuple[list[Any], list[Any], str]:
    from onnx import helper, numpy_helper

    random = np.random.default_rng(3)
    nodes, weights, last = [], [], "x"
    for layer, (rows, columns) in enumerate(itertools.pairwise(sizes)):
        matrix = (random.standard_normal((rows, columns)) / np.sqrt(rows)).astype(np.float32)
        weights.append(numpy_helper.from_array(matrix, f"w{layer}"))
        weights.append(numpy_helper.from_array(np.full(columns, 0.1, np.float32), f"b{layer}"))
        nodes.append(helper.make_node("Gemm", [last, f"w{layer}", f"b{layer}"], [f"gemm{layer}"]))
        nodes.append(helper.make_node("Relu", [f"gemm{layer}"], [f"relu{layer}"]))
        last = f"relu{layer}"
    return nodes, weights, last


def _mlp(sizes: Sequence[int]) -> Callable[[Path], Example]:
    def build(directory: Path) -> Example:
        from onnx import TensorProto, helper

        nodes, weights, last = _mlp_nodes(sizes)
        nodes.append(helper.make_node("ArgMax", [last], ["label"], axis=1, keepdims=0))
        artifact = directory / "mlp.onnx"
        _save(
            nodes,
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", sizes[0]])],
            [
                helper.make_tensor_value_info(last, TensorProto.FLOAT, ["N", sizes[-1]]),
                helper.make_tensor_value_info("label", TensorProto.INT64, ["N"]),
            ],
            weights,
            artifact,
        )
        random = np.random.default_rng(4)
        requests = [{"x": random.standard_normal((rows, sizes[0])).astype(np.float32)} for rows in (5, 1, 64)]
        return Example(artifact, _predictions(artifact, requests))

    return build


def _mlp_with_external_data(directory: Path) -> Example:
    import onnx

    inline = directory / "inline"
    inline.mkdir()
    example = _mlp([64, 700, 700, 8])(inline)
    artifact = directory / "model"
    artifact.mkdir()
    onnx.save_model(
        onnx.load(example.artifact),
        artifact / "network.onnx",
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location="network.weights",
        size_threshold=1024,
    )
    return Example(artifact, example.predictions)


def _embedding(directory: Path) -> Example:
    """INT64 in; an index beyond the table is a value that onnxruntime refuses."""
    from onnx import TensorProto, helper, numpy_helper

    table = np.random.default_rng(5).standard_normal((10, 4)).astype(np.float32)
    artifact = directory / "embedding.onnx"
    _save(
        [helper.make_node("Gather", ["table", "ids"], ["vectors"], axis=0)],
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["N"])],
        [helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(table, "table")],
        artifact,
    )
    ids = np.array([0, 9, 3, -1], np.int64)
    return Example(artifact, _predictions(artifact, [{"ids": ids}]), refused=({"ids": np.array([10, 0, 0])},))


def _strings(directory: Path) -> Example:
    """BYTES in and out, beside a number."""
    from onnx import TensorProto, helper, numpy_helper

    artifact = directory / "strings.onnx"
    _save(
        [
            helper.make_node("Identity", ["text"], ["same"]),
            helper.make_node(
                "LabelEncoder",
                ["text"],
                ["code"],
                domain="ai.onnx.ml",
                keys_strings=["a", "ü"],
                values_int64s=[1, 2],
                default_int64=-1,
            ),
        ],
        [helper.make_tensor_value_info("text", TensorProto.STRING, ["N", 2])],
        [
            helper.make_tensor_value_info("same", TensorProto.STRING, ["N", 2]),
            helper.make_tensor_value_info("code", TensorProto.INT64, ["N", 2]),
        ],
        [numpy_helper.from_array(np.zeros(1, np.float32), "unused")],
        artifact,
    )
    import onnx

    model = onnx.load(artifact)
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    onnx.save(model, artifact)

    texts = [["a", "ü"], ["", "long " * 50], ["b", "a\0b"]]
    session = _session(artifact)
    same, code = session.run(["same", "code"], {"text": np.array(texts, np.object_)})
    as_bytes = np.array([[text.encode() for text in row] for row in texts], np.object_)
    assert same.tolist() == texts
    return Example(
        artifact,
        (Prediction({"text": as_bytes}, {"same": as_bytes, "code": code}),),
        refused=({"text": np.array([[b"\xff\xfe", b"a"]], np.object_)},),
    )


def _bfloat16(directory: Path) -> Example:
    import ml_dtypes
    from onnx import TensorProto, helper

    artifact = directory / "bfloat16.onnx"
    _save(
        [
            helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["wide", "shift"], ["sum"]),
            helper.make_node("Cast", ["sum"], ["y"], to=TensorProto.BFLOAT16),
        ],
        [
            helper.make_tensor_value_info("x", TensorProto.BFLOAT16, ["N", 2]),
            helper.make_tensor_value_info("shift", TensorProto.FLOAT, ["N", 2]),
        ],
        [
            helper.make_tensor_value_info("y", TensorProto.BFLOAT16, ["N", 2]),
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["N", 2]),
        ],
        [],
        artifact,
    )
    x = np.array([[1, 2.5], [-3, 0], [7, 0.125]], ml_dtypes.bfloat16)
    shift = np.array([[1, 1], [2, 2], [0.5, 0]], np.float32)
    total = x.astype(np.float32) + shift
    return Example(
        artifact, (Prediction({"x": x, "shift": shift}, {"sum": total, "y": total.astype(ml_dtypes.bfloat16)}),)
    )


def _fixed_batch(directory: Path) -> Example:
    """No batch dimension; booleans, doubles, FP16 and a scalar."""
    from onnx import TensorProto, helper

    artifact = directory / "fixed.onnx"
    _save(
        [
            helper.make_node("Where", ["mask", "a", "zero"], ["chosen"]),
            helper.make_node("Cast", ["chosen"], ["half"], to=TensorProto.FLOAT16),
            helper.make_node("Not", ["mask"], ["rest"]),
        ],
        [
            helper.make_tensor_value_info("mask", TensorProto.BOOL, [2, 3]),
            helper.make_tensor_value_info("a", TensorProto.DOUBLE, [2, 3]),
            helper.make_tensor_value_info("zero", TensorProto.DOUBLE, []),
        ],
        [
            helper.make_tensor_value_info("half", TensorProto.FLOAT16, [2, 3]),
            helper.make_tensor_value_info("rest", TensorProto.BOOL, [2, 3]),
        ],
        [],
        artifact,
    )
    inputs = {
        "mask": np.array([[True, False, True], [False, False, True]]),
        "a": np.arange(6, dtype=np.float64).reshape(2, 3),
        "zero": np.array(-1.5),
    }
    return Example(artifact, _predictions(artifact, [inputs]))


def _forest(directory: Path) -> Example:
    from skl2onnx import to_onnx
    from sklearn.datasets import load_iris
    from sklearn.ensemble import RandomForestClassifier

    features, labels = load_iris(return_X_y=True)
    features = features.astype(np.float32)
    forest = RandomForestClassifier(n_estimators=20, random_state=0).fit(features, labels)
    artifact = directory / "forest.onnx"
    artifact.write_bytes(to_onnx(forest, features[:1], options={"zipmap": False}).SerializeToString())
    return Example(artifact, _predictions(artifact, [{"X": features[::10]}, {"X": features[:1]}]))


_MODULES = ("onnxruntime",)

CASES = [
    AdapterCase("onnx-tiny-mlp", "onnx", _mlp([4, 8, 3]), modules=_MODULES, cuda=True),
    # Larger than the threshold, so prepared with mapped weights, which run unpacked: sums add in another order.
    AdapterCase(
        "onnx-mapped-mlp", "onnx", _mlp([64, 700, 700, 8]), modules=_MODULES, prepared_tolerance=1e-5, cuda=True
    ),
    AdapterCase(
        "onnx-external-data",
        "onnx",
        _mlp_with_external_data,
        modules=_MODULES,
        main_file="network.onnx",
        tolerance=1e-5,  # mapped as well, before any preparation
        prepared_tolerance=1e-5,
        cuda=True,
    ),
    AdapterCase("onnx-embedding", "onnx", _embedding, modules=_MODULES, cuda=True),
    AdapterCase("onnx-strings", "onnx", _strings, modules=_MODULES),
    AdapterCase("onnx-bfloat16", "onnx", _bfloat16, modules=_MODULES),
    AdapterCase("onnx-fixed-batch", "onnx", _fixed_batch, modules=_MODULES),
    AdapterCase("onnx-forest", "onnx", _forest, modules=_MODULES),
]
