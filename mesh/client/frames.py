"""Rows of a pandas DataFrame as a model's tensors, and a model's answers as a DataFrame.

What a frame becomes is decided by the model's own metadata, in this order:

1. a column named as an input is that input's tensor: [n], or [n, 1], or [n, ...] where each cell holds an array;
2. all other columns together, in their order, are the matrix [n, F] of the model's input of rank 2, where there is one;
   of several the first, if that is the model's first input: optional ones stand after it. It takes all columns if it is
   as wide as the frame, unless each is named as an input.

Whatever fits neither is refused before it is sent, and the error names column, input and what both are. Values are
cast to the input's datatype only where no value changes its meaning: numbers and booleans to numbers, whole numbers to
whole numbers that hold them, text to BYTES. What is missing (None, NaN, pd.NA) is NaN to a floating-point input and an
error to all others. FP32 holds 24 bits of a number: that is the model's own choice, so it is no error.

Models say nothing of the order of their features, so columns stand in the order in which the model was trained.

pandas is optional; it is imported when a frame is made, and by whoever passes one.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import ml_dtypes
import numpy as np
from cachetools import LRUCache

from mesh.client import operations
from mesh.client.errors import InvalidRequest
from mesh.client.operations import Parameters
from mesh.client.procedures import Procedure
from mesh.transport.base import StatusCode
from runtime_adapters.datatypes import DTYPE_OF

if TYPE_CHECKING:
    import pandas as pd

    from mesh.wire.generated.inference_pb2 import ModelMetadataResponse

INSTALL = "pip install 'hexcomb[pandas]'"
SIGNATURES_MAX = 10_000
"""Models whose inputs a client remembers: those that it was asked for last."""
_SHOWN = 5
_Array = np.ndarray[Any, Any]


class InputSpec(NamedTuple):
    """What the metadata says of one input; -1 is a dimension of any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name!r} {self.datatype} {list(self.shape)}"


Signature = tuple[InputSpec, ...]


