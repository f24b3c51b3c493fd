"""Several requests as one run's inputs, and one run's outputs as several answers.

Requests fit together when they name the same inputs and outputs and differ in nothing but their number of rows. The
inputs are copied once, side by side; the answers are views of the outputs.

`run_together` is what a worker thread calls. One request's error never fails its neighbours: a run that fails is made
again for each request by itself, except where the copy has died, which is for the caller to know.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np

from runtime_adapters.base import Array, Tensors
from runtime_adapters.errors import ModelCrashed, ModelRaised
from runtime_adapters.interruption import while_wanted
from runtime_adapters.workspace import RequestShape

Infer = Callable[[Tensors, Sequence[str]], dict[str, Array]]
Answer = dict[str, Array] | Exception


@dataclass(slots=True, eq=False)
class Request:
    """A request whose tensors were checked against the model's metadata."""

    inputs: Tensors
    outputs: Sequence[str]
    size_bytes: int
    deadline_s: float | None = None
    arrived_s: float = 0.0
    """When it began to wait, on the clock of its deadline."""
    priority: int = 0
    """1 before 2; 0 after all others."""
    alone: bool = False
    """It must not share a run."""
    unusual: bool = False
    """What it costs says nothing of the model's runs, and may be a thousand times as much: it wants an explanation."""
    gone: bool = False
    """Nobody waits for it any more."""
    rows: int = field(init=False)
    """0: it cannot share a run."""
    _kind: Hashable = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.rows = 0 if self.alone or not self.inputs else rows_of(self.inputs)

    @property
    def kind(self) -> Hashable:
        """Requests of the same kind fit together. Worked out when somebody asks, which is when two have met."""
        if self._kind is None:
            self._kind = kind_of(self.inputs, self.outputs)
        return self._kind


@dataclass(frozen=True, slots=True)
class Ran:
    """What came of a run: an answer for each request, in their order."""

    answers: list[Answer]
    run_s: float
    cpu_s: float
    """Of the thread that ran it."""
    broke: bool = False
    """The run of all together failed, and each was run by itself."""


def rows_of(inputs: Tensors) -> int:
    """Dimension 0 of any input; the checker has seen that all agree."""
    shape = next(iter(inputs.values())).shape
    return shape[0] if shape else 0


def kind_of(inputs: Tensors, outputs: Sequence[str]) -> Hashable:
    """Names, shapes without their rows, and what is asked for. (The dtypes are the model's own.)"""
    if len(inputs) == 1:
        ((name, array),) = inputs.items()
        return (name, array.shape[1:], outputs)
    return (tuple(sorted((name, array.shape[1:]) for name, array in inputs.items())), outputs)


def joined(requests: Sequence[Request]) -> dict[str, Array]:
    """The inputs of requests of one kind, side by side."""
    return {name: np.concatenate([request.inputs[name] for request in requests]) for name in requests[0].inputs}


def shape_of_joined(requests: Sequence[Request], size_bytes: int) -> RequestShape:
    """What their joined inputs look like."""
    rows = sum(request.rows for request in requests)
    return RequestShape(
        {name: ((rows, *array.shape[1:]), array.dtype) for name, array in requests[0].inputs.items()}, size_bytes
    )


def split(outputs: dict[str, Array], rows: Sequence[int]) -> list[dict[str, Array]]:
    """One answer for each number of rows, as views. ValueError where an output has another number of rows in all."""
    whole = sum(rows)
    for name, array in outputs.items():
        if array.ndim == 0 or len(array) != whole:
            raise ValueError(f"output {name!r} has shape {list(array.shape)} for {whole} rows")
    answers, begin = [], 0
    for count in rows:
        answers.append({name: array[begin : begin + count] for name, array in outputs.items()})
        begin += count
    return answers


def run_together(infer: Infer, requests: Sequence[Request]) -> Ran:
    """Run requests of one kind in one run, or one by itself. Raises nothing that a model can raise. Blocks."""
    began_s, cpu_began_s = time.perf_counter(), time.thread_time()
    broke = False
    answers: list[Answer]
    if len(requests) == 1:
        answers = [_alone(infer, requests[0])]
    else:
        try:
            outputs = infer(joined(requests), requests[0].outputs)
            answers = list(split(outputs, [request.rows for request in requests]))
        except ModelCrashed as crash:
            answers = [crash] * len(requests)
        except BaseException:  # of one of them, or of their number: each finds out by itself
            broke = True
            answers = [_alone(infer, request) for request in requests]
    return Ran(answers, time.perf_counter() - began_s, time.thread_time() - cpu_began_s, broke)


def aligned(inputs: Tensors) -> Tensors:
    """Views of a message's bytes may lie where no number of their type does, which frameworks do not read."""
    if all(array.flags.aligned for array in inputs.values()):
        return inputs
    return {name: array if array.flags.aligned else array.copy() for name, array in inputs.items()}


def _alone(infer: Infer, request: Request) -> Answer:
    if request.gone:
        return {}
    try:
        if not request.unusual:
            return infer(aligned(request.inputs), request.outputs)
        with while_wanted(lambda: _is_wanted(request)):
            return infer(aligned(request.inputs), request.outputs)
    except Exception as error:
        return error
    except BaseException as error:  # a model's code may call exit(); the thread has callers to answer
        return ModelRaised(f"the model's code ended with {type(error).__name__}")


def _is_wanted(request: Request) -> bool:
    return not request.gone and (request.deadline_s is None or time.monotonic() < request.deadline_s)
