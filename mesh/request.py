"""A request between its front and its copy: the tensors that were read, what the model is given of them, the answer.

Fronts make `Tensors` of their messages; `checked_inputs` turns them into what the model is given, once a copy tells
what it takes. Nothing here waits, counts or knows where a model runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mesh.resident import Resident
from mesh.wire.request_options import NO_OPTIONS, RequestOptions, SequencePart
from placement.records import ModelRecord
from runtime_adapters.base import SEQUENCE_END, SEQUENCE_ID, SEQUENCE_START, Array
from runtime_adapters.errors import BadInput


@dataclass(frozen=True, slots=True)
class Tensors:
    """A request's tensors, decoded."""

    inputs: dict[str, Array]
    datatypes: dict[str, str]
    outputs: tuple[str, ...]
    size_bytes: int
    checked: bool = False
    """They are known to fit the model."""
    options: RequestOptions = NO_OPTIONS


@dataclass(frozen=True, slots=True)
class Answer:
    """What a front needs to answer: the arrays in the order to send, and who computed them."""

    outputs: dict[str, Array]
    order: tuple[str, ...]
    """The names to send, in this order; empty: all of `outputs`."""
    record: ModelRecord
    cold: bool


def checked_inputs(resident: Resident, tensors: Tensors) -> tuple[dict[str, Array], tuple[str, ...]]:
    """What the model is given, and asked for. Raises BadInput."""
    if tensors.checked:
        return tensors.inputs, tensors.outputs
    inputs = resident.checker.check(tensors.inputs, tensors.datatypes)
    if resident.model.metadata.sequences:
        inputs |= _sequence_controls(tensors.options.sequence)
    return inputs, resident.checker.check_outputs(tensors.outputs)


def _sequence_controls(sequence: SequencePart | None) -> dict[str, Array]:
    if sequence is None:
        raise BadInput("this model keeps sequences: say which one by the request's parameter sequence_id")
    return {
        SEQUENCE_ID: np.array([sequence.id.encode()], np.object_),
        SEQUENCE_START: np.array([sequence.start]),
        SEQUENCE_END: np.array([sequence.end]),
    }
