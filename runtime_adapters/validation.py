"""Do a request's tensors fit the model? Asked once per request, answered before any framework sees them.

A loaded model's metadata is constant, so the questions are compiled once into an `InputChecker` and each request
pays for comparisons only: about a microsecond for one input. The error path may take its time: it names the tensor,
what was found and what is allowed, because that sentence is all that the client's author gets.

Two conveniences, for tabular models only (`any_input_name`): one required input is taken under whatever name the
client sent, and numbers of another type are cast to the model's. Any float or integer becomes a float type (FP64 ->
FP32 rounds, as the framework's own `predict` would); an integer becomes another integer type only where none of
its values can change. Every other model gets exactly what it declares.

Deliberately absent: a look at the values. What a framework refuses (NaN, an unknown category) it refuses itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from runtime_adapters.base import DYNAMIC, Array, ModelMetadata, Tensors, TensorSpec
from runtime_adapters.datatypes import DTYPE_OF, datatype_of
from runtime_adapters.errors import BadArtifact, BadInput

_NAMES_SHOWN_MAX = 8
_NAME_CHARS_MAX = 80


class InputChecker:
    """The questions of one model's metadata, compiled. Immutable, so threads share it."""

    __slots__ = ("_by_name", "_metadata", "_output_names", "_required_names", "_sole_required")

    def __init__(self, metadata: ModelMetadata) -> None:
        self._metadata = metadata
        self._by_name = {spec.name: _CompiledInput(spec) for spec in metadata.inputs}
        self._required_names = frozenset(spec.name for spec in metadata.inputs if not spec.optional)
        self._sole_required = None
        if metadata.any_input_name and len(self._required_names) == 1:
            (self._sole_required,) = self._required_names
        self._output_names = frozenset(spec.name for spec in metadata.outputs)

    @property
    def answers_once(self) -> bool:
        """Whether a request has one answer, which depends on nothing but its inputs."""
        return not self._metadata.decoupled and not self._metadata.sequences

    def check(self, inputs: Tensors, datatypes: Mapping[str, str]) -> dict[str, Array]:
        """The inputs under the model's names and in its dtypes. Raises BadInput.

        `datatypes` is what the request declared; it must agree with each array (the decoder made it from that).
        """
        for name, array in inputs.items():
            declared = datatypes.get(name)
            if declared is not None and DTYPE_OF.get(declared) != array.dtype:
                raise BadInput(
                    f"input {_quoted(name)}: declared as {_quoted(declared)}, but decoded as {_datatype_name(array)}; "
                    f"allowed datatypes are {', '.join(DTYPE_OF)}"
                )
        return self.check_arrays(inputs)

    def check_arrays(self, inputs: Tensors) -> dict[str, Array]:
        """As `check`, where the arrays' dtypes are the only declaration."""
        if self._metadata.unchecked:
            return dict(inputs)
        checked: dict[str, Array] = {}
        batch_rows = -1
        for name, array in inputs.items():
            compiled = self._by_name.get(name)
            if compiled is None:
                compiled = self._under_another_name(name, inputs)
            if array.dtype != compiled.dtype:
                array = self._cast(compiled, array)
            shape = array.shape
            if len(shape) != compiled.rank:
                raise compiled.wrong_shape(shape)
            for axis, size in compiled.fixed:
                if shape[axis] != size:
                    raise compiled.wrong_shape(shape)
            if self._metadata.batch_dimension:
                if batch_rows < 0:
                    batch_rows = shape[0]
                elif shape[0] != batch_rows:
                    raise self._uneven_batch(inputs)
            checked[compiled.name] = array
        if not self._required_names <= checked.keys():
            raise self._missing(checked)
        return checked

    def check_outputs(self, requested: Sequence[str]) -> tuple[str, ...]:
        """The requested outputs, each once. Raises BadInput for a name that the model does not have."""
        for name in requested:
            if name not in self._output_names and not self._metadata.unchecked:
                raise BadInput(
                    f"output {_quoted(name)}: the model has none of that name; it has {_shown(self._output_names)}"
                )
        return tuple(dict.fromkeys(requested))

    def _under_another_name(self, name: str, inputs: Tensors) -> _CompiledInput:
        sole = self._sole_required
        if sole is not None and sole not in inputs:
            strangers = [given for given in inputs if given not in self._by_name]
            if len(strangers) == 1:
                return self._by_name[sole]
            raise BadInput(
                f"inputs {_shown(strangers)}: the model takes one required input, {_quoted(sole)}, under any name; "
                f"{len(strangers)} were sent; send one"
            )
        raise BadInput(f"input {_quoted(name)}: the model has none of that name; it takes {_shown(self._by_name)}")

    def _cast(self, compiled: _CompiledInput, array: Array) -> Array:
        if self._metadata.any_input_name and compiled.accepts(array.dtype):
            with np.errstate(over="ignore"):
                return array.astype(compiled.dtype)
        allowed = compiled.datatype
        if self._metadata.any_input_name and compiled.dtype.kind == "f":
            allowed += " (or any other float or integer datatype, which is cast)"
        raise BadInput(f"input {_quoted(compiled.name)}: datatype {_datatype_name(array)} found, {allowed} allowed")

    def _uneven_batch(self, inputs: Tensors) -> BadInput:
        rows = ", ".join(f"{_quoted(name)} has {array.shape[0] if array.ndim else 0}" for name, array in inputs.items())
        return BadInput(f"inputs differ in their number of rows (dimension 0): {rows}; send the same number in each")

    def _missing(self, checked: Mapping[str, Array]) -> BadInput:
        missing = [
            f"{_quoted(spec.name)} ({spec.datatype}, shape {list(spec.shape)})"
            for spec in self._metadata.inputs
            if not spec.optional and spec.name not in checked
        ]
        return BadInput(f"required input missing: {', '.join(missing[:_NAMES_SHOWN_MAX])}; found {_shown(checked)}")


