"""An XGBoost model's trees as an ONNX graph, run by onnxruntime: the form that most models are served from.

onnxruntime keeps 24 bytes per node and 16 per leaf where XGBoost keeps 53 per node, and answers a single row 12 to 23
times sooner. XGBoost remains the judge: a form is kept only if it answers like XGBoost.

**What is converted.** Trees with numerical splits, of gbtree and dart, and of the rounds that predict uses. The
constant that XGBoost starts its sums with becomes the first tree, so that both add the same numbers in the same order;
dart's weights are multiplied into the leaves. What the objective makes of the sums is in `xgboost_objectives`.

**What stays with XGBoost**: categorical splits, objectives that are not known there, models without a tree, trees
deeper than `DEPTH_MAX` (onnxruntime builds them by recursion), rows too wide to be probed, and what the probes find.

**The probes** (`tree_probes`). Rows that reach random leaves by values on the very edge of what leads there, rows of
thresholds and their neighbours, missing values, infinities; one at a time and together, with and without `base_margin`.
The sums must agree within `ROUNDING` of the largest sum that the trees can add up to, which is what float32 may lose by
adding in another order; a row that went to a wrong leaf is off by far more. Without dart and `base_margin`, on one
thread, up to `onnx_trees.NODES_PER_OPERATOR` nodes, they agree to the last bit. What the objective makes of equal sums
must agree within `ROUNDING`, relatively.

**base_margin** replaces XGBoost's constant. Here the constant is in the graph, so it is subtracted again, in float64.

**Large batches.** From some hundred rows on XGBoost is ahead. Whoever says that a model gets such requests has both at
hand (`xgboost_batches`); from how many rows on is measured here, and kept with the form.

What was not taken: the package's README, Decisions.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from runtime_adapters import ubjson
from runtime_adapters.base import CPU, Array, LoadedModel, LoadOptions, Size
from runtime_adapters.errors import BadArtifact, MissingRuntime, ModelRaised
from runtime_adapters.onnx_runtime import ADAPTER as ONNX
from runtime_adapters.onnx_trees import INPUT_NAME, OUTPUT_NAME, Trees, write_trees
from runtime_adapters.tree_probes import probing_rows, reach_of
from runtime_adapters.xgboost_batches import TreesBySize, both_sizes, rows_min_for
from runtime_adapters.xgboost_format import CheckedModel, XgboostFacts, model_of
from runtime_adapters.xgboost_native import NativeTrees, native_size
from runtime_adapters.xgboost_objectives import ValuesOf, values_of

FORM_NAME = "converted.json"
"""What the trees do not say; its presence marks a converted form."""
FORM_VERSION = 4
"""Part of the key of prepared forms: to be raised when this file writes something else."""
DEPTH_MAX = 512
ROUNDING = 1e-6

_GRAPH_DIRECTORY = "trees"
_NATIVE_NAME = "model.ubj"
"""The trees for XGBoost, which alone explains them."""
_PROBES = 192
_PROBES_ALONE = 8
_PROBES_MIN = 16
_PROBE_BYTES_MAX = 16 << 20
_NO_PARENT = 2**31 - 1


class Ensemble(Protocol):
    """Trees that answer, whoever runs them. `margin` takes the place of the model's own constant, per row."""

    def sums(self, rows: Array, margin: Array | None) -> Array:
        """What the trees add up to, FP32 [-1] or [-1, outputs]."""

    def values(self, rows: Array, margin: Array | None) -> Array:
        """What the objective makes of it: what `Booster.predict` answers."""

    def size(self) -> Size:
        """Bytes that are taken now."""

    def contributions(self, rows: Array, margin: Array | None) -> Array:
        """What each feature contributed to the sums, and what they began with, in the last column."""

    def unload(self) -> None:
        """Free everything. Idempotent."""


class ConvertedTrees:
    """One onnxruntime session."""

    def __init__(
        self,
        model: LoadedModel,
        groups: int,
        constants: Array,
        values: ValuesOf,
        native: Callable[[], NativeTrees],
    ) -> None:
        """`constants`: what the graph's sums begin with, FP32 [groups]. `native`: the same trees, in XGBoost."""
        self._model = model
        self._groups = groups
        self._constants = constants.astype(np.float64)
        self.values_of = values
        self._native = native
        self._explaining = threading.Lock()

    def sums(self, rows: Array, margin: Array | None) -> Array:
        sums = self._model.infer({INPUT_NAME: rows})[OUTPUT_NAME]
        if margin is not None:
            sums = (sums - self._constants + margin.reshape(sums.shape)).astype(np.float32)
        return sums if self._groups > 1 else sums[:, 0]

    def values(self, rows: Array, margin: Array | None) -> Array:
        return self.values_of(self.sums(rows, margin))

    def contributions(self, rows: Array, margin: Array | None) -> Array:
        """XGBoost's own: its trees are read for this call, one at a time, and freed after it."""
        with self._explaining:
            native = self._native()
            try:
                return native.contributions(rows, margin)
            finally:
                native.unload()

    def size(self) -> Size:
        return self._model.size()

    def unload(self) -> None:
        self._model.unload()


