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

Every file is checked before XGBoost sees it (`xgboost_format`, which says why), once per content. `prepare` turns JSON
into the checked UBJ, which loads ten times faster.

Memory: `xgboost_format` holds the constants. `size` is exact to about 3 %, because it counts XGBoost's own vectors;
resident bytes over the UBJ file are 1.52, over the JSON file 0.9, over XGBoost's in-memory layout 1.0.

Deliberately absent: feature names (V2 has no place for them), `pred_leaf`, `pred_contribs`, iteration ranges.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runtime_adapters.base import (
    DYNAMIC,
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
from runtime_adapters.errors import BadArtifact, BadInput, LoadFailed, ModelRaised
from runtime_adapters.frameworks import missing_runtime
from runtime_adapters.heap_churn import heap_freed
from runtime_adapters.model_file import read_beginning, read_model_file
from runtime_adapters.passed_checks import PassedChecks
from runtime_adapters.validation import choice_parameter, refuse_unknown_parameters
from runtime_adapters.xgboost_format import XgboostFacts, looks_like_xgboost, read_model

PREPARED_NAME = "model.ubj"
_SUFFIXES = (".ubj", ".json", ".xgb", ".bst", ".model")
_DETECT_BYTES = 4096
_DEVICE_NODE_BYTES = 53
"""Trees are copied to the device as they lie on the host; not measured on a device."""

_passed: PassedChecks[XgboostFacts] = PassedChecks()


class XgboostAdapter:
    """Format `xgboost`."""

    format = "xgboost"
    trust = Trust.SAFE
    device_kinds = ("cpu", "cuda")
    extra = "xgboost"

    def runtime_version(self) -> str:
        return f"xgboost-{_xgboost().__version__}"

    def detect(self, artifact: Path) -> bool:
        return looks_like_xgboost(read_beginning(artifact, _SUFFIXES, _DETECT_BYTES))

    def estimate(self, artifact: Path, options: LoadOptions) -> Size:
        """From the node counts in the file."""
        _output_of(options)
        content = read_model_file("xgboost", artifact, _SUFFIXES)
        facts, freed_bytes = _passed.facts_of(content, _facts), len(content)
        del content
        heap_freed(freed_bytes)
        return _size(facts, options.device)

    def prepare(self, artifact: Path, into: Path, options: LoadOptions) -> bool:
        """JSON becomes UBJ; UBJ is as good as it gets."""
        _output_of(options)
        content = read_model_file("xgboost", artifact, _SUFFIXES)
        checked = read_model(content)
        if checked.facts.handed_over_as_is:
            return False
        (into / PREPARED_NAME).write_bytes(checked.ubj)
        return True

    def load(self, artifact: Path, options: LoadOptions) -> LoadedModel:
        xgboost = _xgboost()
        output = _output_of(options)
        if options.device.kind == "cuda" and not xgboost.build_info().get("USE_CUDA"):
            raise LoadFailed(
                f"xgboost {xgboost.__version__} on this pod is built without CUDA, so {options.device} cannot be used; "
                "install the package xgboost in place of xgboost-cpu, or load on the CPU"
            )
        content = read_model_file("xgboost", artifact, _SUFFIXES)
        facts, ubj = _checked(content)
        device = "cpu" if options.device.kind == "cpu" else str(options.device)
        # Reading a file knows nothing of the Booster's own `nthread`: each loading thread would start an OpenMP team,
        # whose threads then wait for one another (8 ms in place of 1 on a busy machine). Holds for this thread only.
        xgboost.set_config(nthread=options.threads)
        try:
            booster = xgboost.Booster({"nthread": options.threads, "device": device}, model_file=bytearray(ubj))
            model = XgboostModel(xgboost, booster, facts, output, options)
        except xgboost.core.XGBoostError as error:
            raise _load_error(error) from error
        except MemoryError as error:
            raise LoadFailed("xgboost: not enough memory to load the model; retry when memory is free") from error
        # Reading UBJ builds each tree's arrays a second time on the heap. The file's bytes go first: malloc may have
        # put them into a hole of the heap, and only what is free can be given back.
        freed_bytes = 2 * len(ubj) + len(content)
        del content, ubj
        heap_freed(freed_bytes)
        return model


class XgboostModel:
    """A Booster in this process."""

    def __init__(
        self, xgboost: Any, booster: Any, facts: XgboostFacts, output: str | None, options: LoadOptions
    ) -> None:
        self._xgboost = xgboost
        self._booster = booster
        self._facts = facts
        self._device = options.device
        self._threads = options.threads
        self._rounds = (0, facts.rounds_used)
        self._classifies = facts.objective.startswith(("binary:logistic", "multi:"))
        self._labels = (facts.estimator_type == "classifier") if output is None else output == "labels"
        if self._labels and not (self._classifies or facts.objective == "binary:hinge"):
            raise BadArtifact(
                f"xgboost: labels were asked for, but the objective is {facts.objective}; "
                "labels need binary:* or multi:*; set the parameter predict to values"
            )
        # The framework itself says what shape it answers in; it also refuses here what it would refuse in predict.
        probe = self._values(np.zeros((1, facts.features), np.float32), None)
        self._groups_shape = probe.shape[1:]
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
        values: Array | None = None
        answer: dict[str, Array] = {}
        for name in wanted:
            if values is None and not (name == "predict_proba" and self._facts.objective == "multi:softmax"):
                values = self._values(rows, margin)
            if name == "predict":
                assert values is not None
                answer[name] = self._to_labels(values) if self._labels else values
            else:
                answer[name] = self._to_probabilities(rows, margin, values)
        return answer

    def size(self) -> Size:
        return _size(self._facts, self._device)

    def unload(self) -> None:
        if self._booster is not None:
            self._booster = None
            heap_freed(self._facts.resident_bytes)

    def _values(self, rows: Array, margin: Array | None, *, raw: bool = False) -> Array:
        """What the Booster predicts; `raw`: before the objective's transformation."""
        if not len(rows):
            return np.zeros((0, *self._groups_shape), np.float32)
        try:
            if self._device.kind == "cuda":
                matrix = self._xgboost.DMatrix(rows, base_margin=margin, nthread=self._threads)
                values = self._booster.predict(
                    matrix, output_margin=raw, iteration_range=self._rounds, validate_features=False
                )
            else:
                values = self._booster.inplace_predict(
                    np.ascontiguousarray(rows),
                    iteration_range=self._rounds,
                    predict_type="margin" if raw else "value",
                    base_margin=None if margin is None else np.ascontiguousarray(margin),
                    validate_features=False,
                )
        except self._xgboost.core.XGBoostError as error:
            if _out_of_memory(error):
                raise ModelRaised("xgboost: not enough memory for this request; send fewer rows") from error
            raise BadInput(f"xgboost refuses the input: {_first_line(error)}") from error
        return np.asarray(values, np.float32)

    def _to_labels(self, values: Array) -> Array:
        """As XGBClassifier.predict."""
        objective = self._facts.objective
        if objective == "multi:softprob":
            return np.asarray(np.argmax(values, axis=1), np.int64)
        if objective == "multi:softmax":
            return values.astype(np.int64)
        positive: Array = values > 0.5
        return positive.astype(np.int64)

    def _to_probabilities(self, rows: Array, margin: Array | None, values: Array | None) -> Array:
        """As XGBClassifier.predict_proba."""
        if self._facts.objective == "multi:softmax":
            from scipy.special import softmax  # type: ignore[import-untyped]

            return np.asarray(softmax(self._values(rows, margin, raw=True), axis=1), np.float32)
        assert values is not None
        if values.ndim == 2:
            return values
        return np.ascontiguousarray(np.vstack((1.0 - values, values)).T)


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


def _size(facts: XgboostFacts, device: Device) -> Size:
    on_device = _DEVICE_NODE_BYTES * facts.nodes if device.kind == "cuda" else 0
    return Size(host_bytes=facts.resident_bytes, device_bytes=on_device)


def _output_of(options: LoadOptions) -> str | None:
    refuse_unknown_parameters(options.parameters, ("predict",))
    return choice_parameter(options.parameters, "predict", ("labels", "values"))


def _xgboost() -> Any:
    try:
        import xgboost
    except ImportError as error:
        raise missing_runtime("xgboost", "xgboost", error) from error
    return xgboost


def _out_of_memory(error: Exception) -> bool:
    text = str(error).lower()
    return "bad_alloc" in text or "out of memory" in text or "memory allocation" in text


def _load_error(error: Exception) -> BadArtifact | LoadFailed:
    if _out_of_memory(error):
        return LoadFailed("xgboost: not enough memory to load the model; retry when memory is free")
    return BadArtifact(f"xgboost refuses the model: {_first_line(error)}; save it again with this version of xgboost")


def _first_line(error: Exception) -> str:
    """XGBoost appends a stack trace with paths of its build machine; the reason is in the first line."""
    lines = str(error).strip().splitlines() or ["no reason given"]
    return lines[0].split("Check failed:")[-1].strip()[:300]


ADAPTER = XgboostAdapter()

__all__ = ["ADAPTER", "XgboostAdapter", "XgboostModel"]
