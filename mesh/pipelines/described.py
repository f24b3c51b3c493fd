"""What a pipeline takes and gives, out of what its models do.

Inputs are those of where a request comes first: of a Sequence its first step's; of the other three its first step's,
and those of further steps that could not be given these. Outputs are those of where an answer comes from: of a
Sequence its last step's; of an Ensemble every step's, under the step's name; of the others every step's. Optional
outputs are those that a step gives when asked by name.

Which of several models an alias stands for is decided anew by each request, so what is told here may be of another
one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace

import numpy as np

from mesh.pipelines.errors import TooMuch
from mesh.pipelines.graph import ROOT, Graph, RouterType, Step
from mesh.pipelines.registered import Pipelines
from mesh.pipelines.values import inputs_for
from placement.records import ModelRecord
from runtime_adapters.base import ModelMetadata, TensorSpec
from runtime_adapters.errors import BadInput

PLATFORM = "hexcomb_pipeline"
TENSORS_MAX = 1024
"""Inputs, or outputs, of one node: Ensembles of Ensembles multiply them."""
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
        self._pipelines_known: dict[str, ModelMetadata] = {}
        self._nodes_known: dict[tuple[str, str], ModelMetadata] = {}

    async def describe(self, record: ModelRecord, chain: tuple[str, ...] = ()) -> ModelMetadata:
        """Raises BrokenPipeline, TooMuch, and what `resolve` and `metadata_of` do."""
        chain = self._pipelines.enter(record, chain)
        if record.id not in self._pipelines_known:
            self._pipelines_known[record.id] = await self._of_node(self._pipelines.graph(record), ROOT, chain)
        return self._pipelines_known[record.id]

    async def _of_node(self, graph: Graph, name: str, chain: tuple[str, ...]) -> ModelMetadata:
        """Each node once, however many steps lead to it."""
        known = (chain[-1], name)
        if known not in self._nodes_known:
            node = graph.nodes[name]
            is_sequence = node.router is RouterType.SEQUENCE
            first = node.steps[:1] if is_sequence else node.steps
            last = node.steps[-1:] if is_sequence else node.steps
            inputs = joined([(await self._of_step(graph, step, chain)).inputs for step in first])
            outputs: dict[str, TensorSpec] = {}
            for step in last:
                for spec in (await self._of_step(graph, step, chain)).outputs:
                    shown = f"{step.name}.{spec.name}" if node.router is RouterType.ENSEMBLE else spec.name
                    outputs.setdefault(shown, replace(spec, name=shown))
            if max(len(inputs), len(outputs)) > TENSORS_MAX:
                raise TooMuch(f"node {name!r} of pipeline {chain[-1]!r} has more than {TENSORS_MAX} inputs or outputs")
            self._nodes_known[known] = ModelMetadata(PLATFORM, inputs, tuple(outputs.values()))
        return self._nodes_known[known]

    async def _of_step(self, graph: Graph, step: Step, chain: tuple[str, ...]) -> ModelMetadata:
        """What a step takes and gives."""
        if step.node:
            return await self._of_node(graph, step.node, chain)
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