# --- the form on disk -------------------------------------------------------------------------------------------------


def runtime_version() -> str:
    """What a converted form depends on beside XGBoost; empty where there is no onnxruntime."""
    try:
        return f"{ONNX.runtime_version()}-form{FORM_VERSION}"
    except MissingRuntime:
        return ""


def is_converted(artifact: Path) -> bool:
    """Is this a directory that `convert` filled?"""
    return (artifact / FORM_NAME).is_file()


def read_facts(form: Path) -> XgboostFacts:
    """What was known of the model when it was converted. Raises BadArtifact."""
    return _read_form(form).facts


def converted_size(form: Path, options: LoadOptions, *, large_batches: bool) -> Size:
    """What loading it will take. Raises BadArtifact."""
    size = ONNX.estimate(form / _GRAPH_DIRECTORY, _onnx_options(options))
    if not large_batches or (read := _read_form(form)).native_rows_min is None:
        return size
    return both_sizes(size, native_size(read.facts, CPU.kind))


def load_converted(form: Path, options: LoadOptions, *, large_batches: bool = False) -> Ensemble:
    """Raises BadArtifact, LoadFailed, MissingRuntime, OutOfMemory. Runs on the CPU whatever the device: there is no
    other kernel. `large_batches`: XGBoost answers them, where that pays."""
    read = _read_form(form)
    converted = _load_graph(form, read, options)
    if not large_batches or read.native_rows_min is None:
        return converted
    try:
        return TreesBySize(converted, _native(form, read.facts, options), read.native_rows_min)
    except BaseException:
        converted.unload()
        raise


def _load_graph(form: Path, read: _Form, options: LoadOptions) -> ConvertedTrees:
    facts = read.facts
    values = values_of(facts.objective)
    if values is None:
        raise _damaged(form)
    model = ONNX.load(form / _GRAPH_DIRECTORY, _onnx_options(options))

    def native() -> NativeTrees:
        try:
            return _native(form, facts, options)
        except BadArtifact as error:
            raise ModelRaised(f"the trees that explain this model cannot be read: {error}") from error

    return ConvertedTrees(model, facts.groups, read.constants, values, native)


def _native(form: Path, facts: XgboostFacts, options: LoadOptions) -> NativeTrees:
    try:
        ubj = (form / _NATIVE_NAME).read_bytes()
    except OSError as error:
        raise _damaged(form) from error
    return NativeTrees(ubj, facts, replace(options, device=CPU))


def may_convert(facts: XgboostFacts) -> bool:
    """False: its trees stay with XGBoost, whatever they are."""
    return values_of(facts.objective) is not None and bool(facts.trees_used) and not facts.category_bytes


def convert(checked: CheckedModel, into: Path, options: LoadOptions) -> str | None:
    """Fill the empty directory `into`. Why the trees stay with XGBoost, when they do; `into` is empty then.

    Raises LoadFailed, MissingRuntime (of XGBoost itself).
    """
    if not runtime_version():
        return "onnxruntime is not installed"
    if values_of(checked.facts.objective) is None:
        return f"the objective {checked.facts.objective} is not known"
    native = NativeTrees(checked.ubj, checked.facts, options)
    try:
        reason = _convert(checked, native, into, options)
    except BadArtifact as error:
        reason = f"onnxruntime refuses the graph: {error}"
    finally:
        native.unload()
    if reason:
        for left in into.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    return reason


