"""An ensemble of regression trees, written as an ONNX file.

Trees come flat: one array per property, one entry per node, the trees one after another. What is written is ONNX's
`TreeEnsemble` (ai.onnx.ml opset 5): a row walks each tree by `x[feature] < threshold`, a missing value (NaN) goes where
the node says, and what the reached leaves hold is added up per output, in float32.

**The order of the sum.** onnxruntime adds the trees of one operator in their order, on one thread, so a sum that began
with a constant is written as a first tree of one leaf. Float32 sums then come out as those of a framework that adds in
the same order.

**Several operators.** onnxruntime builds each operator through hash tables, at 330 bytes per node, and takes longer
per node the more there are. So no operator gets more than `NODES_PER_OPERATOR` nodes; their results are added. For
360,000 nodes that halves the load (75 ms in place of 165) and the memory at its highest (54 MB in place of 120), for
3 µs more per operator and run. It changes how the sum is rounded.

onnxruntime before 1.24 mixes up the leaves of such operators (1.22.1 and 1.23.2 add up wrongly from two trees on), so
whoever writes trees has to try what comes out.

The bytes are written here, not by the `onnx` package: importing that costs every pod 40 MB, and its lists of Python
numbers cost 100 ms for 10,000 nodes.

Deliberately absent: other comparisons, set membership, transformations of the sum.

Source of the field numbers: onnx.proto of the ONNX project, IR version 10.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from runtime_adapters.base import Array

INPUT_NAME, OUTPUT_NAME = "rows", "sums"
NODES_PER_OPERATOR = 50_000

_IR_VERSION, _OPSET, _ML_OPSET = 10, 17, 5
_ML_DOMAIN = "ai.onnx.ml"
_SUM, _NO_TRANSFORMATION, _BRANCH_LT = 1, 0, 1  # enumerations of the operator
_FLOAT, _UINT8 = 1, 2  # TensorProto.DataType
_INT_ATTRIBUTE, _TENSOR_ATTRIBUTE, _INTS_ATTRIBUTE = 2, 4, 7  # AttributeProto.AttributeType


@dataclass(frozen=True, slots=True)
class Trees:
    """Trees of one ensemble, in the order in which their leaves are added. Indices count the nodes of all trees."""

    starts: Array
    """int64, one per tree: its root, which is the first of its nodes."""
    outputs: Array
    """int64, one per tree: the output that its leaves add to."""
    left: Array
    """int64, one per node: where a row goes if its value is below the threshold; -1 for a leaf."""
    right: Array
    feature: Array
    """int64; any for a leaf."""
    value: Array
    """float32: a branch's threshold, or what a leaf adds."""
    missing_left: Array
    """bool: a missing value goes left."""

    @property
    def nodes(self) -> int:
        return len(self.left)

    @property
    def node_counts(self) -> Array:
        """Nodes of each tree."""
        return np.diff(self.starts, append=self.nodes)


def write_trees(trees: Trees, features: int, outputs: int) -> bytes:
    """The ONNX file: `rows` FP32 [-1, features] to `sums` FP32 [-1, outputs]."""
    operators = list(_operators(_rooted_in_branches(trees)))
    names = [OUTPUT_NAME] if len(operators) == 1 else [f"sums{number}" for number in range(len(operators))]
    nodes = [
        _node("TreeEnsemble", [INPUT_NAME], name, _ML_DOMAIN, _attributes(some, outputs))
        for some, name in zip(operators, names, strict=True)
    ]
    if len(operators) > 1:
        nodes.append(_node("Sum", names, OUTPUT_NAME, "", b""))
    graph = b"".join(_message(1, node) for node in nodes) + _text(2, "trees")
    graph += _message(11, _tensor_type(INPUT_NAME, features)) + _message(12, _tensor_type(OUTPUT_NAME, outputs))
    opsets = _message(8, _text(1, "") + _number(2, _OPSET)) + _message(8, _text(1, _ML_DOMAIN) + _number(2, _ML_OPSET))
    return _number(1, _IR_VERSION) + opsets + _message(7, graph)


def _operators(trees: Trees) -> Iterator[Trees]:
    """Runs of whole trees, each within the limit or one tree long."""
    ends = trees.starts + trees.node_counts
    first = 0
    while first < len(trees.starts):
        begin = int(trees.starts[first])
        after = max(first + 1, int(np.searchsorted(ends, begin + NODES_PER_OPERATOR, side="right")))
        nodes = slice(begin, int(ends[after - 1]))
        yield Trees(
            starts=trees.starts[first:after] - begin,
            outputs=trees.outputs[first:after],
            left=np.where(trees.left[nodes] < 0, -1, trees.left[nodes] - begin),
            right=np.where(trees.left[nodes] < 0, -1, trees.right[nodes] - begin),
            feature=trees.feature[nodes],
            value=trees.value[nodes],
            missing_left=trees.missing_left[nodes],
        )
        first = after