class Signatures:
    """The inputs of models that were asked for before. May be used from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: LRUCache[tuple[str, str], Signature] = LRUCache(SIGNATURES_MAX)

    def get(self, model: str, version: str) -> Signature | None:
        """None: not known."""
        with self._lock:
            return self._known.get((model, version))

    def put(self, model: str, version: str, metadata: ModelMetadataResponse) -> Signature:
        """Keep what a model said."""
        found = tuple(InputSpec(each.name, each.datatype, tuple(each.shape)) for each in metadata.inputs)
        with self._lock:
            self._known[model, version] = found
        return found


def infer_frame(
    signatures: Signatures,
    model: str,
    frame: pd.DataFrame,
    outputs: Sequence[str],
    version: str,
    parameters: Parameters | None,
    rows_per_call: int | None,
) -> Procedure[pd.DataFrame]:
    """Ask a model about the rows of a frame. A model that takes other inputs than it did is asked once more."""
    if not _is_frame(frame):
        raise _refused(f"expected a pandas DataFrame, found {type(frame).__name__}; `infer` takes arrays by name")
    if rows_per_call is not None and rows_per_call < 1:
        raise ValueError(f"rows_per_call is {rows_per_call}; it must be at least 1")
    known = signatures.get(model, version)
    signature = known
    if signature is None:
        signature = signatures.put(model, version, (yield operations.model_metadata(model, version)))
    answers: list[pd.DataFrame] = []
    step = rows_per_call or max(len(frame), 1)
    for first in range(0, max(len(frame), 1), step):
        rows = frame.iloc[first : first + step]
        try:
            result = yield operations.infer(model, tensors_of(rows, signature), outputs, version, "", parameters)
        except InvalidRequest:
            if known is None or answers:
                raise
            signature = signatures.put(model, version, (yield operations.model_metadata(model, version)))
            if signature == known:
                raise
            result = yield operations.infer(model, tensors_of(rows, signature), outputs, version, "", parameters)
        answers.append(frame_of(result.outputs, rows.index))
    if len(answers) == 1:
        return answers[0]
    import pandas as pd

    return pd.concat(answers)


def tensors_of(frame: pd.DataFrame, inputs: Sequence[InputSpec]) -> dict[str, _Array]:
    """A frame as these inputs. Raises InvalidRequest."""
    columns = list(frame.columns)
    specs = {spec.name: spec for spec in inputs}
    matrix = _matrix_of(inputs)
    takes_all = matrix is not None and _width(matrix) == len(columns) and not set(columns) <= set(specs)
    beside = [] if takes_all else [name for name in columns if name in specs]
    if matrix is not None and matrix.name in beside:
        matrix = None
    rest = [position for position, name in enumerate(columns) if name not in beside]
    if len(set(beside)) < len(beside):
        raise _refused(f"columns {_named(beside)} have a name twice; an input takes one column")
    tensors = {name: _column(frame[name], specs[name]) for name in beside}
    if rest:
        if matrix is None:
            takes = ", ".join(map(str, inputs)) or "nothing"
            raise _refused(
                f"columns {_named([columns[position] for position in rest])} are no inputs of the model, and it has no "
                f"matrix for them; it takes {takes}"
            )
        if _width(matrix) not in (-1, len(rest)):
            raise _refused(
                f"input {matrix} takes {_width(matrix)} columns, the frame has {len(rest)} for it: "
                f"{_named([columns[position] for position in rest])}"
            )
        series = [_cast(frame.iloc[:, position], matrix) for position in rest]
        tensors[matrix.name] = np.stack(series, axis=1)
        _check_rows(matrix, len(frame))
    if not tensors:
        raise _refused("the frame has no columns")
    return tensors


def frame_of(outputs: dict[str, _Array], index: pd.Index[Any] | None = None) -> pd.DataFrame:
    """Answers as a frame: [n] and [n, 1] are a column, [n, k] are k, called NAME_0, NAME_1, ...; of [n, ...] each cell
    holds an array. Text is decoded where it is UTF-8. The frame is its own: it keeps no view of the answer.

    Raises InvalidRequest when outputs are not one row per row, ImportError without pandas.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError(f"a DataFrame needs pandas: {INSTALL}") from error
    columns: dict[str, Any] = {}
    rows: int | None = None if index is None else len(index)
    for name, array in outputs.items():
        if array.ndim == 0 or (rows is not None and len(array) != rows):
            wanted = "a row for each row" if rows is None else f"{rows} rows, one for each row"
            raise _refused(f"output {name!r} has shape {list(array.shape)}, not {wanted}; ask with `infer`")
        rows = len(array)
        for heading, values in _columns_of(name, array):
            if heading in columns:
                raise _refused(f"two outputs make a column {heading!r}; ask for them one by one, or with `infer`")
            columns[heading] = values
    return pd.DataFrame(columns, index=index)


def _columns_of(name: str, array: _Array) -> list[tuple[str, Any]]:
    if array.ndim == 2 and array.shape[1] != 1:
        return [(f"{name}_{place}", _values(array[:, place])) for place in range(array.shape[1])]
    if array.ndim > 2:
        cells = np.empty(len(array), np.object_)
        for row, cell in enumerate(array):
            cells[row] = cell.copy()
        return [(name, cells)]
    return [(name, _values(array.reshape(-1)))]


def _values(array: _Array) -> _Array | list[str]:
    if array.dtype == ml_dtypes.bfloat16:
        return array.astype(np.float32)  # pandas knows no other form of it
    if array.dtype != np.object_:
        return array.copy()
    try:
        return [element if isinstance(element, str) else element.decode() for element in array.tolist()]
    except UnicodeDecodeError:
        return array.copy()


def _matrix_of(inputs: Sequence[InputSpec]) -> InputSpec | None:
    """The input that takes columns that are no inputs by themselves; None where that would be a guess."""
    flat = [spec for spec in inputs if len(spec.shape) == 2 and (_width(spec) != 1 or len(inputs) == 1)]
    return flat[0] if flat and (len(flat) == 1 or flat[0] is inputs[0]) else None


def _width(spec: InputSpec) -> int:
    return spec.shape[1]


def _column(series: pd.Series[Any], spec: InputSpec) -> _Array:
    _check_rows(spec, len(series))
    if len(spec.shape) == 1:
        return _cast(series, spec)
    if spec.shape[1:] == (1,):
        return _cast(series, spec).reshape(-1, 1)
    try:
        cells = [np.asarray(cell) for cell in series]
        stacked = np.stack(cells) if cells else np.empty((0, *(max(size, 0) for size in spec.shape[1:])))
    except ValueError as error:
        raise _refused(f"column {series.name!r}: its cells must be arrays of one shape for input {spec}") from error
    if stacked.ndim != len(spec.shape) or any(
        wanted not in (-1, size) for wanted, size in zip(spec.shape[1:], stacked.shape[1:], strict=True)
    ):
        raise _refused(
            f"column {series.name!r}: its cells have shape {list(stacked.shape[1:])}, input {spec} takes others"
        )
    import pandas as pd

    return _cast(pd.Series(stacked.reshape(-1), name=series.name), spec).reshape(stacked.shape)


