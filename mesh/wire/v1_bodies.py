"""Bodies of the V1 protocol as tensors, and tensors as such bodies.

A V1 request says neither names nor datatypes, so both come from the model's metadata:

* `instances`: one element for each row. A row is the value of the model's first input (its others are
  then those that it can do without), or an object of its inputs.
* `inputs`: whole tensors; an object of the model's inputs, or the value of its first one.
* Predictions are rows in the same manner: plain where the model has one output, else an object of its outputs.
* Bytes are text, or `{"b64": "..."}`: in an answer those that are no text.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from mesh.wire.errors import InvalidMessage
from mesh.wire.json_tensors import elements_as_array, json_from_array
from mesh.wire.tensors import RANK_MAX
from runtime_adapters.base import Array

Inputs = Mapping[str, str]
"""Name -> datatype."""


def arrays_of(body: Mapping[str, Any], inputs: Inputs) -> tuple[dict[str, Array], bool]:
    """The model's inputs, and whether they came by row. Raises InvalidMessage."""
    by_row = "instances" in body
    if by_row == ("inputs" in body):
        found = ", ".join(json.dumps(name[:40]) for name in list(body)[:8]) or "no field"
        raise InvalidMessage(
            f'the body must have either "instances" (rows) or "inputs" (whole tensors), and not both; found {found}'
        )
    if by_row:
        rows = body["instances"]
        if not isinstance(rows, list) or not rows:
            raise InvalidMessage('"instances" must be an array of at least one row')
        if all(_is_named(row) for row in rows):
            if any(row.keys() != rows[0].keys() for row in rows):
                raise InvalidMessage('"instances" must name the same inputs in each row')
            return _named({name: [row[name] for row in rows] for name in rows[0]}, inputs), True
        return {(first := _first(inputs)): nested_array(first, inputs[first], rows)}, True
    whole = body["inputs"]
    if _is_named(whole):
        return _named(whole, inputs), False
    return {(first := _first(inputs)): nested_array(first, inputs[first], whole)}, False


def answer_of(answered: Mapping[str, Array], by_row: bool, word: str = "predictions") -> dict[str, Any]:
    """The answer's body; `word`: for its rows. Raises InvalidMessage."""
    outputs = {name: _nested(name, array) for name, array in answered.items()}
    if not by_row:
        return {"outputs": outputs if len(outputs) > 1 else next(iter(outputs.values()), [])}
    if len(outputs) == 1:
        return {word: next(iter(outputs.values()))}
    if len({len(value) if isinstance(value, list) else -1 for value in outputs.values()}) != 1:
        raise InvalidMessage('the model\'s outputs have not a row each; ask with "inputs" in place of "instances"')
    return {word: [dict(zip(outputs, row, strict=True)) for row in zip(*outputs.values(), strict=True)]}


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() != {"b64"}


def _first(inputs: Inputs) -> str:
    if not inputs:
        raise InvalidMessage("the model tells of no input; say which one is meant: an object by name")
    return next(iter(inputs))


def _named(values: Mapping[str, Any], inputs: Inputs) -> dict[str, Array]:
    if unknown := [name for name in values if name not in inputs]:
        raise InvalidMessage(f"the model has no input {unknown[0]!r}; it has: {', '.join(inputs)}")
    return {name: nested_array(name, inputs[name], value) for name, value in values.items()}


def nested_array(name: str, datatype: str, value: Any) -> Array:
    """Of any shape: V1 says none, so the nesting does. Raises InvalidMessage."""
    shape: list[int] = []
    level = [value]
    while level and all(type(each) is list for each in level):
        sizes = {len(each) for each in level}
        if len(shape) == RANK_MAX:
            raise InvalidMessage(f"tensor {name!r}: more than {RANK_MAX} arrays in one another")
        if len(sizes) > 1:
            raise InvalidMessage(f"tensor {name!r}: its rows are of different lengths")
        shape.append(sizes.pop())
        level = [element for each in level for element in each]
    if any(type(each) is list for each in level):
        raise InvalidMessage(f"tensor {name!r}: an array beside a plain element on one level")
    if datatype == "BYTES" and any(type(each) is dict for each in level):
        array = np.empty(len(level), np.object_)
        array[:] = [_bytes_of(name, each) for each in level]
        return array.reshape(shape)
    return elements_as_array(name, datatype, level).reshape(shape)


def _bytes_of(name: str, element: Any) -> bytes:
    try:
        return element.encode() if isinstance(element, str) else base64.b64decode(element["b64"], validate=True)
    except (TypeError, KeyError, ValueError) as error:
        raise InvalidMessage(f'tensor {name!r}: an element is neither text nor {{"b64": "..."}}') from error


def _nested(name: str, array: Array) -> Any:
    elements = np.empty(array.size, np.object_)
    is_bytes = array.dtype == np.object_
    elements[:] = [text_or_base64(each) for each in array.flat] if is_bytes else json_from_array(name, array)
    return elements.reshape(array.shape).tolist()


def text_or_base64(element: bytes) -> str | dict[str, str]:
    """An element of BYTES in JSON."""
    try:
        return element.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(element).decode()}