def _rooted_in_branches(trees: Trees) -> Trees:
    """The operator has no tree of a single leaf: such a tree becomes a branch with that leaf on either side."""
    is_leaf = trees.left < 0
    alone = np.zeros(trees.nodes, bool)
    alone[trees.starts] = is_leaf[trees.starts]
    copies = np.where(alone, 3, 1)
    place = np.cumsum(copies) - copies
    spread = Trees(
        starts=place[trees.starts],
        outputs=trees.outputs,
        left=np.repeat(np.where(is_leaf, -1, place[trees.left]), copies),
        right=np.repeat(np.where(is_leaf, -1, place[trees.right]), copies),
        feature=np.repeat(trees.feature, copies),
        value=np.repeat(trees.value, copies),
        missing_left=np.repeat(trees.missing_left, copies),
    )
    roots = place[alone]
    spread.left[roots], spread.right[roots] = roots + 1, roots + 2
    return spread


def _attributes(trees: Trees, outputs: int) -> bytes:
    """Branches and leaves are numbered apart."""
    is_leaf = trees.left < 0
    branches = np.flatnonzero(~is_leaf)
    number = np.where(is_leaf, np.cumsum(is_leaf), np.cumsum(~is_leaf)) - 1
    left, right = trees.left[branches], trees.right[branches]
    return b"".join(
        (
            _int_attribute("aggregate_function", _SUM),
            _int_attribute("post_transform", _NO_TRANSFORMATION),
            _int_attribute("n_targets", outputs),
            _ints_attribute("tree_roots", number[trees.starts]),
            _tensor_attribute("nodes_modes", np.full(len(branches), _BRANCH_LT, np.uint8)),
            _ints_attribute("nodes_featureids", trees.feature[branches]),
            _tensor_attribute("nodes_splits", trees.value[branches].astype("<f4")),
            _ints_attribute("nodes_missing_value_tracks_true", trees.missing_left[branches]),
            _ints_attribute("nodes_truenodeids", number[left]),
            _ints_attribute("nodes_trueleafs", is_leaf[left]),
            _ints_attribute("nodes_falsenodeids", number[right]),
            _ints_attribute("nodes_falseleafs", is_leaf[right]),
            _ints_attribute("leaf_targetids", np.repeat(trees.outputs, trees.node_counts)[is_leaf]),
            _tensor_attribute("leaf_weights", trees.value[is_leaf].astype("<f4")),
        )
    )


# --- protobuf ---------------------------------------------------------------------------------------------------------


def _node(operator: str, inputs: list[str], output: str, domain: str, attributes: bytes) -> bytes:
    """NodeProto."""
    return (
        b"".join(_text(1, name) for name in inputs)
        + _text(2, output)
        + _text(4, operator)
        + attributes
        + _text(7, domain)
    )


def _tensor_type(name: str, columns: int) -> bytes:
    """ValueInfoProto of FP32 [N, columns]."""
    shape = _message(1, _text(2, "N")) + _message(1, _number(1, columns))
    return _text(1, name) + _message(2, _message(1, _number(1, _FLOAT) + _message(2, shape)))


def _int_attribute(name: str, value: int) -> bytes:
    return _message(5, _text(1, name) + _number(3, value) + _number(20, _INT_ATTRIBUTE))


def _ints_attribute(name: str, values: Array) -> bytes:
    return _message(5, _text(1, name) + _message(8, _varints(values)) + _number(20, _INTS_ATTRIBUTE))


def _tensor_attribute(name: str, values: Array) -> bytes:
    kind = _UINT8 if values.dtype == np.uint8 else _FLOAT
    tensor = _number(1, len(values)) + _number(2, kind) + _text(8, name) + _message(9, values.tobytes())
    return _message(5, _text(1, name) + _message(5, tensor) + _number(20, _TENSOR_ATTRIBUTE))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _text(field: int, text: str) -> bytes:
    return _message(field, text.encode())


def _message(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    return _varints(np.array([value], np.int64))


def _varints(values: Array) -> bytes:
    """Seven bits per byte, the lowest first, the eighth bit on all but the last. Not negative."""
    rest = values.astype(np.uint64)
    length = max(1, (int(rest.max(initial=0)).bit_length() + 6) // 7)
    groups = rest[:, None] >> np.arange(0, 7 * length, 7, dtype=np.uint64)
    written = (groups != 0) | (np.arange(length) == 0)
    more = np.concatenate((written[:, 1:], np.zeros((len(rest), 1), bool)), axis=1)
    octets = (groups & 0x7F) | (more.astype(np.uint64) << np.uint64(7))
    encoded: bytes = octets.astype(np.uint8)[written].tobytes()
    return encoded
