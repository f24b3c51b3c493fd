"""What is inside an XGBoost model file, and is it safe to hand to XGBoost?

XGBoost follows the indices in a model file without looking: a child, parent, feature or tree number out of range
crashes the process in load or in the first predict (seen with 3.2: nine of nine such edits). One crash takes every
model of the pod along, so the file is understood here first and refused in a sentence.

What is checked, for all trees at once in NumPy: the arrays of a tree have its node count; each child names its parent
and each parent exactly its two children, and nobody has the root as a child, so that every walk from the root ends;
features are below `num_feature`; category segments lie inside their array; trees are numbered 0..n-1 once each, belong
to an output group that exists, and the rounds partition them.

JSON is never given to XGBoost's JSON reader (it recurses without a limit, takes 18 times the file in memory and ten
times as long as UBJ): Python reads it, and the checked document is written as UBJ.

Memory, measured with xgboost 3.2 as private dirty pages after a trim (150 trees of 4,159 nodes, and 100 of 92): 53
bytes per node (node 20, statistics 16, split type 1, category segment 16) and 320 bytes per tree. UBJ holds 34 bytes
per node, so a copy takes 1.52 times its UBJ file and 0.9 times its JSON: that is XGBoost's own layout.

Deliberately absent: `gblinear` (its predict is not thread-safe and needs a DMatrix) and vector leaves
(`multi_strategy="multi_output_tree"`: XGBoost calls them experimental and changes their layout between versions).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from runtime_adapters import ubjson
from runtime_adapters.base import Array
from runtime_adapters.errors import BadArtifact

NODE_BYTES = 53
TREE_BYTES = 320
LEARNER_BYTES = 24 << 10
"""A Booster without trees: configuration strings, objective, thread-local buffers."""
FEATURES_MAX = 1 << 24
CATEGORIES_MAX = 1 << 24
"""XGBoost holds categories as float32, exact up to here; each category segment becomes a bit set of this length."""

_I4, _I8, _F4, _U1 = np.dtype(">i4"), np.dtype(">i8"), np.dtype(">f4"), np.dtype("u1")
_PER_NODE: dict[str, np.dtype[Any]] = {
    "left_children": _I4,
    "right_children": _I4,
    "parents": _I4,
    "split_indices": _I4,
    "split_conditions": _F4,
    "default_left": _U1,
    "base_weights": _F4,
    "loss_changes": _F4,
    "sum_hessian": _F4,
    "split_type": _U1,
}
_PER_CATEGORY: dict[str, np.dtype[Any]] = {
    "categories": _I4,
    "categories_nodes": _I4,
    "categories_segments": _I8,
    "categories_sizes": _I8,
}
_TREE_ARRAYS = {**_PER_NODE, **_PER_CATEGORY}
_WHAT_NEXT = "save the model again with Booster.save_model"


@dataclass(frozen=True, slots=True)
class XgboostFacts:
    """What serving needs to know of a checked model."""

    booster: str
    """`gbtree` or `dart`."""
    objective: str
    features: int
    groups: int
    """Values per row before any label is made of them: classes, targets, or 1."""
    trees: int
    nodes: int
    category_bytes: int
    rounds_used: int
    """Boosting rounds that predict uses: up to the best one after early stopping, else 0 for all."""
    trees_used: int
    """Trees of those rounds."""
    estimator_type: str | None
    """`classifier`, `regressor` or `ranker` when a scikit-learn wrapper saved the file; None from a bare Booster."""
    handed_over_as_is: bool = False
    """XGBoost may read the file's own bytes; otherwise only the UBJ written from the checked document."""

    @property
    def resident_bytes(self) -> int:
        return LEARNER_BYTES + TREE_BYTES * self.trees + NODE_BYTES * self.nodes + self.category_bytes


@dataclass(frozen=True, slots=True)
class CheckedModel:
    """A model that passed, what is in it, and the UBJ that XGBoost may read."""

    facts: XgboostFacts
    document: dict[str, Any]
    ubj: bytes


