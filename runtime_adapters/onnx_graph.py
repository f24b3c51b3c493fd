"""What an ONNX file holds, read from its outline: sizes, and which other files it points to.

Two questions come before a model may reach the runtime, and neither needs the weights: how large will it be, and
does it name files outside its own directory (external data is a path that the author of the file chose). The
`onnx` package answers both, but importing it costs 40 MB of RAM in every pod and parsing copies every weight.
Protobuf lets one skip a field by its length, so this walk maps the file and touches the outline only.

The walk visits every place where the format allows a tensor: initialisers, sparse ones, attributes, subgraphs,
functions, training graphs. A path that it misses would be a hole, so unknown *fields* are skipped but unknown *wire
types*, lengths beyond their parent and endless outlines are refused.

Deliberately absent: writing, and validation of the graph. onnxruntime does that, except for tree ensembles, whose
numbers it follows without a look: `onnx_tree_bounds` looks first.

Source of the field numbers: onnx.proto of the ONNX project, IR version 13.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path

from runtime_adapters.errors import BadArtifact
from runtime_adapters.onnx_fields import (
    ATTRIBUTE_RUN,
    BYTES,
    FLOATS_TAG,
    NAME_TAG,
    STRINGS_TAG,
    VARINT,
    Buffer,
    Malformed,
    skip,
    varint,
)
from runtime_adapters.onnx_tree_bounds import TREE_OPERATORS, check_tree_operator
from runtime_adapters.onnx_tree_lists import UnsafeTrees

_FIELDS_MAX = 3_000_000
"""A few seconds of walking. The largest graphs of practice have some 100,000 fields; more is an attack."""

_MODEL_FIELDS = {
    1: VARINT,  # ir_version
    2: BYTES,  # producer_name
    3: BYTES,  # producer_version
    4: BYTES,  # domain
    5: VARINT,  # model_version
    6: BYTES,  # doc_string
    7: BYTES,  # graph
    8: BYTES,  # opset_import
    14: BYTES,  # metadata_props
    20: BYTES,  # training_info
    25: BYTES,  # functions
    26: BYTES,  # configuration
}
_IR_VERSION, _GRAPH, _OPSET_IMPORT = 1, 7, 8

# message -> field number -> the message that lies there, for all that may hold a tensor at any depth
CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "function": {7: "node", 11: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}

_OPERATOR_TAG = 4 << 3 | BYTES  # NodeProto.op_type

_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_STRINGS, TENSOR_EXTERNAL = 1, 2, 6, 13

# TensorProto.DataType -> bits per element; strings (8) are counted by their own length
_BITS_OF_TYPE = {
    **dict.fromkeys((1, 6, 12), 32),
    **dict.fromkeys((2, 3, 9, 17, 18, 19, 20, 24), 8),
    **dict.fromkeys((4, 5, 10, 16), 16),
    **dict.fromkeys((7, 11, 13, 14), 64),
    15: 128,
    **dict.fromkeys((21, 22, 23), 4),
    **dict.fromkeys((25, 26), 2),
}

# Tree ensembles keep each node as elements of attributes: lists in the first operators, tensors as well in the later
# ones (`TreeEnsemble` of opset 5, whose leaves are no nodes). They are the kernel's to copy, not weights to be mapped.
_NODE_LIST, _WEIGHT_LISTS = b"nodes_modes", (b"target_weights", b"class_weights")
_NODES, _LEAVES, _LEAF_WEIGHTS, _REST_OF_TREES = "tree nodes", "tree leaves", "leaf weights", "rest of trees"
_TREE_TENSORS = {
    b"nodes_modes": _NODES,
    b"leaf_weights": _LEAVES,
    b"target_weights_as_tensor": _LEAF_WEIGHTS,
    b"class_weights_as_tensor": _LEAF_WEIGHTS,
    b"nodes_splits": _REST_OF_TREES,
    b"nodes_hitrates": _REST_OF_TREES,
    b"nodes_values_as_tensor": _REST_OF_TREES,
    b"nodes_hitrates_as_tensor": _REST_OF_TREES,
}
_TENSORS = frozenset(("tensor", *_TREE_TENSORS.values()))


@dataclass(frozen=True, slots=True)
class GraphOutline:
    """Sizes and references of one ONNX file."""

    nodes: int
    """Operators, those of subgraphs included."""
    tensors: int
    """Weights, counted."""
    tree_nodes: int
    """Branches and leaves of tree ensembles."""
    leaf_weights: int
    """What their leaves hold: a number for each leaf and each output that it adds to."""
    file_bytes: int
    inline_bytes: int
    """Weights inside the file, as large as they are in RAM."""
    external_bytes: int
    """Weights in other files."""
    external_locations: frozenset[str]
    """The paths that external data names, as written in the file. Untrusted."""

    @property
    def graph_bytes(self) -> int:
        """The file without its weights: names, operators, and what tree ensembles keep in attributes."""
        return max(0, self.file_bytes - self.inline_bytes)


def is_onnx_file(path: Path) -> bool:
    """Is this a whole ModelProto, judged by its top level? Reads a handful of bytes."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            seen: set[int] = set()
            position, end = 0, len(content)
            while position < end:
                tag, position = varint(content, position, end)
                field, wire = tag >> 3, tag & 7
                if _MODEL_FIELDS.get(field) != wire:
                    return False
                seen.add(field)
                position = skip(content, position, end, wire)
            return {_IR_VERSION, _GRAPH, _OPSET_IMPORT} <= seen
    except (OSError, ValueError, Malformed):  # ValueError: an empty file cannot be mapped
        return False