def _convert(checked: CheckedModel, native: NativeTrees, into: Path, options: LoadOptions) -> str | None:
    facts = checked.facts
    probes = min(_PROBES, _PROBE_BYTES_MAX // (4 * facts.features))
    if probes < _PROBES_MIN:
        return f"rows of {facts.features:,} features are too wide to be probed"
    constants = _constants(checked, options)
    trees = _trees(checked, constants)
    if isinstance(trees, str):
        return trees
    graph = into / "model.onnx"
    graph.write_bytes(write_trees(trees, facts.features, facts.groups))
    (into / _GRAPH_DIRECTORY).mkdir()
    ONNX.prepare(graph, into / _GRAPH_DIRECTORY, _onnx_options(options))
    graph.unlink()
    form = _Form(facts, constants, None)
    (into / _NATIVE_NAME).write_bytes(checked.ubj)
    converted = _load_graph(into, form, options)
    try:
        rows = probing_rows(trees, facts.features, probes)
        reason = _difference(native, converted, rows, reach_of(trees, facts.groups))
        if reason is None:
            _write_form(into, replace(form, native_rows_min=rows_min_for(converted, native, rows)))
        return reason
    finally:
        converted.unload()


@dataclass(frozen=True, slots=True)
class _Form:
    """What FORM_NAME says."""

    facts: XgboostFacts
    constants: Array
    native_rows_min: int | None
    """From how many rows on XGBoost is worth having beside; None: it is not."""


def _read_form(form: Path) -> _Form:
    try:
        content = json.loads((form / FORM_NAME).read_bytes())
        facts = XgboostFacts(**content["facts"])
        rows_min = content["native_rows_min"]
        constants = np.array(content["constants"], np.float32).reshape(facts.groups)
        return _Form(facts, constants, None if rows_min is None else int(rows_min))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(form) from error


def _write_form(form: Path, read: _Form) -> None:
    content = {
        "facts": asdict(read.facts),
        "constants": read.constants.tolist(),
        "native_rows_min": read.native_rows_min,
    }
    (form / FORM_NAME).write_text(json.dumps(content))


def _damaged(form: Path) -> BadArtifact:
    return BadArtifact(f"xgboost: {form.name}: the prepared form is damaged; delete it to have it made again")


def _onnx_options(options: LoadOptions) -> LoadOptions:
    return replace(options, device=CPU, parameters={})


# --- from XGBoost's arrays to trees -----------------------------------------------------------------------------------


def _constants(checked: CheckedModel, options: LoadOptions) -> Array:
    """What XGBoost's sums begin with: what the model answers when each of its trees is a single leaf of 0.

    Asked rather than computed, because what `base_score` means has changed between versions and objectives.
    """
    groups = checked.facts.groups
    model = model_of(checked.document)
    bare_model = {
        **model,
        "gbtree_model_param": {**model["gbtree_model_param"], "num_trees": str(groups), "num_parallel_tree": "1"},
        "trees": [_leaf_of_zero(number, checked.facts.features) for number in range(groups)],
        "tree_info": list(range(groups)),
        "iteration_indptr": [0, groups],
    }
    learner = checked.document["learner"]
    bare = {
        **checked.document,
        "learner": {
            **learner,
            "attributes": {},
            "gradient_booster": {"name": "gbtree", "model": bare_model},
        },
    }
    facts = replace(checked.facts, booster="gbtree", trees=groups, nodes=groups, rounds_used=0)
    trees = NativeTrees(ubjson.write(bare), facts, options)
    try:
        return trees.sums(np.zeros((1, facts.features), np.float32), None).reshape(groups)
    finally:
        trees.unload()


def _leaf_of_zero(number: int, features: int) -> Mapping[str, Any]:
    integers, none = np.array([0], ">i4"), np.array([-1], ">i4")
    numbers, flags = np.array([0], ">f4"), np.array([0], "u1")
    return {
        "base_weights": numbers,
        "categories": np.array([], ">i4"),
        "categories_nodes": np.array([], ">i4"),
        "categories_segments": np.array([], ">i8"),
        "categories_sizes": np.array([], ">i8"),
        "default_left": flags,
        "id": number,
        "left_children": none,
        "loss_changes": numbers,
        "parents": np.array([_NO_PARENT], ">i4"),
        "right_children": none,
        "split_conditions": numbers,
        "split_indices": integers,
        "split_type": flags,
        "sum_hessian": numbers,
        "tree_param": {
            "num_deleted": "0",
            "num_feature": str(features),
            "num_nodes": "1",
            "size_leaf_vector": "1",
        },
    }


def _trees(checked: CheckedModel, constants: Array) -> Trees | str:
    """The trees that predict uses, after one leaf per output that holds its constant; or why they stay."""
    facts = checked.facts
    if not facts.trees_used:
        return "there are no trees"
    model = model_of(checked.document)
    used = sorted(model["trees"], key=lambda tree: int(tree["id"]))[: facts.trees_used]
    if any(tree["split_type"].any() for tree in used):
        return "there are categorical splits"
    outputs = np.asarray(model["tree_info"], np.int64)[: facts.trees_used]
    counts = np.array([len(tree["left_children"]) for tree in used])
    starts = np.concatenate(([0], np.cumsum(counts)[:-1]))
    start = np.repeat(starts, counts)
    left, right = (_joined(used, name, np.int64) for name in ("left_children", "right_children"))
    is_leaf = left < 0
    value = _joined(used, "split_conditions", np.float32)
    if facts.booster == "dart":
        weights = np.asarray(checked.document["learner"]["gradient_booster"]["weight_drop"], np.float32)
        value = np.where(is_leaf, value * np.repeat(weights[: facts.trees_used], counts), value)
    everything = Trees(
        starts=starts,
        outputs=outputs,
        left=np.where(is_leaf, -1, left + start),
        right=np.where(is_leaf, -1, right + start),
        feature=_joined(used, "split_indices", np.int64),
        value=value.astype(np.float32),
        missing_left=_joined(used, "default_left", bool),
    )
    reached = _reached(everything)
    if reached is None:
        return f"a tree is deeper than {DEPTH_MAX}"
    return _after_constants(_only(everything, reached), constants)


def _joined(trees: list[dict[str, Any]], name: str, kind: type) -> Array:
    return np.concatenate([tree[name] for tree in trees]).astype(kind)


def _reached(trees: Trees) -> Array | None:
    """Which nodes a walk can come to: pruning leaves others behind. None where one is deeper than DEPTH_MAX."""
    reached = np.zeros(trees.nodes, bool)
    level = trees.starts
    for _ in range(DEPTH_MAX):
        reached[level] = True
        branches = level[trees.left[level] >= 0]
        if not len(branches):
            return reached
        level = np.concatenate((trees.left[branches], trees.right[branches]))
    return None


def _only(trees: Trees, kept: Array) -> Trees:
    if kept.all():
        return trees
    number = np.cumsum(kept) - 1
    left, right = trees.left[kept], trees.right[kept]
    return Trees(
        starts=number[trees.starts],
        outputs=trees.outputs,
        left=np.where(left < 0, -1, number[left]),
        right=np.where(left < 0, -1, number[right]),
        feature=trees.feature[kept],
        value=trees.value[kept],
        missing_left=trees.missing_left[kept],
    )


def _after_constants(trees: Trees, constants: Array) -> Trees:
    first = len(constants)
    leaf = np.full(first, -1, np.int64)
    return Trees(
        starts=np.concatenate((np.arange(first), trees.starts + first)),
        outputs=np.concatenate((np.arange(first), trees.outputs)),
        left=np.concatenate((leaf, np.where(trees.left < 0, -1, trees.left + first))),
        right=np.concatenate((leaf, np.where(trees.left < 0, -1, trees.right + first))),
        feature=np.concatenate((np.zeros(first, np.int64), trees.feature)),
        value=np.concatenate((constants, trees.value)),
        missing_left=np.concatenate((np.zeros(first, bool), trees.missing_left)),
    )


# --- does it answer like XGBoost? -------------------------------------------------------------------------------------


def _difference(native: NativeTrees, converted: ConvertedTrees, rows: Array, reach: Array) -> str | None:
    """Where the two answer differently, if they do."""
    reach = np.where(np.isfinite(reach), reach, 0)  # where leaves hold no numbers, only equal will do
    with np.errstate(invalid="ignore"):
        for some in (rows, *(rows[number : number + 1] for number in range(_PROBES_ALONE))):
            expected, found = native.sums(some, None), converted.sums(some, None)
            if expected.shape != found.shape or not _close(found, expected, ROUNDING * reach):
                return f"its sums differ from XGBoost's on {len(some)} probing rows"
        sums, expected = native.sums(rows, None), native.values(rows, None)
        found = converted.values_of(sums)
        if expected.shape != found.shape or not _close(found, expected, ROUNDING * np.abs(expected)):
            return "what is made of its sums differs from XGBoost's"
        margin = np.linspace(-1, 1, sums.size, dtype=np.float32).reshape(sums.shape)
        expected, found = native.sums(_finite(rows), margin), converted.sums(_finite(rows), margin)
        if not _close(found, expected, ROUNDING * (reach + np.abs(margin))):
            return "its sums with a base_margin differ from XGBoost's"
    return None


def _close(found: Array, expected: Array, tolerance: Array) -> bool:
    same = (np.abs(found - expected) <= tolerance) | (found == expected) | (np.isnan(found) & np.isnan(expected))
    return bool(same.all())


def _finite(rows: Array) -> Array:
    """A DMatrix, which dart needs for a margin, takes no infinities."""
    return np.where(np.isinf(rows), np.float32(0), rows)
