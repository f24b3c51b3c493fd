"""The models that the server has for the suite: what they are called, and what they compute.

The suite brings no models, since every server wants its own. It asks for two kinds, both trivial to make anywhere:

* `identity`: one input, one output, both of one datatype and shape; the output is the input. One model per datatype.
* `pair`: inputs `a` and `b`, outputs `sum` (a + b) and `difference` (a - b), all FP32.

`models.json` beside this file names them by the convention of the suite; `--models FILE` names them as a server has
them. A server without such models can be tried with `--model NAME`: that model's own metadata tell its tensors, zeros
are sent, and no values are compared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conformance.tensors import DTYPES, Array, sample, zeros

CONVENTION = Path(__file__).parent / "models.json"
ROWS = 2
"""What stands for a dimension of any size."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or an output, as the model's metadata have it: -1 is any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def shape_with(self, rows: int) -> tuple[int, ...]:
        """A shape to send."""
        first, *others = self.shape or (1,)
        return (rows if first == -1 else first, *(ROWS if size == -1 else size for size in others))


@dataclass(frozen=True, slots=True)
class Subject:
    """A model on the server."""

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    computes: str
    """`identity`, `sum and difference`, or nothing that is known."""

    @property
    def has_rows(self) -> bool:
        """Whether the first dimension may be of any size."""
        return all(tensor.shape[:1] == (-1,) for tensor in self.inputs)

    def request(self, rows: int = ROWS) -> dict[str, Array]:
        """Inputs to send."""
        make = sample if self.computes == "identity" else zeros
        arrays = {tensor.name: make(tensor.datatype, tensor.shape_with(rows)) for tensor in self.inputs}
        if self.computes == "sum and difference":
            a, b = (tensor.name for tensor in self.inputs)
            arrays[a] = arrays[a] + DTYPES["FP32"](3)
            arrays[b] = arrays[b] + DTYPES["FP32"](1)
        return arrays

    def expected(self, inputs: Mapping[str, Array]) -> dict[str, Array] | None:
        """The outputs for these inputs; None: not known."""
        if self.computes == "identity":
            return {self.outputs[0].name: inputs[self.inputs[0].name]}
        if self.computes == "sum and difference":
            a, b = (inputs[tensor.name] for tensor in self.inputs)
            return {self.outputs[0].name: a + b, self.outputs[1].name: a - b}
        return None

    def output(self, name: str) -> Tensor:
        """Raises AssertionError where the model has none of this name."""
        found = next((tensor for tensor in self.outputs if tensor.name == name), None)
        assert found, f"the answer has an output {name!r}, which the model has not"
        return found


@dataclass(frozen=True, slots=True)
class Subjects:
    """All of them."""

    identity: Mapping[str, Subject]
    """By datatype."""
    pair: Subject | None

    @classmethod
    def from_file(cls, path: Path) -> Subjects:
        """Of a descriptor: see `models.json`. A datatype without a model is null."""
        described = json.loads(path.read_text())
        pattern = described.get("identity", {})
        identity = {
            datatype: _identity(datatype, pattern.get(datatype, pattern.get("*")))
            for datatype in DTYPES
            if datatype in pattern or "*" in pattern
        }
        return cls(
            {datatype: found for datatype, found in identity.items() if found},
            _pair(described["pair"]) if described.get("pair") else None,
        )


def _identity(datatype: str, described: Mapping[str, Any] | None) -> Subject | None:
    if described is None:
        return None
    shape = tuple(described["shape"])
    return Subject(
        described["name"].format(datatype=datatype.lower()),
        (Tensor(described["input"], datatype, shape),),
        (Tensor(described["output"], datatype, shape),),
        "identity",
    )


def _pair(described: Mapping[str, Any]) -> Subject:
    shape = tuple(described["shape"])
    a, b, total, difference = (Tensor(described[which], "FP32", shape) for which in ("a", "b", "sum", "difference"))
    return Subject(described["name"], (a, b), (total, difference), "sum and difference")