def outline_of_file(path: Path) -> GraphOutline:
    """Walk the file. Raises BadArtifact where it is no protobuf of this shape."""
    try:
        with path.open("rb") as file:
            try:
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError:
                raise BadArtifact(f"{path.name}: the file is empty; upload the model again") from None
            with content:
                return _outline(content)
    except UnsafeTrees as error:
        raise BadArtifact(f"{path.name}: {error}; correct the model and upload it") from None
    except Malformed as error:
        raise BadArtifact(f"{path.name}: not a readable ONNX file ({error}); it may be cut short or no ONNX") from None
    except OSError as error:
        raise BadArtifact(f"{path.name}: cannot be read ({error.strerror}); check the URI") from error


def inputs_without_rank(path: Path) -> frozenset[str]:
    """Names of graph inputs that declare a type but no shape, not even how many dimensions there are."""
    names: set[str] = set()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for graph in _inside(content, (0, len(content)), _GRAPH):
            for value in _inside(content, graph, 11):  # GraphProto.input
                name = b"".join(content[begin:end] for begin, end in _inside(content, value, 1))
                tensors = [t for kind in _inside(content, value, 2) for t in _inside(content, kind, 1)]
                if not any(_inside(content, tensor, 2) for tensor in tensors):  # TypeProto.Tensor.shape
                    names.add(name.decode(errors="replace"))
    return frozenset(names)


