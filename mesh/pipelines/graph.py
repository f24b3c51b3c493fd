"""A graph of models as KServe's InferenceGraph says it: read, checked, and asked what a node does with a request.

    {"nodes": {"root": {"routerType": "Sequence", "steps": [
        {"serviceName": "scale"},
        {"nodeName": "by-kind", "data": "$response", "dependency": "Hard"}]},
     "by-kind": {"routerType": "Switch", "steps": [
        {"serviceName": "dogs", "condition": "predictions.#(==\\"dog\\")"}, ...]}}}

`serviceName` is what the tenant calls a model, an alias or another graph. What KServe accepts and can never work is
refused here, with the field: nodes that nobody wrote, nodes that lead back to themselves, a step of a Switch without
a condition, a condition on the first step of a Sequence (there is no answer before it).

Everything is a value; which branch a Splitter takes follows from the number that it is given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from mesh.pipelines.conditions import Condition, InvalidCondition, parse_condition
from placement.errors import InvalidName, InvalidSpec
from placement.keys import check_id

ROOT = "root"
NODES_MAX = 64
STEPS_MAX = 64
"""Of one node."""
DEPTH_MAX = 8
"""Nodes in one another: each is a few frames of the request's stack."""
OUTPUTS_MAX = 64
"""That one step asks for."""
TIMEOUT_MAX_S = 86_400.0


class RouterType(Enum):
    """What a node does with its steps."""

    SEQUENCE = "Sequence"
    SWITCH = "Switch"
    ENSEMBLE = "Ensemble"
    SPLITTER = "Splitter"


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a node: a node of the same graph, or a name that the tenant has registered."""

    name: str
    """In its node: as written, else its number, as KServe keys an Ensemble's answers."""
    node: str = ""
    service: str = ""
    takes_response: bool = False
    """`data: $response`: what the step before gave, in place of the node's request."""
    maps_predictions: bool = False
    weight: int = 0
    condition: Condition | None = None
    hard: bool = False
    """`dependency: Hard`: its failure is the node's."""
    outputs: tuple[str, ...] = ()
    """Ours, beside KServe's fields: what a model is asked for; none: what it answers by itself."""

    @property
    def target(self) -> str:
        """What it asks, in words."""
        return f"node {self.node!r}" if self.node else repr(self.service)


@dataclass(frozen=True, slots=True)
class Node:
    """One router of a graph."""

    router: RouterType
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Graph:
    """A whole graph, checked."""

    nodes: Mapping[str, Node]
    timeout_s: float | None = None

    @property
    def root(self) -> Node:
        """Where a request comes in."""
        return self.nodes[ROOT]

    @property
    def services(self) -> tuple[str, ...]:
        """Every name that a step asks, each once, in the order of writing."""
        found = {step.service: None for node in self.nodes.values() for step in node.steps if step.service}
        return tuple(found)


def parse_graph(document: Any) -> Graph:
    """A graph from its JSON. Raises InvalidSpec, naming the field, what was found and what is allowed."""
    written = _object("the graph", document, ("nodes", "timeout"))
    nodes = written.get("nodes")
    if not isinstance(nodes, Mapping) or not nodes:
        raise InvalidSpec(f"nodes is {_shown(nodes)}; it must map names to nodes, {ROOT!r} among them")
    if len(nodes) > NODES_MAX:
        raise InvalidSpec(f"nodes has {len(nodes)} entries; at most {NODES_MAX} are allowed")
    if ROOT not in nodes:
        raise InvalidSpec(f"nodes has no {ROOT!r}, where requests come in; it has {_shown(sorted(map(str, nodes)))}")
    parsed = {_node_name(name): _node(f"nodes.{name}", node) for name, node in nodes.items()}
    for name, node in parsed.items():
        for at, step in enumerate(node.steps):
            if step.node and step.node not in parsed:
                raise InvalidSpec(
                    f"nodes.{name}.steps[{at}].nodeName is {step.node!r}, which is no node of this graph; "
                    f"its nodes are {', '.join(parsed)}"
                )
    _check_ends(parsed)
    return Graph(parsed, _timeout(written.get("timeout")))


