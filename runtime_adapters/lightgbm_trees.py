"""LightGBM text models: binary, multi-class, regression, ranking.

A LightGBM file does not say which wrapper saved it, and holds no label names, so the objective decides: `binary`,
`multiclass` and `multiclassova` answer class indices, as `LGBMClassifier` does for labels 0..n-1, and `predict_proba`
when asked; every other objective answers its values, as `LGBMRegressor`, `LGBMRanker` and `Booster.predict` do. The
parameter `predict` = `labels` or `values` overrides it: with `values` the answer is `Booster.predict`'s.

The input is FP64 [-1, features], the type LightGBM computes in, NaN for missing, so predictions on float64 data equal
the framework's own bit for bit. Categorical features are category codes as numbers. A file saved after early stopping
holds the trees up to the best iteration only, so there is nothing to choose here.

Files are checked and re-written before LightGBM sees them (`lightgbm_format`, which says why). `prepare` keeps the
re-written text: it loads in about half the time, and its check is remembered by content. A file that comes over a
network is checked on its way (`LightgbmReading`).

Memory: `lightgbm_format` holds the constants; `size` counts LightGBM's own vectors, exact to about 3 %, and what
answers a few rows at a time (`lightgbm_rows`).

The optional output `explanation` is `pred_contrib`: exact TreeSHAP contributions, [-1, features + 1] or with several
outputs per row [-1, groups, features + 1]. Not for linear trees, for files without row counts, and for trees so deep
that LightGBM's recursion would be a danger.

Deliberately absent: `pred_leaf`, early stopping of predictions, GPU (LightGBM predicts on the CPU).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from runtime_adapters.base import (
    DYNAMIC,
    EXPLANATION,
    Array,
    LoadedModel,
    LoadOptions,
    ModelMetadata,
    Size,
    Tensors,
    TensorSpec,
    Trust,
)
from runtime_adapters.errors import BadArtifact, BadInput, OutOfMemory
from runtime_adapters.frameworks import importing, missing_runtime
from runtime_adapters.heap_churn import heap_freed
from runtime_adapters.interruption import slices
from runtime_adapters.lightgbm_format import (
    CheckedModel,
    LightgbmFacts,
    ModelReader,
    depth_of,
    looks_like_lightgbm,
    read_model,
)
from runtime_adapters.lightgbm_rows import ROWS_MAX, SingleRows, handle_bytes
from runtime_adapters.model_file import read_beginning, read_model_file
from runtime_adapters.out_of_memory import ran_out
from runtime_adapters.passed_checks import PassedChecks
from runtime_adapters.validation import choice_parameter, refuse_unknown_parameters

PREPARED_NAME = "model.txt"
_SUFFIXES = (".txt", ".model", ".lgb", ".lightgbm")
_DETECT_BYTES = 256
EXPLAINED_DEPTH_MAX = 512
"""Of trees whose contributions are computed: LightGBM walks them by recursion, with room for the depth squared."""
_CLASSIFYING = ("binary", "multiclass", "multiclassova")

_passed: PassedChecks[LightgbmFacts] = PassedChecks()


class LightgbmAdapter:
    """Format `lightgbm`."""

    format = "lightgbm"
    trust = Trust.SAFE
    device_kinds = ("cpu",)
    extra = "lightgbm"

    def runtime_version(self) -> str:
        return f"lightgbm-{_lightgbm().__version__}"

    def detect(self, artifact: Path) -> bool:
        return looks_like_lightgbm(read_beginning(artifact, _SUFFIXES, _DETECT_BYTES))

    def estimate(self, artifact: Path, options: LoadOptions) -> Size:
        """From the leaf counts in the file."""
        _output_of(options)
        content = read_model_file("lightgbm", artifact, _SUFFIXES)
        facts, freed_bytes = _passed.facts_of(content, _facts), len(content)
        del content
        heap_freed(freed_bytes)
        return _size_of(facts)

    def prepare(self, artifact: Path, into: Path, options: LoadOptions) -> bool:
        """The checked text, without what prediction does not need."""
        _output_of(options)
        return _write(read_model(read_model_file("lightgbm", artifact, _SUFFIXES)), into)

    def reading(self) -> LightgbmReading:
        return LightgbmReading()

    def load(self, artifact: Path, options: LoadOptions) -> LoadedModel:
        lightgbm = _lightgbm()
        output = _output_of(options)
        content = read_model_file("lightgbm", artifact, _SUFFIXES)
        facts = _passed.facts_of(content, _facts)
        text = content if facts.handed_over_as_is else read_model(content).text
        try:
            booster = lightgbm.Booster(model_str=text.decode("ascii"))
            model = LightgbmModel(lightgbm, booster, facts, output, options)
        except (lightgbm.basic.LightGBMError, MemoryError) as error:
            if ran_out(error):
                raise OutOfMemory("lightgbm found no memory to load the model") from error
            raise BadArtifact(f"lightgbm refuses the model: {error}; save it again with this version") from error
        # Freed before the heap is looked at: malloc may have put them into a hole of it.
        freed_bytes = 2 * len(text) + len(content)
        del content, text
        heap_freed(freed_bytes)
        return model


class LightgbmReading:
    """A model file that is checked tree by tree as it comes."""

    def __init__(self) -> None:
        self._reader = ModelReader()
        self._bad: BadArtifact | None = None
        self._checked: CheckedModel | None = None

    def take(self, piece: bytes) -> None:
        if self._bad is None:
            try:
                self._reader.take(piece)
            except BadArtifact as error:
                self._bad = error

    def prepare(self, into: Path, options: LoadOptions) -> bool:
        _output_of(options)
        return _write(self._whole(), into)

    def size(self) -> Size:
        return _size_of(self._whole().facts)

    def _whole(self) -> CheckedModel:
        if self._bad is not None:
            raise self._bad
        if self._checked is None:
            self._checked = self._reader.finish()
        return self._checked


class LightgbmModel:
    """A Booster in this process."""

    def __init__(
        self, lightgbm: Any, booster: Any, facts: LightgbmFacts, output: str | None, options: LoadOptions
    ) -> None:
        self._lightgbm = lightgbm
        self._booster = booster
        self._facts = facts
        self._threads = options.threads
        self._depth: int | None = None
        self._classifies = facts.objective in _CLASSIFYING
        self._labels = self._classifies if output is None else output == "labels"
        if self._labels and not self._classifies:
            raise BadArtifact(
                f"lightgbm: labels were asked for, but the objective is {facts.objective or 'a custom one'}; "
                f"labels need one of {', '.join(_CLASSIFYING)}; set the parameter predict to values"
            )
        self._value_shape = () if facts.groups == 1 else (facts.groups,)
        self.metadata = self._describe()
        # LightGBM refuses here what it would refuse in predict, and learns how many threads it has.
        self._predict(np.zeros((1, facts.features)))
        self._single_rows = SingleRows(lightgbm, booster, facts.features, facts.groups, options.threads)

    def _describe(self) -> ModelMetadata:
        facts = self._facts
        if self._labels:
            outputs = [TensorSpec("predict", "INT64", (DYNAMIC,))]
        else:
            outputs = [TensorSpec("predict", "FP64", (DYNAMIC, *self._value_shape))]
        if self._classifies:
            outputs.append(TensorSpec("predict_proba", "FP64", (DYNAMIC, max(2, facts.groups)), optional=True))
        if facts.counted:
            outputs.append(
                TensorSpec(EXPLANATION, "FP64", (DYNAMIC, *self._value_shape, facts.features + 1), optional=True)
            )
        return ModelMetadata(
            platform="lightgbm",
            inputs=(TensorSpec("input", "FP64", (DYNAMIC, facts.features)),),
            outputs=tuple(outputs),
            any_input_name=True,
            batch_dimension=True,
        )

    def warm_up(self) -> None:
        """The constructor has run the model once."""

    def infer(self, inputs: Tensors, outputs: Sequence[str] = ()) -> dict[str, Array]:
        wanted = outputs or ("predict",)
        values = self._values(inputs["input"]) if any(name != EXPLANATION for name in wanted) else np.zeros(0)
        answer: dict[str, Array] = {}
        for name in wanted:
            if name == EXPLANATION:
                answer[name] = self._contributions(inputs["input"])
            elif name == "predict_proba":
                answer[name] = self._to_probabilities(values)
            elif self._labels:
                answer[name] = np.argmax(self._to_probabilities(values), axis=1).astype(np.int64)
            else:
                answer[name] = values
        return answer

    def size(self) -> Size:
        return Size(host_bytes=self._facts.resident_bytes + self._single_rows.size_bytes())

    def unload(self) -> None:
        if self._booster is not None:
            self._single_rows.close()
            self._booster = None
            heap_freed(self._facts.resident_bytes)

    def _contributions(self, rows: Array) -> Array:
        """What each feature contributed to each value. Raises BadInput, NobodyWaits."""
        if self._depth is None:
            self._depth = depth_of(self._booster.model_to_string().encode())
        if self._depth > EXPLAINED_DEPTH_MAX:
            raise BadInput(
                f"explanation: a tree is {self._depth} levels deep; up to {EXPLAINED_DEPTH_MAX} are explained: limit "
                "max_depth in training"
            )
        parts = [self._predict(rows[part], pred_contrib=True) for part in slices(len(rows))]
        found = np.concatenate(parts) if parts else np.zeros(0)
        return found.reshape((len(rows), *self._value_shape, self._facts.features + 1))

    def _values(self, rows: Array) -> Array:
        """What Booster.predict answers."""
        if not len(rows):
            return np.zeros((0, *self._value_shape))
        return self._few(rows) if len(rows) <= ROWS_MAX else self._predict(rows)

    def _few(self, rows: Array) -> Array:
        try:
            values = self._single_rows.predict(np.ascontiguousarray(rows, np.float64))
        except (self._lightgbm.basic.LightGBMError, MemoryError) as error:
            raise _our_error(error) from error
        return values.reshape(len(rows), *self._value_shape)

    def _predict(self, rows: Array, **how: bool) -> Array:
        try:
            values = self._booster.predict(np.ascontiguousarray(rows), num_threads=self._threads, **how)
        except (self._lightgbm.basic.LightGBMError, MemoryError) as error:
            raise _our_error(error) from error
        return np.asarray(values, np.float64)

    def _to_probabilities(self, values: Array) -> Array:
        """As LGBMClassifier.predict_proba."""
        if values.ndim == 2:
            return values
        return np.ascontiguousarray(np.vstack((1.0 - values, values)).T)


def _our_error(error: Exception) -> OutOfMemory | BadInput:
    if ran_out(error):
        return OutOfMemory("lightgbm found no memory for this request; send fewer rows")
    return BadInput(f"lightgbm refuses the input: {error}")


def _size_of(facts: LightgbmFacts) -> Size:
    """With one handle for single rows, which every copy has."""
    return Size(host_bytes=facts.resident_bytes + handle_bytes(facts.features))


def _write(checked: CheckedModel, into: Path) -> bool:
    """The prepared form, unless what was read is just that."""
    if checked.facts.handed_over_as_is:
        return False
    (into / PREPARED_NAME).write_bytes(checked.text)
    # It is read again in a moment, and would be found to be what has just been written.
    _passed.facts_of(checked.text, lambda _: replace(checked.facts, handed_over_as_is=True))
    return True


def _facts(content: bytes) -> LightgbmFacts:
    return read_model(content).facts


def _output_of(options: LoadOptions) -> str | None:
    refuse_unknown_parameters(options.parameters, ("predict",))
    if options.device.kind != "cpu":
        raise BadArtifact(f"lightgbm predicts on the CPU only, not on {options.device}; load on the CPU")
    return choice_parameter(options.parameters, "predict", ("labels", "values"))


def _lightgbm() -> Any:
    try:
        with importing("lightgbm"):
            import lightgbm
    except ImportError as error:
        raise missing_runtime("lightgbm", "lightgbm", error) from error
    return lightgbm


ADAPTER = LightgbmAdapter()

__all__ = ["ADAPTER", "LightgbmAdapter", "LightgbmModel"]
