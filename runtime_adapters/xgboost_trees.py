"""XGBoost models: JSON and UBJ files of boosted trees (gbtree, dart), predicted without a DMatrix.

What `predict` answers is what the object that saved the file would answer. A scikit-learn wrapper leaves its kind in
the file, so a file of `XGBClassifier.save_model` gives class indices (an XGBoost file holds no label names; XGBoost
wants labels 0..n-1 since 1.6) and `predict_proba` when asked; a regressor or ranker gives values; a file of a bare
`Booster` gives what `Booster.predict` gives, probabilities included, and `predict_proba` beside it when asked. The
parameter `predict` = `labels` or `values` overrides it. A model that stopped early predicts with its best iteration,
as the wrappers do.

The input is FP32 [-1, features] with NaN for missing, which is what XGBoost computes in; float64 data are rounded to
float32 by XGBoost as by us. Categorical features are category codes as numbers, as after
`DataFrame.astype("category").cat.codes`. `base_margin` is an optional input: a row's starting value, FP32 [-1], or
[-1, groups] with several outputs per row.

Every file is checked before XGBoost sees it (`xgboost_format`, which says why), once per content.

**Who runs the trees.** On the CPU, onnxruntime does, where it is installed and `prepare` found that it answers like
XGBoost: `xgboost_onnx` converts, compares, and says which models stay. Everything else runs in XGBoost: those models,
CUDA, and artifacts that nobody prepared, as in a process of their own. XGBoost reads the checked UBJ, which `prepare`
writes where the artifact is JSON; that loads ten times faster.

**As fetched, for the first answer.** Converting and comparing takes ten times what XGBoost needs to read the file. So a
model answers from XGBoost itself first, and goes on as its converted form: the same to the last bit, or within what
`xgboost_onnx` allows.

Memory over the UBJ file: 0.9 with onnxruntime, 1.52 with XGBoost, whose constants are in `xgboost_format`.

The optional output `explanation` is `pred_contribs`: exact TreeSHAP contributions to the sums, [-1, features + 1] or
with several outputs per row [-1, groups, features + 1]. XGBoost computes them in either case; where onnxruntime runs
the trees, XGBoost reads them for each such call (60 ms for 12.7 MB) and frees them after it: memory that is held for a
moment and not counted.

The parameter `large_batches` = `yes` keeps XGBoost at hand beside onnxruntime, for requests, or requests that run
together, of so many rows that it is the quicker one (`xgboost_batches`): 2.6 times the memory.

Deliberately absent: feature names (V2 has no place for them), `pred_leaf`, iteration ranges.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from runtime_adapters import xgboost_onnx
from runtime_adapters.base import (
    DYNAMIC,
    EXPLANATION,
    Array,
    Device,
    LoadedModel,
    LoadOptions,
    ModelMetadata,
    Size,
    Tensors,
    TensorSpec,
    Trust,
)
from runtime_adapters.errors import BadArtifact, LoadFailed
from runtime_adapters.frameworks import importing
from runtime_adapters.heap_churn import heap_freed
from runtime_adapters.model_file import read_beginning, read_model_file
from runtime_adapters.passed_checks import PassedChecks
from runtime_adapters.validation import choice_parameter, refuse_unknown_parameters
from runtime_adapters.xgboost_format import XgboostFacts, looks_like_xgboost, read_model
from runtime_adapters.xgboost_native import NativeTrees, import_xgboost, native_size
from runtime_adapters.xgboost_onnx import Ensemble

PREPARED_NAME = "model.ubj"
_SUFFIXES = (".ubj", ".json", ".xgb", ".bst", ".model")
_DETECT_BYTES = 4096
_OLD_TREES_WAIT_S = 60.0
"""How long a model waits for the runs on its old trees, so that what is then counted is what is there."""

logger = logging.getLogger(__name__)

_passed: PassedChecks[XgboostFacts] = PassedChecks()


class XgboostAdapter:
    """Format `xgboost`."""

    format = "xgboost"
    trust = Trust.SAFE
    device_kinds = ("cpu", "cuda")
    extra = "xgboost"

    def runtime_version(self) -> str:
        own = f"xgboost-{import_xgboost().__version__}"
        converted = xgboost_onnx.runtime_version()
        return f"{own}-{converted}" if converted else own

    def detect(self, artifact: Path) -> bool:
        return looks_like_xgboost(read_beginning(artifact, _SUFFIXES, _DETECT_BYTES))

    def estimate(self, artifact: Path, options: LoadOptions) -> Size:
        """From the node counts in the file."""
        _output_of(options)
        if xgboost_onnx.is_converted(artifact):
            return xgboost_onnx.converted_size(artifact, options, large_batches=_gets_large_batches(options))
        content = read_model_file("xgboost", artifact, _SUFFIXES)
        facts, freed_bytes = _passed.facts_of(content, _facts), len(content)
        del content
        heap_freed(freed_bytes)
        return native_size(facts, options.device.kind)

    def prepare(self, artifact: Path, into: Path, options: LoadOptions) -> bool:
        """Trees for onnxruntime; else UBJ in place of JSON; UBJ itself is as good as it gets."""
        _output_of(options)
        if xgboost_onnx.is_converted(artifact):
            raise BadArtifact(
                f"artifact {artifact.name!r}: the name {xgboost_onnx.FORM_NAME} is reserved; rename that file"
            )
        content = read_model_file("xgboost", artifact, _SUFFIXES)
        checked = read_model(content)
        if options.device.kind == "cpu":
            reason = xgboost_onnx.convert(checked, into, options)
            heap_freed(4 * len(content))
            if reason is None:
                return True
            logger.info("model %s stays with XGBoost: %s", options.model_id, reason)
        if checked.facts.handed_over_as_is:
            return False
        (into / PREPARED_NAME).write_bytes(checked.ubj)
        return True

    def size_as_fetched(self, artifact: Path, options: LoadOptions) -> Size | None:
        _output_of(options)
        if options.device.kind != "cpu" or xgboost_onnx.is_converted(artifact) or not xgboost_onnx.runtime_version():
            return None
        content = read_model_file("xgboost", artifact, _SUFFIXES)
        facts, freed_bytes = _passed.facts_of(content, _facts), len(content)
        del content
        heap_freed(freed_bytes)
        # What stays with XGBoost in any case is prepared in a moment.
        return native_size(facts, options.device.kind) if xgboost_onnx.may_convert(facts) else None

    def load(self, artifact: Path, options: LoadOptions) -> LoadedModel:
        output = _output_of(options)
        if xgboost_onnx.is_converted(artifact):
            facts = xgboost_onnx.read_facts(artifact)
            large_batches = _gets_large_batches(options)
            trees = xgboost_onnx.load_converted(artifact, options, large_batches=large_batches)
            return XgboostModel(trees, facts, output)
        import_xgboost()
        content = read_model_file("xgboost", artifact, _SUFFIXES)
        facts, ubj = _checked(content)
        model = XgboostModel(NativeTrees(ubj, facts, options), facts, output)
        # Reading UBJ builds each tree's arrays a second time on the heap. The file's bytes go first: malloc may have
        # put them into a hole of the heap, and only what is free can be given back.
        freed_bytes = 2 * len(ubj) + len(content)
        del content, ubj
        heap_freed(freed_bytes)
        return model


class XgboostModel:
    """Trees, and what the user's own object makes of their answers."""

    def __init__(self, trees: Ensemble, facts: XgboostFacts, output: str | None) -> None:
        self._trees = trees
        self._facts = facts
        self._classifies = facts.objective.startswith(("binary:logistic", "multi:"))
        self._labels = (facts.estimator_type == "classifier") if output is None else output == "labels"
        if self._labels and not (self._classifies or facts.objective == "binary:hinge"):
            raise BadArtifact(
                f"xgboost: labels were asked for, but the objective is {facts.objective}; "
                "labels need binary:* or multi:*; set the parameter predict to values"
            )
        # The framework itself says what shape it answers in.
        self._groups_shape = trees.values(np.zeros((1, facts.features), np.float32), None).shape[1:]
        self.metadata = self._describe()

    def _describe(self) -> ModelMetadata:
        facts = self._facts
        margin_shape = (DYNAMIC,) if facts.groups == 1 else (DYNAMIC, facts.groups)
        if self._labels:
            # Multi-label (several targets of binary:logistic) answers a label per target.
            multi_label = facts.objective == "binary:logistic" and bool(self._groups_shape)
            outputs = [TensorSpec("predict", "INT64", (DYNAMIC, *self._groups_shape) if multi_label else (DYNAMIC,))]
        else:
            outputs = [TensorSpec("predict", "FP32", (DYNAMIC, *self._groups_shape))]
        if self._classifies:
            outputs.append(TensorSpec("predict_proba", "FP32", (DYNAMIC, max(2, facts.groups)), optional=True))
        by_group = () if facts.groups == 1 else (facts.groups,)
        outputs.append(TensorSpec(EXPLANATION, "FP32", (DYNAMIC, *by_group, facts.features + 1), optional=True))
        return ModelMetadata(
            platform="xgboost",
            inputs=(
                TensorSpec("input", "FP32", (DYNAMIC, facts.features)),
                TensorSpec("base_margin", "FP32", margin_shape, optional=True),
            ),
            outputs=tuple(outputs),
            any_input_name=True,
            batch_dimension=True,
        )

    def warm_up(self) -> None:
        """The constructor has run the model once."""

    def infer(self, inputs: Tensors, outputs: Sequence[str] = ()) -> dict[str, Array]:
        wanted = outputs or ("predict",)
        rows = inputs["input"]
        margin = inputs.get("base_margin")
        trees = self._trees  # one run, one engine: others may take its place meanwhile
        values: Array | None = None
        answer: dict[str, Array] = {}
        for name in wanted:
            if name == EXPLANATION:
                answer[name] = self._contributions(trees, rows, margin)
                continue
            if values is None and not (name == "predict_proba" and self._facts.objective == "multi:softmax"):
                values = self._values(trees, rows, margin)
            if name == "predict":
                assert values is not None
                answer[name] = self._to_labels(values) if self._labels else values
            else:
                answer[name] = self._to_probabilities(trees, rows, margin, values)
        return answer

    def size(self) -> Size:
        return self._trees.size()

    def parked_size(self) -> Size | None:
        return self._trees.parked_size() if isinstance(self._trees, NativeTrees) else None

    def park(self) -> ParkedTrees:
        if not isinstance(self._trees, NativeTrees):
            raise LoadFailed("onnxruntime runs this model on the CPU, where there is no tier below")
        self._trees.leave_device()
        return ParkedTrees(self, self._trees)

    def go_on_as(self, prepared: LoadedModel) -> None:
        assert isinstance(prepared, XgboostModel)
        if prepared.metadata != self.metadata:
            raise LoadFailed("the prepared form has other inputs or outputs than the model; it is not taken")
        freed_bytes, old_gone = self.size().total_bytes, threading.Event()
        weakref.finalize(self._trees, old_gone.set)
        self._trees = prepared._trees
        if not old_gone.wait(_OLD_TREES_WAIT_S):
            logger.warning("a run on the old trees of a model goes on for more than %g s", _OLD_TREES_WAIT_S)
        heap_freed(freed_bytes)

    def unload(self) -> None:
        self._trees.unload()

    def _contributions(self, trees: Ensemble, rows: Array, margin: Array | None) -> Array:
        by_group = () if self._facts.groups == 1 else (self._facts.groups,)
        shape = (len(rows), *by_group, self._facts.features + 1)
        return trees.contributions(rows, margin).reshape(shape) if len(rows) else np.zeros(shape, np.float32)

    def _values(self, trees: Ensemble, rows: Array, margin: Array | None) -> Array:
        if not len(rows):
            return np.zeros((0, *self._groups_shape), np.float32)
        return trees.values(rows, margin)

    def _to_labels(self, values: Array) -> Array:
        """As XGBClassifier.predict."""
        objective = self._facts.objective
        if objective == "multi:softprob":
            return np.asarray(np.argmax(values, axis=1), np.int64)
        if objective == "multi:softmax":
            return values.astype(np.int64)
        positive: Array = values > 0.5
        return positive.astype(np.int64)

    def _to_probabilities(self, trees: Ensemble, rows: Array, margin: Array | None, values: Array | None) -> Array:
        """As XGBClassifier.predict_proba."""
        if self._facts.objective == "multi:softmax":
            if not len(rows):
                return np.zeros((0, self._facts.groups), np.float32)
            with importing("scipy.special"):
                from scipy.special import softmax  # type: ignore[import-untyped]
            return np.asarray(softmax(trees.sums(rows, margin), axis=1), np.float32)
        assert values is not None
        if values.ndim == 2:
            return values
        return np.ascontiguousarray(np.vstack((1.0 - values, values)).T)


