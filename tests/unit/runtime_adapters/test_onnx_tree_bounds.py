"""Trees that onnxruntime would follow into a crash are refused by name; trees that exporters write are not.

What might crash runs in a process of its own.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtime_adapters.base import LoadOptions
from runtime_adapters.errors import BadArtifact
from runtime_adapters.onnx_graph import outline_of_file
from runtime_adapters.onnx_runtime import ADAPTER
from runtime_adapters.onnx_tree_bounds import LEVELS_MAX

FLOATS = {"nodes_splits", "leaf_weights", "membership_values", "nodes_hitrates", "target_weights_as_tensor"}
NAN = float("nan")


def older_node(**changes: Any) -> Any:
    """A tree of two branches and three leaves, as ai.onnx.ml 1 to 4 write it. None leaves an attribute out."""
    attributes: dict[str, Any] = {
        "nodes_treeids": [0] * 5,
        "nodes_nodeids": [0, 1, 2, 3, 4],
        "nodes_featureids": [0, 1, -2, -2, -2],
        "nodes_modes": ["BRANCH_LEQ", "BRANCH_LEQ", "LEAF", "LEAF", "LEAF"],
        "nodes_values": [0.5, 0.5, 0.0, 0.0, 0.0],
        "nodes_truenodeids": [1, 2, 0, 0, 0],
        "nodes_falsenodeids": [4, 3, 0, 0, 0],
        "target_ids": [0] * 3,
        "target_treeids": [0] * 3,
        "target_nodeids": [2, 3, 4],
        "target_weights": [1.0, 2.0, 3.0],
        "n_targets": 1,
    }
    return _node("TreeEnsembleRegressor", attributes | changes)


def newer_node(**changes: Any) -> Any:
    """The same tree as ai.onnx.ml 5 writes it."""
    attributes: dict[str, Any] = {
        "aggregate_function": 1,
        "post_transform": 0,
        "n_targets": 1,
        "tree_roots": [0],
        "nodes_modes": [0, 0],
        "nodes_featureids": [0, 1],
        "nodes_splits": [0.5, 0.5],
        "nodes_truenodeids": [1, 0],
        "nodes_trueleafs": [0, 1],
        "nodes_falsenodeids": [2, 1],
        "nodes_falseleafs": [1, 1],
        "leaf_targetids": [0, 0, 0],
        "leaf_weights": [1.0, 2.0, 3.0],
    }
    return _node("TreeEnsemble", attributes | changes)


def _node(operator: str, attributes: dict[str, Any]) -> Any:
    for name, values in attributes.items():
        if name in FLOATS and values is not None:
            attributes[name] = numpy_helper.from_array(np.array(values, np.float32), name)
    if operator == "TreeEnsemble" and attributes["nodes_modes"] is not None:
        attributes["nodes_modes"] = numpy_helper.from_array(np.array(attributes["nodes_modes"], np.uint8), "modes")
    given = {name: values for name, values in attributes.items() if values is not None}
    return helper.make_node(operator, ["x"], ["y"], name="forest", domain="ai.onnx.ml", **given)


def older_chain(levels: int) -> Any:
    """A tree with a leaf at each level."""
    nodes = 2 * levels + 1
    branches = range(0, nodes - 1, 2)
    leaves = [*range(1, nodes, 2), nodes - 1]
    return older_node(
        nodes_treeids=[0] * nodes,
        nodes_nodeids=list(range(nodes)),
        nodes_featureids=[0] * nodes,
        nodes_modes=["BRANCH_LEQ", "LEAF"] * levels + ["LEAF"],
        nodes_values=[0.5] * nodes,
        nodes_truenodeids=[node + 1 if node in branches else 0 for node in range(nodes)],
        nodes_falsenodeids=[node + 2 if node in branches else 0 for node in range(nodes)],
        target_ids=[0] * len(leaves),
        target_treeids=[0] * len(leaves),
        target_nodeids=leaves,
        target_weights=[1.0] * len(leaves),
    )


def newer_chain(levels: int, **changes: Any) -> Any:
    attributes: dict[str, Any] = {
        "nodes_modes": [0] * levels,
        "nodes_featureids": [0] * levels,
        "nodes_splits": [0.5] * levels,
        "nodes_truenodeids": list(range(levels)),
        "nodes_trueleafs": [1] * levels,
        "nodes_falsenodeids": [*range(1, levels), levels],
        "nodes_falseleafs": [0] * (levels - 1) + [1],
        "leaf_targetids": [0] * (levels + 1),
        "leaf_weights": [1.0] * (levels + 1),
    }
    return newer_node(**(attributes | changes))


def save(path: Path, node: Any) -> Path:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", None])
    version = 5 if node.op_type == "TreeEnsemble" else 3
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", version)]
    model = helper.make_model(helper.make_graph([node], "graph", [x], [y]), opset_imports=opsets, ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


def returncode_of_a_load(path: Path) -> int:
    """What becomes of a process that gives the file to onnxruntime unseen."""
    program = (
        "import sys, onnxruntime as o\ns = o.SessionOptions(); s.intra_op_num_threads = 1; s.log_severity_level = 4\n"
        "o.InferenceSession(sys.argv[1], s, providers=['CPUExecutionProvider'])"
    )
    return subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, timeout=100).returncode


# --- depth ---


@pytest.mark.parametrize("chain", [older_chain, newer_chain])
def test_a_tree_that_would_end_the_process_is_refused_with_its_operator_and_depth(
    tmp_path: Path, chain: Callable[[int], Any]
) -> None:
    path = save(tmp_path / "deep.onnx", chain(50_000))
    for call in (
        lambda: ADAPTER.estimate(path, LoadOptions("m")),
        lambda: ADAPTER.prepare(path, tmp_path, LoadOptions("m")),
        lambda: ADAPTER.load(path, LoadOptions("m")),
    ):
        with pytest.raises(BadArtifact, match=r"deep\.onnx: TreeEnsemble\w* 'forest': .* deeper than 2,000 levels, at"):
            call()


@pytest.mark.parametrize("chain", [older_chain, newer_chain])
def test_the_deepest_tree_that_is_allowed_is_loaded_and_one_level_more_is_not(
    tmp_path: Path, chain: Callable[[int], Any]
) -> None:
    deepest = save(tmp_path / "deepest.onnx", chain(LEVELS_MAX))
    outline_of_file(deepest)
    assert returncode_of_a_load(deepest) == 0
    with pytest.raises(BadArtifact, match="deeper than"):
        outline_of_file(save(tmp_path / "deeper.onnx", chain(LEVELS_MAX + 1)))


def test_a_set_of_categories_counts_as_the_chain_that_becomes_of_it(tmp_path: Path) -> None:
    sets = [*(number + 0.5 for number in range(20)), NAN]

    def chain(levels: int) -> Any:
        return newer_chain(levels, nodes_modes=[6] * levels, membership_values=sets * levels)

    deepest = save(tmp_path / "deepest.onnx", chain(LEVELS_MAX // 20))
    outline_of_file(deepest)
    assert returncode_of_a_load(deepest) == 0
    with pytest.raises(BadArtifact, match="deeper than 100 levels"):
        outline_of_file(save(tmp_path / "deeper.onnx", chain(LEVELS_MAX // 20 + 1)))


def test_a_tree_inside_a_subgraph_is_looked_at(tmp_path: Path) -> None:
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", None])
    body = helper.make_graph([newer_node(nodes_truenodeids=[0, 0])], "body", [], [y])
    path = save(tmp_path / "m.onnx", helper.make_node("If", ["x"], ["y"], then_branch=body, else_branch=body))
    with pytest.raises(BadArtifact, match="two parents"):
        outline_of_file(path)


def test_subgraphs_in_subgraphs_crash_neither_our_walk_nor_onnxruntime(tmp_path: Path) -> None:
    graph = b""
    for _ in range(10_000):
        branch = _message(1, b"then_branch") + _message(6, graph) + b"\xa0\x01\x05"
        graph = _message(1, _message(1, b"c") + _message(4, b"If") + _message(5, branch))
    path = tmp_path / "nested.onnx"
    path.write_bytes(b"\x08\x0a" + _message(7, graph) + _message(8, b"\x0a\x00\x10\x11"))
    assert outline_of_file(path).nodes == 10_000
    assert returncode_of_a_load(path) == 1  # an exception, because protobuf counts levels as well


def _message(field: int, content: bytes) -> bytes:
    length, rest = b"", len(content)
    while rest > 127:
        length, rest = length + bytes([rest & 127 | 128]), rest >> 7
    return bytes([field << 3 | 2]) + length + bytes([rest]) + content


# --- numbers and lists ---


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"nodes_truenodeids": [1, 0, 0, 0, 0]}, "a tree has a cycle, around tree 0, node 0"),
        ({"nodes_truenodeids": [0, 2, 0, 0, 0]}, "cycle"),
        ({"nodes_truenodeids": [5, 2, 0, 0, 0]}, "leads to node 5, which tree 0 lacks"),
        ({"nodes_falsenodeids": [-1, 3, 0, 0, 0]}, "leads to node -1"),
        ({"nodes_truenodeids": [2**32 + 1, 2, 0, 0, 0]}, "leads to node 4294967297"),
        ({"nodes_nodeids": [0, 1, 2, 3, 3]}, "tree 0 has two nodes 3"),
        ({"nodes_treeids": [0, 0, 0, 0, 1]}, "which tree 0 lacks"),
        ({"nodes_treeids": [2**32] * 5}, "nodes_treeids holds"),
        ({"nodes_modes": ["LEAF"]}, "lists differ in length: 1 nodes_modes"),
        ({"nodes_values": [0.5]}, "1 nodes_values for 5"),
        ({"nodes_featureids": [-1, 1, 0, 0, 0]}, "nodes_featureids holds -1"),
        ({"nodes_featureids": [2**31, 1, 0, 0, 0]}, "nodes_featureids holds"),
        ({"target_weights": [1.0]}, "1 target_weights for 3 target_ids"),
        ({"target_weights": None, "target_weights_as_tensor": [1.0]}, "1 target_weights for 3 target_ids"),
        ({"target_weights_as_tensor": [1.0] * 3}, "both target_weights and target_weights_as_tensor"),
        ({"target_ids": [0, 0, 1]}, "target_ids holds 1"),
        ({"target_ids": [0, 0, -1]}, "target_ids holds -1"),
        ({"target_nodeids": [1]}, "1 target_nodeids for 3 target_ids"),
        ({"base_values": [1.0, 2.0]}, "2 base_values for 1 outputs"),
        ({"nodes_truenodeids": [1.0] * 5}, "'nodes_truenodeids' is of another type"),
    ],
)
def test_a_hostile_tree_of_the_older_operators_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BadArtifact, match=rf"TreeEnsembleRegressor 'forest': .*{said}"):
        outline_of_file(save(tmp_path / "m.onnx", older_node(**changes)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"nodes_trueleafs": [0, 0]}, "branch 0 has two parents"),
        ({"nodes_truenodeids": [0, 0]}, "branch 0 has two parents"),
        ({"nodes_falseleafs": [0, 1], "nodes_falsenodeids": [1, 1]}, "branch 1 has two parents"),
        ({"tree_roots": [0, 0]}, "two parents, or is a root with one"),
        ({"nodes_truenodeids": [2, 0]}, "nodes_truenodeids holds 2"),
        ({"nodes_truenodeids": [-1, 0]}, "nodes_truenodeids holds -1"),
        ({"nodes_falsenodeids": [3, 1]}, "nodes_falsenodeids holds 3"),
        ({"tree_roots": [2]}, "tree_roots holds 2"),
        ({"tree_roots": [-1]}, "tree_roots holds -1"),
        ({"nodes_modes": [0]}, "lists differ in length"),
        ({"nodes_falseleafs": None}, "lists differ in length"),
        ({"nodes_splits": [0.5]}, "1 nodes_splits for 2"),
        ({"nodes_hitrates": [0.5]}, "1 nodes_hitrates for 2"),
        ({"nodes_missing_value_tracks_true": [1]}, "1 nodes_missing_value_tracks_true for 2"),
        ({"nodes_modes": [7, 0]}, "nodes_modes holds 7"),
        ({"nodes_modes": [6, 0]}, "1 branches on sets need as many sets"),
        ({"nodes_modes": [6, 6], "membership_values": [1.0, NAN]}, "2 branches on sets"),
        ({"nodes_modes": [6, 0], "membership_values": [NAN]}, "none of them empty"),
        ({"leaf_weights": [1.0]}, "1 leaf_weights for 3"),
        ({"leaf_targetids": [0, 0, 1]}, "leaf_targetids holds 1"),
        ({"nodes_featureids": [-1, 1]}, "nodes_featureids holds -1"),
    ],
)
def test_a_hostile_tree_ensemble_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BadArtifact, match=rf"TreeEnsemble 'forest': .*{said}"):
        outline_of_file(save(tmp_path / "m.onnx", newer_node(**changes)))


def test_a_cycle_that_requests_would_walk_for_ever_is_refused(tmp_path: Path) -> None:
    # onnxruntime 1.31.1 loads this one, and the first request never returns.
    node = older_node(
        nodes_treeids=[0] * 3 + [1] * 4,
        nodes_nodeids=[0, 1, 2, 0, 1, 2, 3],
        nodes_featureids=[0] * 7,
        nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF", "BRANCH_LEQ", "BRANCH_LEQ", "LEAF", "LEAF"],
        nodes_values=[0.5] * 7,
        nodes_truenodeids=[1, 0, 0, 1, 0, 0, 0],
        nodes_falsenodeids=[2, 0, 0, 2, 3, 0, 0],
        target_ids=[0] * 4,
        target_treeids=[0, 0, 1, 1],
        target_nodeids=[1, 2, 2, 3],
        target_weights=[1.0] * 4,
    )
    with pytest.raises(BadArtifact, match="cycle, around tree 1, node 0"):
        outline_of_file(save(tmp_path / "m.onnx", node))


def test_an_unreachable_cycle_is_refused_too(tmp_path: Path) -> None:
    changes = {"nodes_trueleafs": [1, 0], "nodes_truenodeids": [0, 1]}
    with pytest.raises(BadArtifact, match="cycle, around branch 1"):
        outline_of_file(save(tmp_path / "m.onnx", newer_node(**changes)))


# --- two readings of one file ---


def test_an_attribute_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    node = older_node()
    node.attribute.append(helper.make_attribute("nodes_truenodeids", [0] * 5))
    with pytest.raises(BadArtifact, match="two attributes 'nodes_truenodeids'"):
        outline_of_file(save(tmp_path / "m.onnx", node))


def test_an_attribute_that_comes_from_a_function_s_caller_is_refused(tmp_path: Path) -> None:
    node = older_node(nodes_truenodeids=None)
    node.attribute.append(
        onnx.AttributeProto(name="nodes_truenodeids", ref_attr_name="any", type=onnx.AttributeProto.INTS)
    )
    with pytest.raises(BadArtifact, match="refers to one of a function"):
        outline_of_file(save(tmp_path / "m.onnx", node))


def test_a_tensor_that_claims_another_size_or_another_file_is_refused(tmp_path: Path) -> None:
    node = newer_node()
    (weights,) = (attribute.t for attribute in node.attribute if attribute.name == "leaf_weights")
    weights.dims[0] = 2
    with pytest.raises(BadArtifact, match="says that it has 2 elements, but holds 3"):
        outline_of_file(save(tmp_path / "m.onnx", node))
    weights.dims[0] = 3
    weights.external_data.add(key="location", value="weights.bin")
    with pytest.raises(BadArtifact, match="lies in another file"):
        outline_of_file(save(tmp_path / "m.onnx", node))


# --- what is no attack ---


@pytest.mark.parametrize(
    "node",
    [
        older_node(),
        older_node(
            nodes_nodeids=[4, 3, 2, 1, 0],
            nodes_modes=["LEAF", "LEAF", "LEAF", "BRANCH_LEQ", "BRANCH_LEQ"],
            nodes_featureids=[0] * 5,
            nodes_truenodeids=[0, 0, 0, 2, 1],
            nodes_falsenodeids=[0, 0, 0, 3, 4],
        ),
        # LightGBM's converter writes a set of categories as branches that share a child.
        older_node(nodes_modes=["BRANCH_EQ", "BRANCH_EQ", "LEAF", "LEAF", "LEAF"], nodes_falsenodeids=[2, 3, 0, 0, 0]),
        newer_node(),
        newer_node(nodes_modes=[6, 6], membership_values=[1.0, 2.0, NAN, 40.0]),
        newer_node(nodes_truenodeids=[1, 2]),
    ],
    ids=["older", "out of order", "shared in the older", "newer", "sets", "a leaf shared"],
)
def test_trees_that_are_unusual_but_sound_are_read(tmp_path: Path, node: Any) -> None:
    outline_of_file(save(tmp_path / "m.onnx", node))


def test_unpacked_and_packed_lists_read_alike(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", older_node(nodes_truenodeids=[1, 300, 0, 0, 0]))
    unpacked = b"\x40\x01\x40\xac\x02\x40\x00\x40\x00\x40\x00"
    packed = b"\x42\x06\x01\xac\x02\x00\x00\x00\x7a\x01\x00"  # and a field that nobody knows, to the same length
    content = path.read_bytes()
    assert unpacked in content
    for bytes_of_list in (unpacked, packed):
        path.write_bytes(content.replace(unpacked, bytes_of_list))
        with pytest.raises(BadArtifact, match="leads to node 300"):
            outline_of_file(path)