def _check_rows(spec: InputSpec, rows: int) -> None:
    if not spec.shape:
        raise _refused(f"input {spec} takes a single value, not a column")
    if spec.shape[0] not in (-1, rows):
        raise _refused(f"input {spec} takes {spec.shape[0]} rows at a time, the frame has {rows}")


def _cast(series: pd.Series[Any], spec: InputSpec) -> _Array:
    """A column in an input's datatype, if no value changes its meaning by that."""
    import pandas as pd

    target = DTYPE_OF.get(spec.datatype)
    where = f"column {series.name!r} ({series.dtype}) for input {spec}"
    if target is None:
        raise _refused(f"{where}: its datatype is not known here; ask with `infer`")
    if isinstance(series.dtype, pd.CategoricalDtype):
        if spec.datatype != "BYTES":
            raise _refused(f"{where}: categories are no numbers; send the codes that the model was trained with")
        series = series.astype(series.dtype.categories.dtype)
    missing = series.isna()
    if bool(missing.any()) and target.kind != "f" and spec.datatype != "BF16":
        first = int(np.argmax(missing.to_numpy()))
        raise _refused(
            f"{where}: the value of row {series.index[first]!r} is missing, which only floating-point inputs can say"
        )
    if spec.datatype == "BYTES":
        return _texts(series, where)
    if not (pd.api.types.is_numeric_dtype(series.dtype) or pd.api.types.is_bool_dtype(series.dtype)):
        raise _refused(f"{where}: neither numbers nor booleans; convert the column first (`astype`, `pd.to_numeric`)")
    if pd.api.types.is_complex_dtype(series.dtype):
        raise _refused(f"{where}: V2 has no complex numbers")
    has_missing = bool(missing.any())
    values = series.to_numpy(dtype=np.float64, na_value=np.nan) if has_missing else _plain(series)
    with np.errstate(invalid="ignore", over="ignore"):
        cast = values.astype(target)
    if target.kind == "f" or spec.datatype == "BF16":
        beyond = np.isfinite(values) & ~np.isfinite(cast)
        if bool(beyond.any()):
            first = int(np.argmax(beyond))
            raise _refused(
                f"{where}: {values[first]} of row {series.index[first]!r} is beyond what {spec.datatype} holds"
            )
        return cast
    if target.kind == "b" and values.dtype.kind != "b":
        raise _refused(f"{where}: numbers are no booleans; compare them with something first")
    if not np.array_equal(cast, values) or (values.dtype.kind == "f" and not np.all(np.abs(values) < 2.0**63)):
        first = int(np.argmax(cast != values))
        raise _refused(
            f"{where}: {values[first]} of row {series.index[first]!r} is not a whole number that {spec.datatype} holds"
        )
    return cast


def _plain(series: pd.Series[Any]) -> _Array:
    """Without anything missing, pandas' own numbers as NumPy's."""
    numbers = getattr(series.dtype, "numpy_dtype", None)
    values: _Array = series.to_numpy(dtype=numbers if isinstance(numbers, np.dtype) else None)
    return values


def _texts(series: pd.Series[Any], where: str) -> _Array:
    cells = np.empty(len(series), np.object_)
    cells[:] = list(series)
    for row, cell in enumerate(cells):
        if not isinstance(cell, str | bytes):
            raise _refused(
                f"{where}: row {row} holds {type(cell).__name__}; BYTES takes text; convert the column first"
            )
    return cells


def _is_frame(value: Any) -> bool:
    """Without importing pandas: who has a frame has imported it."""
    return any(
        kind.__name__ == "DataFrame" and kind.__module__.partition(".")[0] == "pandas" for kind in type(value).__mro__
    )


def _named(names: Sequence[Hashable]) -> str:
    shown = ", ".join(repr(name) for name in names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown


def _refused(message: str) -> InvalidRequest:
    return InvalidRequest(message, StatusCode.INVALID_ARGUMENT)
