"""What a pipeline takes and gives, out of what its models do.

Inputs are those of where a request comes first: of a Sequence its first step's; of the other three its first step's,
and those of further steps that could not be given these. Outputs are those of where an answer comes from: of a
Sequence its last step's; of an Ensemble every step's, under the step's name; of the others every step's. Optional
outputs are those that a step gives when asked by name.

Which of several models an alias stands for is decided anew by each request, so what is told here may be of another
one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace

import numpy as np

from mesh.pipelines.graph import ROOT, Graph, RouterType, Step
from mesh.pipelines.registered import Pipelines
from mesh.pipelines.values import inputs_for
from placement.records import ModelRecord
from runtime_adapters.base import ModelMetadata, TensorSpec
from runtime_adapters.errors import BadInput

PLATFORM = "hexcomb_pipeline"
_NOTHING = np.empty(0)


class Describing:
    """Describes one pipeline, for one call."""

    def __init__(
        self,
        pipelines: Pipelines,
        resolve: Callable[[str], Awaitable[ModelRecord]],
        metadata_of: Callable[[ModelRecord], Awaitable[ModelMetadata]],
    ) -> None:
        """`metadata_of`: a model's, which may have to be loaded for it."""
        self._pipelines = pipelines
        self._resolve = resolve
        self._metadata_of = metadata_of

    async def describe(self, record: ModelRecord, chain: tuple[str, ...] = ()) -> ModelMetadata:
        """Raises BrokenPipeline, and what `resolve` and `metadata_of` do."""
        chain = self._pipelines.enter(record, chain)
        graph = self._pipelines.graph(record)
        inputs, outputs = await asyncio.gather(self._inputs(graph, ROOT, chain), self._outputs(graph, ROOT, chain))
        return ModelMetadata(PLATFORM, inputs, outputs)

    async def _inputs(self, graph: Graph, name: str, chain: tuple[str, ...]) -> tuple[TensorSpec, ...]:
        node = graph.nodes[name]
        first = node.steps[:1] if node.router is RouterType.SEQUENCE else node.steps
        return joined([(await self._of_step(graph, step, chain)).inputs for step in first])

    async def _outputs(self, graph: Graph, name: str, chain: tuple[str, ...]) -> tuple[TensorSpec, ...]:
        node = graph.nodes[name]
        last = node.steps[-1:] if node.router is RouterType.SEQUENCE else node.steps
        found: dict[str, TensorSpec] = {}
        for step in last:
            for spec in (await self._of_step(graph, step, chain)).outputs:
                name = f"{step.name}.{spec.name}" if node.router is RouterType.ENSEMBLE else spec.name
                found.setdefault(name, replace(spec, name=name))
        return tuple(found.values())

    async def _of_step(self, graph: Graph, step: Step, chain: tuple[str, ...]) -> ModelMetadata:
        """What a step takes and gives."""
        if step.node:
            inputs = await self._inputs(graph, step.node, chain)
            return ModelMetadata(PLATFORM, inputs, await self._outputs(graph, step.node, chain))
        record = await self._resolve(step.service)
        if not record.spec.has_copies:
            return await self.describe(record, chain)
        found = await self._metadata_of(record)
        if not step.outputs:
            return found
        asked = tuple(replace(spec, optional=False) for spec in found.outputs if spec.name in step.outputs)
        return replace(found, outputs=asked)


def joined(of_steps: Iterable[tuple[TensorSpec, ...]]) -> tuple[TensorSpec, ...]:
    """What a request has to hold for each of several steps."""
    found: dict[str, TensorSpec] = {}
    for takes in of_steps:
        try:
            inputs_for(dict.fromkeys(found, _NOTHING), takes)
            fits = bool(found)
        except BadInput:
            fits = False
        if not fits or any(spec.name in found for spec in takes):
            for spec in takes:
                found.setdefault(spec.name, spec)
    return tuple(found.values())
