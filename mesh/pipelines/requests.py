"""Requests to pipelines, for every front: answered, described, counted.

A pipeline's request counts once under the pipeline's own name and the format `pipeline`, and each of its steps as a
request to its model.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from mesh.generations import key_of
from mesh.pipelines.described import Describing
from mesh.pipelines.languages import Body, JsonSteps, TensorSteps
from mesh.pipelines.model_calls import Asking, ModelCalls
from mesh.pipelines.registered import Pipelines
from mesh.pipelines.running import Run
from mesh.pipelines.values import chosen
from mesh.request import Tensors
from mesh.telemetry import Telemetry
from mesh.transport.base import Call
from mesh.wire.request_options import NO_OPTIONS, RequestOptions
from placement.records import PIPELINE_FORMAT, ModelRecord
from runtime_adapters.base import Array, ModelMetadata

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one request."""

    steps_max: int
    bytes_max: int
    """Of the answers of its steps together."""


@dataclass(frozen=True, slots=True)
class PipelineAnswer:
    """What a front needs to answer."""

    outputs: dict[str, Array]
    cold: bool
    """A step waited for its model to be loaded."""
    failed: dict[str, str]
    """Steps that the answer lacks, since they failed softly, and why."""


@dataclass(frozen=True, slots=True)
class Predicted:
    """What V1 answers. `cold`: a step waited for its model to be loaded; `large`: the body is written on a thread."""

    body: Body
    cold: bool
    large: bool


class PipelineRequests:
    """One per pod; belongs to the event loop."""

    def __init__(
        self,
        pipelines: Pipelines,
        models: ModelCalls,
        telemetry: Telemetry,
        code_of: Callable[[Exception], str],
        draw: Callable[[], float],
        limits: Limits,
    ) -> None:
        """`draw`, in [0, 1), is for Splitters."""
        self._pipelines = pipelines
        self._models = models
        self._telemetry = telemetry
        self._code_of = code_of
        self._draw = draw
        self._limits = limits

    async def infer(self, call: Call, tenant: str, record: ModelRecord, tensors: Tensors) -> PipelineAnswer:
        """A request of tensors. Raises as `mesh.pipelines.running.Run.pipeline`."""
        language = TensorSteps(self._models, _asking(call, tenant, tensors.options), self._limits.bytes_max)
        run = Run(self._pipelines, self._resolving(tenant), language, self._draw, self._limits.steps_max)

        async def answer() -> PipelineAnswer:
            outputs = await run.pipeline(record, tensors.inputs, tensors.outputs)
            return PipelineAnswer(chosen(outputs, tensors.outputs), language.cold, language.failed)

        return await self._counted(record, answer, lambda: language.cold)

    async def predict(self, call: Call, tenant: str, record: ModelRecord, body: Body, body_bytes: int) -> Predicted:
        """A request in JSON, as V1 has it. Raises as `mesh.pipelines.running.Run.pipeline`."""
        language = JsonSteps(self._models, _asking(call, tenant, NO_OPTIONS), self._limits.bytes_max, body_bytes)
        run = Run(self._pipelines, self._resolving(tenant), language, self._draw, self._limits.steps_max)

        async def answer() -> Predicted:
            found = await run.pipeline(record, body, ())
            return Predicted(found, language.cold, language.large)

        return await self._counted(record, answer, lambda: language.cold)

    async def metadata(self, call: Call, tenant: str, record: ModelRecord) -> ModelMetadata:
        """What a pipeline takes and gives; models that tell it are loaded the first time."""
        asking = _asking(call, tenant, NO_OPTIONS)

        async def metadata_of(model: ModelRecord) -> ModelMetadata:
            return await self._models.metadata(asking, model)

        return await Describing(self._pipelines, self._resolving(tenant), metadata_of).describe(record)

    def _resolving(self, tenant: str) -> Callable[[str], Awaitable[ModelRecord]]:
        async def resolve(name: str) -> ModelRecord:
            return await self._models.resolve(tenant, name)

        return resolve

    async def _counted(self, record: ModelRecord, answer: Callable[[], Awaitable[T]], cold: Callable[[], bool]) -> T:
        began = time.perf_counter()
        tally = self._telemetry.tallies.of(key_of(record))
        meter = self._telemetry.meter(PIPELINE_FORMAT, record.tenant, record.id)
        try:
            answered = await answer()
        except Exception as error:
            ended = time.perf_counter()
            tally.failed(ended - began, ended)
            meter.failed(self._code_of(error))
            raise
        ended = time.perf_counter()
        tally.ran(0.0, ended - began, 1, 1)
        tally.answered(ended - began, ended, 0.0)
        meter.answered(ended - began, cold=cold())
        return answered


def _asking(call: Call, tenant: str, options: RequestOptions) -> Asking:
    deadline_s = call.deadline_s
    if options.timeout_s:
        ends_s = time.monotonic() + options.timeout_s
        deadline_s = ends_s if deadline_s is None else min(deadline_s, ends_s)
    return Asking(call, tenant, deadline_s, options)