def _outline(content: Buffer) -> GraphOutline:
    """The walk itself, over one serialised ModelProto."""
    nodes = tensors = tree_nodes = leaf_weights = fields = inline_bytes = external_bytes = 0
    locations: set[str] = set()
    tree_operators: list[tuple[int, int]] = []
    runs: dict[int, int] = {}
    pending: list[tuple[str, int, int]] = [("model", 0, len(content))]
    while pending:
        message, position, end = pending.pop()
        if message in _TENSORS:
            tensor = _tensor(content, position, end)
            tensors += message == "tensor"
            fields += tensor.fields
            if tensor.locations:
                locations |= tensor.locations
                external_bytes += tensor.data_bytes
            elif message == "tensor":
                inline_bytes += tensor.data_bytes
            tree_nodes += tensor.elements if message in (_NODES, _LEAVES) else 0
            leaf_weights += tensor.elements if message in (_LEAVES, _LEAF_WEIGHTS) else 0
            continue
        if message == "node":
            nodes += 1
        name = _name(content, position, end) if message == "attribute" else b""
        begin_of_message, operator = position, b""
        children = CHILDREN[message]
        while position < end:
            if message == "attribute" and (run := ATTRIBUTE_RUN.match(content, position, end)):
                if content[position] == FLOATS_TAG and name in _WEIGHT_LISTS:
                    leaf_weights += (run.end() - position) // 5
                elif content[position] == STRINGS_TAG and name == _NODE_LIST:
                    tree_nodes += run.group().count(STRINGS_TAG)
                fields += 1
                runs[position] = run.end()
                position = run.end()
                continue
            fields += 1
            tag, position = varint(content, position, end)
            wire = tag & 7
            after = skip(content, position, end, wire)
            if message == "node" and tag == _OPERATOR_TAG:
                operator = content[varint(content, position, end)[1] : after]
            if wire == BYTES and (child := children.get(tag >> 3)):
                _, begin = varint(content, position, end)
                pending.append((_TREE_TENSORS.get(name, child) if child == "tensor" else child, begin, after))
            position = after
        if operator in TREE_OPERATORS:
            tree_operators.append((begin_of_message, end))
        if fields > _FIELDS_MAX:
            raise Malformed(f"more than {_FIELDS_MAX:,} fields")
    for begin, end in tree_operators:
        check_tree_operator(content, begin, end, runs)
    return GraphOutline(
        nodes=nodes,
        tensors=tensors,
        tree_nodes=tree_nodes,
        leaf_weights=leaf_weights,
        file_bytes=len(content),
        inline_bytes=min(inline_bytes, len(content)),
        external_bytes=external_bytes,
        external_locations=frozenset(locations),
    )


@dataclass(frozen=True, slots=True)
class _Tensor:
    elements: int
    data_bytes: int
    locations: frozenset[str]
    fields: int


def _tensor(content: Buffer, position: int, end: int) -> _Tensor:
    elements, bits, string_bytes, fields = 1, 0, 0, 0
    locations: set[str] = set()
    while position < end:
        fields += 1
        tag, position = varint(content, position, end)
        field, wire = tag >> 3, tag & 7
        after = skip(content, position, end, wire)
        if field == _TENSOR_DIMS and wire == VARINT:
            elements *= varint(content, position, end)[0]
        elif field == _TENSOR_DIMS and wire == BYTES:
            _, begin = varint(content, position, end)
            while begin < after:
                size, begin = varint(content, begin, after)
                elements *= size
        elif field == _TENSOR_TYPE and wire == VARINT:
            bits = _BITS_OF_TYPE.get(varint(content, position, end)[0], 0)
        elif field == _TENSOR_STRINGS and wire == BYTES:
            string_bytes += after - position
        elif field == TENSOR_EXTERNAL and wire == BYTES:
            _, begin = varint(content, position, end)
            locations |= _location(content, begin, after)
        position = after
    return _Tensor(elements, elements * bits // 8 + string_bytes, frozenset(locations), fields)


def _name(content: Buffer, position: int, end: int) -> bytes:
    """An attribute's name, which every writer puts first; empty where it does not come first."""
    tag, position = varint(content, position, end) if position < end else (0, position)
    if tag != NAME_TAG:
        return b""
    after = skip(content, position, end, BYTES)
    return content[varint(content, position, end)[1] : after]


def _location(content: Buffer, position: int, end: int) -> set[str]:
    """The value of a StringStringEntry whose key is `location`; all of them, where a hostile file repeats a field."""
    keys: set[bytes] = set()
    values: set[bytes] = set()
    while position < end:
        tag, position = varint(content, position, end)
        after = skip(content, position, end, tag & 7)
        if tag & 7 == BYTES and tag >> 3 in (1, 2):
            _, begin = varint(content, position, end)
            (keys if tag >> 3 == 1 else values).add(content[begin:after])
        position = after
    if b"location" not in keys:
        return set()
    return {value.decode(errors="surrogateescape") for value in values or {b""}}


def _inside(content: Buffer, message: tuple[int, int], field: int) -> list[tuple[int, int]]:
    """Where the messages or strings of one field of a message lie."""
    position, end = message
    found = []
    while position < end:
        tag, position = varint(content, position, end)
        after = skip(content, position, end, tag & 7)
        if tag >> 3 == field and tag & 7 == BYTES:
            found.append((varint(content, position, end)[1], after))
        position = after
    return found
