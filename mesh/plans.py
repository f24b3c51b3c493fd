"""How one kind of request goes through one copy: worked out from the first of its kind, then followed.

What a request asks of a copy beside the numbers in it (which inputs under which names, in which datatypes and shapes;
whether the model takes those; which outputs) is the same for all requests of a pattern (`mesh.wire.patterns`). A plan
is the answer to these questions, kept with the copy and gone with it.

Deliberately absent: requests without a pattern, with options of their own, or for models that stream or keep sequences,
and those that a model refuses. They are read in full each time, and get their errors there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mesh.wire.errors import InvalidMessage
from mesh.wire.patterns import (
    RequestPattern,
    ResponsePattern,
    TensorHole,
    has_pattern,
    request_pattern,
    response_pattern,
)
from mesh.wire.peek import peek
from mesh.wire.request_options import NO_OPTIONS
from mesh.wire.tensors import decode_request, encode_response
from runtime_adapters.base import Array, is_explanation
from runtime_adapters.errors import BadInput
from runtime_adapters.validation import InputChecker


@dataclass(frozen=True, slots=True)
class _Input:
    name: str
    """The model's, which may not be the client's (`any_input_name`)."""
    hole: TensorHole
    cast: np.dtype[Any] | None
    """What it is made into for the model."""


@dataclass(slots=True)
class Plan:
    """Of requests of one pattern, for one copy."""

    pattern: RequestPattern
    outputs: tuple[str, ...]
    """To ask the model for; empty: its default ones."""
    _inputs: tuple[_Input, ...]
    _model_name: str
    _model_version: str
    _response: ResponsePattern | None = None

    def inputs(self, body: bytes) -> dict[str, Array]:
        """What the model takes, from a request that matches the pattern; large tensors may lie unaligned."""
        read = self.pattern.read
        taken = {}
        for wanted in self._inputs:
            array = read(wanted.hole, body)
            if wanted.cast is not None:
                with np.errstate(over="ignore"):
                    array = array.astype(wanted.cast)
            taken[wanted.name] = array
        return taken

    def answer(self, outputs: dict[str, Array], request_id: str) -> bytes:
        """The response. Raises UnsendableOutput."""
        if self._response is not None:
            encoded = self._response.encode(outputs, request_id)
            if encoded is not None:
                return encoded
        encoded = encode_response(self._model_name, self._model_version, request_id, outputs, self.outputs)
        self._response = response_pattern(self._model_name, self._model_version, outputs, self.outputs)
        return encoded


def plan_request(checker: InputChecker, body: bytes, name: str, generation: int) -> Plan | None:
    """The plan for requests like this one, which asks for the model by `name`; None when there is none."""
    try:
        envelope = peek(body)
        if envelope.model_name != name or envelope.model_version not in ("", str(generation)):
            return None
        if not has_pattern(body, envelope):
            return None
        request = decode_request(body, envelope, aligned=False)
        if request.options != NO_OPTIONS or not checker.answers_once:
            return None
        pattern = request_pattern(body, envelope, request)
        if pattern is None:
            return None
        checked = checker.check(request.tensors, request.datatypes)
        outputs = checker.check_outputs(request.outputs)
        if any(map(is_explanation, outputs)):
            return None  # it takes longer than the model's runs, and must not hold up the loop
    except (InvalidMessage, BadInput):
        return None
    if len(checked) != len(pattern.tensors):
        return None
    inputs = [
        _Input(taken, hole, None if array.dtype == hole.dtype else array.dtype)
        for (taken, array), hole in zip(checked.items(), pattern.tensors, strict=True)
    ]
    return Plan(pattern, outputs, tuple(inputs), name, str(generation))