def split(node: Node, draw: float) -> Step:
    """The step of a Splitter that a request takes; `draw` in [0, 1)."""
    point = draw * sum(step.weight for step in node.steps)
    for step in node.steps:
        point -= step.weight
        if point < 0:
            return step
    return next(step for step in reversed(node.steps) if step.weight)


def _node_name(name: Any) -> str:
    try:
        check_id(name)
    except InvalidName as error:
        raise InvalidSpec(f"nodes: the name of a node: {error}") from None
    return str(name)


def _node(path: str, node: Any) -> Node:
    written = _object(path, node, ("routerType", "steps"))
    kinds = [kind.value for kind in RouterType]
    if written.get("routerType") not in kinds:
        raise InvalidSpec(f"{path}.routerType is {_shown(written.get('routerType'))}; allowed are {', '.join(kinds)}")
    router = RouterType(written["routerType"])
    steps = written.get("steps")
    if not isinstance(steps, Sequence) or isinstance(steps, str) or not 1 <= len(steps) <= STEPS_MAX:
        raise InvalidSpec(f"{path}.steps is {_shown(steps)}; it must be a list of 1 to {STEPS_MAX} steps")
    parsed = tuple(_step(f"{path}.steps[{at}]", router, at, step) for at, step in enumerate(steps))
    names: dict[str, int] = {}
    for at, each in enumerate(parsed):
        if each.name in names:
            raise InvalidSpec(
                f"{path}.steps[{at}].name is {each.name!r}, as steps[{names[each.name]}] is called; give another"
            )
        names[each.name] = at
    if router is RouterType.SPLITTER and (total := sum(step.weight for step in parsed)) != 100:
        raise InvalidSpec(f"{path}.steps: the weights of a Splitter add up to {total}; they must add up to 100")
    return Node(router, parsed)


_STEP_FIELDS = (
    "name", "nodeName", "serviceName", "serviceUrl", "data", "mapPredictionsToInstances", "weight", "condition",
    "dependency", "outputs",
)  # fmt: skip


def _step(path: str, router: RouterType, at: int, step: Any) -> Step:
    written = _object(path, step, _STEP_FIELDS)
    texts = {field: _text(f"{path}.{field}", written.get(field)) for field in _STEP_FIELDS if field not in _NO_TEXTS}
    if texts["serviceUrl"]:
        raise InvalidSpec(
            f"{path}.serviceUrl is {texts['serviceUrl'][:80]!r}: a pipeline asks what is registered in this mesh, and "
            "calls no addresses; register the model and name it in serviceName"
        )
    targets = [field for field in ("nodeName", "serviceName") if texts[field]]
    if len(targets) != 1:
        found = " and ".join(targets) or "neither"
        raise InvalidSpec(f"{path} has {found}; it must have one of nodeName and serviceName")
    for field in (*targets, *(("name",) if texts["name"] else ())):
        try:
            check_id(texts[field])
        except InvalidName as error:
            raise InvalidSpec(f"{path}.{field}: {error}") from None
    if texts["data"] not in ("", "$request", "$response"):
        raise InvalidSpec(f"{path}.data is {texts['data'][:40]!r}; allowed are $request and $response")
    if texts["dependency"] not in ("", "Soft", "Hard"):
        raise InvalidSpec(f"{path}.dependency is {texts['dependency'][:40]!r}; allowed are Soft and Hard")
    maps = written.get("mapPredictionsToInstances", False)
    if type(maps) is not bool:
        raise InvalidSpec(f"{path}.mapPredictionsToInstances is {_shown(maps)}; it must be true or false")
    return Step(
        name=texts["name"] or str(at),
        node=texts["nodeName"],
        service=texts["serviceName"],
        takes_response=texts["data"] == "$response" and at > 0,
        maps_predictions=maps,
        weight=_weight(f"{path}.weight", router, written.get("weight")),
        condition=_condition(f"{path}.condition", router, at, texts["condition"]),
        hard=texts["dependency"] == "Hard",
        outputs=_outputs(f"{path}.outputs", written.get("outputs", ())),
    )