def check_inputs(metadata: ModelMetadata, inputs: Tensors, datatypes: Mapping[str, str]) -> dict[str, Array]:
    """`InputChecker.check` for a caller that runs once. Keep an `InputChecker` per loaded model otherwise."""
    return InputChecker(metadata).check(inputs, datatypes)


def check_outputs(metadata: ModelMetadata, requested: Sequence[str]) -> tuple[str, ...]:
    """`InputChecker.check_outputs` for a caller that runs once."""
    return InputChecker(metadata).check_outputs(requested)


def refuse_unknown_parameters(parameters: Mapping[str, str], allowed: Sequence[str] = ()) -> None:
    """A spec's parameter that its format does not know is an error, not a surprise later. Raises BadArtifact."""
    unknown = sorted(set(parameters) - set(allowed))
    if unknown:
        takes = f"it takes {', '.join(allowed)}" if allowed else "it takes none"
        raise BadArtifact(f"parameters: this format does not know {_shown(unknown)}; {takes}; correct the spec")


def choice_parameter(parameters: Mapping[str, str], name: str, allowed: Sequence[str]) -> str | None:
    """A spec's parameter that takes one of a few words; None where it is not given. Raises BadArtifact."""
    given = parameters.get(name)
    if given is not None and given not in allowed:
        raise BadArtifact(f"parameter {name} is {given!r}; allowed are {' and '.join(allowed)}; correct the spec")
    return given


class _CompiledInput:
    """One input's questions."""

    __slots__ = ("datatype", "dtype", "fixed", "name", "rank", "shape")

    def __init__(self, spec: TensorSpec) -> None:
        self.name = spec.name
        self.datatype = spec.datatype
        self.dtype = DTYPE_OF[spec.datatype]
        self.shape = spec.shape
        self.rank = len(spec.shape)
        self.fixed = tuple((axis, size) for axis, size in enumerate(spec.shape) if size != DYNAMIC)

    def accepts(self, dtype: np.dtype[np.generic]) -> bool:
        """May an array of this dtype be cast to the model's? (The tabular convenience.)"""
        if self.dtype.kind == "f":
            return dtype.kind in "fiu" or dtype == DTYPE_OF["BF16"]
        return dtype.kind in "iu" and self.dtype.kind in "iu" and np.can_cast(dtype, self.dtype, "safe")

    def wrong_shape(self, found: tuple[int, ...]) -> BadInput:
        if len(found) != self.rank:
            why = f"{self.rank} dimensions are due"
        else:
            axis, size = next((axis, size) for axis, size in self.fixed if found[axis] != size)
            why = f"dimension {axis} must be {size}"
        return BadInput(
            f"input {_quoted(self.name)}: shape {list(found)} found, {list(self.shape)} allowed (-1: any size); {why}"
        )


def _datatype_name(array: Array) -> str:
    return datatype_of(array.dtype) or str(array.dtype)


def _quoted(name: str) -> str:
    """A client's string, bounded, so that an error never echoes a megabyte."""
    return repr(name if len(name) <= _NAME_CHARS_MAX else name[:_NAME_CHARS_MAX] + "…")


def _shown(names: Iterable[str]) -> str:
    listed = list(names)
    if not listed:
        return "nothing"
    more = f" and {len(listed) - _NAMES_SHOWN_MAX} more" if len(listed) > _NAMES_SHOWN_MAX else ""
    return ", ".join(_quoted(name) for name in sorted(listed)[:_NAMES_SHOWN_MAX]) + more
