"""Rows that tell whether two runners of the same trees agree.

Most ways in which runners of trees differ show on the edges only: `<` against `<=`, a threshold that was rounded, a
missing value, an infinity, a leaf that ordinary rows never come to. So the rows lie there. The same trees give the
same rows each time.

Deliberately absent: categorical splits.
"""

from __future__ import annotations

import numpy as np

from runtime_adapters.base import Array
from runtime_adapters.onnx_trees import Trees


def probing_rows(trees: Trees, features: int, count: int) -> Array:
    """Rows on the edges: of each, it is known to the last bit which way it goes. The same ones each time."""
    random = np.random.default_rng(0)
    rows = random.choice(np.array([0, 1, -1, np.nan], np.float32), (count, features))
    branches = np.flatnonzero(trees.left >= 0)
    if not len(branches):
        return rows
    # All rows: thresholds of random branches, or what lies beside them.
    picked = random.choice(branches, (count, min(len(branches), 512)))
    beside = random.choice(np.array([-np.inf, np.nan, np.inf], np.float32), picked.shape)
    threshold = trees.value[picked]
    moved = np.where(np.isnan(beside), threshold, np.nextafter(threshold, beside))
    rows[np.arange(count)[:, None], trees.feature[picked]] = moved
    rows[random.random(rows.shape) < 0.05] = np.nan
    rows[random.random(rows.shape) < 0.02] = np.inf
    rows[random.random(rows.shape) < 0.02] = -np.inf
    # Two of three: led to a random leaf as well.
    parent = np.full(trees.nodes, -1)
    parent[trees.left[branches]] = branches
    parent[trees.right[branches]] = branches
    leaves = random.choice(np.flatnonzero(trees.left < 0), count)
    for row, leaf in zip(rows, leaves[: count * 2 // 3], strict=False):
        _lead(row, int(leaf), trees, parent)
    return rows


def _lead(row: Array, leaf: int, trees: Trees, parent: Array) -> None:
    """Change the row so that it comes to this leaf: the lowest value that goes right, else the highest that goes left.

    A leaf that no row can reach is led to as far as the last thresholds on its way allow.
    """
    lowest: dict[int, np.float32] = {}
    beyond: dict[int, np.float32] = {}
    node = leaf
    while (above := int(parent[node])) >= 0:
        feature, threshold = int(trees.feature[above]), trees.value[above]
        if trees.left[above] == node:
            beyond[feature] = min(threshold, beyond.get(feature, threshold))
        else:
            lowest[feature] = max(threshold, lowest.get(feature, threshold))
        node = above
    for feature, threshold in beyond.items():
        row[feature] = np.nextafter(threshold, np.float32(-np.inf))
    for feature, threshold in lowest.items():
        row[feature] = threshold


def reach_of(trees: Trees, outputs: int) -> Array:
    """For each output, the largest sum that its trees could add up to, in magnitude."""
    largest = np.maximum.reduceat(np.where(trees.left < 0, np.abs(trees.value), 0), trees.starts)
    return np.bincount(trees.outputs, largest, outputs)
