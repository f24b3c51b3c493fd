"""The protocol's datatypes, and tensors of them as they travel: raw, typed, and in JSON.

BF16, which NumPy lacks, is held as its bits. It is not in the protocol's table, but in the extensions that Triton's
clients and servers share; the suite treats it as an extension.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

DTYPES: dict[str, Any] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    "BYTES": np.object_,
    "BF16": np.uint16,
}
OF_THE_TABLE = tuple(name for name in DTYPES if name != "BF16")
TYPED_FIELDS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""Datatypes with a typed form: all but the 16-bit floats."""
BF16_BITS = (0x0000, 0x3F80, 0xBF80, 0x7F7F, 0x0080, 0x4049)
"""0, 1, -1, the largest, the smallest normal one, about pi."""


def sample(datatype: str, shape: tuple[int, ...]) -> Array:
    """Elements that are easily damaged: limits of the datatype, signs, empty and long strings."""
    count = math.prod(shape)
    dtype = DTYPES[datatype]
    if datatype == "BYTES":
        seeds: list[Any] = [b"plain", b"", "zwölf".encode(), b"a" * 300]
    elif datatype == "BOOL":
        seeds = [True, False, False, True]
    elif datatype == "BF16":
        seeds = list(BF16_BITS)
    elif np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        seeds = [limits.max, limits.min, 1, 0, limits.max // 3]
    else:
        limits = np.finfo(dtype)
        seeds = [limits.max, limits.min, 0.5, -0.25, float(limits.tiny), 0.1]
    array = np.empty(count, dtype)
    array[:] = [seeds[index % len(seeds)] for index in range(count)]
    return array.reshape(shape)


def zeros(datatype: str, shape: tuple[int, ...]) -> Array:
    """Of a model whose inputs mean something that nobody told."""
    array = np.zeros(shape, DTYPES[datatype])
    if datatype == "BYTES":
        array.reshape(-1)[:] = [b"0"] * array.size
    return array


def to_raw(datatype: str, array: Array) -> bytes:
    """Little-endian, row by row; BYTES have their length before each element."""
    if datatype == "BYTES":
        return b"".join(struct.pack("<I", len(element)) + element for element in array.reshape(-1).tolist())
    return array.astype(array.dtype.newbyteorder("<")).tobytes()


def from_raw(datatype: str, shape: tuple[int, ...], data: bytes) -> Array:
    """Raises AssertionError where the bytes are not those of such a tensor."""
    count = math.prod(shape)
    if datatype != "BYTES":
        expected = count * np.dtype(DTYPES[datatype]).itemsize
        assert len(data) == expected, f"{len(data)} raw bytes for {datatype} {list(shape)}, which takes {expected}"
        return np.frombuffer(data, DTYPES[datatype]).reshape(shape)
    elements, at = np.empty(count, np.object_), 0
    for index in range(count):
        assert at + 4 <= len(data), f"the raw BYTES end before element {index} of {count}"
        (length,) = struct.unpack_from("<I", data, at)
        elements[index] = data[at + 4 : at + 4 + length]
        at += 4 + length
    assert at == len(data), f"the raw BYTES of {count} elements end at {at} of {len(data)}"
    return elements.reshape(shape)


def from_elements(datatype: str, shape: tuple[int, ...], elements: list[Any]) -> Array:
    """Of typed contents, or of JSON. Raises AssertionError where there are not as many as the shape says."""
    count = math.prod(shape)
    assert len(elements) == count, f"{len(elements)} elements for {datatype} {list(shape)}, which takes {count}"
    array = np.empty(count, DTYPES[datatype])
    array[:] = [each.encode() if isinstance(each, str) else each for each in elements]
    return array.reshape(shape)


def to_elements(datatype: str, array: Array) -> list[Any]:
    """For typed contents, flat."""
    return [bool(each) if datatype == "BOOL" else each for each in array.reshape(-1).tolist()]


def to_json(datatype: str, array: Array) -> list[Any]:
    """The same for JSON, whose strings are text."""
    return [each.decode() if isinstance(each, bytes) else each for each in to_elements(datatype, array)]


def same(datatype: str, left: Array, right: Array) -> bool:
    """To the bit."""
    return left.shape == right.shape and to_raw(datatype, left) == to_raw(datatype, right)
