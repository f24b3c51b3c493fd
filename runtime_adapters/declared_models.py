"""A custom model in its process, held to what it declared (`runtime_adapters.custom`).

Each request goes through `preprocess`, `predict` (or `explain`) and `postprocess`, ordinary methods or coroutines, and
what comes out must be what the class declared: names, datatypes, shapes. Nothing is cast.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping, Sequence

import numpy as np

from runtime_adapters.base import (
    DYNAMIC,
    SEQUENCE_END,
    SEQUENCE_ID,
    SEQUENCE_START,
    Array,
    ModelMetadata,
    Size,
    Tensors,
    TensorSpec,
    is_explanation,
)
from runtime_adapters.custom import Model
from runtime_adapters.custom_calls import CustomCalls, yields_answers
from runtime_adapters.datatypes import DTYPE_OF, datatype_of
from runtime_adapters.errors import BadArtifact, BadInput, ModelRaised
from runtime_adapters.sequences import OpenSequences


class DeclaredModel:
    """Such a model."""

    def __init__(self, model: Model) -> None:
        """Loads it. Raises BadArtifact, and what `load` raises."""
        self._model: Model | None = model
        self._calls = CustomCalls()
        _metadata_of(model)  # what is wrong without a load is told without one
        self._calls.finished(model.load())
        self._metadata = _metadata_of(model)
        self._last_stage = "predict" if type(model).postprocess is Model.postprocess else "postprocess"
        self._outputs = {spec.name: spec for spec in self._metadata.outputs}
        self._sequences = OpenSequences() if self._metadata.sequences else None

    @property
    def metadata(self) -> ModelMetadata:
        return self._metadata

    def warm_up(self) -> None:
        zeros = {spec.name: _zeros(spec) for spec in self._metadata.inputs if not spec.optional}
        if self._metadata.sequences:  # one that a client's first request would not go on with
            zeros |= {
                SEQUENCE_ID: np.array([b""], np.object_),
                SEQUENCE_START: np.array([True]),
                SEQUENCE_END: np.array([True]),
            }
        with contextlib.suppress(ModelRaised, BadInput):  # a model that does not like zeros is not broken
            self.infer(zeros)

    def infer(self, inputs: Tensors, outputs: Sequence[str] = ()) -> dict[str, Array]:
        """Of a model that is decoupled: its first answer."""
        if self._metadata.decoupled:
            with contextlib.closing(self.infer_stream(inputs, outputs)) as answers:
                return next(answers, {})
        wanted = outputs or [spec.name for spec in self._metadata.outputs if not spec.optional]
        found: dict[str, Array] = {}
        predictions = [name for name in wanted if not is_explanation(name)]
        if predictions:
            found |= self._processed(self._asked("predict", inputs), predictions)
        explanations = [name for name in wanted if is_explanation(name)]
        if explanations:
            found |= self._checked("explain", self._asked("explain", inputs), explanations)
        return {name: found[name] for name in wanted}

    def infer_stream(self, inputs: Tensors, outputs: Sequence[str] = ()) -> Generator[dict[str, Array], None, None]:
        wanted = outputs or [spec.name for spec in self._metadata.outputs if not spec.optional]
        with contextlib.closing(self._calls.answers("predict", self._asked("predict", inputs))) as answers:
            for answer in answers:
                yield self._processed(answer, wanted)

    def _asked(self, method: str, inputs: Tensors) -> object:
        """What `predict` or `explain` gives back."""
        assert self._model is not None
        # Copies: what lies in shared memory is overwritten by the next request, and a model may keep its inputs.
        copied = {name: array.copy() for name, array in inputs.items()}
        if self._sequences is not None:
            self._model.sequence = self._sequences.position(copied)
        prepared = self._calls.call("preprocess", self._model.preprocess, copied)
        return self._calls.call(method, getattr(self._model, method), prepared)

    def _processed(self, predicted: object, wanted: Sequence[str]) -> dict[str, Array]:
        assert self._model is not None
        answer = self._calls.call("postprocess", self._model.postprocess, predicted)
        return self._checked(self._last_stage, answer, wanted)

    def _checked(self, method: str, returned: object, wanted: Sequence[str]) -> dict[str, Array]:
        """What it returned, held to what was declared."""
        own = [name for name in self._outputs if is_explanation(name) == (method == "explain")]
        answer = self._by_name(method, returned, own)
        missing = [name for name in wanted if name not in answer]
        if missing:
            raise ModelRaised(f"{method} returned {_names(answer)}, without the output {_names(missing)}")
        return {name: _checked_output(method, self._outputs[name], answer[name]) for name in wanted}

    def size(self) -> Size:
        return Size(host_bytes=0)  # the pod measures the whole process

    def unload(self) -> None:
        model, self._model = self._model, None
        if model is not None:
            self._calls.finished(model.unload())
            self._calls.close()

    def _by_name(self, method: str, returned: object, own: list[str]) -> Mapping[str, object]:
        """`own`: the outputs that are this method's."""
        if isinstance(returned, Mapping):
            strangers = [name for name in returned if name not in own]
            if strangers:
                raise ModelRaised(f"{method} returned {_names(strangers)}; its outputs are {_names(own)}")
            return returned
        if isinstance(returned, np.ndarray | np.generic):
            if len(own) == 1:
                return {own[0]: returned}
            raise ModelRaised(f"{method} returned one array; return a dict with {_names(own)}")
        raise ModelRaised(f"{method} returned a {type(returned).__name__}; return a dict of arrays, or one array")