class ParkedTrees:
    """A model whose trees have left their device."""

    def __init__(self, model: XgboostModel, trees: NativeTrees) -> None:
        self._model = model
        self._trees = trees

    def size(self) -> Size:
        return self._trees.parked_size()

    def unpark(self, device: Device) -> XgboostModel:
        self._trees.return_to(device)
        return self._model

    def unload(self) -> None:
        self._model.unload()


def _checked(content: bytes) -> tuple[XgboostFacts, bytes]:
    """The facts, and the bytes that XGBoost may read."""
    if content.startswith(b"{L"):
        facts = _passed.facts_of(content, _facts)
        if facts.handed_over_as_is:
            return facts, content
    checked = read_model(content)
    return checked.facts, checked.ubj


def _facts(content: bytes) -> XgboostFacts:
    return read_model(content).facts


def _output_of(options: LoadOptions) -> str | None:
    refuse_unknown_parameters(options.parameters, ("predict", "large_batches"))
    _gets_large_batches(options)
    return choice_parameter(options.parameters, "predict", ("labels", "values"))


def _gets_large_batches(options: LoadOptions) -> bool:
    return choice_parameter(options.parameters, "large_batches", ("yes", "no")) == "yes"


ADAPTER = XgboostAdapter()

__all__ = ["ADAPTER", "XgboostAdapter", "XgboostModel"]
