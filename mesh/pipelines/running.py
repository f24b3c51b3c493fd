"""A request's way through a graph.

    Sequence   one step after another; a step's condition is asked of the answer before it, and where it does not
               hold the Sequence ends with that answer
    Switch     the first step whose condition holds of the request; where none does: NoBranch
    Ensemble   all steps at once, their answers under the steps' names
    Splitter   one step, by weight

A failure of a `Hard` step is its node's, at once: an Ensemble's other steps are cancelled. A `Soft` one (as in
KServe, what says nothing is soft) is left out of an Ensemble's answer, and is its node's if nothing is left; in a
Sequence it is the node's where its answer is needed, by a step that takes it, by a condition, or because it is the
last. KServe hands the error's body on instead, and the next model refuses that; here the client hears what went wrong
first.

What a request and an answer are, tensors or JSON, and how a model is asked, is a `Language`. Whoever cancels the
request cancels every step of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from mesh.endpoint.status import as_transport_error
from mesh.pipelines.conditions import Looks, TooMuchToLookAt
from mesh.pipelines.errors import NoBranch, TooMuch
from mesh.pipelines.graph import ROOT, Graph, Node, RouterType, Step, split
from mesh.pipelines.registered import Pipelines
from mesh.running import TooLate
from mesh.transport.base import TransportError
from placement.records import ModelRecord
from runtime_adapters.errors import BadInput

V = TypeVar("V")


class Language(Protocol[V]):
    """What goes from step to step."""

    async def ask(self, record: ModelRecord, given: V, outputs: tuple[str, ...]) -> V:
        """A model's answer. `outputs`: those that it is asked for; none: what it answers by itself."""

    def merged(self, answers: Mapping[str, V], failures: Mapping[str, TransportError]) -> V:
        """The answer of an Ensemble; at least one step has answered."""

    def outputs_of_step(self, step: str, outputs: tuple[str, ...]) -> tuple[str, ...]:
        """What one step of an Ensemble is asked for, where these are asked of the Ensemble."""

    def as_instances(self, answer: V) -> V:
        """`mapPredictionsToInstances`: an answer as a request."""

    def document(self, value: V) -> Any:
        """What conditions look at."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in a request's way a node is."""

    graph: Graph
    chain: tuple[str, ...]
    node: str