def _metadata_of(model: Model) -> ModelMetadata:
    for side, specs in (("inputs", model.inputs), ("outputs", model.outputs)):
        if not isinstance(specs, list | tuple) or not all(isinstance(spec, TensorSpec) for spec in specs):
            raise BadArtifact(f"{type(model).__name__}.{side} must be a tuple of TensorSpec; found {str(specs)[:200]}")
        names = [spec.name for spec in specs]
        if len(set(names)) != len(names) or not all(names):
            raise BadArtifact(f"{type(model).__name__}.{side} must have names that differ; found {names}")
        for spec in specs:
            if spec.datatype not in DTYPE_OF:
                raise BadArtifact(
                    f"{type(model).__name__}.{side}: {spec.name} has datatype {spec.datatype!r}; "
                    f"allowed are {', '.join(DTYPE_OF)}"
                )
            if is_explanation(spec.name) and not spec.optional:
                raise BadArtifact(f"{type(model).__name__}.{side}: {spec.name} must be optional: who wants it, asks")
    if not model.outputs:
        raise BadArtifact(f"{type(model).__name__}.outputs is empty; declare what predict returns")
    return ModelMetadata(
        platform="hexcomb_python",
        inputs=tuple(_with_tuple_shape(spec) for spec in model.inputs),
        outputs=tuple(_with_tuple_shape(spec) for spec in model.outputs),
        batch_dimension=model.batch_dimension,
        batch_rows_max=_checked_rows_max(model),
        decoupled=yields_answers(model.predict),
        sequences=model.sequences is True,
    )


def _checked_rows_max(model: Model) -> int | None:
    rows_max = model.batch_rows_max
    if rows_max is None or (type(rows_max) is int and rows_max > 0):
        return rows_max
    found = f"{type(model).__name__}.batch_rows_max is {str(rows_max)[:40]!r}"
    raise BadArtifact(f"{found}; it must be a whole number from 1, or None")


def _with_tuple_shape(spec: TensorSpec) -> TensorSpec:
    return TensorSpec(spec.name, spec.datatype, tuple(int(size) for size in spec.shape), spec.optional)


def _checked_output(method: str, spec: TensorSpec, value: object) -> Array:
    """What predict or explain returned, if it is what the model declared. Nothing is cast. Raises ModelRaised."""
    if not isinstance(value, np.ndarray | np.generic):
        raise ModelRaised(f"{method} returned a {type(value).__name__} for {spec.name}; return a NumPy array")
    array: Array = np.asarray(value)
    found = datatype_of(array.dtype) or str(array.dtype)
    if found != spec.datatype:
        raise ModelRaised(f"{method} returned {spec.name} as {found}; it declared {spec.datatype}")
    fits = len(array.shape) == len(spec.shape) and all(
        declared in (DYNAMIC, size) for declared, size in zip(spec.shape, array.shape, strict=True)
    )
    if not fits:
        raise ModelRaised(
            f"{method} returned {spec.name} with shape {list(array.shape)}; it declared {list(spec.shape)}"
        )
    return _as_bytes(method, spec.name, array) if spec.datatype == "BYTES" else array


def _as_bytes(method: str, name: str, array: Array) -> Array:
    converted = np.empty(array.size, dtype=np.object_)
    for index, item in enumerate(array.ravel().tolist()):
        if not isinstance(item, bytes | str):
            raise ModelRaised(f"{method} returned a {type(item).__name__} in {name}; BYTES holds bytes or str")
        converted[index] = item.encode() if isinstance(item, str) else item
    return converted.reshape(array.shape)


def _zeros(spec: TensorSpec) -> Array:
    shape = tuple(1 if size == DYNAMIC else size for size in spec.shape)
    return (
        np.full(shape, b"", dtype=np.object_) if spec.datatype == "BYTES" else np.zeros(shape, DTYPE_OF[spec.datatype])
    )


def _names(names: object) -> str:
    listed = [str(name)[:80] for name in names] if isinstance(names, Mapping | list) else [str(names)[:80]]
    return ", ".join(listed[:8]) or "nothing"