_NO_TEXTS = ("weight", "mapPredictionsToInstances", "outputs")


def _outputs(path: str, outputs: Any) -> tuple[str, ...]:
    if not isinstance(outputs, list | tuple) or len(outputs) > OUTPUTS_MAX:
        raise InvalidSpec(f"{path} is {_shown(outputs)}; it must be a list of at most {OUTPUTS_MAX} names")
    for name in outputs:
        if not isinstance(name, str) or not name:
            raise InvalidSpec(f"{path} holds {_shown(name)}; each is the name of an output")
    return tuple(dict.fromkeys(outputs))


def _weight(path: str, router: RouterType, weight: Any) -> int:
    if router is not RouterType.SPLITTER:
        return 0
    if type(weight) is not int or not 0 <= weight <= 100:
        raise InvalidSpec(f"{path} is {_shown(weight)}; each step of a Splitter has one, a whole number from 0 to 100")
    return weight


def _condition(path: str, router: RouterType, at: int, text: str) -> Condition | None:
    if router is RouterType.SWITCH and not text:
        raise InvalidSpec(f"{path} is missing, so the Switch would never take this step; `@this` always holds")
    if not text or router in (RouterType.SPLITTER, RouterType.ENSEMBLE):
        return None
    if router is RouterType.SEQUENCE and at == 0:
        raise InvalidSpec(f"{path} is about the answer of the step before, and there is none; leave it out")
    try:
        return parse_condition(text)
    except InvalidCondition as error:
        raise InvalidSpec(f"{path} {error}") from None


def _timeout(timeout: Any) -> float | None:
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout <= TIMEOUT_MAX_S:
        raise InvalidSpec(f"timeout is {_shown(timeout)}; allowed is above 0 up to {TIMEOUT_MAX_S:.0f} seconds")
    return float(timeout)


def _check_ends(nodes: Mapping[str, Node]) -> None:
    """Raise InvalidSpec where nodes lead back to themselves, or too far."""
    deep: dict[str, int] = {}

    def walk(name: str, way: tuple[str, ...]) -> int:
        if name in way:
            circle = " -> ".join([*way[way.index(name) :], name])
            raise InvalidSpec(f"nodes.{way[-1]} leads back to {name!r} ({circle}); a request would never end")
        if len(way) >= DEPTH_MAX:
            raise InvalidSpec(
                f"nodes.{way[0]} leads through more than {DEPTH_MAX} nodes ({' -> '.join(way)} -> {name})"
            )
        if name not in deep:
            deep[name] = 1 + max((walk(each, (*way, name)) for each in _nodes_of(nodes[name])), default=0)
        if len(way) + deep[name] > DEPTH_MAX:
            raise InvalidSpec(f"nodes.{way[0]} leads through more than {DEPTH_MAX} nodes, by way of {name!r}")
        return deep[name]

    for name in nodes:
        walk(name, ())


def _nodes_of(node: Node) -> list[str]:
    return [step.node for step in node.steps if step.node]


def _object(path: str, value: Any, fields: Sequence[str]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidSpec(f"{path} is {_shown(value)}; it must be an object")
    if unknown := [name for name in value if name not in fields]:
        raise InvalidSpec(f"{path}: field {str(unknown[0])[:80]!r} does not exist; known are {', '.join(fields)}")
    return value


def _text(path: str, value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidSpec(f"{path} is {_shown(value)}; it must be text: put it in quotes")
    return value


def _shown(value: Any) -> str:
    return "missing" if value is None else repr(value)[:80]
