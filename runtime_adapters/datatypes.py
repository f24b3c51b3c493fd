"""The V2 protocol's datatypes and the NumPy dtypes that stand for them, one to one.

BYTES is an object array whose elements are `bytes`. BF16 has no NumPy dtype of its own; `ml_dtypes` supplies one.
Source of the names: the Open Inference Protocol's tensor data types.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

DTYPE_OF: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(np.object_),
}

DATATYPE_OF: dict[np.dtype[Any], str] = {dtype: name for name, dtype in DTYPE_OF.items()}


def datatype_of(dtype: np.dtype[Any]) -> str | None:
    """The V2 name of a NumPy dtype; None where the protocol has none (complex, datetime, structured)."""
    if dtype.kind in "SU":
        return "BYTES"
    return DATATYPE_OF.get(dtype.newbyteorder("="))
