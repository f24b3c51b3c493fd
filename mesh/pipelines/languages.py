"""The two languages of a pipeline's requests: tensors, as V2 has them, and JSON bodies, as V1 and KServe's router do.

Over V2 arrays go from step to step as they are (`mesh.pipelines.values`). Over V1 each model is given a body, reads
it as its own V1 request (`instances` or `inputs`, by its metadata) and answers with one (`predictions` or `outputs`);
an Ensemble's answer is an object of its steps' answers, and of a step that failed softly `{"error": ...}`, as
KServe's.

Both count what the answers of one request take together, since all of an Ensemble's are in memory at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import numpy as np

from mesh.pipelines.errors import TooMuch
from mesh.pipelines.model_calls import Answered, Asking, ModelCalls, size_bytes
from mesh.pipelines.values import Values, as_document, merged, wanted_of
from mesh.transport.base import StatusCode, TransportError
from mesh.wire.json_tensors import parse_object, to_json
from mesh.wire.v1_bodies import answer_of, arrays_of
from placement.records import ModelRecord
from runtime_adapters.base import V1_BODY, Array
from runtime_adapters.errors import BadInput

TRANSLATED_HERE_BYTES_MAX = 64 * 1024
"""More is read from JSON, and written as JSON, on a thread: 30 ms per MB."""

Body = Mapping[str, Any]
T = TypeVar("T")


JSON_ELEMENT_BYTES = 32
"""What a number or a text takes in memory as part of a JSON document, at least."""
JSON_FACTOR = 8
"""So many times its text a JSON document of short numbers takes in memory."""


class Outputs(dict[str, Array]):
    """Arrays that a step answered, as conditions tell them from a client's."""


class _Asks:
    """One request's questions to models."""

    def __init__(self, models: ModelCalls, asking: Asking, bytes_max: int) -> None:
        self._models = models
        self._asking = asking
        self._bytes_max = bytes_max
        self._bytes = 0
        self.cold = False
        """A step waited for its model to be loaded."""
        self.failed: dict[str, str] = {}
        """Steps that an Ensemble's answer lacks, and why."""

    async def _ask(self, record: ModelRecord, given: Values, outputs: tuple[str, ...]) -> Answered:
        answered = await self._models.ask(self._asking, record, given, outputs)
        self._count(sum(map(self._taken, answered.outputs.values())))
        self.cold |= answered.cold
        return answered

    def _count(self, more_bytes: int) -> None:
        self._bytes += more_bytes
        if self._bytes > self._bytes_max:
            raise TooMuch(
                f"the answers of the steps take more than {self._bytes_max} bytes, this pod's pipeline_bytes_max"
            )

    def _taken(self, array: Array) -> int:
        return size_bytes(array)


class TensorSteps(_Asks):
    """`Language` of arrays by name."""

    async def ask(self, record: ModelRecord, given: Values, outputs: tuple[str, ...]) -> Values:
        """A model's answer."""
        return Outputs((await self._ask(record, given, outputs)).outputs)

    def merged(self, answers: Mapping[str, Values], failures: Mapping[str, TransportError]) -> Values:
        """Every output under `<step>.<output>`."""
        self.failed.update({name: str(error) for name, error in failures.items()})
        return Outputs(merged(answers))

    def outputs_of_step(self, step: str, outputs: tuple[str, ...]) -> tuple[str, ...]:
        """Those that begin with the step's name."""
        return wanted_of(step, outputs)

    def as_instances(self, answer: Values) -> Values:
        """Tensors have names of their own."""
        return answer

    def document(self, value: Values) -> Any:
        """V2's JSON, with the arrays where they are."""
        return as_document("outputs" if isinstance(value, Outputs) else "inputs", value)


class JsonSteps(_Asks):
    """`Language` of V1 bodies."""

    def __init__(self, models: ModelCalls, asking: Asking, bytes_max: int, body_bytes: int) -> None:
        """`body_bytes`: of the client's own body, by which it is told how long reading takes."""
        super().__init__(models, asking, bytes_max)
        self.large = body_bytes > TRANSLATED_HERE_BYTES_MAX
        """Bodies are translated on a thread: the client's own, or a step's answer, was large."""

    async def ask(self, record: ModelRecord, given: Body, outputs: tuple[str, ...]) -> Body:
        """A model's answer."""
        metadata = await self._models.metadata(self._asking, record)
        datatypes = {spec.name: spec.datatype for spec in metadata.inputs}
        if V1_BODY in datatypes:
            return await self._read_by_the_model(record, given)
        arrays, by_row = await self._translated(partial(arrays_of, given, datatypes))
        answered = (await self._ask(record, arrays, outputs)).outputs
        self.large |= sum(map(size_bytes, answered.values())) > TRANSLATED_HERE_BYTES_MAX
        return await self._translated(partial(answer_of, answered, by_row))

    def _taken(self, array: Array) -> int:
        return size_bytes(array) + JSON_ELEMENT_BYTES * array.size

    async def _read_by_the_model(self, record: ModelRecord, given: Body) -> Body:
        body = np.array([await self._translated(partial(to_json, given))], np.object_)
        found = (await self._ask(record, {V1_BODY: body}, (V1_BODY,))).outputs.get(V1_BODY)
        if found is None or found.dtype != np.object_ or found.size != 1:
            raise TransportError(StatusCode.INTERNAL, "the model answered a V1 request, but not with one body")
        self._count(JSON_FACTOR * size_bytes(found))  # before it is that
        self.large |= size_bytes(found) > TRANSLATED_HERE_BYTES_MAX
        return await self._translated(partial(parse_object, found.item()))

    async def _translated(self, translate: Callable[[], T]) -> T:
        return await asyncio.to_thread(translate) if self.large else translate()

    def merged(self, answers: Mapping[str, Body], failures: Mapping[str, TransportError]) -> Body:
        """Every answer under its step's name."""
        return {**answers, **{name: {"error": error.message} for name, error in failures.items()}}

    def outputs_of_step(self, step: str, outputs: tuple[str, ...]) -> tuple[str, ...]:
        """V1 requests name no outputs."""
        return ()

    def as_instances(self, answer: Body) -> Body:
        """`predictions` become `instances`. Raises BadInput where there are none."""
        if "predictions" not in answer:
            raise BadInput('mapPredictionsToInstances: the answer of the step before has no "predictions"')
        return {("instances" if name == "predictions" else name): value for name, value in answer.items()}

    def document(self, value: Body) -> Any:
        """The body."""
        return value