def looks_like_xgboost(head: bytes) -> bool:
    """Does a file that begins with `head` hold an XGBoost model? UBJ by its first key, JSON by its first words."""
    if head.startswith(b"{L\0\0\0\0\0\0\0"):
        return head[9:17] in (b"\x07learner", b"\x07version")
    text = head.lstrip()
    return text.startswith(b"{") and (b'"learner"' in text[:64] or (b'"version"' in text[:64] and b'"learner"' in text))


def read_model(data: bytes) -> CheckedModel:
    """Read UBJ or JSON, whichever it is, and check it. Raises BadArtifact."""
    if not data:
        raise BadArtifact("xgboost: the artifact is empty; upload the model file again")
    if data.startswith(b"{L"):
        try:
            document = ubjson.read(data)
        except ubjson.UbjsonError as error:
            raise BadArtifact(f"xgboost: the UBJ file is damaged: {error}; {_WHAT_NEXT}") from error
        facts = check(document)
        if not _forget_recoding(document):
            return CheckedModel(replace(facts, handed_over_as_is=True), document, data)
        return CheckedModel(facts, document, ubjson.write(document))
    document = _read_json(data)
    facts = check(document)
    return CheckedModel(facts, document, ubjson.write(document))


def _read_json(data: bytes) -> dict[str, Any]:
    if not data.lstrip()[:1] == b"{":
        raise BadArtifact(f"xgboost: neither UBJ nor JSON, it begins with {data[:8]!r}; {_WHAT_NEXT} as .ubj or .json")
    try:
        document = json.loads(data, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise BadArtifact(f"xgboost: the JSON file is damaged: {error}; {_WHAT_NEXT}") from error
    with _as_bad_artifact():
        model = model_of(document)
        for tree in model["trees"]:
            for name, dtype in _TREE_ARRAYS.items():
                if name in tree:
                    tree[name] = _typed(name, tree[name], dtype)
        _forget_recoding(document)
    return document  # type: ignore[no-any-return]


def _forget_recoding(document: dict[str, Any]) -> bool:
    """Drop the table that recodes a data frame's categories; True if there was one.

    Tensors carry category codes, so nothing here needs the table, and what is not handed over need not be checked.
    """
    table = model_of(document).pop("cats", None)
    return bool(table) and any(len(part) for part in table.values())


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice in one object")
    return found


def _typed(name: str, values: list[Any], dtype: np.dtype[Any]) -> Array:
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return np.asarray(values, np.float64).astype(dtype)
    found = np.asarray(values)
    if found.size and (found.dtype.kind not in "biu" or found.ndim != 1):
        raise BadArtifact(f"xgboost: {name} must hold integers; {_WHAT_NEXT}")
    limits = np.iinfo(dtype)
    if found.size and (found.min() < limits.min or found.max() > limits.max):
        raise BadArtifact(f"xgboost: {name} holds a number beyond {dtype.itemsize * 8} bits; {_WHAT_NEXT}")
    return found.astype(dtype)


class _as_bad_artifact:
    """A missing key or a value of the wrong kind, met while reading, is a damaged file."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, KeyError):
            raise BadArtifact(f"xgboost: the key {error} is missing; {_WHAT_NEXT}") from error
        if isinstance(error, TypeError | ValueError | AttributeError | OverflowError | IndexError):
            raise BadArtifact(f"xgboost: a value is not what its key calls for: {error}; {_WHAT_NEXT}") from error


def model_of(document: dict[str, Any]) -> dict[str, Any]:
    """The trees and what belongs to them. Raises BadArtifact for a booster that is not served."""
    booster = document["learner"]["gradient_booster"]
    name = booster["name"]
    if name == "gblinear":
        raise BadArtifact(
            "xgboost: booster gblinear is not served (its predict is not thread-safe); "
            "train with booster=gbtree, or convert the model to ONNX"
        )
    if name not in ("gbtree", "dart"):
        raise BadArtifact(f"xgboost: booster {name!r} is not known; allowed are gbtree and dart")
    model: dict[str, Any] = (booster["gbtree"] if name == "dart" else booster)["model"]
    return model


def check(document: dict[str, Any]) -> XgboostFacts:
    """Everything that XGBoost itself would follow blindly. Raises BadArtifact."""
    with _as_bad_artifact():
        return _check(document)


def _check(document: dict[str, Any]) -> XgboostFacts:
    learner = document["learner"]
    parameters = learner["learner_model_param"]
    features = int(parameters["num_feature"])
    _require(1 <= features <= FEATURES_MAX, f"num_feature is {features:,}; allowed are 1 to {FEATURES_MAX:,}")
    classes, targets = int(parameters["num_class"]), int(parameters.get("num_target", "1"))
    groups = max(classes, targets, 1)
    _require(0 <= classes <= FEATURES_MAX and 0 <= targets <= FEATURES_MAX, f"{classes} classes, {targets} targets")
    for name in ("feature_names", "feature_types"):
        named = learner.get(name, [])
        _require(
            isinstance(named, list) and len(named) in (0, features) and all(isinstance(n, str) for n in named),
            f"{name} does not name {features} features",
        )

    booster = learner["gradient_booster"]
    model = model_of(document)
    trees = model["trees"]
    _require(int(model["gbtree_model_param"]["num_trees"]) == len(trees), "num_trees is not the number of trees")
    round_ends = _check_rounds(model, len(trees), groups)
    if booster["name"] == "dart":
        weights = booster["weight_drop"]
        _require(len(weights) == len(trees), f"weight_drop has {len(weights)} weights for {len(trees)} trees")
    nodes, category_bytes = _check_trees(trees, features)

    attributes = learner.get("attributes", {})
    best_iteration = attributes.get("best_iteration")
    rounds_used = 0 if best_iteration is None else int(best_iteration) + 1
    rounds = len(round_ends) - 1
    _require(0 <= rounds_used <= rounds, f"best_iteration is {best_iteration}, but there are {rounds} rounds")
    wrapper = attributes.get("scikit_learn")
    return XgboostFacts(
        booster=str(booster["name"]),
        objective=str(learner["objective"]["name"]),
        features=features,
        groups=groups,
        trees=len(trees),
        nodes=nodes,
        category_bytes=category_bytes,
        rounds_used=rounds_used,
        trees_used=int(round_ends[rounds_used or rounds]),
        estimator_type=None if wrapper is None else json.loads(wrapper).get("_estimator_type"),
    )


def _check_rounds(model: dict[str, Any], trees: int, groups: int) -> Array:
    """Before which tree each boosting round begins, and the number of trees."""
    group_of_tree = np.asarray(model["tree_info"], np.int64)
    _require(group_of_tree.shape == (trees,), f"tree_info has {group_of_tree.size} entries for {trees} trees")
    _require(_all_within(group_of_tree, 0, groups), f"tree_info names an output group beyond {groups}")
    if "iteration_indptr" not in model:  # files of XGBoost 1
        parallel = int(model["gbtree_model_param"]["num_parallel_tree"])
        _require(parallel >= 1 and trees % (parallel * groups) == 0, f"num_parallel_tree is {parallel}")
        return np.arange(0, trees + 1, parallel * groups)
    starts = np.asarray(model["iteration_indptr"], np.int64)
    _require(
        starts.ndim == 1 and starts.size >= 1 and starts[0] == 0 and starts[-1] == trees,
        "iteration_indptr does not span the trees",
    )
    _require(bool((np.diff(starts) >= 0).all()), "iteration_indptr goes backwards")
    return starts


def _check_trees(trees: list[dict[str, Any]], features: int) -> tuple[int, int]:
    """(nodes, bytes of category sets) of all trees."""
    if not trees:
        return 0, 0
    counts = np.empty(len(trees), np.int64)
    ids = np.empty(len(trees), np.int64)
    for number, tree in enumerate(trees):
        parameters = tree["tree_param"]
        count = int(parameters["num_nodes"])
        _require(count >= 1, f"tree {number} has {count} nodes")
        if parameters["size_leaf_vector"] not in ("0", "1"):
            raise BadArtifact(
                f"xgboost: tree {number} has vector leaves, which are not served; "
                "train with multi_strategy='one_output_per_tree'"
            )
        counts[number], ids[number] = count, tree["id"]
        for name, dtype in _PER_NODE.items():
            array = tree[name]
            if array.dtype != dtype or array.shape != (count,):
                raise BadArtifact(f"xgboost: tree {number}: {name} does not fit {count:,} nodes; {_WHAT_NEXT}")
    _require(bool((np.sort(ids) == np.arange(len(trees))).all()), "the trees' ids are not 0 to n - 1, once each")

    # Half the memory traffic of 64 bits. An index is held against its tree's node count before anything is added to it.
    kind = np.int32 if int(counts.sum()) <= np.iinfo(np.int32).max else np.int64
    starts = np.concatenate(([0], np.cumsum(counts)[:-1])).astype(kind)
    start, count_of = np.repeat(starts, counts), np.repeat(counts.astype(kind), counts)
    left, right = _joined(trees, "left_children"), _joined(trees, "right_children")
    parent = _joined(trees, "parents")
    within = (parent >= 0) & (parent < count_of)
    within[starts] = True  # a root has none
    _require(bool(within.all()), "a parent index is out of range")
    splits = np.flatnonzero(left != -1).astype(kind)
    split_start, split_count = start[splits], count_of[splits]
    own_index = splits - split_start
    left, right = left[splits], right[splits]
    for side, child in (("left", left), ("right", right)):
        _require(bool(((child > 0) & (child < split_count)).all()), f"a {side} child index is out of range")
        _require(bool((parent[child + split_start] == own_index).all()), f"a {side} child does not name its parent")
    _require(bool((left != right).all()), "a node has one child twice")
    _require(_all_within(_joined(trees, "split_indices")[splits], 0, features), f"a feature index is beyond {features}")
    split_type = _joined(trees, "split_type")
    _require(_all_within(split_type, 0, 2), "a split type is neither 0 (numerical) nor 1 (categorical)")
    category_bytes = sum(_check_categories(number, tree) for number, tree in enumerate(trees))
    return int(counts.sum()), category_bytes


def depth_of(document: dict[str, Any]) -> int:
    """Nodes on the longest way to a leaf, over all trees of a document that was checked."""
    deepest = 0
    for tree in model_of(document)["trees"]:
        left, right = np.asarray(tree["left_children"], np.int64), np.asarray(tree["right_children"], np.int64)
        level, depth = np.zeros(1, np.int64), 0
        while level.size:
            splits = level[left[level] != -1]  # the right child of a leaf is whatever the file says
            level, depth = np.concatenate((left[splits], right[splits])), depth + 1
        deepest = max(deepest, depth)
    return deepest


def _check_categories(number: int, tree: dict[str, Any]) -> int:
    """Bytes of this tree's category sets."""
    nodes = tree["categories_nodes"]
    categorical = np.flatnonzero(tree["split_type"])
    if not len(nodes) and not len(categorical):
        return 0
    for name, dtype in _PER_CATEGORY.items():
        _require(tree[name].dtype == dtype, f"tree {number}: {name} is of the wrong type")
    segments, sizes, categories = tree["categories_segments"], tree["categories_sizes"], tree["categories"]
    _require(np.array_equal(nodes, categorical), f"tree {number}: categories_nodes are not the categorical nodes")
    _require(len(segments) == len(nodes) == len(sizes), f"tree {number}: categories arrays differ in length")
    total = len(categories)
    _require(
        _all_within(segments, 0, total + 1)
        and _all_within(sizes, 1, total + 1)
        and bool((segments + sizes <= total).all()),
        f"tree {number}: a category segment is out of range",
    )
    _require(_all_within(categories, 0, CATEGORIES_MAX), f"tree {number}: a category is beyond {CATEGORIES_MAX:,}")
    # Each split holds a bit set as long as its largest category.
    words = sum(int(categories[a : a + n].max()) // 32 + 1 for a, n in zip(segments, sizes, strict=True))
    return 4 * words


def _joined(trees: list[dict[str, Any]], name: str) -> Array:
    """In the byte order of this machine."""
    joined = np.concatenate([tree[name] for tree in trees])
    return joined.astype(joined.dtype.newbyteorder("="), copy=False)


def _all_within(values: Array, low: int, high: int) -> bool:
    """low <= each < high."""
    return values.size == 0 or bool(values.min() >= low and values.max() < high)


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise BadArtifact(f"xgboost: {otherwise}; {_WHAT_NEXT}")
