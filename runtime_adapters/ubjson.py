"""UBJSON as XGBoost writes it: a strict reader and a writer.

XGBoost 3.2's own reader trusts the lengths in a file: of 1,500 copies of a good model with bytes changed or cut off,
276 crashed the process. So a file is read here first, with every length held against what is left, and XGBoost sees
only bytes that one of these two functions stands for.

The grammar is what XGBoost has written since 1.6: lengths are always `L` (64 bits), objects end with `}`, arrays are
counted (`[#L`) or counted and typed (`[$d#L`). Anything else is refused rather than interpreted, because two readers
that disagree about one file are how a check is got round. For the same reason a repeated key is refused.

Deliberately absent: uncounted arrays, typed objects, `N`, `C`, `H`: no version of XGBoost writes them.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from runtime_adapters.base import Array

DEPTH_MAX = 24
"""An XGBoost model nests eight deep; XGBoost's reader recurses without a limit."""

_ARRAY_DTYPES: dict[int, np.dtype[Any]] = {
    ord("d"): np.dtype(">f4"),
    ord("D"): np.dtype(">f8"),
    ord("i"): np.dtype("i1"),
    ord("U"): np.dtype("u1"),
    ord("I"): np.dtype(">i2"),
    ord("l"): np.dtype(">i4"),
    ord("L"): np.dtype(">i8"),
}
_MARKERS = {dtype: marker for marker, dtype in _ARRAY_DTYPES.items()}
_SCALARS = {
    ord("d"): struct.Struct(">f"),
    ord("D"): struct.Struct(">d"),
    ord("i"): struct.Struct(">b"),
    ord("U"): struct.Struct(">B"),
    ord("I"): struct.Struct(">h"),
    ord("l"): struct.Struct(">i"),
    ord("L"): struct.Struct(">q"),
}
_LENGTH = struct.Struct(">q")
_OBJECT, _END, _ARRAY, _TYPED, _COUNTED, _STRING = (ord(mark) for mark in "{}[$#S")
_L = ord("L")
_CONSTANTS = {ord("T"): True, ord("F"): False, ord("Z"): None}


class UbjsonError(ValueError):
    """The bytes are not UBJSON of XGBoost's kind; the message says where and why."""


def read(data: bytes) -> dict[str, Any]:
    """The document: dicts, lists, strings, numbers; typed arrays as NumPy views of `data`. Raises UbjsonError."""
    try:
        if not data or data[0] != _OBJECT:
            raise UbjsonError("it does not begin with an object")
        document, end = _read_object(data, 1, 0)
    except (IndexError, struct.error) as error:
        raise UbjsonError("it ends in the middle of a value") from error
    except UnicodeDecodeError as error:
        raise UbjsonError(f"a string is not UTF-8 at byte {error.start}") from error
    if end != len(data):
        raise UbjsonError(f"{len(data) - end:,} bytes follow the end of the document")
    return document


def _read_length(data: bytes, at: int) -> int:
    if data[at] != _L:
        raise UbjsonError(f"byte {at:,}: a length must be marked L, found {chr(data[at])!r}")
    (length,) = _LENGTH.unpack_from(data, at + 1)
    # No element is shorter than a byte, so a count can never exceed the bytes that are left.
    if not 0 <= length <= len(data) - at - 9:
        raise UbjsonError(f"byte {at:,}: length {length:,} with {len(data) - at - 9:,} bytes left")
    return int(length)


def _read_string(data: bytes, at: int) -> tuple[str, int]:
    start = at + 9
    end = start + _read_length(data, at)
    return data[start:end].decode(), end


def _read_object(data: bytes, at: int, depth: int) -> tuple[dict[str, Any], int]:
    if depth > DEPTH_MAX:
        raise UbjsonError(f"byte {at:,}: nested more than {DEPTH_MAX} deep")
    found: dict[str, Any] = {}
    while data[at] != _END:
        key, at = _read_string(data, at)
        if key in found:
            raise UbjsonError(f"byte {at:,}: the key {key[:40]!r} occurs twice")
        found[key], at = _read_value(data, at, depth)
    return found, at + 1


def _read_value(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    marker = data[at]
    if marker == _ARRAY:
        return _read_array(data, at + 1, depth + 1)
    if marker == _STRING:
        return _read_string(data, at + 1)
    if marker == _OBJECT:
        return _read_object(data, at + 1, depth + 1)
    scalar = _SCALARS.get(marker)
    if scalar is not None:
        return scalar.unpack_from(data, at + 1)[0], at + 1 + scalar.size
    if marker in _CONSTANTS:
        return _CONSTANTS[marker], at + 1
    raise UbjsonError(f"byte {at:,}: unknown marker {chr(marker)!r}")


def _read_array(data: bytes, at: int, depth: int) -> tuple[Array | list[Any], int]:
    if depth > DEPTH_MAX:
        raise UbjsonError(f"byte {at:,}: nested more than {DEPTH_MAX} deep")
    if data[at] == _TYPED:
        dtype = _ARRAY_DTYPES.get(data[at + 1])
        if dtype is None or data[at + 2] != _COUNTED:
            raise UbjsonError(f"byte {at:,}: a typed array of {chr(data[at + 1])!r} is not known")
        count = _read_length(data, at + 3)
        start = at + 12
        end = start + count * dtype.itemsize
        if end > len(data):
            raise UbjsonError(f"byte {at:,}: {count:,} elements of {dtype.itemsize} bytes, {len(data) - start:,} left")
        return np.frombuffer(data, dtype, count, start), end
    if data[at] != _COUNTED:
        raise UbjsonError(f"byte {at:,}: an array must say its count")
    count = _read_length(data, at + 1)
    at += 10
    items: list[Any] = []
    for _ in range(count):
        item, at = _read_value(data, at, depth)
        items.append(item)
    return items, at


def write(document: Mapping[str, Any]) -> bytes:
    """The bytes that XGBoost reads back as `document`. NumPy arrays become typed arrays; ints are 64 bits wide."""
    parts: list[bytes] = []
    _write_value(document, parts)
    return b"".join(parts)


def _write_text(text: str, parts: list[bytes]) -> None:
    encoded = text.encode()
    parts += (b"L", _LENGTH.pack(len(encoded)), encoded)


def _write_value(value: Any, parts: list[bytes]) -> None:
    if isinstance(value, Mapping):
        parts.append(b"{")
        for key, item in value.items():
            _write_text(key, parts)
            _write_value(item, parts)
        parts.append(b"}")
    elif isinstance(value, np.ndarray):
        dtype = value.dtype.newbyteorder(">")
        parts += (b"[$", bytes([_MARKERS[dtype]]), b"#L", _LENGTH.pack(len(value)), value.astype(dtype).tobytes())
    elif isinstance(value, list):
        parts += (b"[#L", _LENGTH.pack(len(value)))
        for item in value:
            _write_value(item, parts)
    elif isinstance(value, str):
        parts.append(b"S")
        _write_text(value, parts)
    elif value is None:
        parts.append(b"Z")
    elif isinstance(value, bool):
        parts.append(b"T" if value else b"F")
    elif isinstance(value, int):
        parts += (b"L", _LENGTH.pack(value))
    elif isinstance(value, float):
        parts += (b"d", struct.pack(">f", value))
    else:
        raise TypeError(f"{type(value).__name__} has no UBJSON form")
