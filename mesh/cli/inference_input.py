"""What `hexcomb infer` sends: tensors from a V2 JSON request, a .npy array, or a .csv table.

V2 JSON names its tensors and types itself. A table has neither name nor type: it is sent under the name and the
datatype of the model's one input, which the model's metadata says; a model with several inputs needs JSON.
Numbers that would change by the conversion (2.5 for an INT64 input) are refused, not rounded.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime_adapters.datatypes import DTYPE_OF, datatype_of

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class InputTensor:
    """One tensor to send."""

    name: str
    datatype: str
    values: Array


@dataclass(frozen=True, slots=True)
class InputRequest:
    """Either named tensors (from JSON), or one table that still needs a name."""

    tensors: tuple[InputTensor, ...] = ()
    table: Array | None = None
    outputs: tuple[str, ...] = ()
    id: str = ""


def read_input(source: str, content: bytes) -> InputRequest:
    """`source` is the file's name, or `-`: its ending says what the bytes are. Raises ValueError with a sentence."""
    if not content.strip():
        raise ValueError(
            f"--input: {'standard input' if source == '-' else source} is empty; give V2 JSON, .npy or .csv"
        )
    ending = Path(source).suffix.lower()
    if ending == ".npy" or content.startswith(b"\x93NUMPY"):
        return InputRequest(table=_read_npy(content))
    if ending == ".csv" or (ending != ".json" and content.lstrip()[:1] not in (b"{", b"[")):
        return InputRequest(table=_read_csv(content))
    return _read_json(content)


def name_table(table: Array, name: str, datatype: str) -> InputTensor:
    """The table as the model's one input."""
    dtype = DTYPE_OF[datatype]
    if datatype == "BYTES":
        values = np.array([str(cell).encode() for cell in table.ravel()], np.object_).reshape(table.shape)
        return InputTensor(name, datatype, values)
    if table.dtype.kind not in "biuf":
        texts = ((at, str(cell)) for at, cell in np.ndenumerate(table) if not _all_numbers([str(cell)]))
        at, cell = next(texts, ((), ""))
        where = f" ({cell[:40]!r} in row {at[0] + 1}, column {at[-1] + 1})" if at else ""
        raise ValueError(f"--input: the table holds text{where}, but input {name!r} takes {datatype}")
    if dtype.kind in "iub":
        with np.errstate(all="ignore"):
            converted = table.astype(dtype)
        if not np.array_equal(converted, table):
            raise ValueError(f"--input: the table holds numbers that are no {datatype}, which input {name!r} takes")
        return InputTensor(name, datatype, converted)
    return InputTensor(name, datatype, table.astype(dtype))


def _read_npy(content: bytes) -> Array:
    try:
        loaded: Array = np.load(io.BytesIO(content), allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"--input: not a .npy array of numbers or text ({error})") from error
    return loaded


def _read_csv(content: bytes) -> Array:
    rows = [row for row in csv.reader(io.StringIO(content.decode("utf-8-sig"))) if row]
    if len(rows) > 1 and not _all_numbers(rows[0]) and (_all_numbers(rows[1]) or len(rows[0]) == len(rows[1]) == 1):
        rows = rows[1:]  # a line of headings
    widths = {len(row) for row in rows}
    if len(widths) != 1:
        raise ValueError(f"--input: the .csv has rows of {min(widths)} to {max(widths)} fields; all must have as many")
    if all(_all_numbers(row) for row in rows):
        return np.array([[float(cell or "nan") for cell in row] for row in rows], np.float64)
    return np.array(rows, np.str_)


def _all_numbers(row: Sequence[str]) -> bool:
    try:
        for cell in row:
            float(cell or "nan")
    except ValueError:
        return False
    return True


def _read_json(content: bytes) -> InputRequest:
    try:
        request = json.loads(content)
    except ValueError as error:
        raise ValueError(f"--input: not JSON: {error}") from error
    if not isinstance(request, dict) or not isinstance(request.get("inputs"), list) or not request["inputs"]:
        raise ValueError('--input: a V2 request has "inputs": [{"name", "shape", "datatype", "data"}, ...]')
    tensors = tuple(_tensor(index, tensor) for index, tensor in enumerate(request["inputs"]))
    outputs = tuple(str(output["name"]) for output in request.get("outputs") or ())
    return InputRequest(tensors, None, outputs, str(request.get("id", "")))


def _tensor(index: int, tensor: Any) -> InputTensor:
    where = f"--input: inputs[{index}]"
    if not isinstance(tensor, dict):
        raise ValueError(f"{where} is not an object")
    if missing := [field for field in ("name", "shape", "datatype", "data") if field not in tensor]:
        raise ValueError(f"{where}: {missing[0]} is missing; a tensor has name, shape, datatype and data")
    name, shape, datatype = tensor["name"], tensor["shape"], tensor["datatype"]
    dtype = DTYPE_OF.get(datatype)
    if dtype is None:
        raise ValueError(f"{where} ({name!r}): datatype {datatype!r} is not known; known are {', '.join(DTYPE_OF)}")
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"{where} ({name!r}): shape is {shape!r}; it must be a list of whole numbers from 0")
    flat = _flatten(tensor["data"])
    count = int(np.prod(shape, dtype=np.int64))
    if len(flat) != count:
        raise ValueError(f"{where} ({name!r}): shape {shape} has {count} elements, data has {len(flat)}")
    try:
        if datatype == "BYTES":
            values = np.empty(count, np.object_)
            values[:] = [str(element).encode() for element in flat]
        else:
            values = np.array(flat, dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{where} ({name!r}): data does not fit {datatype}: {error}") from error
    return InputTensor(str(name), datatype, values.reshape(shape))


def _flatten(data: Any) -> list[Any]:
    if not isinstance(data, list):
        return [data]
    flat: list[Any] = []
    for element in data:
        if isinstance(element, list):
            flat.extend(_flatten(element))
        else:
            flat.append(element)
    return flat


def to_v2_json(outputs: dict[str, Array]) -> list[dict[str, Any]]:
    """Output tensors as the V2 JSON shows them."""
    return [
        {
            "name": name,
            "datatype": datatype_of(values.dtype) or str(values.dtype),
            "shape": list(values.shape),
            "data": [_plain(value) for value in values.ravel().tolist()],
        }
        for name, values in outputs.items()
    ]


def _plain(value: Any) -> Any:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
