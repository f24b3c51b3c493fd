"""Bodies of REST: a good request in JSON, the outputs of an answer, an error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.conformance.asking import Heard
from tests.conformance.subjects import Subject
from tests.conformance.tensors import Array, from_elements, to_json


def document(subject: Subject, inputs: Mapping[str, Array] | None = None, **fields: Any) -> dict[str, Any]:
    """A good request."""
    datatypes = {tensor.name: tensor.datatype for tensor in subject.inputs}
    return {
        "inputs": [
            {
                "name": name,
                "datatype": datatypes[name],
                "shape": list(array.shape),
                "data": to_json(datatypes[name], array),
            }
            for name, array in (subject.request() if inputs is None else inputs).items()
        ],
        **fields,
    }


def outputs_of(answer: Mapping[str, Any]) -> dict[str, tuple[str, Array]]:
    """Datatype and array by name. Raises AssertionError where the answer contradicts itself."""
    found: dict[str, tuple[str, Array]] = {}
    for output in answer["outputs"]:
        name, datatype, shape = output["name"], output["datatype"], tuple(output["shape"])
        assert name not in found, f"output {name!r} is there twice"
        data = output.get("data")
        assert isinstance(data, list), f"output {name!r} has no data, but {str(output)[:160]}"
        while any(isinstance(each, list) for each in data):
            data = [element for each in data for element in each]
        found[name] = (datatype, from_elements(datatype, shape, data))
    return found


def check_error(heard: Heard) -> None:
    """An HTTP error, with a text under `error`. Raises AssertionError."""
    assert 400 <= heard.code < 600, f"HTTP {heard.code}: {heard.body[:160]!r}"
    error = heard.json.get("error") if isinstance(heard.json, dict) else None
    assert isinstance(error, str), f"HTTP {heard.code} without an error's text: {heard.body[:160]!r}"
    assert error, f"HTTP {heard.code} with an empty error"