class Run(Generic[V]):
    """One request. Belongs to the event loop."""

    def __init__(
        self,
        pipelines: Pipelines,
        resolve: Callable[[str], Awaitable[ModelRecord]],
        language: Language[V],
        draw: Callable[[], float],
        steps_max: int,
    ) -> None:
        """`resolve`: what a step's name stands for. `draw`: in [0, 1), for Splitters. `steps_max`: those that one
        request may take."""
        self._pipelines = pipelines
        self._resolve = resolve
        self._language = language
        self._draw = draw
        self._steps_max = steps_max
        self._steps = 0
        self._looks = Looks()

    async def pipeline(self, record: ModelRecord, given: V, outputs: tuple[str, ...], chain: tuple[str, ...] = ()) -> V:
        """The answer of a pipeline. Raises BrokenPipeline, NoBranch, BadInput, TooLate, and TransportError for what a
        step failed with, saying which."""
        chain = self._pipelines.enter(record, chain)
        graph = self._pipelines.graph(record)
        within = asyncio.timeout(graph.timeout_s)
        try:
            async with within:
                return await self._node(_Place(graph, chain, ROOT), given, outputs)
        except TimeoutError as error:
            if not within.expired():
                raise
            raise TooLate(f"pipeline {record.id!r} took longer than its timeout, {graph.timeout_s:g} s") from error

    async def _node(self, place: _Place, given: V, outputs: tuple[str, ...]) -> V:
        node = place.graph.nodes[place.node]
        match node.router:
            case RouterType.SPLITTER:
                return await self._step(place, split(node, self._draw()), given, outputs)
            case RouterType.SWITCH:
                return await self._step(place, self._branch(place, node, given), given, outputs)
            case RouterType.ENSEMBLE:
                return await self._ensemble(place, node, given, outputs)
            case RouterType.SEQUENCE:
                return await self._sequence(place, node, given, outputs)

    def _branch(self, place: _Place, node: Node, given: V) -> Step:
        document = self._language.document(given)
        for step in node.steps:
            if self._holds(place, step, document):
                return step
        raise NoBranch(
            f"{_where(place)}: none of the routes matched with the switch condition: "
            + ", ".join(repr(step.condition.text) for step in node.steps[:8] if step.condition is not None)
        )

    async def _sequence(self, place: _Place, node: Node, given: V, outputs: tuple[str, ...]) -> V:
        answer: V | None = None
        failure: TransportError | None = None
        for at, step in enumerate(node.steps):
            if failure is not None and (step.takes_response or step.condition is not None):
                raise failure
            if step.condition is not None:
                assert answer is not None, "a Sequence's first step has no condition"
                if not self._holds(place, step, self._language.document(answer)):
                    return answer
            request = given
            if step.takes_response:
                assert answer is not None, "a Sequence's first step takes the request"
                request = self._language.as_instances(answer) if step.maps_predictions else answer
            is_last = at == len(node.steps) - 1
            failure = None
            try:
                answer = await self._step(place, step, request, outputs if is_last else ())
            except TransportError as error:
                if step.hard:
                    raise
                failure = error
        if failure is not None:
            raise failure
        assert answer is not None, "a node has at least one step"
        return answer

    async def _ensemble(self, place: _Place, node: Node, given: V, outputs: tuple[str, ...]) -> V:
        tasks = {
            step.name: asyncio.ensure_future(
                self._step(place, step, given, self._language.outputs_of_step(step.name, outputs))
            )
            for step in node.steps
        }
        try:
            left = set(tasks.values())
            while left:
                _, left = await asyncio.wait(left, return_when=asyncio.FIRST_EXCEPTION)
                for step in node.steps:
                    task = tasks[step.name]
                    error = task.exception() if task.done() else None
                    if error is not None and (step.hard or not isinstance(error, TransportError)):
                        raise error
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)
        failures = {
            name: error for name, task in tasks.items() if isinstance(error := task.exception(), TransportError)
        }
        if len(failures) == len(tasks):
            raise next(iter(failures.values()))
        return self._language.merged(
            {name: task.result() for name, task in tasks.items() if name not in failures}, failures
        )

    async def _step(self, place: _Place, step: Step, given: V, outputs: tuple[str, ...]) -> V:
        outputs = outputs or step.outputs
        self._steps += 1
        try:
            if self._steps > self._steps_max:
                raise TooMuch(f"the request takes more than {self._steps_max} steps, this pod's pipeline_steps_max")
            if step.node:
                return await self._node(_Place(place.graph, place.chain, step.node), given, outputs)
            record = await self._resolve(step.service)
            if not record.spec.has_copies:
                return await self.pipeline(record, given, outputs, place.chain)
            return await self._language.ask(record, given, outputs)
        except TooMuch:
            raise  # nobody's soft failure: what is left of the request would be too much, too
        except Exception as error:
            known = as_transport_error(error)
            if known is None:
                raise
            said = f"{_where(place)}, step {step.name!r} ({step.target}): {known.message}"
            raise TransportError(known.status, said, known.retry_after_s) from error

    def _holds(self, place: _Place, step: Step, document: Any) -> bool:
        if step.condition is None:
            return False
        try:
            return step.condition.holds(document, self._looks)
        except TooMuchToLookAt as error:
            raise BadInput(
                f"{_where(place)}, step {step.name!r}, condition {step.condition.text!r}: {error}"
            ) from error


def _where(place: _Place) -> str:
    return f"pipeline {place.chain[-1]!r}, node {place.node!r}"
