"""What is written is the ONNX that was meant: `onnx` reads it, onnxruntime walks it, our outline counts it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime_adapters import onnx_trees
from runtime_adapters.onnx_graph import is_onnx_file, outline_of_file
from runtime_adapters.onnx_trees import INPUT_NAME, OUTPUT_NAME, Trees, write_trees

NAN, INFINITY = np.float32(np.nan), np.float32(np.inf)


def trees(*described: Any) -> Trees:
    """From (output, tree); a tree is a number, or (feature, threshold, missing goes left, left tree, right tree)."""
    columns: dict[str, list[Any]] = {name: [] for name in ("left", "right", "feature", "value", "missing_left")}
    starts, outputs = [], []

    def add(tree: Any) -> int:
        at = len(columns["left"])
        leaf = not isinstance(tree, tuple)
        feature, threshold, missing_left = (0, tree, False) if leaf else tree[:3]
        for name, value in zip(columns, (-1, -1, feature, threshold, missing_left), strict=True):
            columns[name].append(value)
        if not leaf:
            columns["left"][at] = add(tree[3])
            columns["right"][at] = add(tree[4])
        return at

    for output, tree in described:
        starts.append(add(tree))
        outputs.append(output)
    kinds = {"left": np.int64, "right": np.int64, "feature": np.int64, "value": np.float32, "missing_left": bool}
    arrays = {name: np.array(values, kinds[name]) for name, values in columns.items()}
    return Trees(starts=np.array(starts), outputs=np.array(outputs), **arrays)


STUMP = (1, 0.5, True, -1.0, (0, 2.0, False, 10.0, 20.0))


def answers(ensemble: Trees, features: int, outputs: int, rows: Any) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(write_trees(ensemble, features, outputs), providers=["CPUExecutionProvider"])
    return session.run([OUTPUT_NAME], {INPUT_NAME: np.array(rows, np.float32)})[0]


def test_a_row_on_the_threshold_goes_right_and_a_missing_value_where_the_node_says() -> None:
    rows = [[2.0, 0.5], [1.9, 0.5], [9.0, 0.4], [9.0, NAN], [NAN, 9.0], [-INFINITY, INFINITY]]
    found = answers(trees((0, STUMP)), 2, 1, rows)
    assert found[:, 0].tolist() == [20.0, 10.0, -1.0, -1.0, 20.0, 10.0]


def test_each_tree_adds_to_its_own_output_and_a_single_leaf_is_a_tree() -> None:
    found = answers(trees((1, 0.5), (0, STUMP), (1, 7.0)), 2, 3, [[0.0, 0.0]])
    assert found.tolist() == [[-1.0, 7.5, 0.0]]


def test_trees_are_added_in_their_order() -> None:
    # In float32 the one is lost beside 2**25 and counts where the large numbers have left.
    assert answers(trees((0, 2.0**25), (0, 1.0), (0, -(2.0**25))), 1, 1, [[0.0]]) == [[0.0]]
    assert answers(trees((0, 2.0**25), (0, -(2.0**25)), (0, 1.0)), 1, 1, [[0.0]]) == [[1.0]]


def test_many_nodes_are_spread_over_operators_and_add_up_to_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnx

    ensemble = trees((0, 0.25), *((0, STUMP) for _ in range(9)))
    rows = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    whole = answers(ensemble, 2, 1, rows)
    monkeypatch.setattr(onnx_trees, "NODES_PER_OPERATOR", 12)
    graph = onnx.load_from_string(write_trees(ensemble, 2, 1)).graph
    assert [node.op_type for node in graph.node] == ["TreeEnsemble"] * 5 + ["Sum"]
    assert np.array_equal(answers(ensemble, 2, 1, rows), whole)


def test_the_file_is_valid_onnx_and_its_outline_counts_its_nodes(tmp_path: Path) -> None:
    import onnx

    ensemble = trees((0, STUMP), (0, STUMP))
    content = write_trees(ensemble, 300, 1)
    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
    (tmp_path / "trees.onnx").write_bytes(content)
    assert is_onnx_file(tmp_path / "trees.onnx")
    outline = outline_of_file(tmp_path / "trees.onnx")
    assert (outline.tree_nodes, outline.leaf_weights) == (10, 6)
    assert (outline.nodes, outline.tensors, outline.inline_bytes) == (1, 0, 0)


@pytest.mark.parametrize("value", [0, 1, 127, 128, 16_383, 16_384, 2**31, 2**40])
def test_numbers_of_any_length_are_read_back(value: int) -> None:
    import onnx

    ensemble = trees((0, (value, 0.0, False, 1.0, 2.0)))
    (node,) = onnx.load_from_string(write_trees(ensemble, 2**40 + 1, 1)).graph.node
    (features,) = (attribute for attribute in node.attribute if attribute.name == "nodes_featureids")
    assert list(features.ints) == [value]
