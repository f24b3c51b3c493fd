"""Tree ensembles in ONNX files are looked at here before onnxruntime reads them.

Its kernels follow node numbers that come from the file, and build trees by recursion. Seen with 1.31.1: 50,000 levels
end the process (5,000 do not), so do 2,000 branches on sets of 30 categories that are no whole numbers, and a cycle in
the second tree of a TreeEnsembleRegressor is loaded and then walked for ever. It refuses most else: children, leaves,
roots and outputs out of range, lists that are shorter than others. Those checks are recent, and we support versions
from before; so nothing here relies on them.
What must hold of an operator:

* Lists that are read side by side are equally long; numbers are in range as the file writes them (the kernel cuts them
  to 32 bits); node numbers are unique within a tree.
* Every walk ends: there is no cycle, whether a root leads to it or not, and no tree deeper than `LEVELS_MAX`.
* A branch of `TreeEnsemble` (ai.onnx.ml 5) has one parent, because the kernel copies what it meets again. In the older
  operators sharing is allowed: LightGBM's converter writes sets of categories so.
* There are no two readings: an attribute appears once (and see `onnx_tree_lists`).

The operators are judged by name, in any domain, subgraph or function. The depth of all trees at once is found by
peeling: nodes without a parent are level 1, those whose parents are all peeled come next, and what is never peeled lies
on a cycle or behind one.

Deliberately absent: whether a model is any good, and what costs memory or time at each request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from runtime_adapters.base import Array
from runtime_adapters.onnx_fields import BYTES, Buffer, skip, varint
from runtime_adapters.onnx_tree_lists import (
    Attribute,
    TreeLists,
    UnsafeTrees,
    clipped_text,
    read_attribute,
    require_in_range,
)

LEVELS_MAX = 2_000
"""Trees of practice have tens of levels, chains of categories some hundreds. For 2,000 levels onnxruntime 1.31.1 needs
between 1 and 2 MiB of stack, and a thread mostly has 8."""

_REGRESSOR, _CLASSIFIER, _ENSEMBLE = b"TreeEnsembleRegressor", b"TreeEnsembleClassifier", b"TreeEnsemble"
TREE_OPERATORS = frozenset((_REGRESSOR, _CLASSIFIER, _ENSEMBLE))

_INT32_MAX = 2**31 - 1
_BRANCH_MEMBER, _MODE_MAX = 6, 6  # of TreeEnsemble, whose leaves are no nodes
_CHAINED_MEMBERS_MAX = 30
"""The kernel writes sets of up to so many categories as a chain of branches."""


def check_tree_operator(content: Buffer, position: int, end: int, runs: Mapping[int, int]) -> None:
    """Look at the NodeProto that lies there. `runs`: where runs of elements in its attributes begin and end.

    Raises UnsafeTrees, and Malformed where it is no protobuf.
    """
    name_of_node, operator = b"", b""
    attributes: dict[bytes, Attribute] = {}
    while position < end:
        tag, position = varint(content, position, end)
        after = skip(content, position, end, tag & 7)
        if tag & 7 == BYTES:
            _, begin = varint(content, position, end)
            if tag >> 3 == 3:
                name_of_node = content[begin:after]
            elif tag >> 3 == 4:
                operator = content[begin:after]
            elif tag >> 3 == 5:
                name, attribute = read_attribute(content, begin, after, runs)
                if name in attributes:
                    raise UnsafeTrees(f"a tree ensemble has two attributes {clipped_text(name)!r}")
                attributes[name] = attribute
        position = after
    try:
        lists = TreeLists(content, attributes)
        _check_ensemble(lists) if operator == _ENSEMBLE else _check_older(lists, classifier=operator == _CLASSIFIER)
    except UnsafeTrees as error:
        raise UnsafeTrees(f"{operator.decode()} {clipped_text(name_of_node)!r}: {error}") from None


# --- what must hold ---------------------------------------------------------------------------------------------------


def _check_older(lists: TreeLists, *, classifier: bool) -> None:
    """TreeEnsembleRegressor and TreeEnsembleClassifier: branches and leaves are one list, numbered within each tree."""
    branch = lists.branch_modes("nodes_modes")
    trees, numbers = lists.ints("nodes_treeids"), lists.ints("nodes_nodeids")
    true, false = lists.ints("nodes_truenodeids"), lists.ints("nodes_falsenodeids")
    features = lists.ints("nodes_featureids")
    thresholds = lists.length("nodes_values")
    _equally_long(nodes_modes=branch, nodes_treeids=trees, nodes_nodeids=numbers)
    _equally_long(nodes_modes=branch, nodes_truenodeids=true, nodes_falsenodeids=false, nodes_featureids=features)
    if thresholds != len(branch):
        raise UnsafeTrees(f"{thresholds:,} nodes_values for {len(branch):,} nodes_modes")
    require_in_range("nodes_treeids", trees, _INT32_MAX)
    require_in_range("nodes_nodeids", numbers, _INT32_MAX)
    parents = np.flatnonzero(branch)
    require_in_range("nodes_featureids", features[parents], _INT32_MAX)
    index = _NodeIndex(trees, numbers)
    children = [
        index.children("nodes_truenodeids", true, parents),
        index.children("nodes_falsenodeids", false, parents),
    ]
    # To a node without children the walk has come to its end.
    edges = np.full((2, len(branch)), -1, np.int64)
    for side, found in enumerate(children):
        edges[side, parents] = np.where(branch[found], found, -1)
    _check_levels(edges, branch, LEVELS_MAX, lambda node: f"tree {trees[node]}, node {numbers[node]}")

    prefix = "class" if classifier else "target"
    outputs = lists.number("n_targets")
    if classifier:
        labels = ("classlabels_strings", "classlabels_int64s")  # onnxruntime counts the former, if there are any
        outputs = next((count for name in labels if (count := lists.length(name, tensors=False))), 0)
    _check_base_values(lists, outputs, few=classifier and outputs <= 2)
    targets = lists.ints(f"{prefix}_ids")
    for name in (f"{prefix}_nodeids", f"{prefix}_treeids", f"{prefix}_weights"):
        if (length := lists.length(name)) != len(targets):
            raise UnsafeTrees(f"{length:,} {name} for {len(targets):,} {prefix}_ids")
    require_in_range(f"{prefix}_ids", targets, outputs - 1)


def _check_ensemble(lists: TreeLists) -> None:
    """TreeEnsemble: branches and leaves are two lists, and their numbers are places in them."""
    modes = lists.tensor("nodes_modes")
    true, false = lists.ints("nodes_truenodeids"), lists.ints("nodes_falsenodeids")
    true_leaf, false_leaf = lists.ints("nodes_trueleafs"), lists.ints("nodes_falseleafs")
    features = lists.ints("nodes_featureids")
    _equally_long(nodes_modes=modes, nodes_truenodeids=true, nodes_falsenodeids=false, nodes_featureids=features)
    _equally_long(nodes_modes=modes, nodes_trueleafs=true_leaf, nodes_falseleafs=false_leaf)
    branches = len(modes)
    for name, optional in (("nodes_splits", 0), ("nodes_hitrates", 1), ("nodes_missing_value_tracks_true", 1)):
        length = lists.length(name)
        if length != branches and not (optional and not length):
            raise UnsafeTrees(f"{length:,} {name} for {branches:,} nodes_modes")
    if branches and int(modes.max()) > _MODE_MAX:
        raise UnsafeTrees(f"nodes_modes holds {int(modes.max())}, {_MODE_MAX} is the last one")
    targets = lists.ints("leaf_targetids")
    leaves = lists.length("leaf_weights")
    if leaves != len(targets):
        raise UnsafeTrees(f"{leaves:,} leaf_weights for {len(targets):,} leaf_targetids")
    require_in_range("leaf_targetids", targets, lists.number("n_targets") - 1)
    require_in_range("nodes_featureids", features, _INT32_MAX)
    edges = np.empty((2, branches), np.int64)
    sides = (("nodes_truenodeids", true, true_leaf), ("nodes_falsenodeids", false, false_leaf))
    for side, (name, children, leaf) in enumerate(sides):
        to_leaf = leaf != 0
        require_in_range(name, children[to_leaf], leaves - 1)
        require_in_range(name, children[~to_leaf], branches - 1)
        edges[side] = np.where(to_leaf, -1, children)
    roots = lists.ints("tree_roots")
    require_in_range("tree_roots", roots, branches - 1)
    # A root whose two sides are one leaf stands for a tree of that leaf; the kernel then takes the root's own number.
    alone = (true_leaf[roots] != 0) & (false_leaf[roots] != 0) & (true[roots] == false[roots])
    require_in_range("tree_roots", roots[alone], leaves - 1)
    parents = np.bincount(np.concatenate((edges[edges >= 0], roots)), minlength=branches)
    if branches and int(parents.max()) > 1:
        raise UnsafeTrees(f"branch {int(parents.argmax())} has two parents, or is a root with one")
    chained = _check_members(lists, modes)
    _check_levels(edges, np.ones(branches, bool), LEVELS_MAX // chained, lambda node: f"branch {node}")


def _check_members(lists: TreeLists, modes: Array) -> int:
    """Each branch on a set has one, with something in it. Returns how many levels the kernel may make of a branch."""
    members = int((modes == _BRANCH_MEMBER).sum())
    if not members:
        return 1
    values = lists.tensor("membership_values")
    ends = np.flatnonzero(np.isnan(values))
    if not len(ends) or ends[-1] != len(values) - 1:
        ends = np.append(ends, len(values))
    sizes = np.diff(ends, prepend=-1) - 1
    if len(sizes) < members or not sizes[:members].all():
        raise UnsafeTrees(f"{members:,} branches on sets need as many sets in membership_values, none of them empty")
    chained = sizes[:members][sizes[:members] <= _CHAINED_MEMBERS_MAX]
    return max(1, int(chained.max(initial=1)))


def _check_base_values(lists: TreeLists, outputs: int, *, few: bool) -> None:
    length = lists.length("base_values")
    if length and not (length <= 2 if few else length == outputs):
        raise UnsafeTrees(f"{length:,} base_values for {outputs:,} outputs")


def _check_levels(edges: Array, branch: Array, levels_max: int, place: Callable[[int], str]) -> None:
    """Peel the forest from its roots. `edges[side, branch]` is a branch, or -1."""
    parents = np.bincount(edges[edges >= 0], minlength=len(branch))
    place_in_level = np.empty(len(branch), np.int64)
    level = np.flatnonzero(branch & (parents == 0))
    peeled = levels = 0
    while len(level):
        levels += 1
        if levels > levels_max:
            raise UnsafeTrees(f"a tree is deeper than {levels_max:,} levels, at {place(int(level[0]))}")
        peeled += len(level)
        children = edges[:, level].ravel()
        children = children[children >= 0]
        np.subtract.at(parents, children, 1)
        children = children[parents[children] == 0]
        order = np.arange(len(children))
        place_in_level[children] = order  # of a child that is met twice, one place remains
        level = children[place_in_level[children] == order]
    if peeled < int(branch.sum()):
        raise UnsafeTrees(f"a tree has a cycle, around {place(int(np.flatnonzero(branch & (parents > 0))[0]))}")


class _NodeIndex:
    """Where (tree, number) lies in the lists. Numbers that count up from 0 in each tree are found without a search."""

    def __init__(self, trees: Array, numbers: Array) -> None:
        self._trees = trees
        nodes = len(trees)
        begins = np.flatnonzero(np.diff(trees, prepend=-1))
        counts = np.diff(begins, append=nodes)
        self._begin, self._count = np.repeat(begins, counts), np.repeat(counts, counts)
        in_order = bool((np.diff(trees[begins]) > 0).all())
        self._counts_up = in_order and bool((numbers == np.arange(nodes) - self._begin).all())
        if not self._counts_up:
            keys = (trees << 32) | numbers
            self._order = np.argsort(keys, kind="stable")
            self._keys = keys[self._order]
            if bool((np.diff(self._keys) == 0).any()):
                twice = self._order[int(np.flatnonzero(np.diff(self._keys) == 0)[0])]
                raise UnsafeTrees(f"tree {trees[twice]} has two nodes {numbers[twice]}")

    def children(self, name: str, numbers: Array, parents: Array) -> Array:
        wanted = numbers[parents]
        if self._counts_up:
            found, exists = self._begin[parents] + wanted, (wanted >= 0) & (wanted < self._count[parents])
        else:
            keys = (self._trees[parents] << 32) | np.where((wanted >= 0) & (wanted <= _INT32_MAX), wanted, _INT32_MAX)
            at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
            found, exists = self._order[at], (self._keys[at] == keys) & (wanted >= 0) & (wanted <= _INT32_MAX)
        if not exists.all():
            missing = int(np.flatnonzero(~exists)[0])
            raise UnsafeTrees(
                f"{name} leads to node {wanted[missing]}, which tree {self._trees[parents[missing]]} lacks"
            )
        return found


def _equally_long(**lists: Array) -> None:
    lengths = {name: len(values) for name, values in lists.items()}
    if len(set(lengths.values())) > 1:
        raise UnsafeTrees("lists differ in length: " + ", ".join(f"{n:,} {name}" for name, n in lengths.items()))
